"""Segmentation and detection messages to instance masks."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sensor_msgs.msg import Image

from ..perception import masks
from ..perception.faults import Fault, FaultCode
from ..perception.frame import Instance
from ..perception.masks import Detection
from .images import decode_pixels
from .optional import optional
from .parameters import Settings

_LABEL_ENCODINGS = ("mono8", "8UC1", "mono16", "16UC1", "32SC1")
# mask_format of an Image -> accepted encodings and the decoder
_IMAGE_FORMATS = {
    "binary": (("mono8", "8UC1"), masks.binary_labels),
    "labels": (_LABEL_ENCODINGS, masks.integer_labels),
    "gz_semantic": (("rgb8",), masks.gz_semantic_labels),
    "gz_panoptic": (("rgb8",), masks.gz_panoptic_labels),
}
# mask_format -> class id of a label, where labels say it
_CLASS_OF = {"gz_semantic": str, "gz_panoptic": lambda label: str(label >> 16)}
# mask_format -> module and class of the messages on `segmentation`
_OPTIONAL_TYPES = {
    "yolo_msgs": ("yolo_msgs.msg", "DetectionArray"),
    "isaac_tensor": ("isaac_ros_tensor_list_interfaces.msg", "TensorList"),
}
_ISAAC_UINT8 = 2  # Tensor.data_type


def segmentation_type(mask_format: str) -> type:
    """Message class of the `segmentation` topic.

    Raises Fault PARAMETER_INVALID if its package is not installed.
    """
    if mask_format in _IMAGE_FORMATS:
        return Image
    module, name = _OPTIONAL_TYPES[mask_format]
    package = optional(module)
    if package is None:
        raise Fault(FaultCode.PARAMETER_INVALID,
                    f"parameter mask_format: '{mask_format}' needs the package {module.split('.')[0]}")
    return getattr(package, name)


def mask_encodings(mask_format: str) -> tuple[str, ...]:
    """Encodings that the `segmentation` topic may have; none where it holds no images."""
    return _IMAGE_FORMATS[mask_format][0] if mask_format in _IMAGE_FORMATS else ()


def decode_segmentation(message: Any, detections: Any | None, height: int, width: int,
                        settings: Settings) -> masks.Segmentation:
    """Masks for an image of `height` x `width` pixels.

    message: of `segmentation_type`, or None for mask_format boxes; detections: vision_msgs/Detection2DArray or None.
    What has broken corners is left out, with the warning MASK_INVALID.
    Raises Fault MASK_* .
    """
    found, broken = _detections_2d(detections) if detections is not None else ([], [])
    if settings.mask_format == "boxes":
        labels, instances = box_labels(found, height, width)
    elif settings.mask_format == "yolo_msgs":
        labels, instances, more = _yolo(message, height, width)
        broken += more
    elif settings.mask_format == "isaac_tensor":
        labels, instances = _isaac(message, height, width)
    else:
        labels, instances = _image(message, height, width, settings.mask_format)
    if found and settings.mask_format != "boxes":
        instances = masks.with_detections(labels, instances, found)
    if broken and not instances:
        raise broken[0]
    selected = masks.select(labels, instances, settings.max_objects, settings.wanted_classes)
    return replace(selected, warnings=(*broken, *selected.warnings))


def _detections_2d(message: Any) -> tuple[list[Detection], list[Fault]]:
    """Detections of a vision_msgs/Detection2DArray, each with its best hypothesis, and what is wrong with others."""
    found = [_detection(d) for d in message.detections]
    return ([d for d in found if masks.are_corners(d.box)],
            [_broken(d.class_id, d.box) for d in found if not masks.are_corners(d.box)])


def _broken(class_id: str, corners: np.ndarray) -> Fault:
    return Fault(FaultCode.MASK_INVALID, f"detection '{class_id}' has corners at {corners.min():g} to "
                                         f"{corners.max():g} pixels")


def box_labels(detections: Sequence[Detection], height: int, width: int) -> tuple[np.ndarray, tuple[Instance, ...]]:
    """Label image, (height, width) int32, of filled boxes, and their instances, marked as boxes."""
    filled = [masks.fill_box(d.box, height, width) for d in detections]
    instances = tuple(Instance(label, d.class_id, d.score, d.detector_id, is_box=True)
                      for label, d in enumerate(detections, start=1))
    return masks.stack_labels(filled, height, width), instances


def _detection(detection: Any) -> Detection:
    centre, size = detection.bbox.center.position, np.array([detection.bbox.size_x, detection.bbox.size_y])
    low = np.array([centre.x, centre.y]) - size / 2
    best = max((r.hypothesis for r in detection.results), key=lambda h: h.score, default=None)
    return Detection(np.concatenate([low, low + size]), best.class_id if best else "", best.score if best else 1.0,
                     detection.id)


# Each of the next three gives labels, (height, width) int32, and instances, and raises Fault MASK_*.

def _image(message: Image, height: int, width: int, mask_format: str) -> tuple[np.ndarray, tuple[Instance, ...]]:
    """Masks of an image of labels; labels too large for a table are renumbered."""
    encodings, decode = _IMAGE_FORMATS[mask_format]
    if message.encoding not in encodings:
        raise Fault(FaultCode.MASK_ENCODING_UNKNOWN,
                    f"got '{message.encoding}', mask_format {mask_format} takes {', '.join(encodings)}")
    pixels = decode_pixels(message, FaultCode.MASK_ENCODING_UNKNOWN, FaultCode.MASK_TRUNCATED,
                           FaultCode.MASK_BIG_ENDIAN)
    labels = masks.resize_nearest(decode(pixels), height, width)
    class_of = _CLASS_OF.get(mask_format, lambda number: "")
    if labels.max() > masks.LARGEST_LABEL:
        labels, numbers = masks.renumber(labels)
        return labels, tuple(Instance(label, class_of(number), published=number)
                             for label, number in enumerate(numbers, start=1))
    return labels, tuple(Instance(label, class_of(label)) for label in masks.label_areas(labels))


def _yolo(message: Any, height: int, width: int) -> tuple[np.ndarray, tuple[Instance, ...], list[Fault]]:
    """Masks of the polygons of a yolo_msgs/DetectionArray, and what is wrong with others; detections without one are
    left out."""
    filled, instances, broken = [], [], []
    for found in (d for d in message.detections if d.mask.data):
        corners = np.array([[p.x, p.y] for p in found.mask.data], float)
        if masks.are_corners(corners):
            filled.append(masks.polygon_mask(corners, found.mask.height, found.mask.width, height, width))
            instances.append(Instance(len(filled), found.class_name, found.score, found.id))
        else:
            broken.append(_broken(found.class_name, corners))
    return masks.stack_labels(filled, height, width), tuple(instances), broken


def _isaac(message: Any, height: int, width: int) -> tuple[np.ndarray, tuple[Instance, ...]]:
    """Masks of a TensorList's first tensor, (N, 1, h, w) uint8."""
    if not message.tensors:
        raise Fault(FaultCode.MASK_TRUNCATED, "the list holds no tensor")
    tensor = message.tensors[0]
    shape = tuple(tensor.shape.dims)
    if tensor.data_type != _ISAAC_UINT8 or len(shape) != 4 or shape[1] != 1:
        raise Fault(FaultCode.MASK_ENCODING_UNKNOWN, f"tensor of type {tensor.data_type} and shape {shape}, "
                                                     f"expected uint8 ({_ISAAC_UINT8}) and (N, 1, height, width)")
    size = math.prod(shape)
    if len(tensor.data) < size:
        raise Fault(FaultCode.MASK_TRUNCATED, f"{len(tensor.data)} bytes, expected {size}")
    stack = np.frombuffer(tensor.data, np.uint8, size).reshape(shape)[:, 0]
    filled = [masks.resize_nearest(mask, height, width) for mask in stack]
    return masks.stack_labels(filled, height, width), tuple(Instance(i + 1) for i in range(len(filled)))
