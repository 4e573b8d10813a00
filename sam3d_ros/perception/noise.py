"""Depth that is far noisier from pixel to pixel than most cameras' becomes the mean of each pixel's neighbours.

Surfaces follow the depth in steps as small as a voxel.  Where each reading errs by several voxels, they turn ragged, or
into what only noise is.
"""
from __future__ import annotations

from dataclasses import replace

import numba
import numpy as np

from .frame import Frame
from .plane import range_factor

# Metres at 1 m, growing with the square of the distance, 1 sigma: below, depth stays as it is.  At 3 mm, with edges
# blurred as those of time-of-flight cameras are, smoothing did more harm than good.
_NOISY = 0.004
_AROUND = 2             # pixels around one, whose mean it becomes
_ALIKE = 4.0            # sigmas by which a neighbour may differ: beyond is another surface
_ROW_STEP = 4           # of the rows, enough to tell the noise by
_LEAST_READINGS = 100   # with neighbours, of the objects, to tell it by


def without_noise(frame: Frame) -> Frame:
    """The frame with its depth smoothed within masks, and between them, if it is noisy; else as it is."""
    if frame.depth is None or (sigma := _noise(frame)) < _NOISY:
        return frame
    return replace(frame, depth=_smoothed(frame.depth, frame.labels, _ALIKE * sigma))


def _noise(frame: Frame) -> float:
    """1 sigma, metres at 1 m, by which the objects' readings differ from the line through those on both sides; 0 if
    that cannot be told.  Errors that neighbours share do not count."""
    depth, labels = frame.depth[::_ROW_STEP], frame.labels[::_ROW_STEP]
    left, middle, right = depth[:, :-2], depth[:, 1:-1], depth[:, 2:]
    own = labels[:, 1:-1]
    usable = (own > 0) & (labels[:, :-2] == own) & (labels[:, 2:] == own)
    usable &= (left > 0) & (middle > 0) & (middle < np.inf) & (right > 0)
    if np.count_nonzero(usable) < _LEAST_READINGS:
        return 0.0
    bends = (left[usable] - 2 * middle[usable] + right[usable]) / range_factor(middle[usable])
    return float(1.4826 * np.median(np.abs(bends)) / np.sqrt(6))


@numba.njit(nogil=True, cache=True)
def _smoothed(depth, labels, most):  # pragma: no cover (compiled)
    """(H, W) float32: the mean of the readings around each one that have its label, (H, W), and its depth up to `most`
    metres at 1 m."""
    height, width = depth.shape
    smooth = depth.copy()
    for row in range(height):
        for column in range(width):
            z, own = depth[row, column], labels[row, column]
            if not 0 < z < np.inf:
                continue
            allowed = most * max(1.0, z * z)
            total, count = 0.0, 0
            for r in range(max(row - _AROUND, 0), min(row + _AROUND + 1, height)):
                for c in range(max(column - _AROUND, 0), min(column + _AROUND + 1, width)):
                    if labels[r, c] == own and depth[r, c] > 0 and abs(depth[r, c] - z) < allowed:
                        total += depth[r, c]
                        count += 1
            smooth[row, column] = total / count
    return smooth
