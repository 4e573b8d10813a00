"""Known objects in images whose masks have not come yet: they are followed in depth, ahead of the masks."""
from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from ..perception.frame import Frame
from .motion import difference
from .track import Presence, TrackedObject
from .tracker import Tracker

# Images kept to follow objects anew into, which takes milliseconds and megabytes each: a third of a second at 30 Hz.
_MOST_FRAMES = 10
_MOST_MOMENTS = 600          # of which only the poses are kept: longer than any detector lags
# An object is where the masks have it, up to its motion between two images and what registrations differ by.
_SAME_PLACE = (0.02, 0.3)    # metres, radians


@dataclass(frozen=True)
class _Moment:
    """Where a tracker has its objects in its newest image: id -> scene_from_object (4, 4), None where not seen."""

    stamp_ns: int
    places: dict[str, np.ndarray | None]

    @classmethod
    def of(cls, tracker: Tracker) -> _Moment:
        """The present one of a tracker, which has no objects before its first image."""
        return cls(tracker.frame.stamp_ns if tracker.frame else 0, {
            track.id: track.belief.scene_from_object if track.presence is Presence.SEEN else None
            for track in tracker.tracks.values()})


class Ahead:
    """Follows the objects of a tracker into images that are newer than its own, on a copy.

    The tracker stays as it is: it knows what images with masks have told.  When it has been updated with one of these,
    older than the images ahead, or with new meshes, the copy is made anew from it.  If the copy had all objects in that
    image where the tracker has them now, it goes on where it was.  Else the masks know better: the copy begins at that
    image, and follows the objects into the newest ones again.
    """

    def __init__(self, tracker: Tracker):
        self._tracker = tracker
        self._copy = tracker.fork()
        self._updates = tracker.updates
        self._frames: deque[Frame] = deque(maxlen=_MOST_FRAMES)
        self._moments: deque[_Moment] = deque(maxlen=_MOST_MOMENTS)      # of the copy

    @property
    def leads(self) -> bool:
        """Whether a camera has been followed farther than the tracker has."""
        return any(self._tracker.is_newer(frame) for frame in self._frames)

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
        self._moments.append(_Moment.of(self._copy))
        return objects

    def _renew(self) -> None:
        """Make the copy anew if the tracker has changed since."""
        if self._updates == self._tracker.updates:
            return
        self._updates = self._tracker.updates
        if self._copy.generation != self._tracker.generation:
            self._frames.clear()       # of another scene, or another time
            self._moments.clear()
        if self._agrees():
            self._copy = self._tracker.fork(self._copy)
            return
        self._copy = self._tracker.fork()
        self._moments.clear()
        for frame in self._frames:
            if self._copy.is_newer(frame):
                self._follow(frame)

    def _agrees(self) -> bool:
        """Whether the copy had all objects, in the tracker's image or the nearest to it, where the tracker has them."""
        if not self._moments:
            return False
        now = _Moment.of(self._tracker)
        then = min(self._moments, key=lambda moment: abs(moment.stamp_ns - now.stamp_ns)).places
        return all(identity in then and _agree(place, then[identity]) and identity in self._copy.tracks
                   and self._copy.tracks[identity].frame_number == self._tracker.tracks[identity].frame_number
                   for identity, place in now.places.items())


def _agree(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    """Whether two places of an object, (4, 4) each, are one; not to be seen is one, too."""
    if one is None or other is None:
        return one is other
    apart = difference(one, other)
    return bool(np.linalg.norm(apart[:3]) < _SAME_PLACE[0] and np.linalg.norm(apart[3:]) < _SAME_PLACE[1])
