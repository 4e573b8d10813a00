"""Where one object is, by the depth and the mask of one image: at rest, moved, or slid along its own face."""
from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from . import motion
from .readings import Readings, Sighting, look_for, off_middle
from .registration import Registration, near_share, register
from .track import Track

LEAST_READINGS = 25
_LEAST_INLIERS, _MOST_RMS = 0.5, 0.006    # what a registration must reach to be believed; metres
_SURPRISE = 22.5          # chi-squared of 6 degrees of freedom exceeds it once in a thousand times
# An object has moved if the root mean square distance of its readings, fitted at rest, is so many times that with free
# motion.
_WORSE = 2.0
# A track slides along with its mask if that is by more than so many metres, and if both the share of the track that the
# mask shows and the share of the mask that lies on the track rise by so much.
_LEAST_SLIDE, _CLEARLY_MORE = 0.003, 0.03
_ON_FACE = 0.004          # metres from a surface on which readings lie, but for noise
RESTLESS_NS = 400_000_000    # so long after it moved, or was last seen, an object may be moving
_MOVING = 0.05            # m/s: while no mask would find it again, an object that is faster goes on counting as moving
_LEAST_SECONDS = 0.01     # between two images of an object, for its velocity
_LONGEST_FREE = 1.0       # seconds: the prior of free motion grows no wider than after this time
_SMOOTHING = 0.5          # weight of the newest velocity and misfit


def measure(track: Track, points: np.ndarray, scene_from_camera: np.ndarray, now_ns: int, goes_on: bool) -> bool:
    """Register a track to its readings and update its belief; False if they do not fit.

    points: (N, 3) metres, camera frame; scene_from_camera: (4, 4); goes_on: whether what moves counts as moving after
    this image, too
    """
    if len(points) < LEAST_READINGS:
        return False
    rest = track.belief
    seconds = _since_seen(track, now_ns)
    free = motion.predicted(rest, min(abs(seconds), _LONGEST_FREE), motion.MOVED)
    measured = _registered(track, points, free, scene_from_camera)
    if measured.inliers < _LEAST_INLIERS or measured.rms > _MOST_RMS:
        return False
    at_rest = _registered(track, points, rest, scene_from_camera)
    if motion.surprise(rest, measured, scene_from_camera) > _SURPRISE or at_rest.rms > _WORSE * measured.rms:
        track.restless_until_ns = now_ns + RESTLESS_NS
    before = rest.scene_from_object
    if now_ns < track.restless_until_ns:
        track.belief = motion.updated(free, measured, scene_from_camera)
        moved = motion.difference(track.belief.scene_from_object, before)[:3] / seconds
        track.velocity = track.velocity + _SMOOTHING * moved
        if goes_on and np.linalg.norm(track.velocity) > _MOVING:
            track.restless_until_ns = now_ns + RESTLESS_NS
    else:
        measured = at_rest
        track.belief = motion.updated(rest, measured, scene_from_camera)
        track.velocity = np.zeros(3)
    track.misfit += _SMOOTHING * (measured.rms - track.misfit) if track.misfit else measured.rms
    return True


def slide(track: Track, sighting: Sighting, index: int, readings: Readings, scene_from_camera: np.ndarray) -> None:
    """Take a track along with its mask: depth does not tell that a flat face slides across the line of sight.

    It is believed where the mask shows clearly more of the track, and the track explains clearly more of the mask: of a
    mask that was cut off or leaks, only one of them is so.  sighting: of the track, before; index: of its mask
    """
    points, now_ns = readings.points[index], readings.frame.stamp_ns
    if len(points) < LEAST_READINGS or not sighting.visible.any():
        return
    before = np.linalg.inv(scene_from_camera) @ track.belief.scene_from_object
    step = np.zeros(6)
    step[:3] = scene_from_camera[:3, :3] @ off_middle(track.shape, before, sighting, points)
    if np.linalg.norm(step) < _LEAST_SLIDE:
        return
    moved = replace(track.belief, scene_from_object=motion.shifted(track.belief.scene_from_object, step))
    free = motion.predicted(moved, _LEAST_SECONDS, motion.MOVED)
    after = _registered(track, points, free, scene_from_camera).camera_from_object
    shown = look_for(track.shape, after, readings).shares[index] - sighting.shares[index]
    explained = near_share(track.shape, points, after, _ON_FACE) - near_share(track.shape, points, before, _ON_FACE)
    if min(shown, explained) < _CLEARLY_MORE:
        return
    track.belief = replace(track.belief, scene_from_object=scene_from_camera @ after)
    track.velocity = track.velocity + _SMOOTHING * step[:3] / _since_seen(track, now_ns)
    track.restless_until_ns = now_ns + RESTLESS_NS


def _since_seen(track: Track, now_ns: int) -> float:
    """Seconds from the image that last showed a track to the present one; negative if that is another camera's, which
    comes late, and never next to 0."""
    seconds = (now_ns - track.seen_ns) / 1e9
    return math.copysign(max(_LEAST_SECONDS, abs(seconds)), seconds)


def _registered(track: Track, points: np.ndarray, prior: motion.Belief, scene_from_camera: np.ndarray) -> Registration:
    """Registration of a track to readings (N, 3), metres, camera frame, held by a prior in the scene frame."""
    camera_from_scene = np.linalg.inv(scene_from_camera)
    information = motion.rotated(np.linalg.inv(prior.noise), camera_from_scene)
    return register(track.shape, points, camera_from_scene @ prior.scene_from_object, information)
