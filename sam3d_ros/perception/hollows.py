"""Fills hollows that the network predicts where the camera looks in but has no depth reading.

Polished lids send no light back to a depth camera, so that a closed tin looks like an open cup.  The inside of a real
opening gives readings.  An opening without any is closed by its convex hull, which is also the safer guess for a
gripper.  Black things give few readings anywhere, which says nothing of their hollows.
"""
from __future__ import annotations

import numba
import numpy as np
from scipy.spatial import ConvexHull, QhullError

from .cube import Cube

_LEAST_SHARE = 0.05     # of the mask's pixels that look into a hollow without a reading: fewer are edges and noise
_MOST_ELSEWHERE = 0.5   # unread pixels beside the hollows, per reading there: with more it is black, not polished
_DEEP = 4               # layers of the volume: a ray that passes so many inside the hull looks into a hollow
_HALF = np.float32(0.5)             # voxels that the hull lies outside of voxels' centres
_MARGIN = 3             # voxels around the solid in which distances are those of what it has become
_MOST_RAYS = 300


def without_unseen_hollows(distance: np.ndarray, cube: Cube, observed: np.ndarray, unread: np.ndarray) -> np.ndarray:
    """Signed distance of the solid, filled up to its convex hull if most of what its hollows show has no reading, and
    most of the rest has.

    distance: (n, n, n) float32, voxels, negative inside; observed: (P, 3) points in the cube's frame, edges; unread:
    (R, 3) directions of pixels of the mask that have no reading, camera frame, thinned out as `observed` is.
    """
    least = _LEAST_SHARE * (len(observed) + len(unread))
    inside = distance < 0
    if len(unread) <= least or not inside.any():
        return distance
    ends = _ends(inside)
    try:
        planes = ConvexHull(ends).equations.astype(np.float32)
    except QhullError:          # flat: it has no hollow
        return distance
    n, asked, read = len(distance), _one_in(unread), _one_in(observed)
    along = cube.along(unread[::asked], n).astype(np.float32)
    into_hollows = asked * _look_deep(along, planes, _layers_before(distance, along))
    seen = observed[::read]
    along = cube.along(cube.to_camera(seen), n).astype(np.float32)
    inside_read = read * _look_deep(along, planes, (seen[:, 2] + 0.5) * n - 0.5)
    read_elsewhere = len(observed) - inside_read
    if into_hollows <= max(least, inside_read) or len(unread) - into_hollows > _MOST_ELSEWHERE * read_elsewhere:
        return distance
    return _filled(distance, planes, np.maximum(ends.min(axis=0) - _MARGIN, 0),
                   np.minimum(ends.max(axis=0) + _MARGIN + 1, n))


def warm_up() -> None:
    """Compile it, with a cup of 12 voxels."""
    distance, layers = np.full((16,) * 3, 1, np.float32), np.arange(16)
    distance[2:14, 2:14, 2:14] = -1
    distance[4:12, 4:12, :12] = 1
    rays = np.stack(np.meshgrid(layers[4:12] / 32 - 0.25, layers[4:12] / 32 - 0.25, [1.0]), axis=-1).reshape(-1, 3)
    without_unseen_hollows(distance, Cube(np.eye(3), 1.0, 0.5), np.zeros((1, 3)), rays)


def _ends(inside: np.ndarray) -> np.ndarray:
    """(P, 3) first and last voxel of the solid in each row along the last axis, among which are the hull's corners."""
    rows = np.argwhere(inside.any(axis=2))
    taken = inside[tuple(rows.T)]
    last = taken.shape[1] - 1 - taken[:, ::-1].argmax(axis=1)
    return np.concatenate([np.column_stack([rows, taken.argmax(axis=1)]), np.column_stack([rows, last])])


def _one_in(rays: np.ndarray) -> int:
    """One in how many rays is enough."""
    return max(1, len(rays) // _MOST_RAYS)


def _layers_before(distance: np.ndarray, along: np.ndarray) -> np.ndarray:
    """(R,) layers that rays, (R, n, 3) voxels as of `Cube.along`, pass before they meet the solid; n if they do not."""
    n = len(distance)
    within = ((along >= 0) & (along <= n - 1)).all(axis=-1)
    index = tuple(np.where(within, np.rint(along[..., axis]).astype(int), 0) for axis in range(3))
    hits = within & (distance[index] < 0)
    return np.where(hits.any(axis=1), hits.argmax(axis=1), n).astype(float)


@numba.njit(nogil=True, cache=True)
def _look_deep(along, planes, layers):  # pragma: no cover (compiled)
    """How many rays, (R, n, 3) voxels, pass a hollow of the hull, faces (F, 4), in their first `layers` (R,)."""
    count = 0
    for ray in range(len(along)):
        passed = 0
        for layer in range(min(along.shape[1], int(np.ceil(layers[ray])))):
            passed += _to_hull(along[ray, layer, 0], along[ray, layer, 1], along[ray, layer, 2], planes, _HALF) < _HALF
        count += passed > _DEEP
    return count


@numba.njit(nogil=True, cache=True)
def _filled(distance, planes, low, high):  # pragma: no cover (compiled)
    """The distance from voxel `low` to `high`, (3,) each, of what is in the solid or in its hull, faces (F, 4)."""
    filled = distance.copy()
    for i in range(low[0], high[0]):
        for j in range(low[1], high[1]):
            for k in range(low[2], high[2]):
                enough = distance[i, j, k] + _HALF
                farthest = _to_hull(np.float32(i), np.float32(j), np.float32(k), planes, enough)
                if farthest < enough:
                    filled[i, j, k] = farthest - _HALF
    return filled


@numba.njit(nogil=True, cache=True)
def _to_hull(x, y, z, planes, enough):  # pragma: no cover (compiled)
    """Voxels from a point to the hull of voxels' centres, negative inside; `enough`, or more, if it is as much."""
    farthest = -np.float32(1e6)
    for face in range(len(planes)):
        farthest = max(farthest, planes[face, 0] * x + planes[face, 1] * y + planes[face, 2] * z + planes[face, 3])
        if farthest >= enough:
            break
    return farthest
