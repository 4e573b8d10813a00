"""Instance masks of detectors, in all their forms, to one label image.

Everything here is arrays in, arrays out.  A label image is (H, W) int32 with 0 = background.  Boxes are (x0, y0, x1,
y1) in pixels, the lower bound inclusive and the upper one exclusive.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from .faults import Fault, FaultCode
from .frame import Instance

# One mask larger than this share of the image is not an object.
_ALL_FOREGROUND = 0.95
# Two aspect ratios that differ by less count as equal (640 x 480 scaled to 213 x 160).
_ASPECT_TOLERANCE = 0.02
# Overlap (intersection over union) from which a detector's box and a mask's bounding box are of the same object.
_SAME_OBJECT_OVERLAP = 0.5
# Labels above this are renumbered: tables over all labels would become too long.
LARGEST_LABEL = 65535
# Pixels from the image's first one: no corner of an object is so far away, and to draw such lines takes long.
_FARTHEST = 1e6
# Pixels of a mask that a polygon is drawn in, a little more than 8K video: memory is not taken for whatever size a
# message claims.
_MOST_PIXELS = 2**25


@dataclass(frozen=True)
class Detection:
    """What a detector says of one object apart from its mask; `box` is (4,) in pixels of the image."""

    box: np.ndarray
    class_id: str = ""
    score: float = 1.0
    detector_id: str = ""


@dataclass(frozen=True)
class Segmentation:
    """Masks of one image.

    labels: (H, W) int32
    instances: one per label to reconstruct
    warnings: faults that did not spoil the rest (MASK_EMPTY, MASK_INVALID, TOO_MANY_OBJECTS)
    absent: instances that were left out because they have no pixel
    """

    labels: np.ndarray
    instances: tuple[Instance, ...]
    warnings: tuple[Fault, ...] = ()
    absent: tuple[Instance, ...] = ()


def binary_labels(mask: np.ndarray) -> np.ndarray:
    """(H, W) mask of a single object, nonzero = object, as labels 0 and 1."""
    return (mask != 0).astype(np.int32)


def integer_labels(mask: np.ndarray) -> np.ndarray:
    """(H, W) integer labels; negative ones become background."""
    return np.maximum(mask, 0).astype(np.int32)


def gz_semantic_labels(pixels: np.ndarray) -> np.ndarray:
    """Gazebo's semantic segmentation, (H, W, 3) uint8 with R = G = B = label."""
    return pixels[:, :, 0].astype(np.int32)


def gz_panoptic_labels(pixels: np.ndarray) -> np.ndarray:
    """Gazebo's panoptic segmentation, (H, W, 3) uint8 with B = class and instance = G * 256 + R.

    The label is class * 65536 + instance; class 0 is background.
    """
    red, green, blue = np.moveaxis(pixels.astype(np.int32), 2, 0)
    return np.where(blue > 0, blue * 65536 + green * 256 + red, 0)


def renumber(labels: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """(H, W) int32 label image with labels 1, 2, ... in the order of the old ones, and the old ones."""
    old = np.unique(labels[labels > 0])
    return np.where(labels > 0, np.searchsorted(old, labels) + 1, 0).astype(np.int32), old.tolist()


def resize_nearest(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w) mask sampled at (height, width), nearest neighbour.

    Raises Fault MASK_SIZE_MISMATCH if the aspect ratios differ: such a mask was made of a cropped or padded image.
    """
    h, w = mask.shape
    if (h, w) == (height, width):
        return mask
    _check_size(h, w, height, width, mask.size)
    # Centre of each target pixel in source pixels; exact in integers.
    rows = (2 * np.arange(height) + 1) * h // (2 * height)
    columns = (2 * np.arange(width) + 1) * w // (2 * width)
    return mask[rows[:, None], columns]


def _check_size(h: int, w: int, height: int, width: int, most: int) -> None:
    """Raise Fault MASK_SIZE_MISMATCH if a mask of h x w pixels has none, more than `most`, or another aspect ratio than
    the image, height x width."""
    if min(h, w) <= 0 or h * w > most or abs(w * height / (h * width) - 1) > _ASPECT_TOLERANCE:
        raise Fault(FaultCode.MASK_SIZE_MISMATCH, f"mask {w} x {h}, image {width} x {height}")


def polygon_mask(points: np.ndarray, h: int, w: int, height: int, width: int) -> np.ndarray:
    """Boolean (height, width) mask of the polygon with vertices `points`, (N, 2) as x, y in pixels of a mask of h x w.

    Raises Fault MASK_SIZE_MISMATCH if that is no size for a mask of such an image.
    """
    _check_size(h, w, height, width, max(_MOST_PIXELS, height * width))
    return resize_nearest(fill_polygon(points, h, w), height, width)


def are_corners(values: np.ndarray) -> bool:
    """Whether coordinates, pixels, can be meant: they are numbers, and near enough to be drawn."""
    return bool((np.abs(values) < _FARTHEST).all())


def fill_polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boolean (height, width) mask of the polygon with vertices `points`, (N, 2) as x, y in pixels."""
    canvas = Image.new("L", (width, height))
    if len(points) >= 3:
        ImageDraw.Draw(canvas).polygon([tuple(p) for p in np.asarray(points, float).tolist()], fill=1, outline=1)
    return np.asarray(canvas) != 0


def fill_box(box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boolean (height, width) mask of a box, clipped to the image."""
    x0, y0, x1, y1 = np.rint(box).astype(int)
    mask = np.zeros((height, width), bool)
    mask[max(0, y0):max(0, y1), max(0, x0):max(0, x1)] = True
    return mask


def stack_labels(masks: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Label image of overlapping masks, nonzero = object, each (H, W); mask i gets label i + 1, the smaller on top."""
    labels = np.zeros((height, width), np.int32)
    for index in sorted(range(len(masks)), key=lambda i: -np.count_nonzero(masks[i])):
        labels[masks[index] != 0] = index + 1
    return labels


def label_areas(labels: np.ndarray) -> dict[int, int]:
    """Label -> number of its pixels, but for the background; labels: (H, W) from 0 to LARGEST_LABEL."""
    counts = np.bincount(labels.ravel())  # many times faster than np.unique, which sorts
    counts[0] = 0
    present = np.flatnonzero(counts)
    return dict(zip(present.tolist(), counts[present].tolist(), strict=True))


def with_detections(labels: np.ndarray, instances: Sequence[Instance],
                    detections: Sequence[Detection]) -> tuple[Instance, ...]:
    """Instances with class, score and id of the detection whose box overlaps the mask's bounding box the most, if
    that is by half of their union; labels: (H, W)."""
    def best(instance: Instance) -> Instance:
        own = labels == instance.label
        if not own.any():                       # of two masks that are the same, one has no pixel left
            return instance
        box = bounding_box(own)
        overlaps = [box_overlap(box, d.box) for d in detections]
        if not overlaps or max(overlaps) < _SAME_OBJECT_OVERLAP:
            return instance
        found = detections[int(np.argmax(overlaps))]
        return replace(instance, class_id=found.class_id, score=found.score, detector_id=found.detector_id)
    return tuple(best(instance) for instance in instances)


def bounding_box(mask: np.ndarray) -> np.ndarray:
    """Box, (4,) int, of a boolean mask with at least one pixel."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def box_overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes, (4,) each."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = np.prod(np.maximum(sides, 0))
    return float(common / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common))


def select(labels: np.ndarray, instances: Sequence[Instance], max_objects: int,
           classes: frozenset[str] = frozenset()) -> Segmentation:
    """Segmentation of the instances worth reconstructing.

    labels: (H, W) int32
    instances: at least one for every label in `labels`; those without a pixel are left out, and named in `absent`.
    classes: wanted class ids; empty: all.
    The `max_objects` largest are kept, in the order of their labels; `labels` stays whole.

    Raises Fault MASK_EMPTY, MASK_ALL_FOREGROUND.
    """
    areas = label_areas(labels)
    wanted = [instance for instance in instances if instance.label in areas]
    if classes:
        wanted = [instance for instance in wanted if instance.class_id in classes]
    if not wanted:
        detail = f"{len(areas)} masks, none of the classes {', '.join(sorted(classes))}" if areas else ""
        raise Fault(FaultCode.MASK_EMPTY, detail)
    largest = max(wanted, key=lambda instance: areas[instance.label])
    share = areas[largest.label] / labels.size
    if share > _ALL_FOREGROUND:
        raise Fault(FaultCode.MASK_ALL_FOREGROUND, f"label {largest.number} has {share:.0%} of the image")
    warnings = ()
    if len(wanted) > max_objects:
        warnings = (Fault(FaultCode.TOO_MANY_OBJECTS, f"{len(wanted)} masks, max_objects is {max_objects}"),)
        wanted = sorted(wanted, key=lambda instance: -areas[instance.label])[:max_objects]
    return Segmentation(labels, tuple(sorted(wanted, key=lambda instance: instance.label)), warnings,
                        absent=tuple(instance for instance in instances if instance.label not in areas))
