"""The predicted surface made to pass through what was observed."""
from __future__ import annotations

import numba
import numpy as np

_FOLLOWED = 6.0        # voxels: observed points farther from the surface than this do not move it
# Voxels, sigmas of one correction after the other.  The first carries what was not seen along; each of the others mends
# what the one before was too blunt for, at edges above all.
_SMOOTHING = (1.5, 0.8, 0.5, 0.5)
_REACH = 2.7           # sigmas
_FULL_COVER = 0.2      # share of a plane through the smoothing kernel that must be observed for the whole correction


def follow_depth(distance: np.ndarray, observed: np.ndarray,
                 smoothing: tuple[float, ...] = _SMOOTHING) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance moved so that its surface passes through what was observed, and smoothly less around that.

    The network is surest of the whole, the depth of what it saw.  distance: (n, n, n) float32, voxels; observed: (P, 3)
    points in the cube's frame, edges; smoothing: sigmas of the corrections, voxels.  A correction is the local mean of
    the distance at the observed points.
    Returns the distance, and how far the surface was observed at each voxel, 0 to 1, both (n, n, n) float32.
    """
    n = len(distance)
    points = (observed + 0.5) * n - 0.5
    points = points[((points >= 0) & (points <= n - 1)).all(axis=1)]
    share = np.zeros(distance.shape, np.float32)
    if not len(points):
        return distance, share
    margin = round(_REACH * max(smoothing)) + 1
    low = np.maximum(points.min(axis=0).astype(int) - margin, 0)
    high = np.minimum(points.max(axis=0).astype(int) + margin + 2, n)
    followed = distance.copy()
    window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    for sigma in smoothing:
        offsets = np.arange(-round(_REACH * sigma), round(_REACH * sigma) + 1)
        kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
        _correct(followed[window], points - low, (kernel / kernel.sum()).astype(np.float32),
                 np.float32(_FULL_COVER / (np.sqrt(2 * np.pi) * sigma)), share[window])
    return followed, share


@numba.njit(nogil=True, cache=True)
def _correct(distance, points, kernel, full_cover, share):
    """Take from `distance`, (a, b, c) float32, its mean at the `points` near each voxel, as far as these cover a plane.

    points: (P, 3) float64, voxels; kernel: (2 r + 1,) float32, weights along each axis; full_cover: float32, the
    weight of observed voxels near one from which on the whole mean counts; share: (a, b, c), filled with how
    much of it counts
    """
    (a, b, c), reach = distance.shape, len(kernel) // 2
    error, count = np.zeros(distance.shape, np.float32), np.zeros(distance.shape, np.int32)
    cells, found = np.empty((len(points), 3), np.int32), 0
    for p in range(len(points)):
        value = _interpolated(distance, points[p])
        if abs(value) < _FOLLOWED:
            i, j, k = int(points[p, 0] + 0.5), int(points[p, 1] + 0.5), int(points[p, 2] + 0.5)
            if not count[i, j, k]:
                cells[found] = i, j, k
                found += 1
            error[i, j, k] += value
            count[i, j, k] += 1
    # Sums of corrections and of weights, rows of both side by side, with a margin in which the kernel is whole as well.
    width = len(kernel)
    sums = np.zeros((a + 2 * reach, b + 2 * reach, 2, c + 2 * reach), np.float32)
    for i, j, k in cells[:found]:
        mean = error[i, j, k] / count[i, j, k]
        for u in range(width):
            for v in range(width):
                across = kernel[u] * kernel[v]
                total, cover = sums[i + u, j + v, 0, k:k + width], sums[i + u, j + v, 1, k:k + width]
                for w in range(width):
                    weight = across * kernel[w]
                    cover[w] += weight
                    total[w] += weight * mean
    for u in range(a):
        for v in range(b):
            total, cover = sums[u + reach, v + reach, 0, reach:], sums[u + reach, v + reach, 1, reach:]
            for w in range(c):
                distance[u, v, w] -= total[w] / max(cover[w], full_cover)
                share[u, v, w] = min(cover[w] / full_cover, 1)


@numba.njit(nogil=True, cache=True)
def _interpolated(volume, point):
    """Value of a volume at a point (3,) in voxels, trilinear."""
    i = min(int(point[0]), volume.shape[0] - 2)
    j = min(int(point[1]), volume.shape[1] - 2)
    k = min(int(point[2]), volume.shape[2] - 2)
    a, b, c = point[0] - i, point[1] - j, point[2] - k
    value = 0.0
    for u in range(2):
        for v in range(2):
            for w in range(2):
                value += ((a if u else 1 - a) * (b if v else 1 - b) * (c if w else 1 - c)) * volume[i + u, j + v, k + w]
    return value
