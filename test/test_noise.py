"""Depth that is noisy from pixel to pixel."""
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from sam3d_ros.perception.frame import Frame, Instance, Intrinsics
from sam3d_ros.perception.noise import without_noise

CAMERA = Intrinsics(320, 240, 300.0, 300.0, 159.5, 119.5)


def scene() -> Frame:
    """A slope and 10 cm before it two blocks side by side, the right one 2 cm nearer; no reading in a tenth of all."""
    rows, columns = np.indices((240, 320))
    labels = np.zeros((240, 320), np.int32)
    labels[60:180, 80:160], labels[60:180, 160:240] = 1, 2
    depth = np.select([labels == 1, labels == 2], [0.7, 0.68], 0.8) + 0.0004 * (rows - 120)
    depth[np.random.default_rng(1).random(depth.shape) < 0.1] = 0
    colour = np.zeros((240, 320, 3), np.uint8)
    return Frame(colour, depth.astype(np.float32), labels, CAMERA, (Instance(1), Instance(2)))


def with_noise(frame: Frame, noise: np.ndarray) -> Frame:
    return replace(frame, depth=np.where(frame.depth > 0, frame.depth + noise, 0).astype(np.float32))


def white(sigma: float) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(240, 320)) * sigma


@pytest.mark.parametrize("sigma", [0.005, 0.008])
def test_much_noise_becomes_a_fourth_without_a_mixture_of_objects(sigma):
    true = scene()
    smooth = without_noise(with_noise(true, white(sigma))).depth
    np.testing.assert_array_equal(smooth > 0, true.depth > 0)
    error = (smooth - true.depth)[true.depth > 0]
    assert error.std() < sigma / 4
    between = np.isin(np.indices((240, 320))[1], (159, 160)) & (true.labels > 0) & (true.depth > 0)
    assert abs((smooth - true.depth)[between]).mean() < sigma / 3


@pytest.mark.parametrize("noise", [
    np.zeros((240, 320)), white(0.0035), 0.01 * np.sin(np.arange(320) / 20) * np.ones((240, 1)),
    ndimage.gaussian_filter(white(0.05), 4),
], ids=["none", "of most cameras", "waves", "blobs"])
def test_depth_that_most_cameras_give_stays(noise):
    frame = with_noise(scene(), noise)
    assert without_noise(frame) is frame


@pytest.mark.parametrize("value", [0.0, -0.003, np.nan, np.inf])
def test_what_is_no_reading_stays_and_spoils_no_neighbour(value):
    noisy = with_noise(scene(), white(0.008))
    spoilt = replace(noisy, depth=noisy.depth.copy())
    spoilt.depth[100:104, 100:104] = value
    smooth = without_noise(spoilt).depth
    np.testing.assert_array_equal(smooth[100:104, 100:104], np.float32(value))
    assert abs(smooth[98, 90:110][smooth[98, 90:110] > 0] - 0.7 - 0.0004 * (98 - 120)).max() < 0.008


def test_noise_is_that_at_one_metre():
    far = replace(scene(), depth=3 * scene().depth)
    quiet, loud = with_noise(far, white(0.01)), with_noise(far, white(0.03))     # 2 and 6 mm at 1 m
    assert without_noise(quiet) is quiet and without_noise(loud) is not loud


def test_a_frame_without_depth_or_masks_stays():
    for frame in (replace(scene(), depth=None), replace(scene(), labels=np.zeros((240, 320), np.int32))):
        assert without_noise(frame) is frame
