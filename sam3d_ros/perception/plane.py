"""The main plane of a scene: a table, a shelf, the floor."""
from __future__ import annotations

import numba
import numpy as np

from .faults import Fault, FaultCode
from .frame import Intrinsics

BELOW = 0.01              # metres below the support, at 1 m: what is so far below it does not lie on it

_SAMPLES = 4000           # points that the plane is fitted to
_HYPOTHESES = 300         # at 30 % inliers, 3 good points are missed by all with probability 3e-4
_LEAST_POINTS = 500
_LEAST_SHARE = 0.1        # of the votes
_REFINEMENTS = 3
_CLOSEST = 0.1            # metres: nearer points count no more than at this distance


def range_factor(z: np.ndarray) -> np.ndarray:
    """How much larger depth errors are at depth z, metres, than at 1 m (and not smaller when nearer): with its square,
    as triangulation has it."""
    return np.maximum(z, 1.0) ** 2


def moved_plane(plane: np.ndarray, target_from_source: np.ndarray) -> np.ndarray:
    """A plane (4,), unit normal and offset in metres, of one frame in another; target_from_source: (4, 4)."""
    normal = target_from_source[:3, :3] @ plane[:3]
    return np.append(normal, plane[3] - normal @ target_from_source[:3, 3])


def height_by_pixel(plane: np.ndarray, k: Intrinsics) -> tuple[np.ndarray, np.ndarray]:
    """(H,), (W,) float64: height over the plane, (4,), is depth * (rows[row] + columns[column]) + plane[3]."""
    rows = plane[1] * (np.arange(k.height) - k.cy) / k.fy + plane[2]
    return rows, plane[0] * (np.arange(k.width) - k.cx) / k.fx


def fit_support_plane(points: np.ndarray, tolerance: float) -> np.ndarray:
    """The plane with most of `points` by RANSAC (Fischler and Bolles 1981), refined by least squares; near points count
    more, because a robot's table is nearer than the floor around it.

    points: (N, 3) metres, camera frame; tolerance: metres at 1 m, grows with the square of the distance
    Returns (4,) float32: unit normal n and offset d with n . p + d = 0, and d > 0: the normal points to the camera.

    Raises Fault(SUPPORT_PLANE_NOT_FOUND): too few points share a plane.
    """
    if len(points) < _LEAST_POINTS:
        raise Fault(FaultCode.SUPPORT_PLANE_NOT_FOUND)
    generator = np.random.default_rng(0)
    sample = points[generator.integers(len(points), size=_SAMPLES)].astype(np.float64)
    allowed = range_factor(sample[:, 2]) * tolerance
    corners = sample[generator.integers(_SAMPLES, size=(_HYPOTHESES, 3))]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    proper = lengths > 1e-6                       # three points in a line span no plane
    normals = normals[proper] / lengths[proper, None]
    offsets = -np.einsum("ij,ij->i", normals, corners[proper, 0])
    weights = 1 / np.maximum(sample[:, 2], _CLOSEST) ** 2
    votes = _votes(normals, offsets, np.ascontiguousarray(sample.T), allowed, weights / weights.sum())
    if not len(votes) or votes.max() < _LEAST_SHARE:
        raise Fault(FaultCode.SUPPORT_PLANE_NOT_FOUND)
    best = votes.argmax()
    normal, offset = normals[best], offsets[best]
    for _ in range(_REFINEMENTS):
        inliers = sample[np.abs(sample @ normal + offset) < allowed]
        centre = inliers.mean(axis=0)
        normal = np.linalg.svd(inliers - centre, full_matrices=False)[2][2]
        offset = -normal @ centre
    plane = np.append(normal, offset).astype(np.float32)
    return plane if offset > 0 else -plane


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})     # else the sum is not vectorised
def _votes(normals, offsets, points, allowed, weights):
    """(H,) sum of the weights (N,) of the points (3, N) that lie within `allowed` (N,) of each plane, (H, 3), (H,)."""
    votes = np.empty(len(normals))
    x, y, z = points[0], points[1], points[2]
    for plane in range(len(normals)):
        a, b, c, offset, total = normals[plane, 0], normals[plane, 1], normals[plane, 2], offsets[plane], 0.0
        for i in range(len(x)):
            total += weights[i] * (abs(a * x[i] + b * y[i] + c * z[i] + offset) < allowed[i])
        votes[plane] = total
    return votes
