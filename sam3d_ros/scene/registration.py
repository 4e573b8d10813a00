"""Where a known shape is: its signed-distance grid fitted to depth readings.

Every reading should lie on the surface. The sum of squared distances, less of those that fit badly, is minimised over
the pose by Gauss-Newton; a prior holds the directions that the readings say nothing about (a ball's rotation).
"""
from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from .shape import Shape

ITERATIONS = 12
# Scale of the robust weights (Geman and McClure 1985), metres: wide at first, then that of honest misfits.
_SCALE_START, SCALE_END, SCALE_STEP = 0.02, 0.004, 0.6
LEAST_ERROR = 0.0004      # metres, 1 sigma of a reading's distance from the best mesh
_SETTLED = 2e-5           # metres and radians: a smaller step ends the iteration
_LONGEST_STEP = (0.03, 0.3)   # metres, radians along and about each axis: farther away the linearisation says nothing
_DAMPING = 1e-3           # added to the information, so that it can be solved for whatever is seen
_LEAST_SLOPE = 0.3        # of a signed distance, which has 1: less in the middle between two sides, where it folds
_NEAR = 2.0               # robust scales from the surface within which a reading counts as an inlier
# Errors of neighbouring readings agree, most of all where the mesh itself is wrong there: readings on a patch of this
# size count once.
_PATCH = 0.045             # metres


@dataclass(frozen=True)
class Registration:
    """Result of `register`.

    camera_from_object: (4, 4) float64
    white, systematic: (6, 6) information (inverse covariance) of the pose from the readings alone: as if their errors
        were independent, and with those that neighbours share because the mesh is wrong there, which another image does
        not average out; order x, y, z (m), rotation about the camera's x, y, z through the object's origin (rad)
    inliers: share of the readings that lie on the surface; rms: of the inliers' distances from it, metres
    """

    camera_from_object: np.ndarray
    white: np.ndarray
    systematic: np.ndarray
    inliers: float
    rms: float


def register(shape: Shape, points: np.ndarray, camera_from_object: np.ndarray, prior: np.ndarray,
             start: float = _SCALE_START) -> Registration:
    """Fit a shape to depth readings.

    points: (N, 3) metres, camera frame
    camera_from_object: (4, 4), where to start, and the mean of the prior; prior: (6, 6) its information, in the order
    of Registration.white; start: robust scale to begin with, metres
    """
    pose = np.array(camera_from_object, np.float64)
    data, figures = np.zeros((6, 6)), np.zeros(3)
    _fit(shape.distance, shape.origin, shape.cell, points, pose, np.ascontiguousarray(prior, np.float64), start, data,
         figures)
    weight, squares, near = figures
    if weight < 1:
        return Registration(pose, np.zeros((6, 6)), np.zeros((6, 6)), 0.0, np.inf)
    variance = squares / weight + LEAST_ERROR ** 2
    white = data / variance
    independent = min(weight, max(4.0, _seen_area(points) / _PATCH ** 2))
    return Registration(pose, white, white * (independent / weight), near / len(points), float(np.sqrt(variance)))


def near_share(shape: Shape, points: np.ndarray, camera_from_object: np.ndarray, within: float) -> float:
    """Share of the points (N, 3), metres, camera frame, that lie within that distance (m) of a shape's surface."""
    return float(are_near(shape, points, camera_from_object, within).mean()) if len(points) else 0.0


def are_on_backs(shape: Shape, points: np.ndarray, camera_from_object: np.ndarray) -> np.ndarray:
    """(N,) bool: which of the points (N, 3), metres, camera frame, lie at sides of a shape that face away from the
    camera."""
    return _are_on_backs(shape.distance, shape.origin, shape.cell, points, np.ascontiguousarray(camera_from_object))


def are_near(shape: Shape, points: np.ndarray, camera_from_object: np.ndarray, within: float) -> np.ndarray:
    """(N,) bool: which of the points (N, 3), metres, camera frame, lie within that distance (m) of a surface."""
    pose = np.ascontiguousarray(camera_from_object)
    return _are_near(shape.distance, shape.origin, shape.cell, points, pose, within)


def _seen_area(points: np.ndarray) -> float:
    """Rough area, m^2, over which the readings spread: that of their ellipse of two sigma in the image's plane."""
    return float(4 * np.pi * np.sqrt(max(np.linalg.det(np.cov(points[:, :2].T)), 0.0)))


@numba.njit(cache=True, nogil=True, fastmath=True, inline="always")
def _look_up(grid, x, y, z):  # pragma: no cover (compiled)
    """Distance and gradient per cell at node coordinates x, y, z; the first value tells whether these are inside."""
    i, j, k = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
    if i < 0 or j < 0 or k < 0 or i + 1 >= grid.shape[0] or j + 1 >= grid.shape[1] or k + 1 >= grid.shape[2]:
        return False, 0.0, 0.0, 0.0, 0.0
    u, v, w = x - i, y - j, z - k
    c000, c001, c010, c011 = grid[i, j, k], grid[i, j, k + 1], grid[i, j + 1, k], grid[i, j + 1, k + 1]
    c100, c101 = grid[i + 1, j, k], grid[i + 1, j, k + 1]
    c110, c111 = grid[i + 1, j + 1, k], grid[i + 1, j + 1, k + 1]
    e00, e01 = c000 + (c001 - c000) * w, c010 + (c011 - c010) * w
    e10, e11 = c100 + (c101 - c100) * w, c110 + (c111 - c110) * w
    f0, f1 = e00 + (e01 - e00) * v, e10 + (e11 - e10) * v
    gz = ((c001 - c000) * (1 - v) + (c011 - c010) * v) * (1 - u) + ((c101 - c100) * (1 - v) + (c111 - c110) * v) * u
    return True, f0 + (f1 - f0) * u, f1 - f0, (e01 - e00) * (1 - u) + (e11 - e10) * u, gz


@numba.njit(cache=True, nogil=True)
def turned(rotation, dx, dy, dz):  # pragma: no cover (compiled)
    """exp of the rotation vector, times `rotation` (3, 3)."""
    angle = np.sqrt(dx * dx + dy * dy + dz * dz)
    k = np.zeros((3, 3))
    k[0, 1], k[0, 2], k[1, 2] = -dz, dy, -dx
    k[1, 0], k[2, 0], k[2, 1] = dz, -dy, dx
    first = np.sin(angle) / angle if angle > 1e-8 else 1.0
    second = (1 - np.cos(angle)) / (angle * angle) if angle > 1e-8 else 0.5
    return (np.eye(3) + first * k + second * (k @ k)) @ rotation


@numba.njit(cache=True, nogil=True)
def rotation_vector(rotation):  # pragma: no cover (compiled)
    """(3,) rotation vector of a (3, 3) rotation by less than half a turn."""
    cosine = min(1.0, max(-1.0, (rotation[0, 0] + rotation[1, 1] + rotation[2, 2] - 1) / 2))
    angle = np.arccos(cosine)
    factor = 0.5 if angle < 1e-6 else angle / (2 * np.sin(min(angle, 3.1)))
    out = np.empty(3)
    out[0] = factor * (rotation[2, 1] - rotation[1, 2])
    out[1] = factor * (rotation[0, 2] - rotation[2, 0])
    out[2] = factor * (rotation[1, 0] - rotation[0, 1])
    return out


@numba.njit(cache=True, nogil=True, fastmath=True)
def accumulate(grid, origin, cell, points, pose, scale, hessian, gradient):  # pragma: no cover (compiled)
    """Normal equations of one shape's readings; adds to hessian (6, 6) and gradient (6,).

    Weights are relative: 1 for a reading that fits. Returns sums over the readings: weight, weighted squared distance,
    and number of those within _NEAR scales.
    """
    total = squares = near = 0.0
    row = np.empty(6)
    for index in range(len(points)):
        px, py, pz = points[index, 0] - pose[0, 3], points[index, 1] - pose[1, 3], points[index, 2] - pose[2, 3]
        x = pose[0, 0] * px + pose[1, 0] * py + pose[2, 0] * pz
        y = pose[0, 1] * px + pose[1, 1] * py + pose[2, 1] * pz
        z = pose[0, 2] * px + pose[1, 2] * py + pose[2, 2] * pz
        inside, distance, gx, gy, gz = _look_up(grid, (x - origin[0]) / cell, (y - origin[1]) / cell,
                                               (z - origin[2]) / cell)
        if not inside:
            continue
        length = np.sqrt(gx * gx + gy * gy + gz * gz)
        if length < _LEAST_SLOPE * cell:
            continue
        nx = (pose[0, 0] * gx + pose[0, 1] * gy + pose[0, 2] * gz) / length
        ny = (pose[1, 0] * gx + pose[1, 1] * gy + pose[1, 2] * gz) / length
        nz = (pose[2, 0] * gx + pose[2, 1] * gy + pose[2, 2] * gz) / length
        ratio = distance / scale
        weight = 1 / (1 + ratio * ratio) ** 2
        row[0], row[1], row[2] = nx, ny, nz
        row[3], row[4], row[5] = py * nz - pz * ny, pz * nx - px * nz, px * ny - py * nx
        for a in range(6):
            for b in range(6):
                hessian[a, b] += weight * row[a] * row[b]
            gradient[a] += weight * row[a] * distance
        total += weight
        squares += weight * distance * distance
        if abs(distance) < _NEAR * scale:
            near += 1
    return total, squares, near


@numba.njit(cache=True, nogil=True)
def _fit(grid, origin, cell, points, pose, prior, start, data, figures):  # pragma: no cover (compiled)
    """Move `pose` (4, 4) to where the readings (N, 3) lie on the surface, as far as the prior allows; fills in `data`
    (6, 6), the Hessian of the readings alone at the last step, and `figures` (3,), the sums of `accumulate` there."""
    mean = pose.copy()
    scale = start
    for _ in range(ITERATIONS):
        data[:] = 0
        gradient = np.zeros(6)
        total, squares, near = accumulate(grid, origin, cell, points, pose, scale, data, gradient)
        figures[0], figures[1], figures[2] = total, squares, near
        variance = (squares / total if total > 0 else 1.0) + LEAST_ERROR ** 2
        off = np.empty(6)
        off[:3] = pose[:3, 3] - mean[:3, 3]
        off[3:] = rotation_vector(np.ascontiguousarray(pose[:3, :3]) @ np.ascontiguousarray(mean[:3, :3].T))
        step = np.linalg.solve(data / variance + prior + _DAMPING * np.eye(6),
                               gradient / variance - prior @ off)
        for axis in range(3):
            step[axis] = min(_LONGEST_STEP[0], max(-_LONGEST_STEP[0], step[axis]))
            step[3 + axis] = min(_LONGEST_STEP[1], max(-_LONGEST_STEP[1], step[3 + axis]))
        pose[:3, 3] += step[:3]
        pose[:3, :3] = turned(np.ascontiguousarray(pose[:3, :3]), step[3], step[4], step[5])
        if scale <= SCALE_END and np.abs(step).max() < _SETTLED:
            break
        scale = max(SCALE_END, scale * SCALE_STEP)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _cell_of(point, pose, origin, cell):  # pragma: no cover (compiled)
    """Place of a point (3,), camera frame, in cells of the grid of a shape at `pose` (4, 4)."""
    px, py, pz = point[0] - pose[0, 3], point[1] - pose[1, 3], point[2] - pose[2, 3]
    return ((pose[0, 0] * px + pose[1, 0] * py + pose[2, 0] * pz - origin[0]) / cell,
            (pose[0, 1] * px + pose[1, 1] * py + pose[2, 1] * pz - origin[1]) / cell,
            (pose[0, 2] * px + pose[1, 2] * py + pose[2, 2] * pz - origin[2]) / cell)


@numba.njit(cache=True, nogil=True)
def _are_on_backs(grid, origin, cell, points, pose):  # pragma: no cover (compiled)
    """(N,) bool: at which of the points (N, 3), camera frame, the signed distance from the surface at `pose` (4, 4)
    rises away from the camera."""
    behind, rotation = np.zeros(len(points), np.bool_), np.ascontiguousarray(pose[:3, :3])
    for index in range(len(points)):
        x, y, z = _cell_of(points[index], pose, origin, cell)
        inside, _, gx, gy, gz = _look_up(grid, x, y, z)
        sight = points[index] @ rotation
        behind[index] = inside and gx * sight[0] + gy * sight[1] + gz * sight[2] > 0
    return behind


@numba.njit(cache=True, nogil=True, fastmath=True)
def _are_near(grid, origin, cell, points, pose, within):  # pragma: no cover (compiled)
    """(N,) bool: which of the points (N, 3), camera frame, are nearer than `within` metres to the surface at `pose`."""
    near = np.zeros(len(points), np.bool_)
    for index in range(len(points)):
        x, y, z = _cell_of(points[index], pose, origin, cell)
        inside, distance, _, _, _ = _look_up(grid, x, y, z)
        near[index] = inside and abs(distance) < within
    return near
