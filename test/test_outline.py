"""Masks that a detector cut too narrow."""
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from sam3d_ros.perception.frame import Frame, Instance, Intrinsics
from sam3d_ros.perception.outline import grown_masks

CAMERA = Intrinsics(320, 240, 300.0, 300.0, 159.5, 119.5)
TABLE = np.array([0.0, 0.0, -1.0, 0.8])              # 0.8 m below a camera that looks straight down
TALL, FLAT, BAR = 1, 2, 3


def scene() -> Frame:
    """From above: a block 10 cm high, a plate 3 mm high, and a bar 4 pixels wide; all masks are exact."""
    depth, labels = np.full((240, 320), 0.8, np.float32), np.zeros((240, 320), np.int32)
    for label, window, height in ((TALL, np.s_[40:100, 40:120], 0.1), (FLAT, np.s_[40:100, 200:280], 0.003),
                                  (BAR, np.s_[150:210, 100:104], 0.04)):
        labels[window], depth[window] = label, 0.8 - height
    instances = tuple(Instance(label) for label in (TALL, FLAT, BAR))
    return Frame(np.zeros((240, 320, 3), np.uint8), depth, labels, CAMERA, instances)


def eroded(frame: Frame, pixels: int) -> Frame:
    labels = np.where(ndimage.minimum_filter(frame.labels, 2 * pixels + 1) == frame.labels, frame.labels, 0)
    return replace(frame, labels=labels)


def test_a_mask_that_is_right_stays():
    np.testing.assert_array_equal(grown_masks(scene(), TABLE).labels, scene().labels)


@pytest.mark.parametrize("pixels", [1, 4])
def test_a_mask_that_was_cut_narrow_gets_its_rim_back(pixels):
    cut = eroded(scene(), pixels)
    assert (cut.labels == TALL).sum() < (scene().labels == TALL).sum()
    grown, whole = grown_masks(cut, TABLE).labels == TALL, scene().labels == TALL
    assert not (grown & ~whole).any() and (whole & ~grown).sum() <= 4 * pixels * (pixels - 1)      # at the corners


def test_what_is_as_flat_as_the_support_does_not_grow():
    cut = eroded(scene(), 3)
    np.testing.assert_array_equal(grown_masks(cut, TABLE).labels == FLAT, cut.labels == FLAT)


def test_masks_that_touch_share_the_gap_between_them():
    whole = scene()
    labels = np.where(whole.labels == TALL, np.where(np.arange(320) < 80, TALL, BAR), 0).astype(np.int32)
    cut = replace(whole, labels=np.where(abs(np.arange(320) - 79.5) < 3, 0, labels).astype(np.int32))
    np.testing.assert_array_equal(grown_masks(cut, TABLE).labels, labels)


def test_without_depth_or_support_and_for_boxes_nothing_changes():
    cut = eroded(scene(), 3)
    boxes = replace(cut, instances=tuple(replace(i, is_box=True) for i in cut.instances))
    for frame, plane in ((cut, None), (replace(cut, depth=None), TABLE), (boxes, TABLE)):
        np.testing.assert_array_equal(grown_masks(frame, plane).labels, cut.labels)
