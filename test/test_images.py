"""Images and camera_info to arrays and back, and the picture of what was seen."""
from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("sensor_msgs")

from caught import fault_of  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image  # noqa: E402
from std_msgs.msg import Header  # noqa: E402

from sam3d_ros.perception.faults import Fault, FaultCode  # noqa: E402
from sam3d_ros.perception.frame import Frame, Instance, Intrinsics  # noqa: E402
from sam3d_ros.ros.debug_image import draw, label_colour  # noqa: E402
from sam3d_ros.ros.images import (  # noqa: E402
    decode_camera_info,
    decode_colour,
    decode_depth,
    decode_pixels,
    encode_image,
    stamp_message,
    stamp_ns,
    upstream_cv_bridge,
)

RGB = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
ALPHA = np.full((2, 3, 1), 255, np.uint8)
GREY = RGB[:, :, 0].copy()


def image(pixels: np.ndarray, encoding: str, padding: int = 0) -> Image:
    message = encode_image(pixels, encoding, Header())
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    message.data = np.pad(rows, ((0, 0), (0, padding)), constant_values=99).tobytes()
    message.step += padding
    return message


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(("encoding", "pixels", "expected"), [
    ("rgb8", RGB, RGB),
    ("bgr8", RGB[:, :, ::-1], RGB),
    ("rgba8", np.concatenate([RGB, ALPHA], axis=2), RGB),
    ("bgra8", np.concatenate([RGB[:, :, ::-1], ALPHA], axis=2), RGB),
    ("mono8", GREY, np.stack([GREY] * 3, axis=2)),
    ("8UC3", RGB[:, :, ::-1], RGB),
    ("8UC4", np.concatenate([RGB[:, :, ::-1], ALPHA], axis=2), RGB),
    ("8UC1", GREY, np.stack([GREY] * 3, axis=2)),
])
def test_colour_encodings(encoding: str, pixels: np.ndarray, expected: np.ndarray, padding: int):
    decoded = decode_colour(image(np.ascontiguousarray(pixels), encoding, padding))
    assert decoded.dtype == np.uint8 and decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("padding", [0, 6])
def test_depth_is_the_same_in_millimetres_and_metres(padding: int):
    millimetres = np.array([[0, 1, 400], [1234, 5000, 65535]], np.uint16)
    metres = (millimetres / 1000).astype(np.float32)
    expected = metres.copy()
    for message in (image(millimetres, "16UC1", padding), image(millimetres, "mono16", padding),
                    image(metres, "32FC1", 2 * padding)):
        decoded = decode_depth(message)
        assert decoded.dtype == np.float32
        np.testing.assert_array_equal(decoded, expected)


def test_invalid_depth_becomes_zero():
    metres = np.array([[np.nan, np.inf, -np.inf], [-1.0, 0.0, 1.5]], np.float32)
    np.testing.assert_array_equal(decode_depth(image(metres, "32FC1")), [[0, 0, 0], [0, 0, 1.5]])


def test_colour_faults():
    message = image(RGB, "rgb8")
    message.encoding = "jpeg"
    assert fault_of(decode_colour, message) == FaultCode.IMAGE_ENCODING_UNKNOWN
    message = image(RGB, "rgb8")
    message.is_bigendian = 1
    assert fault_of(decode_colour, message) == FaultCode.IMAGE_BIG_ENDIAN
    for padding in (0, 5):
        message = image(RGB, "rgb8", padding)
        message.data = message.data[:-1]
        assert fault_of(decode_colour, message) == FaultCode.IMAGE_TRUNCATED
    message = image(RGB, "rgb8")
    message.step = 8
    assert fault_of(decode_colour, message) == FaultCode.IMAGE_TRUNCATED
    for width, height in ((0, 0), (4, 0), (0, 4)):
        empty = Image(encoding="rgb8", width=width, height=height, step=3 * width)
        assert fault_of(decode_colour, empty) == FaultCode.IMAGE_TRUNCATED


def test_depth_faults():
    assert fault_of(decode_depth, image(RGB, "rgb8")) == FaultCode.DEPTH_ENCODING_UNKNOWN
    message = image(np.ones((2, 3), np.float32), "32FC1")
    message.data = message.data[:-1]
    with pytest.raises(Fault, match="IMAGE_TRUNCATED: depth_image: 23 bytes, expected 12 x 2"):
        decode_depth(message)


@pytest.mark.parametrize(("encoding", "dtype", "shape"), [
    ("rgb8", np.uint8, (4, 6, 3)), ("mono8", np.uint8, (4, 6)), ("16UC1", np.uint16, (4, 6)),
    ("32SC1", np.int32, (4, 6)), ("32FC1", np.float32, (4, 6))])
def test_encode_and_decode(encoding: str, dtype: type, shape: tuple[int, ...]):
    pixels = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    message = encode_image(pixels[:, ::-1], encoding, Header(frame_id="camera"))
    assert (message.height, message.width, message.header.frame_id) == (4, 6, "camera")
    np.testing.assert_array_equal(decode_pixels(message), pixels[:, ::-1])


def test_encode_refuses_the_wrong_type():
    with pytest.raises(ValueError, match="no rgb8 image"):
        encode_image(RGB.astype(np.float32), "rgb8", Header())


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "mono8", "16UC1", "32FC1"])
def test_agrees_with_the_upstream_cv_bridge(encoding: str):
    bridge = upstream_cv_bridge()
    if bridge is None:
        pytest.skip("the upstream cv_bridge is not installed")
    dtype = {"16UC1": np.uint16, "32FC1": np.float32}.get(encoding, np.uint8)
    pixels = RGB if encoding in ("rgb8", "bgr8") else GREY.astype(dtype)
    message = image(pixels, encoding)
    np.testing.assert_array_equal(decode_pixels(message), bridge.CvBridge().imgmsg_to_cv2(message, "passthrough"))


def test_a_cv_bridge_that_is_not_of_ros_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """As the one of PyPI: importable, but unknown to the ament index."""
    if upstream_cv_bridge() is not None:
        pytest.skip("the upstream cv_bridge is installed")
    (tmp_path / "cv_bridge.py").write_text("raise AssertionError('must not be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert upstream_cv_bridge() is None
    message = image(GREY, "mono8")
    message.encoding = "bayer_rggb8"
    assert fault_of(decode_colour, message) == FaultCode.IMAGE_ENCODING_UNKNOWN


# camera_info

def camera_info(**fields) -> CameraInfo:
    message = CameraInfo(width=640, height=480)
    message.k = [600.0, 0.0, 320.0, 0.0, 610.0, 240.0, 0.0, 0.0, 1.0]
    message.p = [500.0, 0.0, 310.0, 0.0, 0.0, 510.0, 230.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def camera(message: CameraInfo, width: int = 640, height: int = 480, is_rectified: bool = True) -> tuple[float, ...]:
    found = decode_camera_info(message, width, height, is_rectified)
    assert (found.width, found.height) == (width, height)
    return found.fx, found.fy, found.cx, found.cy


def test_p_describes_a_rectified_image_and_k_a_raw_one():
    distortion = [0.1, -0.2, 0.0, 0.0, 0.0]
    assert camera(camera_info(d=distortion)) == (500, 510, 310, 230)
    assert camera(camera_info(), is_rectified=False) == (600, 610, 320, 240)
    assert camera(camera_info(p=[0.0] * 12)) == (600, 610, 320, 240)
    code = FaultCode.CAMERA_INFO_DISTORTED
    assert fault_of(camera, camera_info(d=distortion), 640, 480, False) == code
    assert fault_of(camera, camera_info(d=distortion, p=[0.0] * 12)) == code


def test_region_of_interest_and_binning():
    message = camera_info(binning_x=2, binning_y=2)
    message.roi.x_offset, message.roi.y_offset, message.roi.width, message.roi.height = 100, 40, 400, 300
    assert camera(message, 200, 150) == (250, 255, 105, 95)


@pytest.mark.parametrize(("fields", "code"), [
    ({"k": [0.0] * 9}, FaultCode.CAMERA_INFO_UNCALIBRATED),
    ({"k": [0.0] * 9, "p": [0.0] * 12}, FaultCode.CAMERA_INFO_UNCALIBRATED),
    ({"p": [500.0, 0.0, float("nan"), 0.0, 0.0, 510.0, 230.0, 0.0, 0.0, 0.0, 1.0, 0.0]},
     FaultCode.CAMERA_INFO_UNCALIBRATED),
    ({"width": 1280, "height": 960}, FaultCode.CAMERA_INFO_SIZE_MISMATCH),
    ({"binning_x": 2, "binning_y": 2}, FaultCode.CAMERA_INFO_SIZE_MISMATCH),
])
def test_camera_info_faults(fields: dict, code: FaultCode):
    assert fault_of(camera, camera_info(**fields)) == code


def test_stamps():
    assert stamp_ns(stamp_message(1_700_000_000_123_456_789)) == 1_700_000_000_123_456_789


def test_the_debug_image_shows_masks_and_where_vertices_are():
    """A mask on the left, and an object seen at column 20, row 10, part of which is behind the camera."""
    labels = np.zeros((24, 32), np.int32)
    labels[4:8, 2:6] = 3
    frame = Frame(np.full((24, 32, 3), 100, np.uint8), None, labels, Intrinsics(32, 24, 50.0, 50.0, 15.5, 11.5),
                  (Instance(3),))
    pose = np.eye(4)
    pose[:3, 3] = (20 - 15.5) / 50 * 2, (10 - 11.5) / 50 * 2, 2
    shown = SimpleNamespace(label=5, vertices=np.array([[0, 0, 0], [0, 0, -4]]), camera_from_object=pose)
    picture = draw(frame, [shown])
    changed = (picture != frame.colour).any(axis=2)
    assert changed[labels == 3].all() and changed.sum() == (labels == 3).sum() + 1
    assert tuple(picture[10, 20]) == label_colour(5)
    np.testing.assert_allclose(picture[4, 2], 0.6 * 100 + 0.4 * np.array(label_colour(3)), atol=1)
