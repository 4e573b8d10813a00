"""Decides what is worth reconstructing, runs the pipeline, and prepares its results for the tracker."""
from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from trimesh import transform_points
from trimesh.creation import box

from ..perception.evidence import Observation
from ..perception.frame import Frame
from ..perception.objects import Mesh, ReconstructedObject, ScaleSource, Status
from .attempts import RETRY_NS, backoff_ns
from .fusion import CLEARER, NEW_SIDE, angles, direction_of, make_view, observations
from .parallel import in_parallel
from .physics import body_from_object, settle
from .shape import make_shape
from .solid import solid_from_mesh
from .track import Presence, Rebuilt, Request, Track, moved_mesh
from .tracker import Tracker
from .yielding import yielding

if TYPE_CHECKING:
    from ..perception.pipeline import Pipeline, PipelineResult  # takes seconds to import, which a node has not yet

# A mesh is made anew if the area in view is so many times that from which it was made.  For one that is marked
# LOW_QUALITY, `CLEARER` times is enough, and half the turn that makes a new side.
_MORE_IN_VIEW = 1.6
# If the new mesh fits as badly as before, the wait until the next attempt doubles, at most so many times: noise of the
# depth may be all that is wrong.
_MOST_DOUBLED = 4


def request(tracker: Tracker, wanted: Collection[int] | None = None) -> Request | None:
    """The objects of the newest image to reconstruct: new ones, and those with a new side in view or a doubtful mesh.

    wanted: labels of the instances that a goal asks for instead.  Returns None if there is nothing to reconstruct.
    """
    frame = tracker.frame
    if frame is None:
        return None
    scene_from_camera = tracker.scene_from_camera(frame)
    camera_from_scene = np.linalg.inv(scene_from_camera)
    labels = {i.label for i in tracker.unknown} if wanted is None else {*wanted}
    tracks, poses, earlier, shown, frames, beside = {}, {}, {}, {}, {}, []
    for track in tracker.tracks.values():
        if track.presence is not Presence.SEEN or track.seen_ns != frame.stamp_ns or not track.label:
            continue
        shown[track.id], frames[track.id] = track.label, track.frame_number
        pose = camera_from_scene @ track.belief.scene_from_object
        if wanted is None and track.label not in tracker.shared \
                and _pays(track, pose, tracker.areas.get(track.label, 0.0), frame.stamp_ns):
            labels.add(track.label)
        if track.label in labels:
            tracks[track.label], poses[track.label] = track.id, pose
            newest = make_view(frame, track.label, pose, tracker.areas.get(track.label, 0.0))
            earlier[track.label] = observations(track.views, newest)
        else:
            beside.append((track.mesh, pose))
    if not labels:
        return None
    chosen = tuple(instance for instance in frame.instances if instance.label in labels)
    others = [(transform_points(mesh.vertices, pose), mesh.triangles) for mesh, pose in beside]
    return Request(replace(frame, instances=chosen), earlier, tracks, poses, dict(tracker.areas), scene_from_camera,
                   tracker.generation, shown, frames, others)


def still_wanted(tracker: Tracker, asked: Request) -> Request | None:
    """What of a request was not made since from the image of another camera; None if all was."""
    def is_wanted(label: int) -> bool:
        if label not in asked.tracks:
            return not tracker.knows(asked, label)
        track = tracker.tracks.get(asked.tracks[label])
        return track is not None and _pays(track, asked.camera_from_object[label], asked.areas[label],
                                           asked.frame.stamp_ns)
    instances = tuple(instance for instance in asked.frame.instances if is_wanted(instance.label))
    return replace(asked, frame=replace(asked.frame, instances=instances)) if instances else None


def _pays(track: Track, camera_from_object: np.ndarray, area: float, now_ns: int) -> bool:
    """Whether a new mesh of a known object may be better than the one there is.

    camera_from_object: (4, 4); area: m^2 that the image shows of it
    """
    waited = now_ns - track.attempted_ns
    if waited < RETRY_NS:
        return False
    is_marked = track.mesh.status is Status.LOW_QUALITY
    side, more = (NEW_SIDE / 2, CLEARER) if is_marked else (NEW_SIDE, _MORE_IN_VIEW)
    turned = angles(direction_of(camera_from_object), track.used).min(initial=np.pi)
    may_be_mended = track.fits_badly and waited >= backoff_ns(track.failures, _MOST_DOUBLED)
    return bool(turned > side or area > more * track.used_area or may_be_mended)


def run(pipeline: Pipeline, asked: Request, on_stage: Callable[[str], None] | None = None,
        physics: bool = True) -> PipelineResult:
    """Reconstruct what a request asks for.

    physics: extend floating objects down to their support, and let uncertain surfaces yield to each other and to it
    """
    if not physics:
        return pipeline.run(asked.frame, asked.earlier, on_stage, others=None)
    return reconstruct(pipeline, asked.frame, asked.earlier, on_stage, asked.others)


def reconstruct(pipeline: Pipeline, frame: Frame, earlier: Mapping[int, Sequence[Observation]] | None = None,
                on_stage: Callable[[str], None] | None = None, others: Sequence[Mesh] = ()) -> PipelineResult:
    """The objects of a frame as `Pipeline.run` gives them, whose arguments and Faults these are, after surfaces that
    are unsure have given way to each other and to the support.
    """
    result = pipeline.run(frame, earlier, on_stage, others)
    if result.plane is None:
        return result
    return replace(result, objects=yielding(result.objects, result.plane))


def warm_up() -> None:
    """Compile the physics, so that the first object does not wait for it.  The first time this takes some 20 s on a
    slow machine; afterwards Numba has it on disk."""
    plane = np.array([0.0, 0.0, 1.0, 0.0])
    settle([body_from_object(item) for item in yielding([_block(1, 0.0), _block(2, 0.08)], plane)], plane)


def _block(label: int, x: float) -> ReconstructedObject:
    """A decimetre cube that reaches 1 cm below the plane z = 0 at x metres."""
    cube, pose, nothing = box([0.1, 0.1, 0.1]), np.eye(4), np.empty((0, 3), np.float32)
    pose[:3, 3] = x, 0.0, 0.04
    return ReconstructedObject(
        label, "", 1.0, "", pose, 1e-6 * np.eye(6), cube.extents, cube.vertices.astype(np.float32),
        cube.faces.astype(np.uint32), np.zeros((len(cube.vertices), 4), np.uint8),
        np.full(len(cube.vertices), 0.01, np.float32), ScaleSource.DEPTH, 0.01, 0.5, Status.OK, nothing,
        nothing.astype(np.uint8))


def prepare(asked: Request, objects: Sequence[ReconstructedObject]) -> list[Rebuilt]:
    """Make what the tracker needs from reconstructed objects; takes some 30 ms for each on one core."""
    meshes = [_in_its_track(asked, item) for item in objects]
    # Two tasks for each, so that a single object has two cores as well.
    made = in_parallel(lambda make, mesh: make(mesh.vertices, mesh.triangles),
                       [make_shape, solid_from_mesh] * len(meshes), [mesh for mesh in meshes for _ in range(2)])
    areas = [asked.areas.get(mesh.label, 0.0) for mesh in meshes]
    return [Rebuilt(mesh.label, mesh, shape, solid, asked.scene_from_camera @ mesh.camera_from_object,
                    make_view(asked.frame, mesh.label, mesh.camera_from_object, area), area)
            for mesh, shape, solid, area in zip(meshes, made[::2], made[1::2], areas, strict=True)]


def _in_its_track(asked: Request, item: ReconstructedObject) -> ReconstructedObject:
    """The mesh in the frame that its track has, if it has one."""
    pose = asked.camera_from_object.get(item.label)
    return item if pose is None else moved_mesh(item, np.linalg.inv(pose) @ item.camera_from_object)
