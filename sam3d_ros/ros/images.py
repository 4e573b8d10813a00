"""sensor_msgs images and camera_info to arrays and back, with NumPy.

Both the cv_bridge of PyPI and the upstream one read padded rows wrong, and the former reads 16UC1 as bytes, so that
every encoding of `COLOUR_CHANNELS` and `DEPTH_ENCODINGS` is decoded here, honouring `step`.  Upstream's is used only
for colour encodings that are not decoded here (Bayer, YUV).
"""
from __future__ import annotations

import array
import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from ..perception.faults import Fault, FaultCode
from ..perception.frame import Intrinsics

# encoding -> channel indices that give R, G, B
COLOUR_CHANNELS = {
    "rgb8": [0, 1, 2], "bgr8": [2, 1, 0], "rgba8": [0, 1, 2], "bgra8": [2, 1, 0],
    "8UC3": [2, 1, 0], "8UC4": [2, 1, 0],  # OpenCV's order, as cv_bridge takes it
    "mono8": [0, 0, 0], "8UC1": [0, 0, 0],
}
DEPTH_ENCODINGS = ("16UC1", "mono16", "32FC1")  # millimetres, millimetres, metres
_DTYPE_CHANNELS = {
    "rgb8": (np.uint8, 3), "bgr8": (np.uint8, 3), "8UC3": (np.uint8, 3),
    "rgba8": (np.uint8, 4), "bgra8": (np.uint8, 4), "8UC4": (np.uint8, 4),
    "mono8": (np.uint8, 1), "8UC1": (np.uint8, 1),
    "mono16": (np.uint16, 1), "16UC1": (np.uint16, 1), "32SC1": (np.int32, 1), "32FC1": (np.float32, 1),
}
_NO_DISTORTION = 1e-6


def decode_pixels(message: Image, unknown: FaultCode = FaultCode.IMAGE_ENCODING_UNKNOWN,
                  truncated: FaultCode = FaultCode.IMAGE_TRUNCATED,
                  big_endian: FaultCode = FaultCode.IMAGE_BIG_ENDIAN) -> np.ndarray:
    """Raw pixels, (H, W) or (H, W, C), of the encoding's dtype: a view into the message where rows allow it.

    Raises Fault with the given codes.
    """
    if message.encoding not in _DTYPE_CHANNELS:
        raise Fault(unknown, f"got '{message.encoding}'")
    if message.is_bigendian:
        raise Fault(big_endian, f"encoding {message.encoding}")
    dtype, channels = _DTYPE_CHANNELS[message.encoding]
    row = message.width * channels * np.dtype(dtype).itemsize
    if row == 0 or message.height == 0:
        raise Fault(truncated, f"the image is {message.width} x {message.height}")
    if message.step < row:
        raise Fault(truncated, f"step is {message.step}, a row of {message.encoding} takes {row} bytes")
    if len(message.data) < message.step * message.height:
        raise Fault(truncated, f"{len(message.data)} bytes, expected {message.step} x {message.height}")
    rows = np.frombuffer(message.data, np.uint8, message.step * message.height).reshape(message.height, message.step)
    pixels = np.ascontiguousarray(rows[:, :row]).view(dtype)
    return pixels if channels == 1 else pixels.reshape(message.height, message.width, channels)


def decode_colour(message: Image) -> np.ndarray:
    """Colour image as (H, W, 3) uint8 RGB.

    Raises Fault IMAGE_ENCODING_UNKNOWN, IMAGE_BIG_ENDIAN, IMAGE_TRUNCATED.
    """
    if message.encoding not in COLOUR_CHANNELS:
        return _decode_with_cv_bridge(message)
    pixels = decode_pixels(message)
    if pixels.ndim == 2:
        return np.repeat(pixels[:, :, None], 3, axis=2)
    order = COLOUR_CHANNELS[message.encoding]
    # Not pixels[:, :, order], whose channels lie apart in memory: what is compiled would be compiled for that as well.
    return pixels if order == [0, 1, 2] and pixels.shape[2] == 3 else np.take(pixels, order, axis=2)


def decode_depth(message: Image) -> np.ndarray:
    """Depth image as (H, W) float32, metres, 0 = no reading (also where it was negative or not finite).

    Whether the readings are plausible is for the pipeline to say.
    Raises Fault DEPTH_ENCODING_UNKNOWN, IMAGE_BIG_ENDIAN, IMAGE_TRUNCATED.
    """
    if message.encoding not in DEPTH_ENCODINGS:
        raise Fault(FaultCode.DEPTH_ENCODING_UNKNOWN, f"got '{message.encoding}'")
    try:
        raw = decode_pixels(message)
    except Fault as fault:
        raise Fault(fault.code, f"depth_image: {fault.detail}") from None
    if raw.dtype == np.float32:
        return np.where((raw > 0) & (raw < np.inf), raw, np.float32(0))
    # Divided, not multiplied by 0.001: the nearest float32 to the metres, as a 32FC1 publisher computes it.
    return raw / np.float32(1000)


def encode_image(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    """Image message of `pixels`, (H, W) or (H, W, C), whose dtype and channels must be the encoding's.

    Raises ValueError if they are not, KeyError for an encoding that is not known here.
    """
    dtype, channels = _DTYPE_CHANNELS[encoding]
    height, width = pixels.shape[:2]
    if pixels.dtype != dtype or pixels.shape[2:] != (() if channels == 1 else (channels,)):
        raise ValueError(f"{pixels.dtype} array of shape {pixels.shape} is no {encoding} image")
    message = Image(header=header, height=height, width=width, encoding=encoding,
                    step=width * channels * np.dtype(dtype).itemsize)
    message.data = to_array("B", pixels)
    return message


def to_array(code: str, values: np.ndarray) -> array.array:
    """Message array field of type code `code` from the bytes of `values`; assigning an ndarray costs 100 times more."""
    field = array.array(code)
    field.frombytes(np.ascontiguousarray(values).data.cast("B") if values.size else b"")
    return field


def decode_camera_info(message: CameraInfo, width: int, height: int, is_rectified: bool) -> Intrinsics:
    """Pinhole camera of an image of `width` x `height` pixels.

    A rectified image (`is_rectified`) is described by P, or by K where P is not filled in and D is zero; a raw image by
    K, and D must be zero.  Region of interest and binning are applied as image_geometry does.

    Raises Fault CAMERA_INFO_UNCALIBRATED, CAMERA_INFO_DISTORTED, CAMERA_INFO_SIZE_MISMATCH.
    """
    k, p = message.k, message.p
    distorted = any(abs(d) > _NO_DISTORTION for d in message.d)
    if is_rectified and p[0] > 0:
        fx, fy, cx, cy = p[0], p[5], p[2], p[6]
    elif distorted:
        reason = "P is not filled in and D is not zero" if is_rectified else "D is not zero"
        raise Fault(FaultCode.CAMERA_INFO_DISTORTED, reason)
    else:
        fx, fy, cx, cy = k[0], k[4], k[2], k[5]
    if not (all(math.isfinite(v) for v in (fx, fy, cx, cy)) and fx > 0 and fy > 0 and k[0] > 0):
        raise Fault(FaultCode.CAMERA_INFO_UNCALIBRATED, f"fx = {fx}, fy = {fy}, K[0] = {k[0]}")
    binning_x, binning_y = max(1, message.binning_x), max(1, message.binning_y)
    region = message.roi
    size = ((region.width or message.width) // binning_x, (region.height or message.height) // binning_y)
    if size != (width, height):
        raise Fault(FaultCode.CAMERA_INFO_SIZE_MISMATCH,
                    f"camera_info {size[0]} x {size[1]}, image {width} x {height}")
    return Intrinsics(width, height, fx / binning_x, fy / binning_y,
                      (cx - region.x_offset) / binning_x, (cy - region.y_offset) / binning_y)


def stamp_ns(stamp: Time) -> int:
    """Nanoseconds of a message's stamp."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def stamp_message(nanoseconds: int) -> Time:
    """The inverse of `stamp_ns`."""
    return Time(sec=nanoseconds // 1_000_000_000, nanosec=nanoseconds % 1_000_000_000)


def upstream_cv_bridge() -> ModuleType | None:
    """The cv_bridge of a ROS installation, or None.

    The PyPI package of that name decodes 16UC1 as bytes; it is told apart by not being registered in the ament index,
    or lying outside the prefix registered there.
    """
    try:
        prefix = Path(get_package_prefix("cv_bridge"))
    except PackageNotFoundError:
        return None
    found = importlib.util.find_spec("cv_bridge")
    if found is None or found.origin is None or not Path(found.origin).is_relative_to(prefix):
        return None
    import cv_bridge
    return cv_bridge


def _decode_with_cv_bridge(message: Image) -> np.ndarray:
    """Colour image, (H, W, 3) uint8 RGB, of an encoding that only upstream's cv_bridge knows.

    Raises Fault IMAGE_ENCODING_UNKNOWN, IMAGE_BIG_ENDIAN, IMAGE_TRUNCATED.
    """
    bridge = upstream_cv_bridge()
    if bridge is None:
        raise Fault(FaultCode.IMAGE_ENCODING_UNKNOWN, f"got '{message.encoding}', and cv_bridge is not installed")
    if message.is_bigendian:
        raise Fault(FaultCode.IMAGE_BIG_ENDIAN, f"encoding {message.encoding}")
    converter = bridge.CvBridge()
    try:
        dtype, channels = converter.encoding_to_dtype_with_channels(message.encoding)
        if message.step != message.width * channels * np.dtype(dtype).itemsize:
            raise Fault(FaultCode.IMAGE_ENCODING_UNKNOWN, f"'{message.encoding}' with padded rows")
        if len(message.data) < message.step * message.height:
            raise Fault(FaultCode.IMAGE_TRUNCATED, f"{len(message.data)} bytes of {message.step} x {message.height}")
        return np.ascontiguousarray(converter.imgmsg_to_cv2(message, "rgb8"))
    except (bridge.CvBridgeError, KeyError) as error:
        raise Fault(FaultCode.IMAGE_ENCODING_UNKNOWN, f"got '{message.encoding}': {error}") from error
