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

_LEAST_SHOWN = 0.5      # of what the image at hand shows: a view that shows less of an object misleads as the first one


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
    """An object from that of its other views which differs most from the image at hand, of those whose depth shows as
    much of it; None without any.

    Arguments as of `first_look`.
    """
    if not earlier or frame.depth is None:
        return None
    cube, label = candidate.cube, candidate.instance.label
    least = _LEAST_SHOWN * _shown(frame, label, cube.centre)
    poses = [np.linalg.inv(other.camera_from_observer) for other in earlier]       # observer_from_camera
    centres = [pose[:3, :3] @ cube.centre + pose[:3, 3] for pose in poses]
    able = [index for index, (other, centre) in enumerate(zip(earlier, centres, strict=True))
            if centre[2] > 0 and _shown(other.frame, other.label, centre) > least]
    if not able:
        return None
    index = min(able, key=lambda i: _cosine(cube.centre, cube.centre - earlier[i].camera_from_observer[:3, 3]))
    other, pose, centre = earlier[index], poses[index], centres[index]
    upwards = IMAGE_UP if up is None else pose[:3, :3] @ up
    turned = Cube(rotation_towards(centre, upwards), float(np.linalg.norm(centre)), cube.edge)
    rest = [Observation(frame, label, pose)] + [
        Observation(view.frame, view.label, pose @ view.camera_from_observer)
        for view in (*earlier[:index], *earlier[index + 1:])]
    there = None if plane is None else moved_plane(plane, pose)
    return Look(_views(other.frame, other.label, turned, rest),
                support_row(turned, None if up is None else upwards, there),
                turned.virtual_from_camera @ pose[:3, :3] @ cube.virtual_from_camera.T)


def batches(looks: Sequence[Look], most_crops: int) -> list[np.ndarray]:
    """Indices of the looks that go through the network together: of at most `most_crops` views, or a single look.

    Looks alike in their number of views share a batch: a view that one lacks costs as much as one that it has.
    """
    counts = np.array([len(look.views) for look in looks])
    rest, found = np.argsort(counts, kind="stable"), []
    while len(rest):
        fitting = np.count_nonzero(counts[rest] * np.arange(1, len(rest) + 1) <= most_crops)
        together, rest = np.split(rest, [max(fitting, 1)])
        found.append(together)
    return found


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


def _shown(frame: Frame, label: int, centre: np.ndarray) -> float:
    """Area, m^2, that the readings in a mask have at the depth of the object's centre, (3,) metres, camera frame."""
    if frame.depth is None:
        return 0.0
    readings = np.count_nonzero((frame.labels == label) & (frame.depth > 0))
    return float(readings * centre[2] ** 2 / (frame.intrinsics.fx * frame.intrinsics.fy))


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Of the angle between two directions, (3,)."""
    return float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second)))


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
