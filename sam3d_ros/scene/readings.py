"""Depth readings of an image by mask, and where in the image a known surface is visible, covered or missing."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numba
import numpy as np

from ..perception.frame import Frame, Instance, nearest_pixels
from ..perception.plane import range_factor
from ..perception.support import off_support
from .shape import Shape

_READINGS = 500            # per mask
_FEW = 300                # pixels: a smaller mask keeps its rim
_EDGE = 0.015             # of the depth, between neighbours: a discontinuity, whose readings may fly
# A sample of a surface is confirmed by a reading within this of it; one farther behind shows that it is not there.
CONFIRM = 0.012           # metres
_LEAST_FACING = 0.2       # cosine between normal and line of sight: a sample that is seen flatter counts as turned away
LEAST_DEPTH = 0.02       # metres: nearer, no camera reads
_LEAST_HIGH = 0.0045      # metres above the support at 1 m, median: below, noise may have lifted readings of the same
_NO_INSTANCE = -9         # unlike every index of an instance
# What becomes of a sample: outside the image, turned away, without a reading, at its reading, behind it, before it.
_OFF, _AWAY, _BLANK, _CONFIRMED, _COVERED, _MISSING = range(6)
_BACKGROUND, _UNWANTED = -1, -2


@dataclass(frozen=True)
class Readings:
    """The depth readings of a frame, sorted by instance.

    points: per instance (N, 3) float64, metres, camera frame, at most 500, spread evenly, without rims;
    pixels: (L,) number of each instance's pixels that have depth; lookup: (largest label + 1,) index of a label's
    instance, -1 for the background, -2 for a mask that is no instance
    """

    frame: Frame
    points: list[np.ndarray]
    pixels: np.ndarray
    lookup: np.ndarray

    @property
    def instances(self) -> Sequence[Instance]:
        """Of the frame; their order is that of `points`."""
        return self.frame.instances

    def colours(self, index: int) -> np.ndarray:
        """(N, 3) uint8 RGB of the pixels of an instance's `points`."""
        rows, columns, _ = nearest_pixels(self.points[index], self.frame.intrinsics)
        return self.frame.colour[rows, columns]

    def off(self, support: np.ndarray) -> Readings:
        """These without the readings that lie on the support, (4,), camera frame, which a wide mask includes."""
        return replace(self, points=[_off(points, support) for points in self.points])

    def area(self, index: int) -> float:
        """Visible area of an instance, m^2, projected along the line of sight."""
        k = self.frame.intrinsics
        points = self.points[index]
        return float(self.pixels[index] * np.mean(points[:, 2] ** 2) / (k.fx * k.fy)) if len(points) else 0.0


def _off(points: np.ndarray, support: np.ndarray) -> np.ndarray:
    """Those of a mask's readings, (N, 3), that are not on the support; all if none is clearly off: of a thin thing's
    readings, those that noise lifts would draw it up."""
    off = points[off_support(points, support)]
    heights = np.abs(off @ support[:3] + support[3]) / range_factor(off[:, 2])
    return off if len(off) and np.median(heights) > _LEAST_HIGH else points


def read(frame: Frame) -> Readings:
    """Sort the depth readings of a frame that has depth."""
    lookup = np.full(max(int(frame.labels.max()), max((i.label for i in frame.instances), default=0)) + 1,
                     _UNWANTED, np.int32)
    lookup[0] = _BACKGROUND
    for index, instance in enumerate(frame.instances):
        lookup[instance.label] = index
    count = len(frame.instances)
    points, kept, pixels = np.empty((count, _READINGS, 3)), np.zeros(count, np.int64), np.zeros(count, np.int64)
    k = frame.intrinsics
    _sort(frame.depth, frame.labels, lookup, np.array([k.fx, k.fy, k.cx, k.cy]), points, kept, pixels)
    return Readings(frame, [points[i, :kept[i]].copy() for i in range(count)], pixels, lookup)


@dataclass(frozen=True)
class Sighting:
    """Where the samples of a surface at an assumed pose show in an image.

    facing: samples that face the camera, are in the image and have a reading; confirmed, covered, missing: shares of
    these with a reading at the sample, in front of it (own parts not counted), behind it
    seen: share of all samples that are confirmed; visible: (S,) bool, which are confirmed or missing
    votes: (L + 1,) confirmed samples per instance, the last for the background; points: (N, 3) metres, camera frame,
    the readings that confirm samples and belong to no instance
    """

    facing: int
    confirmed: float
    covered: float
    missing: float
    seen: float
    visible: np.ndarray
    votes: np.ndarray
    points: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """(L,) share of the visible samples that each instance confirms."""
        return self.votes[:-1] / max(self.facing * (1 - self.covered), 1.0)


def look_for(shape: Shape, camera_from_object: np.ndarray, readings: Readings, own: int | None = None,
             tolerance: float = CONFIRM) -> Sighting:
    """Look for a shape at camera_from_object (4, 4) in an image.

    own: index of the instance that is known to be this object; tolerance: metres, between a sample and its reading
    """
    frame = readings.frame
    k = frame.intrinsics
    state = np.empty(len(shape.samples), np.int8)
    where = np.empty(len(shape.samples), np.int32)
    points = np.empty((len(shape.samples), 3))
    _project(shape.samples, shape.normals, np.ascontiguousarray(camera_from_object), frame.depth, frame.labels,
             readings.lookup, np.array([k.fx, k.fy, k.cx, k.cy]), _NO_INSTANCE if own is None else own, tolerance,
             state, where, points)
    counts = np.bincount(state, minlength=6)
    confirmed = state == _CONFIRMED
    facing = int(counts[_CONFIRMED] + counts[_COVERED] + counts[_MISSING])
    voters = where[confirmed]
    votes = np.bincount(np.where(voters < 0, len(readings.points), voters), minlength=len(readings.points) + 1)
    return Sighting(facing, *(float(counts[s] / max(facing, 1)) for s in (_CONFIRMED, _COVERED, _MISSING)),
                    float(counts[_CONFIRMED] / len(state)), confirmed | (state == _MISSING), votes,
                    points[confirmed & (where == _BACKGROUND)])


def off_middle(shape: Shape, camera_from_object: np.ndarray, sighting: Sighting, points: np.ndarray) -> np.ndarray:
    """(3,) metres, camera frame: from the middle of what is visible of a shape at camera_from_object (4, 4) to that of
    the readings (N, 3) of its mask, across the line of sight."""
    rotation = camera_from_object[:3, :3]
    samples = shape.samples[sighting.visible] @ rotation.T + camera_from_object[:3, 3]
    normals = shape.normals[sighting.visible] @ rotation.T
    pixels = -np.sum(normals * samples, axis=1) / np.linalg.norm(samples, axis=1) ** 3      # that each sample covers
    middle = np.average(samples, axis=0, weights=pixels)
    off, sight = points.mean(axis=0) - middle, middle / np.linalg.norm(middle)
    return off - sight * (sight @ off)


@numba.njit(cache=True, nogil=True)
def _sort(depth, labels, lookup, camera, points, kept, pixels):  # pragma: no cover (compiled)
    """Fill in, for each of L instances, points (L, _READINGS, 3), how many of them are, (L,), and pixels (L,), as of
    `Readings`.  camera: fx, fy, cx, cy, pixels."""
    height, width = depth.shape
    count, most = points.shape[0], points.shape[1]
    for v in range(height):
        for u in range(width):
            if labels[v, u] > 0 and depth[v, u] > 0:
                index = lookup[labels[v, u]]
                if index >= 0:
                    pixels[index] += 1
    step = np.ones(count, np.int64)
    for index in range(count):
        step[index] = max(1, int(np.ceil(np.sqrt(pixels[index] / most))))
    for v in range(height):
        for u in range(width):
            label = labels[v, u]
            if label <= 0:
                continue
            index = lookup[label]
            z = depth[v, u]
            if index < 0 or not z > 0 or kept[index] >= most or v % step[index] or u % step[index]:
                continue
            if pixels[index] > _FEW:
                if v == 0 or u == 0 or v == height - 1 or u == width - 1:
                    continue
                rim = False
                for side in range(4):
                    vv = v + (side == 0) - (side == 1)
                    uu = u + (side == 2) - (side == 3)
                    if labels[vv, uu] != label or (depth[vv, uu] > 0 and abs(depth[vv, uu] - z) > _EDGE * z):
                        rim = True
                if rim:
                    continue
            n = kept[index]
            points[index, n, 0] = (u - camera[2]) / camera[0] * z
            points[index, n, 1] = (v - camera[3]) / camera[1] * z
            points[index, n, 2] = z
            kept[index] = n + 1


@numba.njit(cache=True, nogil=True)
def _project(samples, normals, pose, depth, labels, lookup, camera, own, tolerance, state, where,
             points):  # pragma: no cover (compiled)
    """For samples and normals (S, 3) of a surface at pose (4, 4), fill in state (S,), one of _OFF to _MISSING; where
    (S,), index of the instance that confirms it, else _BACKGROUND or _UNWANTED; points (S, 3), the reading that does.
    camera: as for `_sort`; own: index of the instance that is the object itself."""
    height, width = depth.shape
    for s in range(len(samples)):
        where[s] = _UNWANTED
        x = pose[0, 0] * samples[s, 0] + pose[0, 1] * samples[s, 1] + pose[0, 2] * samples[s, 2] + pose[0, 3]
        y = pose[1, 0] * samples[s, 0] + pose[1, 1] * samples[s, 1] + pose[1, 2] * samples[s, 2] + pose[1, 3]
        z = pose[2, 0] * samples[s, 0] + pose[2, 1] * samples[s, 1] + pose[2, 2] * samples[s, 2] + pose[2, 3]
        nx = pose[0, 0] * normals[s, 0] + pose[0, 1] * normals[s, 1] + pose[0, 2] * normals[s, 2]
        ny = pose[1, 0] * normals[s, 0] + pose[1, 1] * normals[s, 1] + pose[1, 2] * normals[s, 2]
        nz = pose[2, 0] * normals[s, 0] + pose[2, 1] * normals[s, 1] + pose[2, 2] * normals[s, 2]
        if nx * x + ny * y + nz * z > -_LEAST_FACING * np.sqrt(x * x + y * y + z * z):
            state[s] = _AWAY
            continue
        if z < LEAST_DEPTH:
            state[s] = _OFF
            continue
        u = int(np.floor(x / z * camera[0] + camera[2] + 0.5))
        v = int(np.floor(y / z * camera[1] + camera[3] + 0.5))
        if u < 0 or v < 0 or u >= width or v >= height:
            state[s] = _OFF
            continue
        d = depth[v, u]
        index = lookup[labels[v, u]]
        if d <= 0:
            state[s] = _BLANK
        elif abs(d - z) < tolerance:
            state[s] = _CONFIRMED
            where[s] = index
            points[s, 0] = (u - camera[2]) / camera[0] * d
            points[s, 1] = (v - camera[3]) / camera[1] * d
            points[s, 2] = d
        elif d > z:
            state[s] = _MISSING
        elif index == own:
            state[s] = _BLANK  # behind a part of its own
        else:
            state[s] = _COVERED
