"""Uncertainty of the surface, and of pose and scale, which follow from it."""
from __future__ import annotations

import numba
import numpy as np

# Errors of neighbouring vertices agree; a mesh's error behaves like that of about this many independent patches.
INDEPENDENT_PATCHES = 12
_SIDE = 0.15  # of the size: what counts as one side of the box
_LEAST_LEVER = 0.005  # metres
_STD_RANGE = (0.1, 8.0)  # voxels, of what the network says


def pose_uncertainty(vertices: np.ndarray, vertex_std: np.ndarray, size: np.ndarray,
                     camera_from_object: np.ndarray) -> tuple[np.ndarray, float]:
    """Covariance of the pose and 1 sigma of the scale factor.

    vertices: (N, 3) metres, object frame; vertex_std: (N,) metres; size: (3,) metres; camera_from_object: (4, 4).
    Returns (6, 6) float64 in the order of geometry_msgs/PoseWithCovariance (x, y, z in metres, rotations about the
    camera frame's x, y, z in radians) and the scale's relative sigma.

    The origin is the middle of two opposite sides of the bounding box, each as uncertain as the surface there:
    variance (s1^2 + s2^2) / 4; their distance has variance s1^2 + s2^2.  A rotation about an axis is that of a body
    whose patches, at the root mean square distance from the axis, err independently.
    """
    sides = np.empty((3, 2))
    for axis in range(3):
        offset = vertices[:, axis] / max(size[axis], 1e-9)
        for end, near in enumerate((offset < -0.5 + _SIDE, offset > 0.5 - _SIDE)):
            sides[axis, end] = np.sqrt(np.mean(vertex_std[near] ** 2))
    side_variance = (sides ** 2).sum(axis=1)
    overall = float(np.sqrt(np.mean(vertex_std ** 2)))
    lever = np.sqrt([np.mean(np.delete(vertices, axis, axis=1) ** 2) for axis in range(3)])
    rotation_variance = (overall / np.maximum(lever, _LEAST_LEVER)) ** 2 / INDEPENDENT_PATCHES
    rotation = camera_from_object[:3, :3]
    covariance = np.zeros((6, 6))
    covariance[:3, :3] = rotation @ np.diag(side_variance / 4) @ rotation.T
    covariance[3:, 3:] = rotation @ np.diag(rotation_variance) @ rotation.T
    return covariance, float(np.sqrt(side_variance.sum()) / np.linalg.norm(size))


def voxel_std(log_std: np.ndarray, observed_share: np.ndarray, observed_std: float) -> np.ndarray:
    """(n, n, n) float32 voxels, 1 sigma of the surface where it passes each voxel.

    log_std: (n / 2, n / 2, n / 2), logarithm of what the network says, voxels; observed_share: (n, n, n) float32, how
    far the surface was observed, 0 to 1; observed_std: voxels, 1 sigma of what was.
    """
    return _voxel_std(np.clip(np.exp(log_std), *_STD_RANGE).astype(np.float32), observed_share,
                      np.float32(observed_std))


@numba.njit(nogil=True, cache=True)
def _voxel_std(told, share, observed):  # pragma: no cover (compiled)
    """`voxel_std` of the network's own (m, m, m), interpolated between the centres of its voxels."""
    n, m = len(share), len(told)
    near, far = np.float32(0.75), np.float32(0.25)
    std, rows, row = np.empty((n, n, n), np.float32), np.empty((m, m), np.float32), np.empty(m, np.float32)
    for i in range(n):
        beside = min(max(i // 2 + (1 if i % 2 else -1), 0), m - 1)
        rows[:] = near * told[i // 2] + far * told[beside]
        for j in range(n):
            beside = min(max(j // 2 + (1 if j % 2 else -1), 0), m - 1)
            row[:] = near * rows[j // 2] + far * rows[beside]
            for k in range(n):
                beside = min(max(k // 2 + (1 if k % 2 else -1), 0), m - 1)
                own = near * row[k // 2] + far * row[beside]
                std[i, j, k] = own + share[i, j, k] * (min(own, observed) - own)
    return std
