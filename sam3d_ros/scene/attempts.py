"""Masks that came to nothing: they are tried again after ever longer waits, not with every image."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_SAME_PLACE = 0.03             # metres between the middles of readings of the same thing
# The longest is short enough for another thing that is put there.
_FIRST_WAIT_NS, _LONGEST_WAIT_NS = 3_000_000_000, 12_000_000_000
_MORE_IN_VIEW = 1.3            # times the area that was in view then: another thing, or the same seen better


@dataclass(frozen=True)
class _Attempt:
    """place: (3,) metres, scene frame, middle of the readings; area: m^2 that was in view; until_ns: stamp up to which
    nothing is tried there, after a wait of wait_ns."""

    place: np.ndarray
    class_id: str
    area: float
    until_ns: int
    wait_ns: int


class VainAttempts:
    """Remembers where a mask gave no object."""

    def __init__(self) -> None:
        self._attempts: list[_Attempt] = []

    def clear(self) -> None:
        """Forget all of them."""
        self._attempts.clear()

    def note(self, place: np.ndarray, class_id: str, area: float, now_ns: int) -> None:
        """That a mask with readings around `place` (3,), metres, scene frame, gave none; area: m^2 in view."""
        before = [a for a in self._attempts if _is_there(a, place, class_id)]
        wait_ns = min(2 * max(a.wait_ns for a in before), _LONGEST_WAIT_NS) if before else _FIRST_WAIT_NS
        self._attempts = [a for a in self._attempts if a not in before and now_ns < a.until_ns + _LONGEST_WAIT_NS]
        self._attempts.append(_Attempt(place, class_id, area, now_ns + wait_ns, wait_ns))

    def waits(self, place: np.ndarray, class_id: str, area: float, now_ns: int) -> bool:
        """Whether it is too early to try a mask there again; arguments as of `note`."""
        return any(_is_there(a, place, class_id) and area < _MORE_IN_VIEW * a.area
                   and a.until_ns - a.wait_ns <= now_ns < a.until_ns for a in self._attempts)


def _is_there(attempt: _Attempt, place: np.ndarray, class_id: str) -> bool:
    return attempt.class_id == class_id and np.linalg.norm(attempt.place - place) < _SAME_PLACE
