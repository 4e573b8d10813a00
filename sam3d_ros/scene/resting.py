"""Where objects rest, as physics has it: the place where a solver of contacts is asked, and what becomes of its answer.

The depth says where each object is on its own, to a millimetre or a few; contacts say how they can lie together. The
answer is kept as a correction of each object for as long as that lies still: contacts are worth milliseconds once in a
while, not in every image.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .motion import difference
from .physics import Body, Outcome, settle
from .solid import Solid
from .track import Presence, Track

# An object has moved, and its correction is void, beyond this from where it was corrected.
_MOVED = (0.004, 0.03)    # metres, radians


@dataclass(frozen=True)
class Seen:
    """An object as it was seen, for the solver.

    solid: its mesh for contacts; revision: of that mesh
    scene_from_object: (4, 4); covariance: (6, 6), x, y, z (m) and rotation (rad) about the scene's axes
    """

    id: str
    revision: int
    solid: Solid
    scene_from_object: np.ndarray
    covariance: np.ndarray


# Objects, and support plane (4,), unit normal against gravity and offset, scene frame -> scene_from_object (4, 4) of
# each.
Settle = Callable[[Sequence[Seen], np.ndarray], Sequence[np.ndarray]]


class Resting:
    """Corrections that put objects at rest.

    settle: solves for the contacts
    """

    def __init__(self, settle: Settle):
        self._settle = settle
        self._plane: np.ndarray | None = None
        self._corrected: dict[str, tuple[int, np.ndarray, np.ndarray]] = {}

    def clear(self) -> None:
        """Forget the plane and the corrections: the scene frame is another one."""
        self._plane = None
        self._corrected = {}

    def update(self, tracks: Sequence[Track], stamp_ns: int, scene_from_camera: np.ndarray,
               plane: np.ndarray | None) -> None:
        """Settle the objects that an image shows anew; takes milliseconds, to be called after a reconstruction.

        stamp_ns, scene_from_camera (4, 4): of the image; plane: (4,) that they stand on, camera frame; None: as before
        """
        if plane is not None:
            normal = scene_from_camera[:3, :3] @ plane[:3]
            self._plane = np.append(normal, plane[3] - normal @ scene_from_camera[:3, 3])
        present = [t for t in tracks if t.presence is Presence.SEEN and t.restless_until_ns <= stamp_ns]
        self._corrected = {}
        if self._plane is None or not present:
            return
        seen = [Seen(t.id, t.revision, t.solid, t.belief.scene_from_object, t.belief.covariance) for t in present]
        for item, pose in zip(seen, self._settle(seen, self._plane), strict=True):
            self._corrected[item.id] = item.revision, item.scene_from_object, pose

    def corrected(self, track: Track) -> np.ndarray:
        """scene_from_object (4, 4) of a track: corrected while it lies where it lay, with the mesh that it had."""
        pose = track.belief.scene_from_object
        revision, before, after = self._corrected.get(track.id, (0, pose, pose))
        moved = difference(pose, before)
        still = np.linalg.norm(moved[:3]) < _MOVED[0] and np.linalg.norm(moved[3:]) < _MOVED[1]
        if revision != track.revision or not still:
            return pose
        return after @ np.linalg.inv(before) @ pose


class ContactSolver:
    """The `Settle` of scene/physics.py.

    refused: ids of the objects of the last call that would have had to move farther than their covariance allows
    """

    def __init__(self) -> None:
        self.refused: tuple[str, ...] = ()

    def __call__(self, objects: Sequence[Seen], plane: np.ndarray) -> list[np.ndarray]:
        """See `Settle`."""
        settled = settle([Body(item.solid, item.scene_from_object, item.covariance) for item in objects], plane)
        self.refused = tuple(item.id for item, report in zip(objects, settled.report, strict=True)
                             if report.outcome is Outcome.REFUSED)
        return list(settled.poses)
