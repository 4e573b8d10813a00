"""Data of the scene: tracks, tracked objects at the moment of an image, and requests for reconstruction."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np

from ..perception.frame import Frame
from ..perception.objects import Mesh, ReconstructedObject
from .fusion import Observation, View
from .motion import Belief
from .shape import Shape
from .solid import Solid

# A vote for a class counts less by so much with each one after it: some ten images decide.
_VOTE_DECAY = 0.9
# What following an object into an image changes, apart from what only its mask tells.
_FOLLOWED = ("belief", "presence", "seen_ns", "seen_by", "updated_ns", "visible_fraction", "velocity",
             "restless_until_ns")
_DOUBTFUL_MISFIT = 0.0025  # metres, rms: a mesh from which the depth is farther may be a wrong one


class Presence(Enum):
    """SEEN: measured in the newest image, or in another camera's newest; HIDDEN: covered, or out of view; GONE: the
    camera looks through where it was, and it has not turned up elsewhere yet."""

    SEEN = "seen"
    HIDDEN = "hidden"
    GONE = "gone"


@dataclass
class Track:
    """An object over time.

    mesh: as last reconstructed, in the track's own frame (its pose is that of then); shape, solid: made of it
    belief: where it is, in the scene frame, and how sure that is
    revision: rises with every new mesh
    frame_number: rises with every new object frame: a mesh that was made without knowing the object brings one
    presence, label: in the newest image, and the label of its mask there (0: none)
    class_id: what the detector mostly called it of late; votes: class id -> how much speaks for it
    score, detector_id: what the detector last said when it called it so
    visible_fraction: share of its surface that the last image showed, 0 to 1
    seen_ns, updated_ns: stamps of the image that last showed it, and of the last update
    masked_ns: stamp of its last mask, later by the time since then in which it could have none
    seen_by: frame_id of the camera that last showed it
    velocity: (3,) m/s in the scene; restless_until_ns: until then it counts as moving, with that velocity
    misfit: metres, root mean square distance of the depth from the mesh, over the last images
    views: kept for the next reconstruction
    used: unit vectors from the object to the cameras that the mesh was made from
    used_area: m^2, what the newest of these saw of it
    attempted_ns: when its reconstruction was last asked for
    failures: how often in a row that was done of a mesh that fitted badly
    parts_refused_until_ns: until then nothing is rebuilt from a mask that shows little of it: that was tried in vain
    """

    id: str
    mesh: ReconstructedObject
    shape: Shape
    solid: Solid
    belief: Belief
    class_id: str
    seen_ns: int
    updated_ns: int
    masked_ns: int
    revision: int = 1
    frame_number: int = 0
    presence: Presence = Presence.SEEN
    label: int = 0
    score: float = 1.0
    detector_id: str = ""
    seen_by: str = ""
    visible_fraction: float = 0.0
    misfit: float = 0.0
    restless_until_ns: int = 0
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(3))
    views: tuple[View, ...] = ()
    used: list[np.ndarray] = field(default_factory=list)
    used_area: float = 0.0
    attempted_ns: int = 0
    failures: int = 0
    votes: dict[str, float] = field(default_factory=dict)
    parts_refused_until_ns: int = 0

    @property
    def fits_badly(self) -> bool:
        """Whether its mesh may be a wrong one."""
        return self.misfit > _DOUBTFUL_MISFIT

    def moved_as(self, later: Track) -> Track:
        """A copy that is where `later`, the same object in a newer image, has been followed to."""
        return replace(self, **{name: getattr(later, name) for name in _FOLLOWED})

    def may_be_called(self, class_id: str) -> bool:
        """Whether an object of this class may be this one; "": the class is not known."""
        return "" in (self.class_id, class_id) or self.class_id == class_id

    def note_class(self, class_id: str) -> None:
        """Take in what a detector calls it: they waver from image to image, and some masks come without a class."""
        if class_id:
            self.votes = {known: weight * _VOTE_DECAY for known, weight in self.votes.items()}
            self.votes[class_id] = self.votes.get(class_id, 0.0) + 1
            self.class_id = max(self.votes, key=self.votes.__getitem__)


@dataclass(frozen=True)
class TrackedObject:
    """An object at the moment of an image.

    object: its mesh, with pose and covariance in that image's camera frame, and its label there (0: it has no mask)
    revision: of the mesh; presence, seen_ns: whether this image shows it, and the stamp of the last that did
    """

    id: str
    revision: int
    object: ReconstructedObject
    presence: Presence
    seen_ns: int


@dataclass(frozen=True)
class Request:
    """Objects of one image to be reconstructed, `frame.instances`.

    earlier: label -> other views of it; tracks: label -> id, for objects that are known
    camera_from_object: label -> (4, 4), where those were in this image; areas: label -> m^2 of it that is in view
    scene_from_camera: (4, 4); generation: of the tracker, whose `clear` makes it void
    shown: id -> label, for all objects that this image shows: another label is another object
    frame_numbers: id -> number of the object frame that the track has there
    others: meshes of the other objects in view, in this image's camera frame
    """

    frame: Frame
    earlier: Mapping[int, Sequence[Observation]]
    tracks: Mapping[int, str]
    camera_from_object: Mapping[int, np.ndarray]
    areas: Mapping[int, float]
    scene_from_camera: np.ndarray
    generation: int
    shown: Mapping[str, int] = field(default_factory=dict)
    frame_numbers: Mapping[str, int] = field(default_factory=dict)
    others: Sequence[Mesh] = ()


@dataclass(frozen=True)
class Rebuilt:
    """An object of a request's result, ready for the tracker.

    mesh: in the frame of its track where it has one; shape, solid: made of it; scene_from_object: (4, 4), where it was
    view: of the request's image; area: m^2, what that shows of it
    """

    label: int
    mesh: ReconstructedObject
    shape: Shape
    solid: Solid
    scene_from_object: np.ndarray
    view: View
    area: float


def moved_mesh(mesh: ReconstructedObject, new_from_old: np.ndarray) -> ReconstructedObject:
    """A mesh in another object frame, (4, 4); it stays where it is in the camera frame."""
    vertices = (mesh.vertices @ new_from_old[:3, :3].T + new_from_old[:3, 3]).astype(np.float32)
    return replace(mesh, vertices=vertices, size=np.ptp(vertices, axis=0).astype(np.float64),
                   camera_from_object=mesh.camera_from_object @ np.linalg.inv(new_from_old))
