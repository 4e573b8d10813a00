"""Masks, depth and colour image of a frame that lie beside each other: by how much, which of them, and back again.

An aligned depth image may be off by some pixels, by its calibration or because the camera moves, and masks that were
made from another image are.  Where the masks' outlines meet no steps in depth, but all of them would after one shift,
for all objects alike, that is what happened.  Masks that are merely too wide or too narrow meet the steps at one
distance all around, with no shift.
"""
from __future__ import annotations

from dataclasses import replace

import numba
import numpy as np
from scipy import ndimage

from .faults import Fault, FaultCode
from .frame import Frame, thinned, thinning_step
from .plane import range_factor

_PIXELS = 300_000       # that are enough; a larger image is thinned out, and its shifts are found in larger steps
_PROFILES = 1500        # across outlines, that are enough
_LARGEST = 10           # pixels that the shift is looked for, along either axis
_COARSE = 2             # pixels from one shift to the next that is tried at first
_WIDTHS = 12            # pixels by which masks may be too wide or too narrow
_REACH = 28             # pixels of a profile, in- and outwards: _LARGEST + _COARSE - 1 along both axes, and _WIDTHS
_STEP = 0.01            # metres at 1 m: a step in depth; it grows with the square of the distance
_ACROSS = 8             # pixels without readings, as edges have them, that a step may span
_ROUND = 3              # pixels around one of an outline that tell its direction
_LEAST = 3.0            # pixels: masks and depth that are good otherwise differ by less
_LEAST_PROFILES = 100   # with a step in depth: of fewer, some fit any shift
_LEAST_MET = 0.55       # share of these that meet it after the shift
_BETTER = 1.4           # times as many as do without


def in_step(frame: Frame) -> tuple[Frame, Fault | None]:
    """The frame with masks, depth and image in step, and what they were before, DEPTH_SHIFTED or MASKS_SHIFTED.

    If the masks fit the colour image, the depth is moved onto both; else the masks are, onto image and depth.  A frame
    without depth, or which is in step as far as can be told, comes back as it is, with None.
    """
    if frame.depth is None:
        return frame, None
    step = thinning_step(frame.depth.size, _PIXELS)
    coarse = thinned(frame, step)
    labels = _outlined(coarse)
    pixels, normals = _outlines(labels)
    every = -(-len(pixels) // _PROFILES)
    if not every:
        return frame, None
    pixels, normals = pixels[::every], normals[::every]
    depth = np.ascontiguousarray(coarse.depth)
    meets = _steps(depth, (_STEP * range_factor(depth)).astype(np.float32), pixels, normals)
    telling = meets.any(axis=1)
    shift = _shift(meets[telling], normals[telling])
    if shift is None:
        return frame, None
    said = f"by {step * shift[1]} pixels to the right and {step * shift[0]} down"
    if _contrast(coarse.colour, pixels, normals, shift) > _contrast(coarse.colour, pixels, normals, (0, 0)):
        moved = ndimage.shift(frame.labels, np.multiply(shift, step), order=0)
        return replace(frame, labels=moved), Fault(FaultCode.MASKS_SHIFTED, f"moved {said}")
    moved = ndimage.shift(frame.depth, np.multiply(shift, -step), order=0)
    return replace(frame, depth=moved), Fault(FaultCode.DEPTH_SHIFTED, f"it was off {said}")


def _outlined(frame: Frame) -> np.ndarray:
    """(H, W) int32, contiguous: labels without those of boxes, which have no outline."""
    labels = np.ascontiguousarray(frame.labels)
    boxes = [instance.label for instance in frame.instances if instance.is_box]
    return np.where(np.isin(labels, boxes), np.int32(0), labels) if boxes else labels


def _shift(meets: np.ndarray, normals: np.ndarray) -> tuple[int, int] | None:
    """Rows and columns by which masks must move to meet the steps in depth; None if they are in step, or unclear.

    meets: (N, 2 _REACH + 1) bool, where along a profile there is a step; normals: (N, 2) of the profiles
    """
    if len(meets) < _LEAST_PROFILES:
        return None
    still = _met(meets, normals, np.zeros((1, 2)))[0] / len(meets)
    if still * _BETTER > 1:
        return None
    best, share = np.zeros(2), 0.0
    for along in (np.arange(-_LARGEST, _LARGEST + 1, _COARSE), np.arange(1 - _COARSE, _COARSE)):
        shifts = best + np.stack(np.meshgrid(along, along, indexing="ij"), axis=-1).reshape(-1, 2)
        met = _met(meets, normals, shifts) / len(meets)
        best, share = shifts[met.argmax()], met.max()
    if np.hypot(*best) < _LEAST or share < max(_LEAST_MET, _BETTER * still):
        return None
    return int(best[0]), int(best[1])


def _contrast(colour: np.ndarray, pixels: np.ndarray, normals: np.ndarray, shift: tuple[int, int]) -> float:
    """Mean difference of the colours on both sides of outlines, (N, 2) pixels and normals, that are moved by `shift`
    along their normals."""
    middle = pixels + (normals @ np.array(shift, float))[:, None] * normals
    high = np.array(colour.shape[:2]) - 1
    sides = [np.clip(np.rint(middle + across * normals).astype(int), 0, high) for across in (-2, 3)]
    inside, outside = (colour[side[:, 0], side[:, 1]].astype(np.float32) for side in sides)
    return float(np.abs(inside - outside).mean())


@numba.njit(nogil=True, cache=True)
def _outlines(labels):  # pragma: no cover (compiled)
    """Pixels (N, 2), row and column, beside which a mask ends, and the unit normals there, outwards; labels: (H, W)."""
    height, width = labels.shape
    pixels, normals = [(0, 0) for _ in range(0)], [(0.0, 0.0) for _ in range(0)]
    for row in range(1, height - 1):
        for column in range(1, width - 1):
            own = labels[row, column]
            if own == 0 or (labels[row - 1, column] == own and labels[row + 1, column] == own
                            and labels[row, column - 1] == own and labels[row, column + 1] == own):
                continue
            down, right = 0.0, 0.0
            for r in range(max(row - _ROUND, 0), min(row + _ROUND + 1, height)):
                for c in range(max(column - _ROUND, 0), min(column + _ROUND + 1, width)):
                    if labels[r, c] == own:
                        down -= r - row
                        right -= c - column
            length = np.hypot(down, right)
            if length > 0:
                pixels.append((row, column))
                normals.append((down / length, right / length))
    where, outwards = np.empty((len(pixels), 2), np.int64), np.empty((len(pixels), 2))
    for i in range(len(pixels)):
        where[i, 0], where[i, 1] = pixels[i]
        outwards[i, 0], outwards[i, 1] = normals[i]
    return where, outwards


@numba.njit(nogil=True, cache=True)
def _steps(depth, heights, pixels, normals):  # pragma: no cover (compiled)
    """(N, 2 _REACH + 1) bool: where profiles through `pixels`, along `normals`, (N, 2) each, step farther away.

    depth: (H, W) metres; heights: (H, W) metres, that a step there has at least.  A pixel beside a step counts as well.
    """
    found = np.zeros((len(pixels), 2 * _REACH + 1), np.bool_)
    for i in range(len(pixels)):
        last, height, at = 0.0, 0.0, 0
        for t in range(-_REACH, _REACH + _ACROSS):
            r, c = round(pixels[i, 0] + t * normals[i, 0]), round(pixels[i, 1] + t * normals[i, 1])
            if not (0 <= r < depth.shape[0] and 0 <= c < depth.shape[1]) or depth[r, c] == 0:
                continue
            if last > 0 and t - at <= _ACROSS and depth[r, c] - last > height:
                found[i, max(at + _REACH - 1, 0):max(at + _REACH + 2, 0)] = True
            last, height, at = depth[r, c], heights[r, c], t
    return found


@numba.njit(nogil=True, cache=True)
def _met(meets, normals, shifts):  # pragma: no cover (compiled)
    """(S,) how many profiles, at most, meet a step when the outlines move by each of `shifts`, (S, 2), and all masks
    get wider or narrower by one number of pixels.  meets: (N, 2 _REACH + 1) bool, normals: (N, 2)
    """
    most = np.zeros(len(shifts))
    for s in range(len(shifts)):
        counts = np.zeros(2 * _WIDTHS + 1, np.int32)
        for i in range(len(meets)):
            middle = round(shifts[s, 0] * normals[i, 0] + shifts[s, 1] * normals[i, 1]) + _REACH
            counts += meets[i, middle - _WIDTHS:middle + _WIDTHS + 1]
        most[s] = counts.max()
    return most
