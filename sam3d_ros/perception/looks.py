"""The network's inputs: each object from its views, and a second time from elsewhere if there are several.

The cube has the axes of the first view's crop camera, and the network is surest of what that view shows.  Where other
images show the object too, it looks a second time with the most different of them as the first, and the mean of both
signed distances counts.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .candidates import Candidate
from .cube import IMAGE_UP, Cube, rotation_towards
from .evidence import Observation, filled, first_view, further_view, support_row
from .frame import Frame
from .plane import moved_plane


@dataclass(frozen=True)
class Look:
    """An object as the network is to see it once.

    views: a crop (6, 96, 96) and a row (11,) of each image, support: (5,), all as in runtime/signature.py
    cube_from_candidate: (3, 3) rotation, axes of the candidate's cube -> axes of this look's cube; both have one centre
        and edge
    """

    views: list[tuple[np.ndarray, np.ndarray]]
    support: np.ndarray
    cube_from_candidate: np.ndarray


def first_look(frame: Frame, candidate: Candidate, earlier: Sequence[Observation], plane: np.ndarray | None,
               up: np.ndarray | None) -> Look:
    """An object from the image at hand.

    earlier: other views of it; plane: (4,) support plane, unit normal (up) and offset in metres, camera frame; up: (3,)
    unit vector against gravity, camera frame; each None if unknown
    """
    cube, label = candidate.cube, candidate.instance.label
    return Look(_views(frame, label, cube, earlier), support_row(cube, up, plane), np.eye(3))


def second_look(frame: Frame, candidate: Candidate, earlier: Sequence[Observation], plane: np.ndarray | None,
                up: np.ndarray | None) -> Look | None:
    """An object from that of its other views which differs most from the image at hand; None without any.

    Arguments as of `first_look`.
    """
    if not earlier:
        return None
    cube = candidate.cube
    sights = [cube.centre - other.camera_from_observer[:3, 3] for other in earlier]
    index = int(np.argmin([sight @ cube.centre / np.linalg.norm(sight) for sight in sights]))
    other, label = earlier[index], candidate.instance.label
    pose = np.linalg.inv(other.camera_from_observer)       # observer_from_camera
    centre = pose[:3, :3] @ cube.centre + pose[:3, 3]
    if centre[2] <= 0:
        return None
    upwards = pose[:3, :3] @ (IMAGE_UP if up is None else up)
    turned = Cube(rotation_towards(centre, upwards), float(np.linalg.norm(centre)), cube.edge)
    rest = [Observation(frame, label, pose)] + [
        Observation(view.frame, view.label, pose @ view.camera_from_observer)
        for view in (*earlier[:index], *earlier[index + 1:])]
    there = None if plane is None else moved_plane(plane, pose)
    return Look(_views(other.frame, other.label, turned, rest),
                support_row(turned, None if up is None else upwards, there),
                turned.virtual_from_camera @ pose[:3, :3] @ cube.virtual_from_camera.T)


def network_inputs(looks: Sequence[Look]) -> dict[str, np.ndarray]:
    """Inputs of the network, as runtime/signature.py has them, one row for each look."""
    count = max(len(look.views) for look in looks)
    crops, rows = (np.stack(arrays) for arrays in zip(*(filled(look.views, count) for look in looks), strict=True))
    return {"crops": crops, "views": rows, "support": np.stack([look.support for look in looks])}


def merged(outputs: Mapping[str, np.ndarray], seconds: Mapping[int, Look]) -> dict[str, np.ndarray]:
    """The network's outputs, one row for each object: the distance and its error are the means of both looks.

    outputs: the rows of all first looks, then of the second ones; seconds: row of the first look -> second look
    """
    count = len(outputs["layout"]) - len(seconds)
    for row, (index, look) in enumerate(seconds.items(), count):
        for name in ("distance", "log_std"):
            volume = outputs[name]
            volume[index, 0] = _mean(volume[index, 0], volume[row, 0], look.cube_from_candidate)
    return {name: array[:count] for name, array in outputs.items()}


def _views(frame: Frame, label: int, cube: Cube,
           others: Sequence[Observation]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Crops and rows of an object in the image whose camera frame the cube is in, and in others."""
    further = (further_view(other, cube) for other in others)
    return [first_view(frame, label, cube), *(view for view in further if view is not None)]


def _mean(own: np.ndarray, other: np.ndarray, other_from_own: np.ndarray) -> np.ndarray:
    """Mean of two volumes, (n, n, n) float32, at the voxels of the first; where the other has none, the first alone.

    other_from_own: (3, 3) rotation from the axes of the first volume to those of the other, about their common centre
    """
    middle = np.full(3, (len(own) - 1) / 2)
    there = ndimage.affine_transform(other, other_from_own, middle - other_from_own @ middle, order=1, cval=np.nan)
    return np.where(np.isnan(there), own, (own + there) / 2)
