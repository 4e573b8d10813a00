"""The plane that the objects of a frame stand on."""
from __future__ import annotations

import numpy as np

from .faults import Fault
from .frame import Frame, back_project, thinning_step
from .plane import BELOW, fit_support_plane, range_factor

_PIXELS = 30_000                # of the image, which are enough to find the plane in
_PLANE_POINTS = 6000
_PLANE_REACH = 0.35             # metres around the objects: their support, not the room
_PLANE_TOLERANCE = 0.006        # metres at 1 m
_LEVEL = np.cos(np.deg2rad(25))  # cosine between up and the normal of what can be a support
_LEAST_ABOVE = 0.2              # share of an object's points: below, it is as flat as what it lies on
ON_SUPPORT = 0.003              # metres above the support: a reading nearer than this may be the support's
_MOST_PLANES = 3                # that are tried, the largest first: two walls may be larger than the table before them


def support_plane(frame: Frame) -> np.ndarray | None:
    """Plane under the objects, (4,): unit normal, up, and offset in metres, camera frame; None if unknown.

    It is fitted to the depth around the objects, without walls, and what is above all objects, where gravity is known,
    and is what the frame says of it where none is seen.  Without depth nothing has a size yet, and the plane serves to
    find it.
    """
    if frame.depth is None or not frame.instances:
        return None
    given = given_plane(frame)
    step = thinning_step(frame.depth.size, _PIXELS)
    depth, labels = frame.depth[::step, ::step], frame.labels[::step, ::step]
    own = np.isin(labels, [i.label for i in frame.instances]) & (depth > 0)
    rows, columns = np.nonzero((labels == 0) & (depth > 0))
    own_rows, own_columns = np.nonzero(own)
    if not len(own_rows):
        return given
    points = back_project(frame.depth, frame.intrinsics, rows * step, columns * step)
    objects = back_project(frame.depth, frame.intrinsics, own_rows * step, own_columns * step)
    low, high = np.percentile(objects, [1, 99], axis=0)
    near = points[_within(points, low - _PLANE_REACH, high + _PLANE_REACH)]
    for _ in range(_MOST_PLANES):
        try:
            plane = fit_support_plane(near[::max(1, len(near) // _PLANE_POINTS)], _PLANE_TOLERANCE)
        except Fault:
            break
        if frame.world_from_camera is None or (plane[:3] @ frame.world_from_camera[2, :3] >= _LEVEL
                                               and not _are_below(objects, plane)):
            return plane
        near = near[np.abs(near @ plane[:3] + plane[3]) > _PLANE_TOLERANCE * range_factor(near[:, 2])]
    return given


def off_support(points: np.ndarray, plane: np.ndarray | None) -> np.ndarray:
    """(P,) bool: which readings in a mask are not on the support, which a wide mask includes; all if few would be left.

    points: (P, 3) metres, plane: (4,) unit normal (up) and offset in metres, both in the camera frame; None if unknown
    """
    everything = np.ones(len(points), bool)
    if plane is None or not len(points):
        return everything
    heights = points @ plane[:3] + plane[3]
    off = (heights > ON_SUPPORT) | (heights < -BELOW * range_factor(points[:, 2]))
    return off if off.mean() > _LEAST_ABOVE else everything


def _are_below(points: np.ndarray, plane: np.ndarray) -> bool:
    """Whether the objects' readings, (N, 3), are all below a plane, but for outliers: it may be a board above them."""
    heights = (points @ plane[:3] + plane[3]) / range_factor(points[:, 2])
    return bool(np.percentile(heights, 90) < -_PLANE_TOLERANCE)


def _within(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(N,) bool, which of `points`, (N, 3), lie between two corners, (3,); axis by axis, as all(axis=1) is slow."""
    x, y, z = ((points[:, axis] > low[axis]) & (points[:, axis] < high[axis]) for axis in range(3))
    return x & y & z


def given_plane(frame: Frame) -> np.ndarray | None:
    """Support plane (4,) as the frame's transform and support_height say, camera frame; None if they do not."""
    if frame.world_from_camera is None or frame.support_height is None:
        return None
    return np.r_[frame.world_from_camera[2, :3], frame.world_from_camera[2, 3] - frame.support_height]
