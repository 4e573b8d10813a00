"""Masks, depth and colour image that lie beside each other."""
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from test_outline import eroded

from sam3d_ros.perception.faults import FaultCode
from sam3d_ros.perception.frame import Frame, Instance, Intrinsics
from sam3d_ros.perception.in_step import in_step

CAMERA = Intrinsics(320, 240, 300.0, 300.0, 159.5, 119.5)
SHIFTS = [(0, 4), (-4, 0), (3, -8), (6, 6), (-9, 2), (11, 11)]         # rows and columns


def scene() -> Frame:
    """Three discs 10 cm above a table of one colour, each of another one; depth with noise, and none along edges."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices((240, 320))
    labels = np.zeros((240, 320), np.int32)
    for label, (row, column, radius) in enumerate([(70, 90, 35), (150, 200, 45), (70, 230, 22)], 1):
        labels[np.hypot(rows - row, columns - column) < radius] = label
    depth = np.where(labels > 0, 0.7, 0.8) + rng.normal(size=labels.shape) * 0.001
    depth[(ndimage.maximum_filter(labels, 3) != labels) & (rng.random(labels.shape) < 0.5)] = 0
    colour = np.array([[90, 90, 90], [200, 60, 60], [70, 160, 70], [80, 80, 210]], np.uint8)[labels]
    return Frame(colour, depth.astype(np.float32), labels, CAMERA, tuple(map(Instance, (1, 2, 3))))


def shifted(image: np.ndarray, shift: tuple[int, int], fill: float) -> np.ndarray:
    return ndimage.shift(image, (*shift, 0)[:image.ndim], order=0, cval=fill)


@pytest.mark.parametrize("shift", SHIFTS)
def test_depth_beside_the_image_is_moved_back(shift):
    frame = scene()
    mended, told = in_step(replace(frame, depth=shifted(frame.depth, shift, 0.8)))
    assert told.code is FaultCode.DEPTH_SHIFTED and f"{shift[1]} pixels to the right and {shift[0]} down" in told.detail
    np.testing.assert_array_equal(mended.labels, frame.labels)
    np.testing.assert_array_equal(mended.depth[11:-11, 11:-11], frame.depth[11:-11, 11:-11])


@pytest.mark.parametrize("shift", SHIFTS)
def test_masks_beside_image_and_depth_are_moved_back(shift):
    frame = scene()
    mended, told = in_step(replace(frame, labels=shifted(frame.labels, shift, 0)))
    assert told.code is FaultCode.MASKS_SHIFTED
    assert f"{-shift[1]} pixels to the right and {-shift[0]} down" in told.detail
    np.testing.assert_array_equal(mended.labels, frame.labels)
    np.testing.assert_array_equal(mended.depth, frame.depth)


def test_large_images_are_mended_to_within_a_thinned_pixel():
    def larger(image: np.ndarray) -> np.ndarray:
        return image.repeat(6, axis=0).repeat(6, axis=1)
    frame = scene()
    camera = Intrinsics(1920, 1440, 1800.0, 1800.0, 959.5, 719.5)      # every third pixel is looked at
    late = Frame(larger(frame.colour), larger(frame.depth), shifted(larger(frame.labels), (12, -21), 0), camera,
                 frame.instances)
    mended, told = in_step(late)
    assert told.code is FaultCode.MASKS_SHIFTED
    truth = np.argwhere(larger(frame.labels) == 2).mean(axis=0)
    np.testing.assert_allclose(np.argwhere(mended.labels == 2).mean(axis=0), truth, atol=3)


def dilated(frame: Frame, pixels: int) -> Frame:
    return replace(frame, labels=ndimage.maximum_filter(frame.labels, 2 * pixels + 1))


@pytest.mark.parametrize("frame", [
    scene(), eroded(scene(), 4), dilated(scene(), 4), dilated(scene(), 10),
    replace(scene(), depth=shifted(scene().depth, (2, 0), 0.8)),             # as good cameras are off
    replace(scene(), labels=shifted(scene().labels, (1, -2), 0)),
    replace(scene(), depth=ndimage.gaussian_filter(scene().depth, 2)),
    replace(scene(), depth=None),
    replace(scene(), depth=np.full((240, 320), 0.8, np.float32)),
    replace(scene(), labels=np.zeros((240, 320), np.int32)),
], ids=["sound", "eroded", "dilated", "much dilated", "depth off by 2", "masks off by 2", "blurred depth", "no depth",
        "flat depth", "no mask"])
def test_what_is_in_step_or_cannot_be_told_stays(frame):
    assert in_step(frame) == (frame, None)


def test_boxes_tell_nothing():
    frame = scene()
    boxes = tuple(replace(instance, is_box=True) for instance in frame.instances)
    late = replace(frame, labels=shifted(frame.labels, (6, 6), 0))
    assert in_step(late)[1] is not None
    assert in_step(replace(late, instances=boxes))[1] is None
