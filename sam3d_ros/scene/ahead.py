"""Tracks known objects in images whose masks have not come yet, by depth alone."""
from __future__ import annotations

from collections import deque

import numpy as np

from ..perception.frame import Frame
from .motion import difference
from .track import Presence, Track, TrackedObject
from .tracker import Tracker

# Images kept, into which objects can be followed again: a third of a second at 30 Hz.  Each takes megabytes, and
# milliseconds to follow.
_MOST_FRAMES = 10
# An image so much older than the tracker's is of a camera that has stopped: it tells nothing of the present.
_STOPPED_NS = 1_000_000_000
_MOST_MOMENTS = 600          # images of which only the poses are kept: for longer than any detector lags
# The copy has an object where the masks have it if both places are as near as this: they may differ by its motion from
# one image to the next, and by the errors of two registrations.
_SAME_PLACE = (0.02, 0.3)    # metres, radians


class Ahead:
    """Follows the objects of a tracker into newer images, in a copy of it.

    The tracker itself only sees images with masks.  When it has been updated with such an image, or with new meshes, a
    new copy is made from it.  If the old copy had all objects in that image where the tracker has them now, the new one
    takes over its later poses.  Otherwise the masks are right: the new copy follows the objects from that image into
    the newest ones again.
    """

    def __init__(self, tracker: Tracker):
        self._tracker = tracker
        self._copy = tracker.fork()
        self._updates = tracker.updates
        self._frames: deque[Frame] = deque(maxlen=_MOST_FRAMES)
        # Of the copy: stamp of an image, and scene_from_object (4, 4) of each id in it, None where it was not seen.
        self._moments: deque[tuple[int, dict[str, np.ndarray | None]]] = deque(maxlen=_MOST_MOMENTS)

    @property
    def leads(self) -> bool:
        """Whether a camera that has not stopped since has been followed farther than the tracker has."""
        return any(self._tracker.is_newer(frame) and self._is_recent(frame) for frame in self._frames)

    def update(self, frame: Frame) -> list[TrackedObject]:
        """As `Tracker.update`, for an image with depth whose masks have not come yet."""
        self._renew()
        self._frames.append(frame)
        return self._follow(frame)

    def objects(self, frame: Frame) -> list[TrackedObject]:
        """As `Tracker.objects`, for an image that the tracker was updated with while it leads with another camera."""
        self._renew()
        return self._copy.objects(frame)

    def _follow(self, frame: Frame) -> list[TrackedObject]:
        objects = self._copy.update(frame)
        self._moments.append((frame.stamp_ns, {track.id: _place(track) for track in self._copy.tracks.values()}))
        return objects

    def _renew(self) -> None:
        """Make the copy anew if the tracker has changed since."""
        if self._updates == self._tracker.updates:
            return
        self._updates = self._tracker.updates
        if self._copy.generation != self._tracker.generation:
            self._frames.clear()       # of another scene, or another time
            self._moments.clear()
        if all(map(self._had, self._tracker.tracks.values())):
            self._copy = self._tracker.fork(self._copy)
            return
        self._copy = self._tracker.fork()
        self._moments.clear()
        for frame in self._frames:
            if self._copy.is_newer(frame) and self._is_recent(frame):
                self._follow(frame)

    def _is_recent(self, frame: Frame) -> bool:
        """Whether an image is not much older than the tracker's newest."""
        return frame.stamp_ns > self._tracker.frame.stamp_ns - _STOPPED_NS

    def _had(self, track: Track) -> bool:
        """Whether the copy had an object of the tracker where that has it, in the image that told it or the nearest."""
        later, place = self._copy.tracks.get(track.id), _place(track)
        if later is None or later.frame_number != track.frame_number or not self._moments:
            return False
        stamp_ns = self._tracker.frame.stamp_ns if place is None else track.seen_ns
        _, places = min(self._moments, key=lambda moment: abs(moment[0] - stamp_ns))
        return track.id in places and _agree(places[track.id], place)


def _place(track: Track) -> np.ndarray | None:
    """scene_from_object (4, 4) of a track, None where it is not seen."""
    return track.belief.scene_from_object if track.presence is Presence.SEEN else None


def _agree(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    """Whether two places of an object, (4, 4) each, are one; not to be seen is one, too."""
    if one is None or other is None:
        return one is other
    apart = difference(one, other)
    return bool(np.linalg.norm(apart[:3]) < _SAME_PLACE[0] and np.linalg.norm(apart[3:]) < _SAME_PLACE[1])
