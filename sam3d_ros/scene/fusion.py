"""Views of an object from other moments and cameras, kept in its own frame for the next reconstruction."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..perception.evidence import Observation
from ..perception.frame import Frame, nearest_pixels
from ..perception.plane import range_factor
from .readings import LEAST_DEPTH, read

_MOST_KEPT_VIEWS = 4           # that are kept of an object
# Views are told apart by the direction from the object to the camera, in the object's frame.
NEW_SIDE = np.deg2rad(25)
CLEARER = 1.3             # times the area in view that makes a view of a known side better
_MARGIN = 0.5             # of the mask's larger side: neighbours and table around the object carve free space
# A view looks through what another one shows if its readings there are farther by this, metres at 1 m.  If that is so
# of more than this share of what is shown, one of the two has the object at a wrong place.  Of procedural objects it
# was 5 % at most, and with one view off by 2 cm, more than 20 % for nine of ten: the fused mesh is then worse than one
# from a single view.
_THROUGH, _MOST_THROUGH = 0.006, 0.2


@dataclass(frozen=True)
class View:
    """An object as one image showed it.

    frame: cut out around the object; label: its value in frame.labels; object_from_camera: (4, 4) float64
    area: m^2 of the object that it shows, across the line of sight; less where something covered it
    """

    frame: Frame
    label: int
    object_from_camera: np.ndarray
    area: float

    @property
    def direction(self) -> np.ndarray:
        """(3,) unit vector from the object to the camera, object frame."""
        return self.object_from_camera[:3, 3] / np.linalg.norm(self.object_from_camera[:3, 3])

    @property
    def is_box(self) -> bool:
        """Whether its mask is only a filled bounding box."""
        return any(instance.is_box for instance in self.frame.instances)


def _cut_out(frame: Frame, label: int) -> Frame:
    """A copy of the part of `frame` around an object, in the same camera frame (with intrinsics to match); it does not
    keep the whole image alive."""
    rows, columns = (np.flatnonzero((frame.labels == label).any(axis=axis)) for axis in (1, 0))
    margin = int(_MARGIN * max(np.ptp(rows), np.ptp(columns))) + 2
    top, left = max(0, rows[0] - margin), max(0, columns[0] - margin)
    window = (slice(top, rows[-1] + margin + 1), slice(left, columns[-1] + margin + 1))
    labels = frame.labels[window].copy()
    k = frame.intrinsics
    height, width = labels.shape
    return replace(frame, colour=frame.colour[window].copy(), labels=labels,
                   depth=None if frame.depth is None else frame.depth[window].copy(),
                   instances=tuple(i for i in frame.instances if i.label == label),
                   intrinsics=replace(k, width=width, height=height, cx=k.cx - left, cy=k.cy - top))


def make_view(frame: Frame, label: int, camera_from_object: np.ndarray, area: float) -> View:
    """View of an object; camera_from_object: (4, 4), where the object is in this image; area: as in View."""
    return View(_cut_out(frame, label), label, np.linalg.inv(camera_from_object), area)


def direction_of(camera_from_object: np.ndarray) -> np.ndarray:
    """(3,) unit vector from an object at camera_from_object (4, 4) to the camera, object frame."""
    camera = np.linalg.inv(camera_from_object)[:3, 3]
    return camera / np.linalg.norm(camera)


def angles(direction: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """Radians between a unit vector (3,) and others."""
    return np.arccos(np.clip([other @ direction for other in others], -1, 1))


def needs_view(views: Sequence[View], camera_from_object: np.ndarray, area: float) -> bool:
    """Whether an image that shows `area` m^2 of an object at camera_from_object (4, 4) adds to its views: a new side,
    or far more of one."""
    apart = angles(direction_of(camera_from_object), [view.direction for view in views])
    return not len(apart) or apart.min() >= NEW_SIDE or area > CLEARER * views[int(apart.argmin())].area


def with_view(views: Sequence[View], new: View) -> tuple[View, ...]:
    """The most informative of the views and `new`: the better one of each side; if there are too many sides, those are
    kept that lie farthest from each other, the newest in any case.  A box holds what is beside the object, too, and is
    never kept."""
    if new.is_box:
        return tuple(views)
    if views:
        apart = angles(new.direction, [view.direction for view in views])
        nearest = int(apart.argmin())
        if apart[nearest] < NEW_SIDE:
            kept = new if new.area >= views[nearest].area else views[nearest]
            return tuple(kept if i == nearest else view for i, view in enumerate(views))
    if len(views) < _MOST_KEPT_VIEWS:
        return (*views, new)
    chosen = [new]
    rest = list(views)
    while len(chosen) < _MOST_KEPT_VIEWS:
        taken = [view.direction for view in chosen]
        loneliest = int(np.argmax([angles(view.direction, taken).min() for view in rest]))
        chosen.append(rest.pop(loneliest))
    return tuple(chosen)


def agree(one: View, other: View) -> bool:
    """Whether two views can show the same object where both have it: neither looks through much of what the other
    shows.  Without depth, nothing tells that they cannot."""
    if one.frame.depth is None or other.frame.depth is None:
        return True
    return max(_looks_through(one, other), _looks_through(other, one)) <= _MOST_THROUGH


def _looks_through(view: View, shown: View) -> float:
    """Share of the readings of the object in `shown` that `view` looks through."""
    [readings] = read(shown.frame).points
    view_from_shown = np.linalg.inv(view.object_from_camera) @ shown.object_from_camera
    points = readings @ view_from_shown[:3, :3].T + view_from_shown[:3, 3]
    points = points[points[:, 2] > LEAST_DEPTH]
    k, z = view.frame.intrinsics, points[:, 2]
    rows, columns, _ = nearest_pixels(points, k)        # 0, 0 where the image does not show the point
    inside = (columns > 0) & (rows > 0) & (columns < k.width - 1) & (rows < k.height - 1)
    columns, rows, z = columns[inside], rows[inside], z[inside]
    # The nearest of the neighbours, too: a point of the outline may fall beside it.
    depth = np.stack([view.frame.depth[rows + down, columns + right] for down in (-1, 0, 1) for right in (-1, 0, 1)])
    nearest = np.where(depth > 0, depth, np.inf).min(axis=0)
    through = np.isfinite(nearest) & (nearest - z > _THROUGH * range_factor(z))
    return float(through.sum() / max(len(readings), 1))


def observations(views: Sequence[View], newest: View) -> list[Observation]:
    """The views as seen from the newest one's camera, but for those from there and those that contradict it."""
    camera_from_object = np.linalg.inv(newest.object_from_camera)
    apart = angles(newest.direction, [view.direction for view in views])
    return [Observation(view.frame, view.label, camera_from_object @ view.object_from_camera)
            for view, angle in zip(views, apart, strict=True) if angle >= NEW_SIDE / 2 and agree(view, newest)]
