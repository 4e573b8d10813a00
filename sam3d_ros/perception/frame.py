"""The input: one camera frame with its instance masks.

Camera (optical) frame: x right, y down, z forward, metres. A pixel's centre has integer coordinates (u, v), as in
OpenCV and ROS `image_geometry`: x = (u - cx) / fx * z.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from .faults import Fault, FaultCode

_PLAUSIBLE_DEPTH = (0.02, 50.0)  # metres, median of a frame; outside this the unit is wrong
# Degrees. A view 170 wide ends at 85 from the optical axis, and so does all that can be cropped from it, wherever its
# principal point then lies.  Crops as narrow as 1 occur.
_FARTHEST_FROM_AXIS, _NARROWEST_VIEW = 85.0, 1.0


@dataclass(frozen=True)
class Intrinsics:
    """Pinhole camera of a rectified image; pixels."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float


@dataclass(frozen=True)
class Instance:
    """What the detector says of one object; `label` is its value in Frame.labels (> 0)."""

    label: int
    class_id: str = ""
    score: float = 1.0
    detector_id: str = ""      # the detector's own track id, or empty
    is_box: bool = False       # the mask is only a filled bounding box
    published: int = 0         # the number in the publisher's image where labels were renumbered, else 0

    @property
    def number(self) -> int:
        """What the publisher of the masks numbers the object with."""
        return self.published or self.label


@dataclass(frozen=True)
class Frame:
    """One moment of one camera.

    colour: (H, W, 3) uint8, RGB
    depth: (H, W) float32, metres along the optical axis, 0 = no reading; None without a depth camera
    labels: (H, W) int32, instance masks, 0 = background
    instances: one entry per label to reconstruct
    intrinsics: of colour and depth alike
    world_from_camera: (4, 4) float64, a frame whose +Z points up, or None where gravity is unknown
    stamp_ns: time of the image, nanoseconds
    frame_id: name of the camera's optical frame
    support_height: metres, height of what the objects stand on in the frame of world_from_camera, or None if unknown
    """

    colour: np.ndarray
    depth: np.ndarray | None
    labels: np.ndarray
    intrinsics: Intrinsics
    instances: tuple[Instance, ...] = ()
    world_from_camera: np.ndarray | None = None
    stamp_ns: int = 0
    frame_id: str = "camera"
    support_height: float | None = None


def pixel_directions(intrinsics: Intrinsics, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Directions of pixels in the camera frame, with z = 1.

    rows, columns: (...,) pixel coordinates. Returns (..., 3) float64.
    """
    return np.stack([(columns - intrinsics.cx) / intrinsics.fx, (rows - intrinsics.cy) / intrinsics.fy,
                     np.ones(np.shape(rows))], axis=-1)


def lengths(vectors: np.ndarray) -> np.ndarray:
    """(..., 3) -> (...,); np.linalg.norm takes four times as long along so short an axis."""
    x, y, z = (vectors[..., axis] for axis in range(3))
    return np.sqrt(x * x + y * y + z * z)


def back_project(depth: np.ndarray, intrinsics: Intrinsics, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Points of the given pixels in the camera frame.

    depth: (H, W) float32 metres; rows, columns: (N,) integer pixel indices. Returns (N, 3) float64, metres.
    """
    return pixel_directions(intrinsics, rows, columns) * depth[rows, columns, None].astype(np.float64)


def nearest_pixels(points: np.ndarray, intrinsics: Intrinsics) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixels that show points, (N, 3) metres, camera frame.

    Returns rows and columns (N,) int, and whether the image shows the point (N,) bool; 0, 0 where it does not.
    """
    z = np.maximum(points[:, 2], 1e-6)
    columns = np.floor(points[:, 0] / z * intrinsics.fx + intrinsics.cx + 0.5).astype(np.int64)
    rows = np.floor(points[:, 1] / z * intrinsics.fy + intrinsics.cy + 0.5).astype(np.int64)
    inside = (points[:, 2] > 0) & (rows >= 0) & (rows < intrinsics.height) \
        & (columns >= 0) & (columns < intrinsics.width)
    return np.where(inside, rows, 0), np.where(inside, columns, 0), inside


def thinning_step(count: int, enough: int) -> int:
    """The step at which every step-th row and column of `count` pixels leave about `enough` of them, or somewhat more.

    It is odd: registered depth may fill every second row only.
    """
    return int(math.sqrt(count / enough)) | 1


def thinned(frame: Frame, step: int) -> Frame:
    """The frame with every step-th row and column alone, from the first on; it shares the images' memory."""
    k = frame.intrinsics
    depth = None if frame.depth is None else frame.depth[::step, ::step]
    height, width = frame.labels[::step, ::step].shape
    return replace(frame, colour=frame.colour[::step, ::step], depth=depth, labels=frame.labels[::step, ::step],
                   intrinsics=Intrinsics(width, height, k.fx / step, k.fy / step, k.cx / step, k.cy / step))


def check_frame(frame: Frame) -> None:
    """Raise the Fault that names what makes the whole frame unusable."""
    k = frame.intrinsics
    _check_calibration(k)
    shape = frame.colour.shape[:2]
    if shape != (k.height, k.width):
        raise Fault(FaultCode.CAMERA_INFO_SIZE_MISMATCH, f"{k.width} x {k.height}, image {shape[1]} x {shape[0]}")
    if frame.labels.shape != shape:
        raise Fault(FaultCode.MASK_SIZE_MISMATCH, f"labels {frame.labels.shape}, image {shape}")
    if frame.depth is None:
        return
    if frame.depth.shape != shape:
        raise Fault(FaultCode.DEPTH_SIZE_MISMATCH, f"depth {frame.depth.shape}, image {shape}")
    some = frame.depth[::4, ::4]
    seen = some[some > 0]
    if not len(seen):                   # registered depth may fill only every second row
        seen = frame.depth[frame.depth > 0]
    if not len(seen):
        raise Fault(FaultCode.DEPTH_EMPTY)
    median = float(np.median(seen))
    if not _PLAUSIBLE_DEPTH[0] <= median <= _PLAUSIBLE_DEPTH[1]:
        raise Fault(FaultCode.DEPTH_UNIT_SUSPECT, f"median {median:.4g} m")


def _check_calibration(k: Intrinsics) -> None:
    """Raise Fault CAMERA_INFO_UNCALIBRATED where no camera has such intrinsics: normalised, or in other units."""
    values = f"fx {k.fx:g}, fy {k.fy:g}, cx {k.cx:g}, cy {k.cy:g}"
    if not all(map(math.isfinite, (k.fx, k.fy, k.cx, k.cy))) or k.fx <= 0 or k.fy <= 0:
        raise Fault(FaultCode.CAMERA_INFO_UNCALIBRATED, values)
    left, right = _edge_angles(k.width, k.fx, k.cx)
    top, bottom = _edge_angles(k.height, k.fy, k.cy)
    farthest = max(map(abs, (left, right, top, bottom)))
    if farthest > _FARTHEST_FROM_AXIS:
        raise Fault(FaultCode.CAMERA_INFO_UNCALIBRATED,
                    f"{values}: the image of {k.width} x {k.height} pixels would reach {farthest:.4g} degrees from the "
                    f"optical axis, at most {_FARTHEST_FROM_AXIS:g} are plausible")
    view = max(right - left, bottom - top)
    if view < _NARROWEST_VIEW:
        raise Fault(FaultCode.CAMERA_INFO_UNCALIBRATED,
                    f"{values}: the image of {k.width} x {k.height} pixels would span {view:.2g} degrees, at least "
                    f"{_NARROWEST_VIEW:g} is plausible")


def _edge_angles(size: int, focal: float, centre: float) -> tuple[float, float]:
    """Degrees from the optical axis of the first and the last pixel's outer edge; all arguments in pixels."""
    first, last = (math.degrees(math.atan((edge - centre) / focal)) for edge in (-0.5, size - 0.5))
    return first, last
