"""The cube in which an object is completed.

The cube's axes are those of a virtual camera: the real one, turned about its centre so that its optical axis passes
through the median of the object's points.  An object at the image's border then looks like one in its middle.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESOLUTION = 64
# Edge of the cube and depth of its centre behind the near side, in units of the largest extent of the seen points: the
# hidden part lies behind, and mostly within, what is seen.
EDGE_PER_EXTENT = 1.35
CENTRE_PER_EXTENT = 0.475
# Points farther from the median than this many times the median distance are flying pixels or mask leaks.
OUTLIER_FACTOR = 3.5
OUTLIER_MARGIN = 0.01  # metres


@dataclass(frozen=True)
class Cube:
    """A cube in front of a virtual camera.

    virtual_from_camera: (3, 3) float64 rotation; both frames share the camera's centre
    centre: (3,) float64, metres, virtual frame
    edge: metres
    """

    virtual_from_camera: np.ndarray
    centre: np.ndarray
    edge: float

    @property
    def voxel(self) -> float:
        """Edge of one voxel, metres."""
        return self.edge / RESOLUTION


def inlier_points(points: np.ndarray, factor: float = OUTLIER_FACTOR) -> np.ndarray:
    """Boolean (N,) of the points, (N, 3) in metres, that are near enough to their median to belong to one object.

    factor: of the median distance from the median, beyond which (and a margin of 1 cm) a point is an outlier
    """
    distance = np.linalg.norm(points - np.median(points, axis=0), axis=1)
    return distance < factor * np.median(distance) + OUTLIER_MARGIN


def rotation_towards(direction: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) virtual_from_camera that turns the optical axis to `direction`, (3,) in the camera frame, z > 0.

    The virtual camera's x axis stays level with the real image's rows.
    """
    z = direction / np.linalg.norm(direction)
    x = np.cross([0.0, 1.0, 0.0], z)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z])


def fit_cube(points: np.ndarray) -> Cube:
    """Cube around the object of which `points`, (N, 3) float, metres, camera frame, are seen (inliers only)."""
    rotation = rotation_towards(np.median(points, axis=0))
    low, high = np.percentile(points @ rotation.T, [1, 99], axis=0)
    extent = float((high - low).max())
    centre = (low + high) / 2
    centre[2] = low[2] + CENTRE_PER_EXTENT * extent
    return Cube(rotation, centre, EDGE_PER_EXTENT * extent)
