"""What the network is given of each object: crops of the images that show it, turned and scaled to its cube."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np

from ..runtime.signature import CROP, CROP_CHANNELS, CROP_SPAN, SUPPORT_NUMBERS, VIEW_NUMBERS
from .cube import NO_POINTS, Cube, inlier_points, rotation_towards
from .frame import Frame, back_project

_FARTHEST = 2.0            # edges behind or before the cube's centre: what lies beyond looks alike
_COLOUR_SAMPLES = (-0.25, 0.25)   # of a crop's pixel: four samples a pixel keep fine texture from turning into noise


@dataclass(frozen=True)
class Observation:
    """An object as another image shows it: at another moment, or from another camera.

    frame: that image; label: the object's value in frame.labels
    camera_from_observer: (4, 4) float64, that image's camera frame -> present camera frame, metres; for an object that
        has moved since, together with the object's motion, so that the object stands still
    """

    frame: Frame
    label: int
    camera_from_observer: np.ndarray


def observed_points(observation: Observation, least: int, most: int) -> np.ndarray:
    """(P, 3) metres, present camera frame: what an image shows of the object, without outliers.

    least: readings, below which it shows nothing; most: readings, about, of which more are thinned out
    """
    frame, pose = observation.frame, observation.camera_from_observer
    if frame.depth is None:
        return NO_POINTS
    rows, columns = np.nonzero((frame.labels == observation.label) & (frame.depth > 0))
    if len(rows) < least:
        return NO_POINTS
    thin = slice(None, None, max(1, len(rows) // most))
    points = back_project(frame.depth, frame.intrinsics, rows[thin], columns[thin])
    return points[inlier_points(points)] @ pose[:3, :3].T + pose[:3, 3]


def _crop_ticks() -> np.ndarray:
    """(96,) positions of a crop's pixel centres, in edges of the cube at the depth of the cube's centre."""
    return ((np.arange(CROP) + 0.5) / CROP - 0.5) * CROP_SPAN


def _crop_of(frame: Frame, label: int, rotation: np.ndarray, distance: float, edge: float) -> np.ndarray:
    """Crop (6, 96, 96) float32 of an object; channels as in runtime/signature.py.

    rotation: (3, 3) crop_camera_from_camera, whose optical axis passes through the cube's centre; distance: metres from
    the camera to that centre; edge: of the cube, metres.
    """
    k, step = frame.intrinsics, CROP_SPAN / CROP
    crop = np.zeros((CROP_CHANNELS, CROP, CROP), np.float32)
    camera = (np.ascontiguousarray(rotation, np.float64), k.fx, k.fy, k.cx, k.cy)
    depth = np.empty((0, 0), np.float32) if frame.depth is None else frame.depth
    _read_depth_and_mask(crop, depth, frame.labels, label, _crop_ticks() * edge / distance, *camera, distance, edge)
    for dx in _COLOUR_SAMPLES:
        for dy in _COLOUR_SAMPLES:
            _add_colour(crop, frame.colour, (_crop_ticks() + dx * step) * edge / distance,
                        (_crop_ticks() + dy * step) * edge / distance, *camera)
    crop[3:] *= 1 / (255 * len(_COLOUR_SAMPLES) ** 2)
    return crop


@numba.njit(nogil=True, cache=True)
def _pixel(rotation, fx, fy, cx, cy, x, y, height, width):  # pragma: no cover (compiled)
    """Row and column of the image's pixel that a direction (x, y, 1) of the crop's camera points at; -1, -1 outside."""
    z = rotation[0, 2] * x + rotation[1, 2] * y + rotation[2, 2]
    if z <= 1e-6:
        return -1, -1
    column = np.floor((rotation[0, 0] * x + rotation[1, 0] * y + rotation[2, 0]) / z * fx + cx + 0.5)
    row = np.floor((rotation[0, 1] * x + rotation[1, 1] * y + rotation[2, 1]) / z * fy + cy + 0.5)
    if not (0 <= row < height and 0 <= column < width):
        return -1, -1
    return int(row), int(column)


@numba.njit(nogil=True, cache=True)
def _read_depth_and_mask(crop, depth, labels, label, ticks, rotation, fx, fy, cx, cy, distance,
                         edge):  # pragma: no cover (compiled)
    """Fill the first three channels of a crop, whose pixels lie at `ticks` (96,), tangents of the angle to its axis.

    depth: (H, W), or empty without a depth image; other arguments as of `_crop_of`
    """
    height, width = labels.shape
    for i in range(len(ticks)):
        for j in range(len(ticks)):
            row, column = _pixel(rotation, fx, fy, cx, cy, ticks[j], ticks[i], height, width)
            if row < 0:
                continue
            crop[2, i, j] = labels[row, column] == label
            if depth.size and depth[row, column] > 0:
                # The reading is a depth along the camera's axis; the crop wants it along its own.
                along = depth[row, column] * (rotation[2, 0] * (column - cx) / fx + rotation[2, 1] * (row - cy) / fy
                                              + rotation[2, 2])
                crop[0, i, j] = min(max((along - distance) / edge, -_FARTHEST), _FARTHEST)
                crop[1, i, j] = 1


@numba.njit(nogil=True, cache=True)
def _add_colour(crop, colour, across, down, rotation, fx, fy, cx, cy):  # pragma: no cover (compiled)
    """Add the colours, 0 to 255, at directions (across[column], down[row]) to the last three channels of a crop."""
    height, width, _ = colour.shape
    for i in range(len(down)):
        for j in range(len(across)):
            row, column = _pixel(rotation, fx, fy, cx, cy, across[j], down[i], height, width)
            if row >= 0:
                for channel in range(3):
                    crop[3 + channel, i, j] += colour[row, column, channel]


def _view_row(crop_from_cube: np.ndarray, distance: float, edge: float) -> np.ndarray:
    """A row of the input `views`, (11,) float32: rotation (3, 3), distance in edges, weight 1."""
    return np.concatenate([crop_from_cube.ravel(), [distance / edge, 1.0]]).astype(np.float32)


def first_view(frame: Frame, label: int, cube: Cube) -> tuple[np.ndarray, np.ndarray]:
    """Crop (6, 96, 96) and view (11,) of the image that the cube was fitted in; its crop camera has the cube's axes."""
    crop = _crop_of(frame, label, cube.virtual_from_camera, cube.distance, cube.edge)
    return crop, _view_row(np.eye(3), cube.distance, cube.edge)


def further_view(observation: Observation, cube: Cube) -> tuple[np.ndarray, np.ndarray] | None:
    """Crop (6, 96, 96) and view (11,) of another image of the object.

    None if the cube's centre lies behind that image's camera, or next to it.
    """
    observer_from_camera = np.linalg.inv(observation.camera_from_observer)
    centre = observer_from_camera[:3, :3] @ cube.centre + observer_from_camera[:3, 3]
    distance = float(np.linalg.norm(centre))
    if centre[2] < 0.5 * cube.edge:
        return None
    crop_from_observer = rotation_towards(centre)
    crop = _crop_of(observation.frame, observation.label, crop_from_observer, distance, cube.edge)
    crop_from_cube = crop_from_observer @ observer_from_camera[:3, :3] @ cube.virtual_from_camera.T
    return crop, _view_row(crop_from_cube, distance, cube.edge)


def filled(views: Sequence[tuple[np.ndarray, np.ndarray]], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops (count, 6, 96, 96) and view rows (count, 11) of an object that fewer images show, float32.

    views: as `first_view` and `further_view` give them; the rest are empty, of weight 0 and with a harmless camera.
    """
    crops = np.zeros((count, CROP_CHANNELS, CROP, CROP), np.float32)
    rows = np.zeros((count, VIEW_NUMBERS), np.float32)
    rows[:, [0, 4, 8, 9]] = 1, 1, 1, 4
    for index, (crop, row) in enumerate(views):
        crops[index], rows[index] = crop, row
    return crops, rows


def support_row(cube: Cube, up: np.ndarray | None, plane: np.ndarray | None) -> np.ndarray:
    """Input `support`, (5,) float32.

    up: (3,) unit vector against gravity, camera frame, None if unknown; plane: (4,) support plane, unit normal (up) and
    offset in metres, camera frame, None if unknown.
    """
    row = np.zeros(SUPPORT_NUMBERS, np.float32)
    if plane is not None:
        row[:3] = cube.virtual_from_camera @ plane[:3]
        row[3] = (plane[:3] @ cube.centre + plane[3]) / cube.edge
        row[4] = 1
    elif up is not None:
        row[:3] = cube.virtual_from_camera @ up
    return row
