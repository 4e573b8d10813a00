"""Failed reconstructions: the wait before the next attempt doubles each time, so that not every image causes one."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .fusion import CLEARER
from .readings import Readings

RETRY_NS = 3_000_000_000       # after an attempt: the next one may turn out no better
_SAME_PLACE = 0.03             # metres between the middles of readings of the same thing
_MOST_DOUBLED = 2              # to 12 s at most: another thing may be put there, which must not wait for longer
_LONGEST_WAIT_NS = RETRY_NS << _MOST_DOUBLED


def backoff_ns(failures: int, most_doubled: int) -> int:
    """Nanoseconds to wait after an attempt: doubled for each of the `failures` before it, at most `most_doubled`
    times."""
    return RETRY_NS << min(failures, most_doubled)


@dataclass(frozen=True)
class _Sight:
    """place: (3,) metres, scene frame, middle of a mask's readings; area: m^2 that is in view."""

    place: np.ndarray
    class_id: str
    area: float

    def is_of_same_as(self, other: _Sight) -> bool:
        """Whether the same thing may lie there."""
        return self.class_id == other.class_id and np.linalg.norm(self.place - other.place) < _SAME_PLACE


@dataclass(frozen=True)
class _Attempt:
    """sight: of the mask; since_ns: stamp of its image; failures: attempts there before."""

    sight: _Sight
    since_ns: int
    failures: int

    @property
    def until_ns(self) -> int:
        """Stamp before which nothing is tried there."""
        return self.since_ns + backoff_ns(self.failures, _MOST_DOUBLED)


class FailedAttempts:
    """Remembers where masks gave no object; masks without depth readings have no known place, and are left out."""

    def __init__(self) -> None:
        self._attempts: list[_Attempt] = []

    def clear(self) -> None:
        """Forget all of them."""
        self._attempts.clear()

    def note(self, readings: Readings, index: int, scene_from_camera: np.ndarray) -> None:
        """Note that the mask of instance `index` of `readings` gave no object; scene_from_camera: (4, 4)."""
        if (sight := _sight(readings, index, scene_from_camera)) is None:
            return
        now_ns = readings.frame.stamp_ns
        failures = max((a.failures + 1 for a in self._attempts if a.sight.is_of_same_as(sight)), default=0)
        self._attempts = [a for a in self._attempts
                          if not a.sight.is_of_same_as(sight) and now_ns < a.until_ns + _LONGEST_WAIT_NS]
        self._attempts.append(_Attempt(sight, now_ns, failures))

    def waits(self, readings: Readings, index: int, scene_from_camera: np.ndarray) -> bool:
        """Whether it is too early to try this mask again; not if far more is in view.  Arguments as for `note`."""
        sight, now_ns = _sight(readings, index, scene_from_camera), readings.frame.stamp_ns
        return sight is not None and any(
            a.sight.is_of_same_as(sight) and sight.area < CLEARER * a.sight.area and a.since_ns <= now_ns < a.until_ns
            for a in self._attempts)


def _sight(readings: Readings, index: int, scene_from_camera: np.ndarray) -> _Sight | None:
    """What is seen of an instance of `readings`, None if it has no reading; scene_from_camera: (4, 4)."""
    points = readings.points[index]
    if not len(points):
        return None
    place = scene_from_camera[:3, :3] @ points.mean(axis=0) + scene_from_camera[:3, 3]
    return _Sight(place, readings.instances[index].class_id, readings.area(index))
