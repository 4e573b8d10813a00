"""A picture of what the node saw and made: masks tinted, rebuilt vertices drawn over the image."""
from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np

from ..perception.frame import Frame
from ..perception.objects import ReconstructedObject

_TINT = 0.4
# Successive multiples of the golden ratio give hues that are far apart.
_GOLDEN = 0.618034


def label_colour(label: int) -> np.ndarray:
    """(3,) uint8 RGB, the same for a label every time."""
    return np.round(np.array(colorsys.hsv_to_rgb(label * _GOLDEN % 1, 0.9, 1.0)) * 255).astype(np.uint8)


def draw(frame: Frame, objects: Sequence[ReconstructedObject]) -> np.ndarray:
    """(H, W, 3) uint8 RGB: masks of the frame tinted, and each vertex of `objects` as a point."""
    picture = frame.colour.copy()
    for instance in frame.instances:
        inside = frame.labels == instance.label
        picture[inside] = (1 - _TINT) * picture[inside] + _TINT * label_colour(instance.label)
    for obj in objects:
        rows, columns = _project(frame, obj)
        picture[rows, columns] = label_colour(obj.label)
    return picture


def _project(frame: Frame, obj: ReconstructedObject) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (rows, columns) of the vertices inside the image."""
    points = obj.vertices @ obj.camera_from_object[:3, :3].T + obj.camera_from_object[:3, 3]
    points = points[points[:, 2] > 0]
    camera = frame.intrinsics
    columns = np.rint(points[:, 0] / points[:, 2] * camera.fx + camera.cx).astype(int)
    rows = np.rint(points[:, 1] / points[:, 2] * camera.fy + camera.cy).astype(int)
    seen = (rows >= 0) & (rows < camera.height) & (columns >= 0) & (columns < camera.width)
    return rows[seen], columns[seen]
