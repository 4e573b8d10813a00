"""Completes hidden sides by mirror symmetry.

One camera sees one side of an object, but most household objects have planes of symmetry; bottles and cups have many.
Such planes are found by comparing the shape with its own mirror image.  Each place near the surface is then combined
with its mirror images, weighted by how certain they are.  (Bohg et al., "Mind the gap", ICRA 2011, complete objects in
this way.)

Planes are rows (5,) float32: mean squared difference between the shape and its image, square voxels; unit normal;
offset along it, voxels.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numba
import numpy as np

from .following import follow_depth

_DIRECTIONS = 128      # that are tried as normals, over half a sphere
_OFFSETS = np.arange(-5, 5.1, 2.5, np.float32)  # voxels from the middle of the shape, tried along each of them
_TRIED, _FITTED = 150, 300      # points of the surface by which planes are tried, and the best of them fitted
_MOST_FITTED = 60      # planes
_STEPS = (5, 3)        # of the fits in each round: a shape that some planes have completed shows others
_MOST_PLANES = 4
_APART = 0.95          # cosine between normals: nearer ones make the same plane
_STARTS_APART = 0.98   # the same before they are fitted
_ACCEPTED = 1.2        # square voxels, difference up to which it is one
_HOPELESS = 4.0        # square voxels, difference from which on it will not become one
_MOST_ERROR = np.float32(9)         # square voxels: what is missing on one side counts no more than this
_LEAST_VARIANCE = np.float32(0.2)   # square voxels, of the comparison of two places
_ASYMMETRY = np.float32(0.25)       # square voxels, which single places differ by beside the mean difference
_UNKNOWN = np.float32(1e6)          # square voxels, variance of what has its image outside of the volume
_DAMPING = np.float32(1e-3)         # of a fit's steps, share of the curvature and least curvature
_FAR = np.float32(2.5)              # voxels: what is farther from the surface on all sides stays as it is
_RUN = 4               # voxels in a row that are mixed together, or left
_MARGIN = 5            # voxels around a sample of the surface and its images, in which all of both lie
_KNOWN = np.float32(0.3)            # square voxels, variance up to which a place is left as it is: it was seen
_BLURRED = 1.0         # square voxels: if the median variance of the surface is less, differences count for more
_KEPT, _KEPT_AT_LAST = (0.8,), (0.8, 0.5)           # sigmas of `follow_depth`, voxels, between rounds and after them

# Without a check for zero in every division.
_compiled = numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")


def completed(distance: np.ndarray, std: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Complete a shape by its planes of symmetry.

    distance, std: (n, n, n) float32, voxels, signed distance and its standard deviation; observed: (P, 3) points in the
    cube's frame, edges, through which the surface passes, before and afterwards.
    Returns both with the mirror images taken in, or unchanged if no plane of symmetry was found.
    """
    shape, known = shape_of(distance, std), std
    planes = plausible_planes(shape)
    for number, steps in enumerate(_STEPS):
        if number:
            shape = shape_of(follow_depth(distance, observed, _KEPT)[0], std)
        planes, chosen = fitted_planes(shape, planes, steps)
        if not len(chosen):
            break
        distance, known = mirrored(shape, chosen)
    if known is std:
        return distance, std
    return follow_depth(distance, observed, _KEPT_AT_LAST)[0], known


@dataclass(frozen=True)
class Shape:
    """A signed distance and what is derived from it.

    distance, std: (n, n, n) float32, voxels; points: (P, 3) float32, voxels, all over the surface; field: distance and
    variance of each voxel side by side, (2 n^3,) float32: they are looked up together.
    """

    distance: np.ndarray
    std: np.ndarray
    points: np.ndarray
    field: np.ndarray


def shape_of(distance: np.ndarray, std: np.ndarray) -> Shape:
    """The shape with a signed distance and its standard deviation, (n, n, n) float32 each, voxels."""
    return Shape(distance, std, _surface_points(distance), _side_by_side(distance, std))


def plausible_planes(shape: Shape) -> np.ndarray:
    """Planes (K, 5) that are worth fitting, the best first."""
    points = _spread(shape.points, _TRIED)
    if not len(points):
        return np.empty((0, 5), np.float32)
    planes = _tried(shape.field, len(shape.distance), points, _directions(), _OFFSETS)
    return _distinct(planes, _STARTS_APART)[:_MOST_FITTED]


def fitted_planes(shape: Shape, planes: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit planes (K, 5) to the shape in `steps` Gauss-Newton steps.

    Returns the fitted planes without the hopeless ones, and up to four planes of symmetry among them, the one that adds
    most certainty first.  Differences between surface and image are weighted by the certainty of both places, so that
    observed places decide.  The differences of the chosen planes are increased if the surface is known well.
    """
    points = _spread(shape.points, _FITTED)
    if not len(points) or not len(planes):
        return planes[:0], planes[:0]
    n = len(shape.distance)
    planes = _fitted(shape.field, n, points, planes, steps)
    found = _distinct(planes[planes[:, 0] < _ACCEPTED], _APART)
    variances = _variances(shape.field, n, points, found)
    chosen = _most_telling(found, variances)
    # The better the surface is known, the less a difference can be explained by errors of the surface.
    chosen[:, 0] *= max(1, _BLURRED / np.median(variances[0]))
    return planes[planes[:, 0] < _HOPELESS], chosen


def mirrored(shape: Shape, planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance and standard deviation in which every place near the surface is combined with its mirror images.

    planes: (K, 5).  The distance is the mean of a place and its images, weighted by inverse variance; the variance of
    an image includes the difference between the two sides.  Observed places stay.  The standard deviation is the least
    of all: the network's guesses on two sides are not independent evidence.
    """
    low, high = _reach(_spread(shape.points, _TRIED), planes, len(shape.distance))
    distance, std = shape.distance.copy(), shape.std.copy()
    _mix(distance, std, shape.field, planes, low, high)
    return distance, std


def _distinct(planes: np.ndarray, apart: float) -> np.ndarray:
    """Of planes (K, 5) that are nearly parallel the best, the best of all first.

    apart: cosine between normals above which they are
    """
    planes = planes[np.argsort(planes[:, 0])]
    return planes[_first_of_near(np.abs(planes[:, 1:4] @ planes[:, 1:4].T) > apart)]


def _spread(points: np.ndarray, count: int) -> np.ndarray:
    """`count` of the points (P, 3), or none if there are fewer."""
    return points[np.linspace(0, len(points) - 1, count if len(points) >= count else 0).astype(int)]


def _reach(points: np.ndarray, planes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """First voxel (3,), and one after the last, of the part of the volume that holds a surface, of which points (P, 3)
    are given, and its images."""
    heights = points @ planes[:, 1:4].T - planes[:, 4]
    images = points[:, None] - 2 * heights[..., None] * planes[:, 1:4]
    every = np.concatenate([points, images.reshape(-1, 3)])
    return (np.clip(every.min(axis=0) - _MARGIN, 0, n).astype(int),
            np.clip(every.max(axis=0) + _MARGIN + 1, 0, n).astype(int))


@cache
def _directions() -> np.ndarray:
    """Unit vectors (_DIRECTIONS, 3) float32, evenly over half a sphere (a Fibonacci spiral)."""
    index = np.arange(_DIRECTIONS)
    height, angle = (index + 0.5) / _DIRECTIONS, index * np.pi * (3 - np.sqrt(5))
    radius = np.sqrt(1 - height ** 2)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=1).astype(np.float32)


def _most_telling(planes: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Up to _MOST_PLANES of the planes (K, 5): in each turn the one that adds most certainty to those chosen before.

    variances: (K + 1, P) of surface points: their own, then those of their images in each plane
    """
    least, told, chosen = variances[0], variances[1:], []
    while len(chosen) < min(_MOST_PLANES, len(planes)):
        gains = np.log(least / np.minimum(least, told)).sum(axis=1)
        gains[chosen] = -1
        chosen.append(int(gains.argmax()))
        least = np.minimum(least, told[chosen[-1]])
    return planes[chosen]


@_compiled
def _first_of_near(is_near):  # pragma: no cover (compiled)
    """(K,) bool, which of K things are near to none before them that is; is_near: (K, K)."""
    is_first = np.zeros(len(is_near), np.bool_)
    for index in range(len(is_near)):
        is_first[index] = not (is_near[index, :index] & is_first[:index]).any()
    return is_first


@_compiled
def _side_by_side(distance, std):  # pragma: no cover (compiled)
    """`Shape.field`."""
    field, flat_distance, flat_std = np.empty(2 * distance.size, np.float32), distance.ravel(), std.ravel()
    for voxel in range(distance.size):
        field[2 * voxel], field[2 * voxel + 1] = flat_distance[voxel], flat_std[voxel] ** 2
    return field


@_compiled
def _surface_points(distance):  # pragma: no cover (compiled)
    """(P, 3) float32, voxels, where the distance changes its sign from one voxel to the next."""
    a, b, c = distance.shape
    points, found = np.empty((4096, 3), np.float32), 0
    for i in range(a - 1):
        for j in range(b - 1):
            for k in range(c - 1):
                here = distance[i, j, k]
                after = distance[i + 1, j, k], distance[i, j + 1, k], distance[i, j, k + 1]
                if min(here, min(after)) >= 0 or max(here, max(after)) < 0:
                    continue
                if found + 3 > len(points):
                    points = np.concatenate((points, np.empty_like(points)))
                for axis in range(3):
                    if (here < 0) != (after[axis] < 0):
                        points[found, 0], points[found, 1], points[found, 2] = i, j, k
                        points[found, axis] += here / (here - after[axis])
                        found += 1
    return points[:found].copy()


@_compiled
def _look_up(field, n, x, y, z):  # pragma: no cover (compiled)
    """Distance at a point, voxels, trilinear; variance of the nearest voxel; slope of the distance along the axes."""
    i, j, k = int(x), int(y), int(z)
    u, v, w = x - np.float32(i), y - np.float32(j), z - np.float32(k)
    p = 2 * ((i * n + j) * n + k)
    q, r, s = p + 2 * n, p + 2 * n * n, p + 2 * n * n + 2 * n
    d00, d01, d10, d11 = field[p], field[q], field[r], field[s]
    e00, e01, e10, e11 = field[p + 2] - d00, field[q + 2] - d01, field[r + 2] - d10, field[s + 2] - d11
    f00, f01, f10, f11 = d00 + w * e00, d01 + w * e01, d10 + w * e10, d11 + w * e11
    low, high = f00 + v * (f01 - f00), f10 + v * (f11 - f10)
    e0, e1 = e00 + v * (e01 - e00), e10 + v * (e11 - e10)
    variance = _variance_at(field, n, x, y, z)
    return low + u * (high - low), variance, high - low, f01 - f00 + u * (f11 - f10 - f01 + f00), e0 + u * (e1 - e0)


@_compiled
def _variance_at(field, n, x, y, z):  # pragma: no cover (compiled)
    """Variance of the voxel nearest to a point, voxels, which may lie on the last layer."""
    half = np.float32(0.5)
    return field[2 * ((int(x + half) * n + int(y + half)) * n + int(z + half)) + 1]


@_compiled
def _variance(field, n, points):  # pragma: no cover (compiled)
    """(P,) square voxels, what points (P, 3) add to the variance of a comparison."""
    variance = np.empty(len(points), np.float32)
    for p in range(len(points)):
        variance[p] = _variance_at(field, n, points[p, 0], points[p, 1], points[p, 2]) + _LEAST_VARIANCE
    return variance


@_compiled
def _variances(field, n, points, planes):  # pragma: no cover (compiled)
    """(K + 1, P) square voxels, variance of the surface at points (P, 3), and of their images in planes (K, 5)."""
    last = np.float32(n - 1)
    variances = np.full((len(planes) + 1, len(points)), _UNKNOWN, np.float32)
    for p in range(len(points)):
        a, b, c = points[p]
        variances[0, p] = _variance_at(field, n, a, b, c)
        for k in range(len(planes)):
            x, y, z = _image(a, b, c, planes[k, 1], planes[k, 2], planes[k, 3], planes[k, 4])
            if min(x, y, z) >= 0 and max(x, y, z) < last:
                variances[k + 1, p] = _look_up(field, n, x, y, z)[1] + _ASYMMETRY + planes[k, 0]
    return variances


@_compiled
def _image(a, b, c, x, y, z, offset):  # pragma: no cover (compiled)
    """Mirror image of the point (a, b, c) in the plane with normal (x, y, z)."""
    way = np.float32(2) * (a * x + b * y + c * z - offset)
    return a - way * x, b - way * y, c - way * z


@_compiled
def _tried(field, n, points, directions, offsets):  # pragma: no cover (compiled)
    """Planes (K, 5): for each normal (K, 3) the best offset, by surface points (P, 3)."""
    planes, variance = np.empty((len(directions), 5), np.float32), _variance(field, n, points)
    last = np.float32(n - 1)
    for index in range(len(directions)):
        x, y, z = directions[index]
        low, high = last + last, -last - last
        for p in range(len(points)):
            height = points[p, 0] * x + points[p, 1] * y + points[p, 2] * z
            low, high = min(low, height), max(high, height)
        planes[index, 0], planes[index, 1], planes[index, 2], planes[index, 3] = _MOST_ERROR + 1, x, y, z
        for shift in offsets:
            offset = (low + high) / np.float32(2) + shift
            total = weights = np.float32(0)
            for p in range(len(points)):
                a, b, c = _image(points[p, 0], points[p, 1], points[p, 2], x, y, z, offset)
                square, there = _MOST_ERROR, np.float32(0)
                if min(a, b, c) >= 0 and max(a, b, c) < last:
                    error, there, _, _, _ = _look_up(field, n, a, b, c)
                    square = min(error * error, _MOST_ERROR)
                weight = np.float32(1) / (variance[p] + there)
                total += weight * square
                weights += weight
            if total < planes[index, 0] * weights:
                planes[index, 0], planes[index, 4] = total / weights, offset
    return planes


@_compiled
def _fitted(field, n, points, planes, steps):  # pragma: no cover (compiled)
    """Planes (K, 5) turned and shifted to where images of surface points (P, 3) come nearest to the surface."""
    fitted, variance = np.empty_like(planes), _variance(field, n, points)
    for index in range(len(planes)):
        fitted[index] = _fit(field, n, points, variance, planes[index], steps)
    return fitted


@_compiled
def _fit(field, n, points, variance, plane, steps):  # pragma: no cover (compiled)
    """One plane (5,) of `_fitted`: Gauss-Newton over two small rotations about the points' middle and the offset.

    variance: (P,) square voxels, of the points
    """
    middle_x, middle_y, middle_z = points[:, 0].mean(), points[:, 1].mean(), points[:, 2].mean()
    two, one, last = np.float32(2), np.float32(1), np.float32(n - 1)
    x, y, z = plane[1], plane[2], plane[3]
    offset = plane[4] - (middle_x * x + middle_y * y + middle_z * z)
    best = plane.copy()
    best[0] = _MOST_ERROR + one
    for _ in range(steps):
        curvature, slope = np.zeros((3, 3), np.float32), np.zeros(3, np.float32)
        (ax, ay, az), (bx, by, bz) = _across(x, y, z)
        total = weights = np.float32(0)
        for p in range(len(points)):
            px, py, pz = points[p, 0] - middle_x, points[p, 1] - middle_y, points[p, 2] - middle_z
            height = px * x + py * y + pz * z - offset
            a, b, c = points[p, 0] - two * height * x, points[p, 1] - two * height * y, points[p, 2] - two * height * z
            if min(a, b, c) < 0 or max(a, b, c) >= last:
                total += _MOST_ERROR / variance[p]
                weights += one / variance[p]
                continue
            error, there, sx, sy, sz = _look_up(field, n, a, b, c)
            weight = one / (variance[p] + there)
            weights += weight
            total += weight * min(error * error, _MOST_ERROR)
            if error * error < _MOST_ERROR:
                along = sx * x + sy * y + sz * z
                by_offset = two * along
                by_a = -two * ((px * ax + py * ay + pz * az) * along + height * (sx * ax + sy * ay + sz * az))
                by_b = -two * ((px * bx + py * by + pz * bz) * along + height * (sx * bx + sy * by + sz * bz))
                curvature[0, 0] += weight * by_offset * by_offset
                curvature[0, 1] += weight * by_offset * by_a
                curvature[0, 2] += weight * by_offset * by_b
                curvature[1, 1] += weight * by_a * by_a
                curvature[1, 2] += weight * by_a * by_b
                curvature[2, 2] += weight * by_b * by_b
                slope[0] += weight * by_offset * error
                slope[1] += weight * by_a * error
                slope[2] += weight * by_b * error
        if total < best[0] * weights:
            best[0], best[1], best[2], best[3] = total / weights, x, y, z
            best[4] = offset + middle_x * x + middle_y * y + middle_z * z
        curvature[1, 0], curvature[2, 0], curvature[2, 1] = curvature[0, 1], curvature[0, 2], curvature[1, 2]
        for d in range(3):
            curvature[d, d] += _DAMPING * (curvature[d, d] + one)
        step = np.linalg.solve(curvature, slope)
        offset -= step[0]
        x, y, z = x - step[1] * ax - step[2] * bx, y - step[1] * ay - step[2] * by, z - step[1] * az - step[2] * bz
        length = np.sqrt(x * x + y * y + z * z)
        x, y, z = x / length, y / length, z / length
    return best


@_compiled
def _across(x, y, z):  # pragma: no cover (compiled)
    """Two unit vectors at right angles to the unit vector (x, y, z) and to each other."""
    nothing = np.float32(0)
    ax, ay, az = (nothing, z, -y) if abs(x) < 0.6 else (-z, nothing, x)
    length = np.sqrt(ax * ax + ay * ay + az * az)
    ax, ay, az = ax / length, ay / length, az / length
    return (ax, ay, az), (y * az - z * ay, z * ax - x * az, x * ay - y * ax)


@_compiled
def _mix(distance, std, field, planes, low, high):  # pragma: no cover (compiled)
    """Fill in `mirrored` from voxel `low` to `high`, (3,) each; field: as in `Shape`."""
    n = len(distance)
    one, two, last = np.float32(1), np.float32(2), np.float32(n - 1)
    # Image of the row's first voxel in each plane, and how it moves from voxel to voxel.
    start, move = np.empty((len(planes), 3), np.float32), np.empty((len(planes), 3), np.float32)
    for p in range(len(planes)):
        x, y, z = planes[p, 1], planes[p, 2], planes[p, 3]
        move[p, 0], move[p, 1], move[p, 2] = -two * z * x, -two * z * y, one - two * z * z
    for i in range(low[0], high[0]):
        for j in range(low[1], high[1]):
            for p in range(len(planes)):
                start[p] = _image(np.float32(i), np.float32(j), np.float32(0), planes[p, 1], planes[p, 2],
                                  planes[p, 3], planes[p, 4])
            for first in range(low[2], high[2], _RUN):
                if _is_far(field, n, start, move, 2 * ((i * n + j) * n), min(first + _RUN // 2, n - 1)):
                    continue
                for k in range(first, min(first + _RUN, high[2])):
                    voxel = 2 * ((i * n + j) * n + k)
                    least = field[voxel + 1]
                    if least < _KNOWN:
                        continue
                    weights = one / least
                    total = weights * field[voxel]
                    for p in range(len(planes)):
                        x, y, z = _moved(start, move, p, np.float32(k))
                        if min(x, y, z) >= 0 and max(x, y, z) < last:
                            value, variance, _, _, _ = _look_up(field, n, x, y, z)
                            variance += _ASYMMETRY + planes[p, 0]
                            weight = one / variance
                            total += weight * value
                            weights += weight
                            least = min(least, variance)
                    distance[i, j, k], std[i, j, k] = total / weights, np.sqrt(least)


@_compiled
def _moved(start, move, p, k):  # pragma: no cover (compiled)
    return start[p, 0] + k * move[p, 0], start[p, 1] + k * move[p, 1], start[p, 2] + k * move[p, 2]


@_compiled
def _is_far(field, n, start, move, row, k):  # pragma: no cover (compiled)
    """Whether the voxel k of a row, which begins at `row` in the field, and its images are all far inside or outside.
    """
    half, last, own = np.float32(0.5), np.float32(n - 1), field[row + 2 * k]
    if abs(own) < _FAR:
        return False
    for p in range(len(start)):
        x, y, z = _moved(start, move, p, np.float32(k))
        if min(x, y, z) >= 0 and max(x, y, z) < last:
            value = field[2 * ((int(x + half) * n + int(y + half)) * n + int(z + half))]
            if abs(value) < _FAR or (value < 0) != (own < 0):
                return False
    return True
