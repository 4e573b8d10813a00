"""Masks that a detector cut too narrow, and objects that others hide."""
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from sam3d_ros.perception.frame import Frame, Instance, Intrinsics, pixel_directions
from sam3d_ros.perception.outline import grown_masks, hidden_share

CAMERA = Intrinsics(320, 240, 300.0, 220.0, 159.5, 119.5)            # pixels that are not square
TABLE = np.array([0.0, 0.0, -1.0, 0.8])              # 0.8 m below a camera that looks straight down
OBLIQUE = np.array([0.2, -0.6, -np.sqrt(0.6), 0.8 * np.sqrt(0.6)])   # seen at 39 degrees from above, rolled
TALL, FLAT, BAR = 1, 2, 3


def scene(table: np.ndarray = TABLE) -> Frame:
    """On a table: a block 10 cm high, a plate 3 mm high, and a bar 4 pixels wide; all masks are exact."""
    height, labels = np.zeros((240, 320)), np.zeros((240, 320), np.int32)
    for label, window, above in ((TALL, np.s_[40:100, 40:120], 0.1), (FLAT, np.s_[40:100, 200:280], 0.003),
                                  (BAR, np.s_[150:210, 100:104], 0.04)):
        labels[window], height[window] = label, above
    depth = ((height - table[3]) / (pixel_directions(CAMERA, *np.indices((240, 320))) @ table[:3])).astype(np.float32)
    instances = tuple(Instance(label) for label in (TALL, FLAT, BAR))
    return Frame(np.zeros((240, 320, 3), np.uint8), depth, labels, CAMERA, instances)


def eroded(frame: Frame, pixels: int) -> Frame:
    labels = np.where(ndimage.minimum_filter(frame.labels, 2 * pixels + 1) == frame.labels, frame.labels, 0)
    return replace(frame, labels=labels)


def test_a_mask_that_is_right_stays():
    np.testing.assert_array_equal(grown_masks(scene(), TABLE).labels, scene().labels)


@pytest.mark.parametrize("table", [TABLE, OBLIQUE], ids=["from above", "obliquely"])
@pytest.mark.parametrize("pixels", [1, 4])
def test_a_mask_that_was_cut_narrow_gets_its_rim_back(pixels, table):
    cut = eroded(scene(table), pixels)
    assert (cut.labels == TALL).sum() < (scene().labels == TALL).sum()
    grown, whole = grown_masks(cut, table).labels == TALL, scene().labels == TALL
    assert not (grown & ~whole).any() and (whole & ~grown).sum() <= 4 * pixels * (pixels - 1)      # at the corners


def rolled(frame: Frame, pixels: int) -> Frame:
    """The frame moved up and to the left; the block of `scene` is 40 pixels from both borders."""
    return replace(frame, depth=np.roll(frame.depth, -pixels, (0, 1)), labels=np.roll(frame.labels, -pixels, (0, 1)))


def test_a_mask_grows_up_to_the_image_s_border():
    whole = rolled(scene(), 40)
    cut = np.zeros_like(whole.labels)
    cut[3:57, 3:77] = TALL
    grown = grown_masks(replace(whole, labels=cut), TABLE).labels == TALL
    assert grown[0, 3:77].all() and grown[3:57, 0].all()
    assert not (grown & (whole.labels != TALL)).any()


@pytest.mark.parametrize("table", [TABLE, OBLIQUE], ids=["from above", "obliquely"])
def test_what_is_as_flat_as_the_support_does_not_grow(table):
    cut = eroded(scene(table), 3)
    np.testing.assert_array_equal(grown_masks(cut, table).labels == FLAT, cut.labels == FLAT)


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


def with_neighbour(depth: float, gap: int = 0) -> Frame:
    """The block of `scene` with a board `depth` metres away that covers its lower half and reaches beyond its sides."""
    frame = scene()
    covered = np.s_[70:120, 20:140]
    frame.labels[covered] = 0
    frame.depth[covered] = depth
    frame.depth[70 - gap:70 + gap] = 0
    return frame


@pytest.mark.parametrize("gap", [0, 2])              # rows without a reading on both sides of the edge, as cameras have
def test_the_share_of_an_outline_that_others_hide(gap):
    """Of the outline of 30 x 80 pixels one long side ends at what stands before it."""
    assert hidden_share(with_neighbour(0.6, gap), TALL) == pytest.approx(80 / 216, abs=0.03)


@pytest.mark.parametrize(("pixels", "outline"), [(39, 216), (40, 109)], ids=["before the border", "at the border"])
def test_the_share_that_others_hide_near_the_image_s_border(pixels, outline):
    """What the border cuts off is no outline."""
    assert hidden_share(rolled(with_neighbour(0.6), pixels), TALL) == pytest.approx(80 / outline, abs=0.001)


def test_what_stands_behind_or_touches_hides_nothing():
    assert hidden_share(scene(), TALL) == 0
    assert hidden_share(with_neighbour(0.75), TALL) == 0
    assert hidden_share(with_neighbour(0.695), TALL) == 0                          # 5 mm nearer: side by side
    assert hidden_share(replace(with_neighbour(0.6), depth=None), TALL) == 0
    assert hidden_share(scene(), 99) == 0


def test_the_window_of_an_instance_is_enough():
    frame = with_neighbour(0.6)
    assert hidden_share(frame, TALL, np.s_[40:70, 40:120]) == hidden_share(frame, TALL)
