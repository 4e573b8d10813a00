"""The cube in which an object is completed.

The cube's axes are those of a virtual camera: the real one, turned about its centre so that its optical axis passes
through the cube's centre, and about that axis so that up in the world is up in its image.  Objects at the image's
border, and those seen by a camera on its side, then look like any other.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..runtime.signature import VOLUME
from .frame import Intrinsics, lengths, pixel_directions

# Edge of the cube and depth of its centre behind the near side, in units of the largest extent of the seen points: the
# hidden part lies behind, and mostly within, what is seen.
EDGE_PER_EXTENT = 1.35
CENTRE_PER_EXTENT = 0.475
# Points farther from the median than this many times the median distance are flying pixels or mask leaks.
OUTLIER_FACTOR = 3.5
_OUTLIER_MARGIN = 0.01  # metres
_SPAN = (1, 99)         # percentiles of the points along an axis that count as its ends
_AIMING_STEPS = 2      # of the cube's centre, which depends on the axes, which depend on the centre
_STEEP = 0.2           # sine of the angle between up and the optical axis below which the image's rows decide
NO_POINTS = np.empty((0, 3))
IMAGE_UP = np.array([0.0, -1.0, 0.0])


@dataclass(frozen=True)
class Cube:
    """A cube on the optical axis of a virtual camera that shares the camera's centre.

    virtual_from_camera: (3, 3) float64 rotation
    distance: metres from the camera to the cube's centre
    edge: metres
    """

    virtual_from_camera: np.ndarray
    distance: float
    edge: float

    @property
    def voxel(self) -> float:
        """Edge of one voxel, metres."""
        return self.edge / VOLUME

    @property
    def centre(self) -> np.ndarray:
        """(3,) metres, camera frame."""
        return self.distance * self.virtual_from_camera[2]

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """Points (N, 3) of the cube's frame (edges, origin at its centre) in the camera frame, metres."""
        return (points * self.edge + [0.0, 0.0, self.distance]) @ self.virtual_from_camera

    def from_camera(self, points: np.ndarray) -> np.ndarray:
        """Points (N, 3) of the camera frame, metres, in the cube's frame (edges, origin at its centre)."""
        return (points @ self.virtual_from_camera.T - [0.0, 0.0, self.distance]) / self.edge

    def along(self, rays: np.ndarray, n: int) -> np.ndarray:
        """(R, n, 3) voxels of an n^3 grid over the cube: where rays, (R, 3) directions in the camera frame, pass each
        of its layers, the nearest first."""
        directions = rays @ self.virtual_from_camera.T
        depths = (np.arange(n) + 0.5) / n - 0.5
        points = directions[:, None] / directions[:, 2, None, None] * (self.distance / self.edge + depths)[:, None]
        points[..., 2] -= self.distance / self.edge
        return (points + 0.5) * n - 0.5


def inlier_points(points: np.ndarray, factor: float = OUTLIER_FACTOR) -> np.ndarray:
    """Boolean (N,) of the points, (N, 3) in metres, that are near enough to their median to belong to one object.

    factor: of the median distance from the median, beyond which (and a margin of 1 cm) a point is an outlier
    """
    distance = lengths(points - np.median(points, axis=0))
    return distance < factor * np.median(distance) + _OUTLIER_MARGIN


def rotation_towards(direction: np.ndarray, up: np.ndarray = IMAGE_UP) -> np.ndarray:
    """Rotation (3, 3) virtual_from_camera that turns the optical axis to `direction`, (3,) in the camera frame, z > 0.

    The virtual camera's y axis points against `up`, (3,) unit vector in the camera frame, as far as its optical axis
    allows; along the columns of the real image where that axis is nearly parallel to `up`.
    """
    z = direction / np.linalg.norm(direction)
    x = cross(-up, z)
    if np.linalg.norm(x) < _STEEP:
        x = cross(-IMAGE_UP, z)
    x /= np.linalg.norm(x)
    return np.array([x, cross(z, x), z])


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross product of two vectors, (3,); np.cross, which is made for many, takes thirty times as long."""
    (a0, a1, a2), (b0, b1, b2) = a.tolist(), b.tolist()
    return np.array([a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0])


def fit_cube(points: np.ndarray, up: np.ndarray = IMAGE_UP, further: np.ndarray = NO_POINTS) -> Cube:
    """Cube around the object of which `points`, (N, 3) float, metres, camera frame, are seen (inliers only).

    up: (3,) unit vector against gravity in the camera frame, as far as it is known; further: (M, 3), points of the
    object that other views add
    """
    aim = np.median(points, axis=0)
    for _ in range(_AIMING_STEPS):
        rotation = rotation_towards(aim, up)
        low, high = np.percentile(points @ rotation.T, _SPAN, axis=0)
        extent = float((high - low).max())
        high[2] = low[2] + 2 * CENTRE_PER_EXTENT * extent
        if len(further):
            span = np.percentile(further @ rotation.T, _SPAN, axis=0)
            low, high = np.minimum(low, span[0]), np.maximum(high, span[1])
            extent = max(extent, float((high - low).max()))
        aim = rotation.T @ ((low + high) / 2)
    return Cube(rotation_towards(aim, up), float(np.linalg.norm(aim)), EDGE_PER_EXTENT * extent)


def fit_cube_to_mask(rows: np.ndarray, columns: np.ndarray, intrinsics: Intrinsics, up: np.ndarray = IMAGE_UP) -> Cube:
    """Cube around an object of which only the mask is known, at the scale at which its near side lies at 1 m.

    rows, columns: (N,) integer pixels of the mask; up: as in `fit_cube`.
    """
    return fit_cube(pixel_directions(intrinsics, rows, columns), up)
