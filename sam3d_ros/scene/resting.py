"""Keeps objects at rest: solves for contacts now and then, and keeps the answer as a correction of each pose.

Depth gives the pose of each object on its own, to a few millimetres; contacts tell how objects can lie together.
Solving for contacts takes milliseconds, so it is done after a reconstruction only, and not in every image. The
correction is kept for as long as the object lies still.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .motion import difference
from .physics import Body, Outcome, Settled, settle
from .track import Presence, Track

# An object has moved, and its correction is void, beyond this from where it was corrected.
_MOVED = (0.004, 0.03)    # metres, radians


class Resting:
    """Corrections that put objects at rest.

    solve: for the contacts, as `settle` does, in the scene frame
    refused: ids of the objects that would have had to move farther than their covariance allows, at the last update,
    some of which may be gone by now
    """

    def __init__(self, solve: Callable[[Sequence[Body], np.ndarray], Settled] = settle):
        self.refused: tuple[str, ...] = ()
        self._solve = solve
        self._corrected: dict[str, tuple[int, np.ndarray, np.ndarray]] = {}      # id -> revision, pose, corrected pose

    def clear(self) -> None:
        """Forget the corrections: the scene frame is another one."""
        self._corrected, self.refused = {}, ()

    def update(self, tracks: Sequence[Track], stamp_ns: int, plane: np.ndarray | None) -> None:
        """Settle the objects that an image shows anew; takes milliseconds, to be called after a reconstruction.  Those
        that are hidden stay where they were put.

        stamp_ns: of the newest image, in which the tracks are; plane: (4,) that they stand on, unit normal against
        gravity and offset in metres, scene frame; None if unknown
        """
        present = [t for t in tracks if t.presence is Presence.SEEN and t.restless_until_ns <= stamp_ns]
        hidden = [t.id for t in tracks if t.presence is Presence.HIDDEN and t.id in self._corrected]
        self._corrected, self.refused = {identity: self._corrected[identity] for identity in hidden}, ()
        if plane is None or not present:
            return
        settled = self._solve([Body(t.solid, t.belief.scene_from_object, t.belief.covariance) for t in present],
                              plane)
        for track, pose in zip(present, settled.poses, strict=True):
            self._corrected[track.id] = track.revision, track.belief.scene_from_object, pose
        self.refused = tuple(track.id for track, report in zip(present, settled.report, strict=True)
                             if report.outcome is Outcome.REFUSED)

    def corrected(self, track: Track) -> np.ndarray:
        """scene_from_object (4, 4) of a track: corrected while it lies where it lay, with the mesh that it had."""
        pose = track.belief.scene_from_object
        revision, before, after = self._corrected.get(track.id, (0, pose, pose))
        moved = difference(pose, before)
        still = np.linalg.norm(moved[:3]) < _MOVED[0] and np.linalg.norm(moved[3:]) < _MOVED[1]
        if revision != track.revision or not still:
            return pose
        return after @ np.linalg.inv(before) @ pose
