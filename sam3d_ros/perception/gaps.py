"""The regular gaps in a depth image that was registered to a larger one."""
from __future__ import annotations

import numpy as np

_MOST_GAPS = 0.2        # of the readings: holes and noise leave fewer single pixels between two readings


def without_gaps(depth: np.ndarray) -> np.ndarray:
    """Fill single pixels between two readings if the depth image has many of them; else return it as it is.

    depth: (H, W) float32, metres, 0 = no reading.  Registration to a colour image with more pixels, up to twice as many
    each way (depth_image_proc), puts each reading into one of its pixels, and rows and columns between stay empty.
    They are no holes: whoever looks for surfaces that give no depth would find them everywhere.  Takes 5 ms for 1280 x
    720 pixels with gaps, 0.5 without.
    """
    return _filled(_filled(depth, 1), 0) if _has_gaps(depth) else depth


def _has_gaps(depth: np.ndarray) -> bool:
    has = depth > 0        # of all rows: of every third, those without a reading may be all or none
    here = has[1:-1, 1:-1]
    between = has[1:-1, :-2] & has[1:-1, 2:] | has[:-2, 1:-1] & has[2:, 1:-1]
    return np.count_nonzero(between & ~here) > _MOST_GAPS * np.count_nonzero(here)


def _filled(depth: np.ndarray, axis: int) -> np.ndarray:
    """The image in which pixels between two readings along an axis take the first of them."""
    filled = depth.copy()
    old, new = np.moveaxis(depth, axis, 0), np.moveaxis(filled, axis, 0)
    np.copyto(new[1:-1], old[:-2], where=(old[1:-1] == 0) & (old[:-2] > 0) & (old[2:] > 0))
    return filled
