"""Corrects the predicted surface so that it passes through the observed points."""
from __future__ import annotations

from functools import cache

import numba
import numpy as np

_FOLLOWED = np.float32(6)           # voxels: observed points farther from the surface than this do not move it
# Voxels, sigmas of one correction after the other.  The first also moves the sides that were not seen; each later one
# mends what the one before was too smooth for, above all at edges.
_SMOOTHING = (1.5, 0.8, 0.5, 0.5)
_REACH = 2.7           # sigmas
_FULL_COVER = 0.2      # share of a plane through the smoothing kernel that must be observed for the whole correction

# Without a check for zero in every division.
_compiled = numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")


def follow_depth(distance: np.ndarray, observed: np.ndarray,
                 smoothing: tuple[float, ...] = _SMOOTHING) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance moved so that its surface passes through what was observed, and smoothly less around that.

    The network is best at the whole shape, the depth at what was seen.

    distance: (n, n, n) float32, voxels; observed: (P, 3) points in the cube's frame, edges; smoothing: sigmas of the
    corrections, voxels.  A correction is the local mean of the distance at the observed points.
    Returns the distance, and how far the surface was observed at each voxel, 0 to 1, both (n, n, n) float32.
    """
    n = len(distance)
    points = ((observed + 0.5) * n - 0.5).astype(np.float32)
    points = points[((points >= 0) & (points <= n - 1)).all(axis=1)]
    followed, share = distance.copy(), np.zeros(distance.shape, np.float32)
    for number, sigma in enumerate(smoothing, 1):
        corner, cells, errors = _errors(followed, points)
        if len(cells):
            _correct(followed, corner, cells, errors, _kernel(sigma),
                     np.float32(_FULL_COVER / (np.sqrt(2 * np.pi) * sigma)), share, number == len(smoothing))
    return followed, share


@cache
def _kernel(sigma: float) -> np.ndarray:
    """(2 r + 1,) float32, weights of a Gaussian along an axis, voxel by voxel, whose sum is 1."""
    reach = round(_REACH * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return (weights / weights.sum()).astype(np.float32)


@_compiled
def _errors(distance, points):  # pragma: no cover (compiled)
    """The voxels near which there are `points`, (P, 3) float32 voxels, and the mean distance there.

    Returns the least index of all, (3,), the voxels' indices from there on, (C, 3), and the means, (C,).
    """
    half = np.float32(0.5)
    low, high = np.full(3, len(distance), np.int64), np.zeros(3, np.int64)
    for p in range(len(points)):
        for axis in range(3):
            voxel = int(points[p, axis] + half)
            low[axis], high[axis] = min(low[axis], voxel), max(high[axis], voxel)
    number = np.zeros((max(high[0] - low[0] + 1, 0), max(high[1] - low[1] + 1, 0), max(high[2] - low[2] + 1, 0)),
                      np.int32)
    cells, found = np.empty((len(points), 3), np.int32), 0
    sums, counts = np.zeros(len(points), np.float32), np.zeros(len(points), np.float32)
    for p in range(len(points)):
        x, y, z = points[p]
        value = _interpolated(distance, x, y, z)
        if abs(value) < _FOLLOWED:
            i, j, k = int(x + half) - low[0], int(y + half) - low[1], int(z + half) - low[2]
            if number[i, j, k] == 0:
                cells[found, 0], cells[found, 1], cells[found, 2] = i, j, k
                found += 1
                number[i, j, k] = found
            cell = number[i, j, k] - 1
            sums[cell] += value
            counts[cell] += 1
    return low, cells[:found], sums[:found] / counts[:found]


@_compiled
def _interpolated(volume, x, y, z):  # pragma: no cover (compiled)
    """Value of a volume at a point in voxels, trilinear."""
    i, j, k = min(int(x), len(volume) - 2), min(int(y), len(volume) - 2), min(int(z), len(volume) - 2)
    u, v, w = x - np.float32(i), y - np.float32(j), z - np.float32(k)
    near = _mixed(_mixed(volume[i, j, k], volume[i, j, k + 1], w),
                  _mixed(volume[i, j + 1, k], volume[i, j + 1, k + 1], w), v)
    far = _mixed(_mixed(volume[i + 1, j, k], volume[i + 1, j, k + 1], w),
                 _mixed(volume[i + 1, j + 1, k], volume[i + 1, j + 1, k + 1], w), v)
    return _mixed(near, far, u)


@_compiled
def _mixed(a, b, share):  # pragma: no cover (compiled)
    return a + share * (b - a)


@_compiled
def _correct(distance, corner, cells, errors, kernel, full_cover, share, is_last):  # pragma: no cover (compiled)
    """Take from `distance`, (n, n, n), the mean of the `errors` near each voxel, as far as they cover a plane.

    corner, cells, errors: as of `_errors`; kernel: (2 r + 1,), weights along each axis; full_cover: weight of observed
    voxels near one from which on the whole mean counts; share: (n, n, n) zeros, filled, the last time, with how much of
    it counts
    """
    n, width, reach = len(distance), len(kernel), len(kernel) // 2
    a, b, c = cells[:, 0].max() + 1, cells[:, 1].max() + 1, cells[:, 2].max() + 1 + 2 * reach
    # Sums of errors and of weights side by side in each row, along one axis after the other; most rows have none.
    rows, has_row = np.zeros((a, b, 2 * c), np.float32), np.zeros((a, b), np.bool_)
    for cell in range(len(cells)):
        i, j, k = cells[cell]
        has_row[i, j] = True
        for w in range(width):
            rows[i, j, k + w] += kernel[w] * errors[cell]
            rows[i, j, c + k + w] += kernel[w]
    b += 2 * reach
    layers, has_layer = np.zeros((a, b, 2 * c), np.float32), np.zeros((a, b), np.bool_)
    for i in range(a):
        for j in range(b - 2 * reach):
            if has_row[i, j]:
                for v in range(width):
                    has_layer[i, j + v] = True
                    for w in range(2 * c):
                        layers[i, j + v, w] += kernel[v] * rows[i, j, w]
    i0, j0, k0 = corner[0] - reach, corner[1] - reach, corner[2] - reach
    sums = np.empty(2 * c, np.float32)
    for u in range(max(0, -i0), min(a + 2 * reach, n - i0)):
        for v in range(max(0, -j0), min(b, n - j0)):
            sums[:] = 0
            for i in range(max(0, u - 2 * reach), min(a, u + 1)):
                if has_layer[i, v]:
                    for w in range(2 * c):
                        sums[w] += kernel[u - i] * layers[i, v, w]
            for w in range(max(0, -k0), min(c, n - k0)):
                distance[i0 + u, j0 + v, k0 + w] -= sums[w] / max(sums[c + w], full_cover)
                if is_last:
                    share[i0 + u, j0 + v, k0 + w] = min(sums[c + w] / full_cover, np.float32(1))
