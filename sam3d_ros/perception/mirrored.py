"""Takes away readings in masks that no object can give: mirror images below what it stands on."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage

from .frame import Frame
from .pieces import is_step
from .plane import BELOW, height_by_pixel, range_factor

_AROUND = 3             # pixels around a patch in which what surrounds it is looked at
_STRAY = 0.05           # share of a mask's readings: a smaller patch may be noise of the support beside the object
_OVER = 6               # pixels over which its depth is compared with that of the object above the support


def without_mirror_images(frame: Frame, plane: np.ndarray,
                          windows: Sequence[tuple[slice, slice] | None]) -> Frame:
    """The frame without the readings in masks that lie below the support where what surrounds them does not, and behind
    a step in depth.

    Polished metal and glass show a depth camera what they mirror or refract, as far behind their surface as it is
    before it.  What reaches over a table's edge or into a bin is surrounded by the floor, or the bin's, or goes on
    smoothly from what of it is above.

    plane: (4,) support, unit normal (up) and offset in metres, camera frame; windows: the labels' bounding boxes, from
    label 1 on, None for those without a pixel
    """
    lost = np.zeros(frame.labels.shape, bool)
    by_row, by_column = height_by_pixel(plane, frame.intrinsics)
    for label in (instance.label for instance in frame.instances if windows[instance.label - 1] is not None):
        rows, columns = (slice(max(0, s.start - _AROUND), s.stop + _AROUND) for s in windows[label - 1])
        depth = frame.depth[rows, columns]
        is_below = depth * (by_row[rows, None] + by_column[columns]) + plane[3] < -BELOW * range_factor(depth)
        is_below &= depth > 0
        is_own = (frame.labels[rows, columns] == label) & (depth > 0)
        if (is_own & is_below).any():
            lost[rows, columns] |= _images(depth, is_own, is_below, frame.intrinsics.fx)
    return replace(frame, depth=np.where(lost, np.float32(0), frame.depth)) if lost.any() else frame


def _images(depth: np.ndarray, is_own: np.ndarray, is_below: np.ndarray, fx: float) -> np.ndarray:
    """(H, W) bool: which of a mask's readings below the support are no part of its object.

    depth: (H, W) float32, metres, around the mask; is_own, is_below: (H, W) bool, which readings are in the mask, and
    which below the support; fx: focal length, pixels
    """
    own = is_own & is_below
    patches, count = ndimage.label(ndimage.maximum_filter(own, 2 * _AROUND + 1))     # over gaps, too
    patches *= own
    near = ndimage.maximum_filter(patches, 2 * _AROUND + 1)
    around = (near > 0) & (patches == 0) & (depth > 0)
    surrounded = np.bincount(near[around], minlength=count + 1)
    alike = np.bincount(near[around & is_below], minlength=count + 1)
    is_part = _go_on(patches, count, is_own & ~is_below, depth, fx)
    is_part &= np.bincount(patches[own], minlength=count + 1) > _STRAY * np.count_nonzero(is_own)
    is_image = (2 * alike < surrounded) & ~is_part
    return own & is_image[patches]


def _go_on(patches: np.ndarray, count: int, is_above: np.ndarray, depth: np.ndarray, fx: float) -> np.ndarray:
    """(count + 1,) bool, by number in `patches` (H, W): whether the depth goes on smoothly along most of its border to
    the readings `is_above` (H, W) bool.

    Readings are compared over _OVER pixels, as a border may be blurred, or have no readings.
    depth: (H, W) float32, metres; fx: focal length, pixels
    """
    beside, smooth = np.zeros(count + 1, int), np.zeros(count + 1, int)
    first, last = np.s_[:-_OVER], np.s_[_OVER:]
    for own, other in ((first, last), (last, first), (np.s_[:, first], np.s_[:, last]),
                       (np.s_[:, last], np.s_[:, first])):
        borders = (patches[own] > 0) & is_above[other]
        number, below, above = patches[own][borders], depth[own][borders], depth[other][borders]
        beside += np.bincount(number, minlength=count + 1)
        smooth += np.bincount(number[~is_step(below, above, _OVER, fx)], minlength=count + 1)
    return 2 * smooth > beside
