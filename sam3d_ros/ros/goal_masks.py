"""Goals of the action `reconstruct`: which objects of an image they mean."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from geometry_msgs.msg import Point
from sensor_msgs.msg import RegionOfInterest

from sam3d_ros.action import Reconstruct

from ..perception import masks
from ..perception.faults import Fault, FaultCode
from ..perception.frame import Instance
from ..perception.masks import Detection, Segmentation
from .segmentation import box_labels


def needs_masks(goal: Reconstruct.Goal) -> bool:
    """Whether the goal refers to the segmentation; boxes alone do not."""
    return bool(len(goal.labels) or goal.points) or not goal.boxes


def choose(goal: Reconstruct.Goal, segmentation: Segmentation | None, height: int, width: int,
           max_objects: int) -> Segmentation:
    """Masks of the objects that the goal means.

    segmentation: of the image, (height, width); None where the goal does not need it.
    Raises Fault MASK_EMPTY (nothing there), MASK_ALL_FOREGROUND.
    """
    if not goal.boxes:
        return _chosen(goal, segmentation) if len(goal.labels) or goal.points else segmentation
    boxes = [Detection(_box(region)) for region in goal.boxes]
    labels, instances = box_labels(boxes, height, width)
    if needs_masks(goal):
        chosen = _chosen(goal, segmentation)
        offset = int(chosen.labels.max())
        mine = np.isin(chosen.labels, [i.label for i in chosen.instances])
        # The masks lie on top of the boxes: they are finer.
        labels = np.where(mine, chosen.labels, np.where(labels > 0, labels + offset, 0)).astype(np.int32)
        instances = (*chosen.instances, *(replace(i, label=i.label + offset) for i in instances))
    return masks.select(labels, instances, max_objects)


def _chosen(goal: Reconstruct.Goal, segmentation: Segmentation) -> Segmentation:
    """The instances that the goal's labels and points mean, each once.  Raises Fault MASK_EMPTY."""
    wanted = [*_numbered(goal.labels, segmentation), *(_instance_at(point, segmentation) for point in goal.points)]
    return replace(segmentation, instances=tuple(dict.fromkeys(wanted)))


def _numbered(numbers: Sequence[int], segmentation: Segmentation) -> list[Instance]:
    """Instances by the numbers that the publisher of the masks gave them."""
    by_number = {instance.number: instance for instance in segmentation.instances}
    missing = [number for number in numbers if number not in by_number]
    if missing:
        raise Fault(FaultCode.MASK_EMPTY, f"no object with label {', '.join(map(str, missing))} in this image; "
                                          f"there are {', '.join(map(str, by_number))}")
    return [by_number[number] for number in numbers]


def _instance_at(point: Point, segmentation: Segmentation) -> Instance:
    """The instance whose mask holds the pixel nearest to a point.  Raises Fault MASK_EMPTY."""
    height, width = segmentation.labels.shape
    is_inside = -0.5 <= point.x < width - 0.5 and -0.5 <= point.y < height - 0.5        # not so if it is no number
    label = segmentation.labels[round(point.y), round(point.x)] if is_inside else 0
    found = next((instance for instance in segmentation.instances if instance.label == label), None)
    if found is None:
        raise Fault(FaultCode.MASK_EMPTY, f"no object at pixel ({point.x:g}, {point.y:g}) of this image")
    return found


def _box(region: RegionOfInterest) -> np.ndarray:
    """(4,) x0, y0, x1, y1, pixels."""
    x, y = region.x_offset, region.y_offset
    return np.array([x, y, x + region.width, y + region.height], float)
