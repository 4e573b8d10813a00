"""Takes away readings in masks that no object can give: mirror images below what it stands on."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage

from .frame import Frame
from .plane import BELOW, height_by_pixel, range_factor

_AROUND = 3             # pixels around a patch in which what surrounds it is looked at


def without_mirror_images(frame: Frame, plane: np.ndarray,
                          windows: Sequence[tuple[slice, slice] | None]) -> Frame:
    """The frame without the readings in masks that lie below the support where what surrounds them does not.

    Polished metal and glass show a depth camera what they mirror or refract, as far behind their surface as it is
    before it.  What reaches over a table's edge or into a bin is surrounded by the floor, or the bin's.

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
        patches, count = ndimage.label(is_below & (frame.labels[rows, columns] == label))
        if count:
            near = ndimage.maximum_filter(patches, 2 * _AROUND + 1)
            around = (near > 0) & (patches == 0) & (depth > 0)
            surrounded = np.bincount(near[around], minlength=count + 1)
            alike = np.bincount(near[around & is_below], minlength=count + 1)
            lost[rows, columns] |= ((patches > 0) & (2 * alike < surrounded)[patches])
    return replace(frame, depth=np.where(lost, np.float32(0), frame.depth)) if lost.any() else frame
