"""From signed distance to a closed triangle mesh: the solid, its iso-surface, and the uncertainty of that surface."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..runtime.signature import VOLUME
from .cube import NO_POINTS, Cube
from .decimation import decimated
from .following import follow_depth
from .hollows import without_unseen_hollows
from .isosurface import zero_surface
from .symmetry import completed
from .uncertainty import voxel_std

_OUTSIDE = 4.0         # voxels, where it is known to be outside
_LEAST = 1e-2          # voxels; no distance nearer to zero, so that no vertex falls onto a grid point and meets others
_MIN_VOXELS = 24
_OWNED_SHARE = 0.005   # of the observed points: a piece that has more of them belongs to the object, beside the largest
_MISSED = 3.0          # voxels: observed points farther outside of the predicted surface were missed
_MISSED_SHARE = 0.3    # of the observed points, above which those that were missed get a shell
_SHELL = 1.0           # voxels, half its thickness
_MOST_FILLED = 4.0     # voxels by which the surface is moved to the mask's outline, at most
_MAX_TRIANGLES = 60_000  # before decimation; no object fills the volume with so much surface, noise does
# 1 sigma of a surface that was observed: by the grid, voxels, and by the depth camera's own error, shares of the depth.
_SEEN_STD, _DEPTH_STD = 0.25, 0.002


@dataclass(frozen=True)
class Surface:
    """A closed triangle mesh in the camera frame.

    vertices: (N, 3) float64, metres, camera frame; triangles: (M, 3) uint32, counter-clockwise seen from outside
    vertex_std: (N,) float32, metres, 1 sigma of the surface along its normal
    """

    vertices: np.ndarray
    triangles: np.ndarray
    vertex_std: np.ndarray


def _object_solid(distance: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Signed distance, negative inside, of the object alone, with closed cavities filled.

    The object is the largest connected inside, and whatever other pieces the camera saw: thin links between them may be
    lost between voxels.  distance: (n, n, n); observed: (P, 3) observed points in the cube's frame, edges.
    Returns the part of the volume, float32, that the object reaches into, within positive values on all sides, and the
    index in `distance` at which that part begins, (3,), -1 where the object reaches the volume's border; or None if
    nothing is inside or everything is.
    """
    inside = distance < 0
    if not inside.any():
        return None
    low, window = _window(inside)
    pieces, _ = ndimage.label(np.pad(inside[window], 1))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    if not _MIN_VOXELS <= sizes.max() < distance.size:
        return None
    voxels = np.floor((observed + 0.5) * len(distance)).astype(int) - low
    kept = (sizes >= _MIN_VOXELS) & (_points_near(pieces, len(sizes), voxels) > _OWNED_SHARE * len(observed))
    kept[sizes.argmax()] = True
    kept[0] = False
    voids, _ = ndimage.label(~kept[pieces])
    solid = voids != voids[0, 0, 0]           # all but the void around it
    magnitude = np.pad(np.maximum(np.abs(distance[window]), _LEAST), 1, constant_values=_OUTSIDE)
    return np.where(solid, -magnitude, magnitude).astype(np.float32), low


def _with_what_was_seen(distance: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Signed distance with a thin shell added around observed points that the prediction missed, if these are many.

    The network can miss parts that are thinner than its voxels; those that the camera saw are restored here.  If only a
    few points were missed, they are readings of something else.

    distance: (n, n, n) voxels; observed: (P, 3) points in the cube's frame, edges.
    """
    n = len(distance)
    voxels = np.floor((observed + 0.5) * n).astype(int)
    voxels = voxels[((voxels >= 0) & (voxels < n)).all(axis=1)]
    missed = distance[tuple(voxels.T)] > _MISSED
    if missed.sum() <= _MISSED_SHARE * len(voxels):
        return distance
    away = np.ones(distance.shape, bool)
    away[tuple(voxels[missed].T)] = False
    return np.minimum(distance, ndimage.distance_transform_edt(away) - _SHELL).astype(np.float32)


def _filled_outline(distance: np.ndarray, cube: Cube, outline: np.ndarray) -> np.ndarray:
    """Signed distance moved by a constant so that the surface reaches the mask's outline, seen from the camera.

    Without depth the network is cautious, and its surface is smaller than the object.
    distance: (n, n, n) voxels; outline: (R, 3) directions of the outline's pixels, camera frame.
    """
    along = cube.along(outline, len(distance))
    values = ndimage.map_coordinates(distance, along.reshape(-1, 3).T, order=1, cval=_OUTSIDE)
    nearest = values.reshape(along.shape[:2]).min(axis=1)
    return distance - np.float32(np.clip(np.median(nearest), 0, _MOST_FILLED))


def _points_near(pieces: np.ndarray, count: int, voxels: np.ndarray) -> np.ndarray:
    """(count,) how many of the `voxels` (P, 3) are in or next to each of the numbered `pieces`, (a, b, c), of which
    none reaches the border.
    """
    voxels = voxels[((voxels > 0) & (voxels < np.array(pieces.shape) - 1)).all(axis=1)]
    own = np.ravel_multi_index(voxels.T, pieces.shape)
    around = (np.indices((3, 3, 3)).reshape(3, -1).T - 1) @ [pieces.shape[1] * pieces.shape[2], pieces.shape[2], 1]
    return np.bincount(pieces.ravel()[own[:, None] + around].max(axis=1, initial=0), minlength=count)


def extract_surface(distance: np.ndarray, log_std: np.ndarray, cube: Cube, max_faces: int,
                    observed: np.ndarray, outline: np.ndarray = NO_POINTS, unread: np.ndarray = NO_POINTS,
                    symmetry: bool = True) -> Surface | None:
    """Iso-surface of a signed distance in `cube`, with about `max_faces` triangles at most.

    distance: (64, 64, 64) voxels, negative inside; log_std: (32, 32, 32) logarithm of its 1-sigma error in voxels;
    observed: (P, 3) metres, camera frame, points seen of the object; a few thousand of each view are enough; without
    depth there are none, but directions (R, 3) of the mask's outline, camera frame; unread: (Q, 3) directions of pixels
    of the mask without a reading, as many to the number of `observed` as there are; symmetry: complete it by planes of
    symmetry.
    Returns None if there is no solid, or so ragged a one that it can only be noise.
    """
    if len(outline):
        distance = _filled_outline(distance, cube, outline)
    if (distance < 0).sum() < _MIN_VOXELS:
        return None              # where nothing was found, what was seen does not make a solid
    seen = cube.from_camera(observed)
    distance = without_unseen_hollows(distance, cube, seen, unread)
    distance, observed_share = follow_depth(_with_what_was_seen(distance, seen), seen)
    std = voxel_std(log_std, observed_share, np.hypot(_SEEN_STD, _DEPTH_STD * cube.distance / cube.voxel))
    if symmetry:
        distance, std = completed(distance, std, seen)
    found = _object_solid(distance, seen)
    if found is None:
        return None
    solid, low = found
    vertices, triangles = zero_surface(solid)
    if len(triangles) > _MAX_TRIANGLES:
        return None
    vertices, triangles = decimated(vertices, triangles, max_faces)
    in_voxels = vertices + low
    points = cube.to_camera((in_voxels + 0.5) / VOLUME - 0.5)
    vertex_std = ndimage.map_coordinates(std, in_voxels.T, order=1, mode="nearest") * cube.voxel
    return Surface(points, triangles.astype(np.uint32), vertex_std.astype(np.float32))


def _window(inside: np.ndarray) -> tuple[np.ndarray, tuple[slice, ...]]:
    """The part of a volume that `inside` reaches into, one voxel wider where there is room, as slices; and the index
    before its first one, (3,).
    """
    spans = [np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    low = np.array([max(span[0] - 1, 0) for span in spans])
    return low - 1, tuple(slice(first, span[-1] + 2) for first, span in zip(low, spans, strict=True))
