"""Depth around a mask's outline: shows where the mask is too narrow, and where other things hide the object."""
from __future__ import annotations

from dataclasses import replace

import numba
import numpy as np

from .frame import Frame
from .plane import height_by_pixel

_REACH = 5              # pixels that a mask may grow by: detectors' masks are coarse by about as much
_STEEPEST = 5.0         # depth by width of a step from pixel to pixel; a steeper one is an edge
_NOISE = 0.001          # metres that such a step may be higher
_LEAST_HEIGHT = 0.006   # metres above the support; below, the depth does not tell an object from what it stands on
_BESIDE = 3             # pixels from the outline, in- and outwards, within which a reading is looked for
_NEARER = 0.01          # metres up to 1 m, beyond that growing with the depth's square: what is nearer by this hides


def grown_masks(frame: Frame, plane: np.ndarray | None) -> Frame:
    """The frame with every mask grown onto unlabelled pixels whose depth goes on smoothly from it, above the support.

    A mask that is right stays as it is: around it lie the support and edges of depth.  One that was cut narrow loses an
    object's rim, or all of a thin object.  plane: (4,) support, unit normal (up) and offset in metres, camera frame;
    None, or a frame without depth, changes nothing.  Boxes do not grow.
    """
    if plane is None or frame.depth is None or not frame.instances:
        return frame
    grows = np.zeros(int(frame.labels.max(initial=0)) + 1, np.bool_)
    grows[[i.label for i in frame.instances if not i.is_box and i.label < len(grows)]] = True
    labels = frame.labels.copy()
    k = frame.intrinsics
    _grow(labels, frame.depth, grows, *height_by_pixel(plane, k), float(plane[3]), _STEEPEST / k.fx)
    return replace(frame, labels=labels)


def hidden_share(frame: Frame, label: int, window: tuple[slice, slice] | None = None) -> float:
    """Share, 0 to 1, of an instance's outline at which something nearer begins, behind which the object may continue.

    window: the instance's bounding box, if it is known.  Without depth, or without the instance, 0.
    """
    if frame.depth is None:
        return 0.0
    rows, columns = window or (slice(0, frame.labels.shape[0]), slice(0, frame.labels.shape[1]))
    return float(_hidden_share(frame.labels, frame.depth, label, rows.start, rows.stop, columns.start, columns.stop))


@numba.njit(nogil=True, cache=True)
def _grow(labels, depth, grows, by_row, by_column, offset, slope):  # pragma: no cover (compiled)
    """Grow `labels` (H, W) in place, all at once and pixel by pixel, so that the nearest mask gets a pixel."""
    height, width = labels.shape
    front = [(0, 0) for _ in range(0)]
    for row in range(height):
        for column in range(width):
            if labels[row, column] > 0 and grows[labels[row, column]] and depth[row, column] > 0:
                if (row > 0 and labels[row - 1, column] == 0) or (row + 1 < height and labels[row + 1, column] == 0) \
                        or (column > 0 and labels[row, column - 1] == 0) \
                        or (column + 1 < width and labels[row, column + 1] == 0):
                    front.append((row, column))
    for _ in range(_REACH):
        reached = [(0, 0) for _ in range(0)]
        for row, column in front:
            z = depth[row, column]
            for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                r, c = row + down, column + right
                if 0 <= r < height and 0 <= c < width and labels[r, c] == 0 and depth[r, c] > 0 \
                        and abs(depth[r, c] - z) < slope * z + _NOISE \
                        and depth[r, c] * (by_row[r] + by_column[c]) + offset > _LEAST_HEIGHT:
                    labels[r, c] = labels[row, column]
                    reached.append((r, c))
        front = reached


@numba.njit(nogil=True, cache=True)
def _hidden_share(labels, depth, label, top, bottom, left, right):  # pragma: no cover (compiled)
    """`hidden_share` of `label` in labels and depth, (H, W) each, in rows [top, bottom) and columns [left, right)."""
    height, width = labels.shape
    outline = hidden = 0
    for row in range(top, bottom):
        for column in range(left, right):
            if labels[row, column] != label:
                continue
            is_edge = is_hidden = False
            for down, across in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                r, c = row + down, column + across
                if 0 <= r < height and 0 <= c < width and labels[r, c] != label:
                    is_edge = True
                    is_hidden |= _ends_behind(labels, depth, label, row, column, down, across)
            outline += is_edge
            hidden += is_hidden
    return hidden / max(outline, 1)


@numba.njit(nogil=True, cache=True)
def _ends_behind(labels, depth, label, row, column, down, across):  # pragma: no cover (compiled)
    """Whether what lies beyond the outline's pixel (row, column), in a direction, is nearer than the object there."""
    own = _first_reading(labels, depth, label, row, column, -down, -across, True)
    beyond = _first_reading(labels, depth, label, row + down, column + across, down, across, False)
    return 0 < beyond < own - _NEARER * max(1.0, own * own)


@numba.njit(nogil=True, cache=True)
def _first_reading(labels, depth, label, row, column, down, across, is_own):  # pragma: no cover (compiled)
    """The first depth reading from a pixel on, at most _BESIDE pixels on, within `label` or without it; 0 if none."""
    for _ in range(_BESIDE + 1):
        if not (0 <= row < labels.shape[0] and 0 <= column < labels.shape[1]) \
                or (labels[row, column] == label) != is_own:
            break
        if depth[row, column] > 0:
            return depth[row, column]
        row, column = row + down, column + across
    return np.float32(0)
