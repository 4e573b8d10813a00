"""The object frame: origin at the centre of the mesh's bounding box, +Z up, +X along the longer horizontal axis."""
from __future__ import annotations

import numpy as np
from scipy.spatial import ConvexHull

from .cube import IMAGE_UP


def object_frame(vertices: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frame of a mesh.

    vertices: (N, 3) metres, camera frame; up: (3,) unit vector against gravity, camera frame.
    Returns camera_from_object (4, 4) float64 and size (3,), the extents along the object's axes in metres.  The
    horizontal axes are those of the rectangle of least area around the mesh seen from above (an edge of which lies on
    its convex hull: Freeman and Shapira 1975); +X points to the right of the image rather than to the left.
    """
    z = up / np.linalg.norm(up)
    right = np.array([1.0, 0.0, 0.0])
    a = right - z * (right @ z)
    if np.linalg.norm(a) < 0.1:  # the camera lies on its side
        a = np.cross(z, IMAGE_UP)
    a /= np.linalg.norm(a)
    b = np.cross(z, a)
    angle = _least_rectangle(vertices @ np.stack([a, b], axis=1))
    x = np.cos(angle) * a + np.sin(angle) * b
    rotation = np.stack([x, np.cross(z, x), z], axis=1)
    low, high = (vertices @ rotation).min(axis=0), (vertices @ rotation).max(axis=0)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, rotation @ ((low + high) / 2)
    return pose, high - low


def _least_rectangle(points: np.ndarray) -> float:
    """Angle, -pi/2 to pi/2, of the longer side of the least-area rectangle around points (N, 2)."""
    hull = points[ConvexHull(points).vertices]
    edges = np.roll(hull, -1, axis=0) - hull
    angles = np.arctan2(edges[:, 1], edges[:, 0])
    along = np.stack([np.cos(angles), np.sin(angles)])       # (2, E)
    across = np.stack([-along[1], along[0]])
    width, height = np.ptp(hull @ along, axis=0), np.ptp(hull @ across, axis=0)
    best = int((width * height).argmin())
    angle = angles[best] + (0 if width[best] >= height[best] else np.pi / 2)
    return float((angle + np.pi / 2) % np.pi - np.pi / 2)
