"""Which of the readings in a mask are one object's, and which lie apart from it: islands of the mask, and what is far
behind the rim of a coarse one.
"""
from __future__ import annotations

import numba
import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from .frame import Frame, nearest_pixels

_BESIDE = 3             # pixels within which a reading to the left, and above, is looked for
_STEEPEST = 5.0         # depth by width of a step from pixel to pixel; a steeper one, and higher than _STEP, is an edge
_STEP = 0.01            # metres up to 1 m, beyond that growing with the depth's square
_WHOLE = 0.98           # share of the readings: if one piece has as much, the rest are stray readings
_FAR = 1.0              # times the extent of what surely is the object: a piece nearer than this belongs to it
_LEAST_FAR = 0.03       # metres: a piece nearer than this does so in any case
_ROUNDS = 4             # in which pieces join, as the object grows by those before
_SAMPLES = 500          # readings, about, of the object and of all other pieces that distances are measured with
_STEPS = np.linspace(0, 1, 12)[1:-1, None]     # of the way from the object to a piece, at which the image is asked
_SEEN = 0.3             # share of them past which the camera must see
_ACROSS = 0.75          # share of the distance: a piece whose depth differs by less is beside the object, not behind it
_FRAME = 0.05           # share of the readings: a smaller piece is not what another one is seen through


def in_one_piece(frame: Frame, rows: np.ndarray, columns: np.ndarray, points: np.ndarray,
                 is_its_own: np.ndarray) -> np.ndarray:
    """(N,) bool: which of an instance's readings are one piece: points (N, 3) metres, camera frame, at rows, columns.

    is_its_own: (N,) bool, without those that may be the support's.  The object is the piece that has most of them, the
    more deeply inside of the mask the more they count, or what that is seen through: masks fill holes.  Another is left
    out if it is farther than the object's extent and the camera sees past the way to it: a neighbour in front may
    hide what joins two parts, and so may glass, through which the mask's own pixels show what is behind.
    """
    top, left = rows.min(), columns.min()
    depth = _depth_image(rows, columns, points)
    piece = _pieces(depth, _STEEPEST / frame.intrinsics.fx, _BESIDE)[rows - top, columns - left]
    sizes = np.bincount(piece)
    if sizes.max() >= _WHOLE * len(piece):
        return np.ones(len(piece), bool)
    inwards = ndimage.distance_transform_cdt(np.pad(depth > 0, 1))[1 + rows - top, 1 + columns - left]
    most = int(np.bincount(piece, inwards * is_its_own).argmax())
    is_in = np.zeros(len(sizes), bool)
    is_in[_seen_through(most, piece, sizes, np.column_stack([rows, columns]), points[:, 2])] = True
    shown = np.full(frame.labels.shape, -1, np.int32)
    shown[rows, columns] = piece
    for _ in range(_ROUNDS):
        own, others = (np.flatnonzero(is_in[piece] == side) for side in (True, False))
        if not len(others):
            break
        own, others = own[::max(1, len(own) // _SAMPLES)], others[::max(1, len(others) // _SAMPLES)]
        distance, nearest = cKDTree(points[own]).query(points[others])
        far = max(_LEAST_FAR, _FAR * np.ptp(points[own], axis=0).max())
        order = np.argsort(distance)
        closest = order[np.unique(piece[others[order]], return_index=True)[1]]       # of each piece the nearest reading
        is_apart = _is_seen_apart(points[own[nearest[closest]]], points[others[closest]], frame, shown,
                                  piece[others[closest]])
        joins = (distance[closest] < far) | ~is_apart
        if not joins.any():
            break
        is_in[piece[others[closest[joins]]]] = True
    return is_in[piece]


def beyond_a_step(frame: Frame, rows: np.ndarray, columns: np.ndarray, points: np.ndarray) -> float:
    """Share, 0 to 0.5, of readings, points (N, 3) at rows, columns, that the largest step in depth divides from most.

    Readings on both sides of a gap are compared with each other, however wide it is: a black object is in one piece.
    """
    if not len(points):
        return 0.0
    depth = _depth_image(rows, columns, points)
    piece = _pieces(depth, _STEEPEST / frame.intrinsics.fx, max(depth.shape))[depth > 0]
    return float(np.sort(np.bincount(piece, minlength=2))[-2] / len(points))


def is_step(depth: np.ndarray, other: np.ndarray, pixels: int, fx: float) -> np.ndarray:
    """(N,) bool: whether readings (N,), metres, of pixels so far from each other are apart by a step in depth.

    fx: focal length, pixels
    """
    return np.abs(depth - other) >= pixels * _STEEPEST / fx * depth + _STEP * np.maximum(1.0, depth * depth)


def _depth_image(rows: np.ndarray, columns: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(H, W) float32, the depth of points (N, 3) in the bounding box of their pixels, 0 where there is none."""
    top, left = rows.min(), columns.min()
    depth = np.zeros((rows.max() - top + 1, columns.max() - left + 1), np.float32)
    depth[rows - top, columns - left] = points[:, 2]
    return depth


def _seen_through(most: int, piece: np.ndarray, sizes: np.ndarray, pixels: np.ndarray, depth: np.ndarray) -> int:
    """The piece in front of piece `most` that reaches around it, such as a ring around its hole; `most` if none does.

    piece: (N,) of each reading; sizes: (P,) of the pieces; pixels: (N, 2); depth: (N,) metres
    """
    for other in np.flatnonzero(sizes >= _FRAME * len(piece)):
        inner, outer = piece == most, piece == other
        if np.median(depth[outer]) < np.median(depth[inner]) \
                and (pixels[outer].min(axis=0) < pixels[inner].min(axis=0)).all() \
                and (pixels[outer].max(axis=0) > pixels[inner].max(axis=0)).all():
            most = int(other)
    return most


def _is_seen_apart(starts: np.ndarray, ends: np.ndarray, frame: Frame, shown: np.ndarray,
                   pieces: np.ndarray) -> np.ndarray:
    """(P,) bool: whether the camera sees past the way from points (P, 3) to others, of `pieces` (P,).

    shown: (H, W) int32, the piece of each reading in the mask, elsewhere -1
    """
    way = (starts + _STEPS[..., None] * (ends - starts)).reshape(-1, 3)
    rows, columns, inside = nearest_pixels(way, frame.intrinsics)
    seen = inside & (frame.depth[rows, columns] > way[:, 2] + _STEP * np.maximum(1, way[:, 2] ** 2))
    seen = seen.reshape(len(_STEPS), -1)
    behind = shown[rows, columns].reshape(seen.shape)
    across = np.abs(ends - starts)[:, 2] < _ACROSS * np.linalg.norm(ends - starts, axis=1)
    seen &= ~across | (behind < 0) | (behind == pieces)      # else through glass: the mask says it is there
    return seen.mean(axis=0) > _SEEN


@numba.njit(nogil=True, cache=True)
def _pieces(depth, slope, beside):  # pragma: no cover (compiled)
    """(H, W) int32 number, from 0, of the piece that a reading belongs to, of those whose depth goes on smoothly.

    depth: (H, W) float32, metres, 0 = none; slope: of an edge, depth by pixel and metre of depth; beside: pixels within
    which a reading to the left, and above, is looked for
    """
    height, width = depth.shape
    root = np.full(height * width, -1, np.int32)
    for row in range(height):
        for column in range(width):
            z = depth[row, column]
            if z == 0:
                continue
            here = row * width + column
            root[here] = here
            for down, right in ((-1, 0), (0, -1)):
                for step in range(1, beside + 1):
                    r, c = row + step * down, column + step * right
                    if r < 0 or c < 0:
                        break
                    if depth[r, c] > 0:
                        way = min(step, _BESIDE) + max(step - _BESIDE, 0) / _STEEPEST     # over a wide gap 45 degrees
                        if abs(depth[r, c] - z) < way * slope * z + _STEP * max(1.0, z * z):
                            _join(root, here, r * width + c)
                        break
    number, count = np.zeros(height * width, np.int32), 0
    for pixel in range(height * width):
        if root[pixel] >= 0:
            if root[pixel] == pixel:
                number[pixel] = count
                count += 1
            else:                       # roots come before their members
                number[pixel] = number[_root_of(root, pixel)]
    return number.reshape(height, width)


@numba.njit(nogil=True, cache=True)
def _join(root, a, b):  # pragma: no cover (compiled)
    a, b = _root_of(root, a), _root_of(root, b)
    root[max(a, b)] = min(a, b)


@numba.njit(nogil=True, cache=True)
def _root_of(root, pixel):  # pragma: no cover (compiled)
    while root[pixel] != pixel:
        root[pixel] = root[root[pixel]]
        pixel = root[pixel]
    return pixel
