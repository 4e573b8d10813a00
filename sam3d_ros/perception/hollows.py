"""A hollow into which the camera looks, but of which it has no reading, is not believed.

Polished lids send no light back to a depth camera, and what is left of a tin looks like an open cup.  An opening that
is one gives readings of its inside; one that does not is closed by what spans it, as a gripper had better see it.
"""
from __future__ import annotations

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from .cube import Cube

_LEAST_SHARE = 0.05     # of the mask's pixels that look into a hollow without a reading: fewer are edges and noise
_DEEP = 4               # layers of the volume that a ray passes within the hull where it looks into a hollow
_MARGIN = 3             # voxels around the solid in which distances are those of what it has become
_MOST_RAYS, _MOST_POINTS = 300, 4000


def without_unseen_hollows(distance: np.ndarray, cube: Cube, observed: np.ndarray, unread: np.ndarray) -> np.ndarray:
    """Signed distance of the solid, filled up to its convex hull if most of what its hollows show has no reading.

    distance: (n, n, n) float32, voxels, negative inside; observed: (P, 3) points in the cube's frame, edges; unread:
    (R, 3) directions of pixels of the mask that have no reading, camera frame, thinned out as `observed` is.
    """
    least = _LEAST_SHARE * (len(observed) + len(unread))
    inside = np.argwhere(distance < 0)
    if len(unread) <= least or not len(inside):
        return distance
    try:
        planes = ConvexHull(inside[::max(1, len(inside) // _MOST_POINTS)]).equations.astype(np.float32)
    except QhullError:          # flat: it has no hollow
        return distance
    asked, read = _share(unread), _share(observed)
    along = cube.along(unread[::asked], len(distance))
    into_hollows = asked * np.count_nonzero(_look_deep(along, planes, _layers_before(distance, along)))
    seen = observed[::read]
    along = cube.along(cube.to_camera(seen), len(distance))
    inside_read = read * np.count_nonzero(_look_deep(along, planes, (seen[:, 2] + 0.5) * len(distance) - 0.5))
    if into_hollows <= max(least, inside_read):
        return distance
    low = np.maximum(inside.min(axis=0) - _MARGIN, 0)
    filled = distance.copy()
    part = filled[tuple(slice(a, b + _MARGIN + 1) for a, b in zip(low, inside.max(axis=0), strict=True))]
    voxels = np.indices(part.shape, np.float32).reshape(3, -1).T + low.astype(np.float32)
    np.minimum(part, _to_hull(voxels, planes).reshape(part.shape), out=part)
    return filled


def _share(rays: np.ndarray) -> int:
    """One in how many rays is enough."""
    return max(1, len(rays) // _MOST_RAYS)


def _to_hull(points: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """(P,) voxels from points (P, 3) to the hull, with faces (F, 4), around voxels; negative inside."""
    return (points @ planes[:, :3].T + planes[:, 3]).max(axis=1) - 0.5      # their centres lie half a voxel inside


def _layers_before(distance: np.ndarray, along: np.ndarray) -> np.ndarray:
    """(R,) layers that rays, (R, n, 3) voxels as of `Cube.along`, pass before they meet the solid; n if they do not."""
    n = len(distance)
    within = ((along >= 0) & (along <= n - 1)).all(axis=-1)
    index = tuple(np.where(within, np.rint(along[..., axis]).astype(int), 0) for axis in range(3))
    hits = within & (distance[index] < 0)
    return np.where(hits.any(axis=1), hits.argmax(axis=1), n)


def _look_deep(along: np.ndarray, planes: np.ndarray, layers: np.ndarray) -> np.ndarray:
    """(R,) whether rays, (R, n, 3) voxels, pass a hollow of the hull in their first `layers` (R,)."""
    passed = np.arange(along.shape[1]) < layers[:, None]
    in_hollow = np.zeros(passed.shape, bool)
    in_hollow[passed] = _to_hull(along[passed], planes) < 0
    return in_hollow.sum(axis=1) > _DEEP
