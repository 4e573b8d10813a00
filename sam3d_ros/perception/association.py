"""Stable ids: which object of this frame is which of the frames before."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from .objects import ReconstructedObject

_GATE = 0.5          # of the object's diagonal: how far its centre may move between two frames
_LEAST_GATE = 0.03   # metres
_FORGET_AFTER = 60   # frames without a sighting


@dataclass
class _Known:
    object_id: str
    class_id: str
    centre: np.ndarray
    diagonal: float
    missed: int = 0


class Associator:
    """Gives every object the id of the nearest known one of its class, or a new id."""

    def __init__(self) -> None:
        self._known: list[_Known] = []
        self._count = 0

    def assign(self, objects: list[ReconstructedObject], world_from_camera: np.ndarray | None) -> list[str]:
        """Ids, in the order of `objects`.

        world_from_camera: (4, 4); with it a moving camera does not matter, without it (None) centres are compared in
        the camera frame.
        """
        pose = np.eye(4) if world_from_camera is None else world_from_camera
        centres = [pose[:3, :3] @ o.camera_from_object[:3, 3] + pose[:3, 3] for o in objects]
        matches = self._match(objects, centres)
        for known in self._known:
            known.missed += 1
        ids = []
        for index, (item, centre) in enumerate(zip(objects, centres, strict=True)):
            known = matches.get(index)
            if known is None:
                self._count += 1
                known = _Known(f"object_{self._count}", item.class_id, centre, 0.0)
                self._known.append(known)
            known.centre, known.diagonal, known.missed = centre, float(np.linalg.norm(item.size)), 0
            ids.append(known.object_id)
        self._known = [k for k in self._known if k.missed <= _FORGET_AFTER]
        return ids

    def clear(self) -> None:
        """Forget all objects; ids go on counting, so that an old id never names a new object."""
        self._known.clear()

    def _match(self, objects: list[ReconstructedObject], centres: list[np.ndarray]) -> dict[int, _Known]:
        """Index of object -> known object, least sum of distances within the gates."""
        if not objects or not self._known:
            return {}
        distance = np.linalg.norm(np.stack(centres)[:, None] - np.stack([k.centre for k in self._known]), axis=2)
        gate = np.maximum(_LEAST_GATE, [_GATE * k.diagonal for k in self._known])
        same = np.array([[o.class_id == k.class_id for k in self._known] for o in objects])
        cost = np.where(same & (distance < gate), distance, 1e6)
        rows, columns = linear_sum_assignment(cost)
        return {int(r): self._known[c] for r, c in zip(rows, columns, strict=True) if cost[r, c] < 1e6}
