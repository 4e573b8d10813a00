"""Selects the instances of a frame that can be reconstructed, and collects their depth points and their cubes."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from .cube import EDGE_PER_EXTENT, IMAGE_UP, NO_POINTS, Cube, fit_cube, fit_cube_to_mask, inlier_points
from .evidence import Observation, observed_points
from .faults import Fault, FaultCode
from .frame import Frame, Instance, back_project, pixel_directions, thinned, thinning_step
from .mirrored import without_mirror_images
from .objects import Rejection, Status
from .outline import hidden_share
from .pieces import beyond_a_step, in_one_piece
from .support import ON_SUPPORT, off_support

_FEW_POINTS = 4                 # times min_points: below, a result is marked LOW_QUALITY
_LEAST_READINGS, _ENOUGH_POINTS = 4, 4000       # of a view, to find an object's cube and surface by
_MOST_HIDDEN = 0.25             # share of the outline that others hide: above, a result is marked LOW_QUALITY
_MASK_EDGE = 2                  # pixels of a mask's border that may belong to what is beside the object
_BOX_CLEARANCE = 0.008          # metres above the support from which a box's content counts as the object
_MUCH_SUPPORT = 0.8             # of the cube's edge: if less is left without the support's readings, these do not count
_MANY_PIXELS = 100_000          # of a mask, which are enough; one of four times as many is thinned out
_LARGEST = 2.0                  # metres that an object's readings may span, far more than the model is trained for
_MUCH_UNREAD = 0.15             # pixels without a reading, per reading: fewer are noise and edges
_LEAST_READ = 0.25              # share of a mask's pixels that give readings of it: below, a result is LOW_QUALITY
_MOST_TORN = 0.2                # share of the readings beyond a step in depth: above, a result is LOW_QUALITY
_SPARSE = 0.1                   # share of its bounding box that a mask fills: below, it may be scattered pixels
_APART = 2                      # pixels: within these, a pixel of an object has another one of it
_LEAST_TOGETHER = 0.5           # share of a mask's pixels that have another so near: below, it is no object

_Window = tuple[slice, slice]   # rows and columns of a bounding box


@dataclass(frozen=True)
class Candidate:
    """An instance with its depth readings: points (P, 3) float64, metres, camera frame, at rows and columns (P,).

    readings: how many the mask has of it (without depth: pixels), of which those of a large mask are thinned out.
    seen: (Q, 3), some of them and of what other views show of it, in the same frame; the surface is fitted to these.
    unread: (U, 3), as many of the mask's pixels without a reading, their directions in the same frame.
    outline: (R, 3), directions of the mask's first and last pixel in each row and column; none with depth.

    Without depth there are no points, and the cube stands at the scale at which the object's near side lies at 1 m.
    """

    instance: Instance
    readings: int
    points: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    seen: np.ndarray
    unread: np.ndarray
    outline: np.ndarray
    cube: Cube
    status: Status


def find_candidates(frame: Frame, given: np.ndarray, plane: np.ndarray | None, up: np.ndarray | None,
                    earlier: Mapping[int, Sequence[Observation]], min_points: int,
                    max_objects: int) -> tuple[Frame, list[Candidate], list[Rejection]]:
    """Select the max_objects largest instances that have at least min_points depth readings (without depth: pixels).

    Returns the frame, in which the labels of boxes are narrowed to what stands in them; the candidates, sorted by
    label; and why the other instances were rejected.

    given: (H, W) labels before the masks grew, which joins pixels that lay apart; plane: (4,) support, unit normal (up)
    and offset in metres, camera frame; up: (3,) unit vector against gravity, camera frame; each None if unknown;
    earlier: label -> other views of it
    """
    windows = ndimage.find_objects(frame.labels, max_label=max((i.label for i in frame.instances), default=0))
    if plane is not None:
        frame = without_mirror_images(_boxes_narrowed(frame, plane, windows), plane, windows)
    found: list[Candidate] = []
    rejections: list[Rejection] = []
    for instance in frame.instances:
        outcome = _candidate(frame, instance, windows[instance.label - 1], earlier.get(instance.label, ()), given,
                             plane, up, min_points)
        (found if isinstance(outcome, Candidate) else rejections).append(outcome)
    found.sort(key=lambda candidate: -candidate.readings)
    rejections += [rejection(candidate.instance, FaultCode.TOO_MANY_OBJECTS, f"{len(found)} > {max_objects}")
                   for candidate in found[max_objects:]]
    return frame, sorted(found[:max_objects], key=lambda candidate: candidate.instance.label), rejections


def rejection(instance: Instance, code: FaultCode, detail: str = "") -> Rejection:
    """Why an instance is not reconstructed, with the number that the publisher of the masks knows it by."""
    return Rejection(instance.label, Fault(code, f"label {instance.number}" + (f": {detail}" if detail else "")))


def _candidate(frame: Frame, instance: Instance, window: _Window | None, views: Sequence[Observation],
               given: np.ndarray, plane: np.ndarray | None, up: np.ndarray | None,
               min_points: int) -> Candidate | Rejection:
    """One instance, of bounding box `window`, None if it has no pixel; other arguments as of `find_candidates`."""
    up = IMAGE_UP if up is None else up
    pixels = 0 if window is None else np.count_nonzero(frame.labels[window] == instance.label)
    every = thinning_step(pixels, _MANY_PIXELS)
    coarse, part = thinned(frame, every), _thinned_window(window, every)
    rows, columns = _pixels(coarse, instance.label, part)
    if frame.depth is None:
        if rejected := _no_object(instance, f"{pixels} pixels", pixels, given, window, min_points):
            return rejected
        return Candidate(instance, pixels, NO_POINTS, rows * every, columns * every, seen=NO_POINTS, unread=NO_POINTS,
                         outline=_outline(coarse, rows, columns),
                         cube=fit_cube_to_mask(rows, columns, coarse.intrinsics, up), status=Status.LOW_QUALITY)
    points, is_torn = back_project(coarse.depth, coarse.intrinsics, rows, columns), False
    if len(points) * every ** 2 >= min_points:
        keep, is_torn = _of_one_object(coarse, rows, columns, points, plane)
        rows, columns, points = rows[keep], columns[keep], points[keep]
    readings = len(points) * every ** 2
    if rejected := _no_object(instance, f"{readings} readings", readings, given, window, min_points):
        return rejected
    cube, seen, unread = _cube_and_evidence(coarse, instance, part, points, views, plane, up)
    if (extent := cube.edge / EDGE_PER_EXTENT) > _LARGEST:
        return rejection(instance, FaultCode.OBJECT_TOO_LARGE, f"{extent:.3g} m")
    is_doubtful = instance.is_box or is_torn or readings < max(_FEW_POINTS * min_points, _LEAST_READ * pixels) or \
        _touches_border(window, frame.labels.shape) or _is_cut_off(frame, instance.label, window, views)
    return Candidate(instance, readings, points, rows * every, columns * every, seen, unread, outline=NO_POINTS,
                     cube=cube, status=Status.LOW_QUALITY if is_doubtful else Status.OK)


def _of_one_object(frame: Frame, rows: np.ndarray, columns: np.ndarray, points: np.ndarray,
                   plane: np.ndarray | None) -> tuple[np.ndarray, bool]:
    """Which of a mask's readings, points (P, 3) at rows and columns (P,), are of one object, (P,) bool; and whether a
    step in depth divides them, so that they may be of two."""
    keep = in_one_piece(frame, rows, columns, points, off_support(points, plane))
    above = keep if plane is None else points @ plane[:3] + plane[3] > ON_SUPPORT
    is_torn = beyond_a_step(frame, rows[above], columns[above], points[above]) > _MOST_TORN
    keep[keep] = inlier_points(points[keep])
    return keep, is_torn


def _cube_and_evidence(frame: Frame, instance: Instance, window: _Window, points: np.ndarray,
                       views: Sequence[Observation], plane: np.ndarray | None,
                       up: np.ndarray) -> tuple[Cube, np.ndarray, np.ndarray]:
    """The cube of an instance with depth readings, points (P, 3), and what the surface is fitted to: `seen` and
    `unread` of its Candidate.

    frame, window: thinned out, as the points are; views, plane, up: as of `find_candidates`
    """
    further = np.concatenate([NO_POINTS, *(observed_points(view, _LEAST_READINGS, _ENOUGH_POINTS) for view in views)])
    step = max(1, len(points) // _ENOUGH_POINTS)
    own, off = points[::step], off_support(points[::step], plane)
    unread = NO_POINTS if instance.is_box else _unread(frame, instance.label, window)[::step]
    black = _as_far_as_read(unread, own[off]) if len(unread) > _MUCH_UNREAD * len(own) else NO_POINTS
    seen = np.concatenate([own, further])
    cube = _cube(own, off, black, up, further, off_support(further, plane))
    return cube, seen[off_support(seen, plane)], unread


def _cube(own: np.ndarray, off: np.ndarray, black: np.ndarray, up: np.ndarray, further: np.ndarray,
          further_off: np.ndarray) -> Cube:
    """Cube of an object's readings, points (P, 3), and those of other views, (M, 3), without those on the support if
    these make much of it.

    off, further_off: (P,) and (M,) bool, which are off the support; black: (Q, 3), where it may be that gives no
    reading; up, further: as of `fit_cube`
    """
    cube = fit_cube(np.concatenate([own, black]), up, further)
    if off.all() and further_off.all():
        return cube
    without = fit_cube(np.concatenate([own[off], black]), up, further[further_off])
    return without if without.edge < _MUCH_SUPPORT * cube.edge else cube


def _no_object(instance: Instance, found: str, count: int, labels: np.ndarray, window: _Window | None,
               min_points: int) -> Rejection | None:
    """Why a mask cannot be an object; None if it can.

    found: the `count` readings in it, as text; labels: (H, W), as they were given
    """
    if count < min_points:
        return rejection(instance, FaultCode.TOO_FEW_POINTS, found)
    return rejection(instance, FaultCode.MASK_SCATTERED) if _is_scattered(labels, instance.label, window) else None


def _pixels(frame: Frame, label: int, window: _Window | None) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns (N,) of the instance's pixels that have depth (of all its pixels, without a depth image)."""
    if window is None:
        return np.empty(0, int), np.empty(0, int)
    own = frame.labels[window] == label
    rows, columns = np.nonzero(own if frame.depth is None else own & (frame.depth[window] > 0))
    return rows + window[0].start, columns + window[1].start


def _thinned_window(window: _Window | None, step: int) -> _Window | None:
    """A bounding box in the frame that is thinned to every step-th pixel."""
    return window and tuple(slice(-(-s.start // step), -(-s.stop // step)) for s in window)


def _boxes_narrowed(frame: Frame, plane: np.ndarray, windows: Sequence[_Window | None]) -> Frame:
    """The frame in which the label of each box is kept only where its readings are above the support."""
    labels = frame.labels
    for instance in (instance for instance in frame.instances if instance.is_box):
        rows, columns = _pixels(frame, instance.label, windows[instance.label - 1])
        if len(rows):
            clear = back_project(frame.depth, frame.intrinsics, rows, columns) @ plane[:3] + plane[3] > _BOX_CLEARANCE
            labels = np.where(labels == instance.label, 0, labels)
            labels[rows[clear], columns[clear]] = instance.label
    return replace(frame, labels=labels)


def _is_scattered(labels: np.ndarray, label: int, window: _Window) -> bool:
    """Whether most pixels of a mask are isolated, as noise is; the pixels of a thin object form lines."""
    own = labels[window] == label
    if own.mean() > _SPARSE:
        return False
    around = ndimage.convolve(own.astype(np.uint8), np.ones((2 * _APART + 1,) * 2, np.uint8), mode="constant")
    return float((around[own] > 1).mean()) < _LEAST_TOGETHER


def _touches_border(window: _Window, shape: tuple[int, int]) -> bool:
    return any(s.start == 0 or s.stop == n for s, n in zip(window, shape, strict=True))


def _is_cut_off(frame: Frame, label: int, window: _Window, views: Sequence[Observation]) -> bool:
    """Whether in every view other things hide a large part of the instance's outline, so that it may be larger."""
    return hidden_share(frame, label, window) > _MOST_HIDDEN and \
        all(hidden_share(view.frame, view.label) > _MOST_HIDDEN for view in views)


def _outline(frame: Frame, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(R, 3) directions, camera frame, of the first and last of a mask's pixels (N,) in each row and column."""
    ends = []
    for major, minor in ((rows, columns), (columns, rows)):
        order = np.lexsort((minor, major))
        new = np.flatnonzero(np.diff(major[order])) + 1
        ends += [order[np.r_[0, new]], order[np.r_[new - 1, -1]]]
    index = np.concatenate(ends)
    return pixel_directions(frame.intrinsics, rows[index], columns[index])


def _unread(frame: Frame, label: int, window: _Window) -> np.ndarray:
    """(U, 3) directions, camera frame, of the pixels well inside an instance's mask that have no depth."""
    own = ndimage.binary_erosion(frame.labels[window] == label, iterations=_MASK_EDGE)
    rows, columns = np.nonzero(own & (frame.depth[window] == 0))
    return pixel_directions(frame.intrinsics, rows + window[0].start, columns + window[1].start)


def _as_far_as_read(directions: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(U, 3) metres, on rays of directions (U, 3), as far away along the optical axis as the nearest of `points`."""
    nearest = cKDTree(points[:, :2] / points[:, 2:]).query(directions[:, :2])[1]
    return directions * points[nearest, 2:]
