"""A picture of what the node saw and made: masks tinted, rebuilt vertices drawn over the image."""
from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np

from ..perception.frame import Frame, nearest_pixels
from ..perception.objects import ReconstructedObject

_TINT = 0.4
# Successive multiples of the golden ratio give hues that are far apart.
_GOLDEN = 0.618034


def label_colour(label: int) -> tuple[int, int, int]:
    """RGB, 0 to 255, the same for a label every time."""
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN % 1, 0.9, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw(frame: Frame, objects: Sequence[ReconstructedObject]) -> np.ndarray:
    """(H, W, 3) uint8 RGB: masks of the frame tinted, and each vertex of `objects` as a point."""
    picture = frame.colour.copy()
    for instance in frame.instances:
        inside = frame.labels == instance.label
        picture[inside] = (1 - _TINT) * picture[inside] + _TINT * np.array(label_colour(instance.label))
    for obj in objects:
        points = obj.vertices @ obj.camera_from_object[:3, :3].T + obj.camera_from_object[:3, 3]
        rows, columns, inside = nearest_pixels(points, frame.intrinsics)
        picture[rows[inside], columns[inside]] = label_colour(obj.label)
    return picture
