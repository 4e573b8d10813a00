"""Recognises missing objects, which were hidden or put elsewhere, in masks that belong to no tracked object."""
from __future__ import annotations

import numpy as np

from ..perception.plane import range_factor
from .motion import diagonal
from .readings import Readings, look_for
from .registration import Registration, near_share, register, turned
from .track import Track

# An object found at another place must fit well, and have about the colour (share of red, green and blue): it may be
# another one of about that size.
_NEAR, _LEAST_NEAR = 0.004, 0.85            # metres at 1 m from its surface, share of the readings that must be
_LEAST_CONFIRMED, _MOST_MISSING = 0.6, 0.2  # of the visible samples
_MOST_COLOUR = 0.08
_LARGER = 1.3             # times the diagonal of the mesh: readings that spread farther are of something else
_YAWS = np.arange(8) * (np.pi / 4)
_LOOSE = (0.1, 1.0)       # metres, radians: 1 sigma of the pose that a registration starts from


def may_be(track: Track, readings: Readings, index: int) -> bool:
    """Whether an instance of an image may show a missing object, by class, size and colour."""
    instance, points = readings.instances[index], readings.points[index]
    spread = np.linalg.norm(np.ptp(points, axis=0))
    if not track.may_be_called(instance.class_id) or spread > _LARGER * track.shape.diagonal:
        return False
    own, shown = _tint(track.mesh.vertex_rgba[:, :3]), _tint(readings.colours(index))
    return bool(np.abs(own - shown).max() < _MOST_COLOUR)


def relocated(track: Track, readings: Readings, index: int, camera_from_object: np.ndarray,
              up: np.ndarray) -> Registration | None:
    """Registration of a missing object to an instance elsewhere, None if it is not that object.

    camera_from_object: (4, 4), where it was last seen; it may have been turned since, but not tipped over
    up: (3,) unit vector, camera frame
    """
    points = readings.points[index]
    near = _NEAR * float(range_factor(points[:, 2].mean()))
    best, best_score = None, 0.0
    for yaw in _YAWS:
        start = np.eye(4)
        start[:3, :3] = turned(np.ascontiguousarray(camera_from_object[:3, :3]), *(yaw * up))
        towards = -points.mean(axis=0) @ start[:3, :3]
        visible = track.shape.samples[track.shape.normals @ towards > 0]
        start[:3, 3] = points.mean(axis=0) - start[:3, :3] @ visible.mean(axis=0)
        registration = register(track.shape, points, start, np.linalg.inv(diagonal(_LOOSE)))
        if near_share(track.shape, points, registration.camera_from_object, near) < _LEAST_NEAR:
            continue
        sighting = look_for(track.shape, registration.camera_from_object, readings, own=index)
        score = sighting.confirmed - sighting.missing
        if sighting.confirmed >= _LEAST_CONFIRMED and sighting.missing <= _MOST_MISSING and score > best_score:
            best, best_score = registration, score
            if yaw == 0:      # as it was last seen
                break
    return best


def _tint(rgb: np.ndarray) -> np.ndarray:
    """(3,) shares of red, green and blue in colours (N, 3) uint8; the light's brightness does not matter."""
    mean = rgb.mean(axis=0) + 1.0
    return mean / mean.sum()
