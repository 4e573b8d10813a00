"""The scene: which objects there are, and where each of them is now.

Poses live in a frame that stands still, the scene frame: the world where it is known (`Frame.world_from_camera`), else
the camera frame of the first image; the camera's own motion is then found from all objects together.  Masks only say
where to look: which mask is which object is decided by where the known surfaces lie, never by the detector's ids.
"""
from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np

from ..perception.frame import Frame, Instance, Intrinsics
from ..perception.objects import ReconstructedObject, Status
from ..perception.plane import moved_plane
from . import motion
from .association import NEAR, is_piece, matched, shared, shows, without_doubles
from .attempts import FailedAttempts
from .camera import camera_motion
from .fusion import agree, make_view, needs_view, with_view
from .measurement import LEAST_READINGS, RESTLESS_NS, measure, slide
from .readings import CONFIRM, Readings, Sighting, look_for, read
from .registration import are_on_backs, near_share, register
from .relocation import may_be, relocated
from .resting import Resting
from .shape import make_shape
from .track import Presence, Rebuilt, Request, Track, TrackedObject

# Before the camera's own motion is known: metres from a surface within which readings are taken as its own; and
# seconds for which the camera is expected to go on moving as it did.
_NEAR_CAMERA, _LONGEST_GLIDE = 0.03, 0.3
# Share of the visible samples that the depth must confirm for an object without a mask to count as seen; while masks
# are due, of those samples that nothing covers.
_LEAST_CONFIRMED = 0.35
_GONE = 0.6               # share of the visible samples: if so many are missing, the object is not there any more
_SEARCHES = 4             # in one image at most: each takes milliseconds
_LOST_SECONDS = 10.0      # of unseen motion, assumed for an object that is found again: its old pose then hardly counts
# An object that is in one camera's newest image counts as seen in those of the others, too, for this long.
_VOUCHED_NS = 1_000_000_000
# A rebuilt object is a new one if its centre is farther from a known one's than this share of the smaller diagonal, and
# than so many metres.
_SAME_PLACE, _LEAST_PLACE = 0.5, 0.03
# A new mesh does not replace one that was made from more of the object in view: it must have at least this share of
# that area.  For so long afterwards, a mask there that shows as little is not reconstructed again.
_LESS_IN_VIEW, _REFUSED_NS = 0.5, 3_000_000_000


@dataclass(frozen=True)
class TrackerConfig:
    """Seconds: remember: how long an object that is not seen keeps its id; unmasked: how long one that is seen stays
    without a mask."""

    remember: float = 30.0
    unmasked: float = 3.0


class Tracker:
    """Follows the objects of a scene; for one thread at a time.

    resting: puts the objects at rest after each reconstruction; None: they are where the depth says
    named: how many objects have got an id, by this tracker and those before it
    tracks: id -> track; frame: the newest image
    unknown: instances of it that are no known object; waiting: others that are none either, but whose reconstruction
    failed a moment ago
    shared: labels of its masks that show more than one known object; no mesh is made from them
    areas: label -> m^2 that the newest image shows of that instance; generation: counts the calls of `clear`; updates:
    counts all changes
    """

    def __init__(self, config: TrackerConfig = TrackerConfig(), resting: Resting | None = None, named: int = 0):
        self.config = config
        self._resting = resting
        self.named = named
        self.tracks: dict[str, Track] = {}
        self.unknown: tuple[Instance, ...] = ()
        self.waiting: tuple[Instance, ...] = ()
        self.shared: frozenset[int] = frozenset()
        self._support: np.ndarray | None = None    # (4,) unit normal, up, and offset in metres, scene frame
        self._failed = FailedAttempts()
        self.generation = self.updates = 0
        self.frame: Frame | None = None
        self.areas: dict[int, float] = {}
        self._newest_ns: dict[str, int] = {}       # camera -> stamp of its newest image
        self._scene_from_camera: dict[str, np.ndarray] = {}
        self._camera_speed: dict[str, tuple[np.ndarray, int]] = {}
        self._in_world = False
        self._masks_are_due = False                # the images are followed before their masks are there
        self._doubles: set[str] = set()            # ids of tracks whose object the newest image shows as an older one

    def clear(self) -> None:
        """Forget all objects; ids go on counting, so that an old id never names a new object."""
        self.tracks.clear()
        self._support = None
        self._failed.clear()
        if self._resting:
            self._resting.clear()
        self.unknown = self.waiting = ()
        self.shared = frozenset()
        self.frame = None
        self.areas = {}
        self._newest_ns.clear()
        self._scene_from_camera.clear()
        self._camera_speed.clear()
        self.generation += 1
        self.updates += 1

    def fork(self, ahead: Tracker | None = None) -> Tracker:
        """A copy for images whose masks have not come yet: in it, an object needs no mask to be seen.  Meshes, shapes
        and views are shared with this tracker.

        ahead: an earlier copy with the same objects, from whose newer images the poses of cameras and objects are taken
        """
        fork = copy(self)
        fork._masks_are_due = True
        fork._failed, fork._resting = FailedAttempts(), copy(self._resting)
        fork.tracks = {identity: replace(track) for identity, track in self.tracks.items()}
        fork._newest_ns, fork._scene_from_camera = {**self._newest_ns}, {**self._scene_from_camera}
        fork._camera_speed = {**self._camera_speed}
        if ahead:
            newer = {camera for camera, stamp_ns in ahead._newest_ns.items()
                     if stamp_ns > self._newest_ns.get(camera, 0)}
            for name in ("_newest_ns", "_scene_from_camera", "_camera_speed"):
                getattr(fork, name).update((c, value) for c, value in getattr(ahead, name).items() if c in newer)
            fork.tracks |= {identity: track.moved_as(ahead.tracks[identity]) for identity, track in self.tracks.items()
                            if newer and _tells_more(ahead.tracks[identity], track)}
        return fork

    def is_newer(self, frame: Frame) -> bool:
        """Whether an image is newer than all of its camera that were followed."""
        return frame.stamp_ns > self._newest_ns.get(frame.frame_id, 0)

    def was_passed(self, frame: Frame) -> bool:
        """Whether a newer image of its camera was followed."""
        return frame.stamp_ns < self._newest_ns.get(frame.frame_id, 0)

    def scene_from_camera(self, frame: Frame) -> np.ndarray:
        """(4, 4) of the newest image of this camera."""
        return self._scene_from_camera.get(frame.frame_id, np.eye(4))

    def update(self, frame: Frame, all_masks: bool = True) -> list[TrackedObject]:
        """Follow the objects into an image; all that are remembered and not known to be gone.

        Without depth nothing can be followed: all are HIDDEN, and all instances unknown, until the next reconstruction.
        all_masks: False where others than the frame's instances were not looked for: to lack a mask then means nothing
        """
        self.updates += 1
        in_world = frame.world_from_camera is not None
        if in_world != self._in_world:
            self.clear()  # poses of another scene frame
            self._in_world = in_world
        self.frame = frame
        self._newest_ns[frame.frame_id] = frame.stamp_ns
        for track in self.tracks.values():
            self._predict(track, frame.stamp_ns, all_masks)
        if frame.depth is None:
            self._scene_from_camera[frame.frame_id] = frame.world_from_camera if in_world else np.eye(4)
            for track in self.tracks.values():
                track.presence, track.label = Presence.HIDDEN, 0
            self.unknown, self.waiting, self.shared, self.areas = frame.instances, (), frozenset(), {}
            self._doubles = set()
        else:
            self._follow(read(frame))
        self._forget(frame.stamp_ns)
        return self.objects(frame)

    def objects(self, frame: Frame) -> list[TrackedObject]:
        """All that are remembered and not known to be gone, in the camera frame of the image that was last followed."""
        camera_from_scene = np.linalg.inv(self.scene_from_camera(frame))
        poses = {track.id: self._resting.corrected(track) if self._resting else track.belief.scene_from_object
                 for track in self._present()}
        return [_tracked(track, camera_from_scene, poses[track.id]) for track in self._present()]

    @property
    def not_put_at_rest(self) -> list[str]:
        """Ids of the objects that physics did not put at rest, since they would have had to move farther than their
        covariance allows; without those that are gone.  May be called from any thread."""
        refused = map(self.tracks.get, self._resting.refused if self._resting else ())
        return [track.id for track in refused if track and track.presence is not Presence.GONE]

    def absorb(self, request: Request, rebuilt: Sequence[Rebuilt],
               plane: np.ndarray | None = None) -> dict[int, str]:
        """Take in new meshes.  They were made from an older image; a known object has moved on with its frame since.

        plane: (4,) that the objects stand on, in that image's camera frame; None: where it was before
        Returns the id of the object that each label of the request turned out to be.
        """
        ids: dict[int, str] = {}
        self.updates += 1
        if request.generation != self.generation:
            return ids
        for identity in request.tracks.values():
            if identity in self.tracks:
                self.tracks[identity].attempted_ns = request.frame.stamp_ns
        for item in rebuilt:
            track = self.tracks.get(request.tracks.get(item.label, ""))
            if track is None or track.frame_number != request.frame_numbers[track.id]:
                others = {*ids.values(), *(i for i, label in request.shown.items() if label != item.label)}
                known = self._at(request, item, others)
                if known and item.area < _LESS_IN_VIEW * known.used_area:
                    ids[item.label] = known.id
                    known.parts_refused_until_ns = request.frame.stamp_ns + _REFUSED_NS
                    continue      # hidden but for a part, from which it could not be told: its mesh is the better one
                track = known or self._add(request, item)
                _place_anew(track, request, item)
            _take_mesh(track, request, item)
            ids[item.label] = track.id
        self._note_failures(request, ids)
        self.unknown = ()  # until the next image
        if plane is not None:
            self._support = moved_plane(plane, request.scene_from_camera)
        if self._resting:
            self._resting.update([*self.tracks.values()], self.frame.stamp_ns, self._support)
        return ids

    def knows(self, request: Request, label: int) -> bool:
        """Whether a mask of a request for a new object shows one that was made since, from another image; without depth
        that is not known."""
        frame = request.frame
        if frame.depth is None:
            return False
        [points] = read(replace(frame, instances=tuple(i for i in frame.instances if i.label == label))).points
        camera_from_scene = np.linalg.inv(request.scene_from_camera)
        others = (track for track in self._present() if track.id not in request.shown)
        return any(shows(track, points, camera_from_scene) for track in others)

    # One image

    def _follow(self, readings: Readings) -> None:
        """Find camera and objects in an image: objects with a mask, objects that only the depth confirms, and missing
        objects that turn up elsewhere.  The masks that are left are new objects."""
        self._locate_camera(readings)
        camera_from_scene = np.linalg.inv(self.scene_from_camera(readings.frame))
        if self._support is not None:
            readings = readings.off(moved_plane(self._support, camera_from_scene))
        sightings = self._sightings(readings)
        pairs = matched(self.tracks, sightings, readings, camera_from_scene)
        pairs, self._doubles = without_doubles(self.tracks, sightings, pairs, readings, camera_from_scene)
        in_common = shared(self.tracks, sightings, pairs, readings, camera_from_scene)
        self.shared = frozenset(readings.instances[index].label for index in in_common)
        for identity, sighting in sightings.items():
            if not self._follow_one(self.tracks[identity], sighting, pairs.get(identity), readings):
                pairs.pop(identity, None)
        taken = {*pairs.values()}
        taken |= self._find_again(taken, readings)
        self.areas = {instance.label: readings.area(index) for index, instance in enumerate(readings.instances)}
        new = [index for index in range(len(readings.instances))
               if index not in taken and index not in in_common and not self._is_fragment(index, readings)
               and not self._was_refused(index, readings)]
        waiting = [index for index in new if self._waits(index, readings)]
        self.waiting = tuple(readings.instances[index] for index in waiting)
        self.unknown = tuple(readings.instances[index] for index in new if index not in waiting)

    def _follow_one(self, track: Track, sighting: Sighting, index: int | None, readings: Readings) -> bool:
        """Measure where a track is by its mask, the instance number `index`, or by depth alone if that is None; whether
        the image shows it.  If not, it is hidden or gone."""
        frame = readings.frame
        pose, now_ns = self.scene_from_camera(frame), frame.stamp_ns
        behind = are_on_backs(track.shape, sighting.points, self._camera_from(track, frame))
        points = sighting.points if index is None else readings.points[index]
        if index is not None and self._in_world:      # else the camera may have moved, and not it
            slide(track, sighting, index, readings, pose)
        # The camera looks through it, or sees what it lay on, where that is no farther than the underside.
        missing = sighting.missing + behind.sum() / max(sighting.facing, 1)
        believed = index is not None or missing < _GONE \
            and sighting.confirmed >= self._least_confirmed(track, sighting, now_ns)
        if believed and measure(track, points, pose, now_ns, goes_on=self._masks_are_due):
            self._seen(track, index, readings)
            return True
        track.label = 0
        if not self._is_vouched_for(track, frame):
            gone = missing >= _GONE and not self._may_be_near(track, now_ns)
            track.presence = Presence.GONE if gone else Presence.HIDDEN
        return False

    def _least_confirmed(self, track: Track, sighting: Sighting, now_ns: int) -> float:
        """Share of its visible samples that the depth must confirm if a track has no mask.  While its next mask is due,
        covered samples do not count against it: with that mask it will count as seen, too."""
        is_due = self._masks_are_due and now_ns - track.masked_ns < self.config.unmasked * 1e9
        return _LEAST_CONFIRMED * (1 - sighting.covered if is_due else 1.0)

    def _is_vouched_for(self, track: Track, frame: Frame) -> bool:
        """Whether the newest image of another camera than that of `frame` shows it."""
        return track.presence is Presence.SEEN and track.seen_by != frame.frame_id \
            and track.seen_ns == self._newest_ns.get(track.seen_by) and frame.stamp_ns - track.seen_ns < _VOUCHED_NS

    def _may_be_near(self, track: Track, now_ns: int) -> bool:
        """Whether an object that is not at its place was seen there a moment ago, and it or the camera may have moved.
        """
        moves = not self._in_world or now_ns < track.restless_until_ns
        return moves and now_ns - track.seen_ns < RESTLESS_NS

    def _present(self) -> Iterator[Track]:
        """All but what is known to be gone."""
        return (track for track in self.tracks.values() if track.presence is not Presence.GONE)

    def _predict(self, track: Track, now_ns: int, all_masks: bool) -> None:
        """Take a track to the time of an image: it rests, or goes on as it went; back, if another camera's image comes
        late.  all_masks: as of `update`"""
        seconds = (now_ns - track.updated_ns) / 1e9
        is_hidden = track.presence is not Presence.SEEN and track.id not in self._doubles
        # Time without a mask counts between images in which a visible object was looked for in vain.
        if track.label or is_hidden or not all_masks:
            track.masked_ns += now_ns - track.updated_ns
        restless = now_ns < track.restless_until_ns and track.presence is Presence.SEEN
        track.belief = motion.predicted(track.belief, abs(seconds), motion.REST if self._in_world else motion.CARRIED)
        if restless:
            step = np.concatenate([track.velocity * seconds, np.zeros(3)])
            track.belief = replace(track.belief, scene_from_object=motion.shifted(track.belief.scene_from_object, step))
        track.updated_ns = now_ns

    def _locate_camera(self, readings: Readings) -> None:
        """Set the camera's pose in the scene: given, or from how the objects moved across the image."""
        frame = readings.frame
        if self._in_world:
            self._scene_from_camera[frame.frame_id] = frame.world_from_camera
            return
        last = self.scene_from_camera(frame)
        speed, stamp_ns = self._camera_speed.get(frame.frame_id, (np.zeros(6), frame.stamp_ns))
        seconds = (frame.stamp_ns - stamp_ns) / 1e9
        predicted = motion.shifted(last, speed * seconds if seconds < _LONGEST_GLIDE else np.zeros(6))
        self._scene_from_camera[frame.frame_id] = predicted
        if still := self._seem_still(readings):
            moved = camera_motion([(track.shape, self._camera_from(track, frame), points) for track, points in still])
            self._scene_from_camera[frame.frame_id] = predicted @ np.linalg.inv(moved)
        else:
            self._scene_from_camera[frame.frame_id] = last
        if seconds > 0:
            speed = motion.difference(self._scene_from_camera[frame.frame_id], last) / seconds
        self._camera_speed[frame.frame_id] = speed, frame.stamp_ns

    def _seem_still(self, readings: Readings) -> list[tuple[Track, np.ndarray]]:
        """The tracks that an image shows and by which the camera's motion is found, each with its depth readings (N, 3)
        metres, camera frame.  The camera's pose must be set to where it is expected to be."""
        sightings = self._sightings(readings, _NEAR_CAMERA)
        camera_from_scene = np.linalg.inv(self.scene_from_camera(readings.frame))
        pairs = matched(self.tracks, sightings, readings, camera_from_scene, _NEAR_CAMERA)
        found = {identity: readings.points[index] for identity, index in pairs.items()}
        if self._masks_are_due:
            found |= {identity: sighting.points for identity, sighting in sightings.items()
                      if identity not in found and sighting.confirmed >= _LEAST_CONFIRMED}
        shown = [(self.tracks[identity], points) for identity, points in found.items() if len(points) >= LEAST_READINGS]
        # Where most seem to move, it is the camera.
        still = [pair for pair in shown if readings.frame.stamp_ns >= pair[0].restless_until_ns]
        return still if 2 * len(still) >= len(shown) else shown

    def _camera_from(self, track: Track, frame: Frame) -> np.ndarray:
        """(4, 4) camera_from_object of a track in an image of this camera."""
        return np.linalg.inv(self.scene_from_camera(frame)) @ track.belief.scene_from_object

    def _sightings(self, readings: Readings, tolerance: float = CONFIRM) -> dict[str, Sighting]:
        """Id -> where a track that is not gone shows if it is where it is believed to be; tolerance: metres."""
        return {track.id: look_for(track.shape, self._camera_from(track, readings.frame), readings,
                                   tolerance=tolerance) for track in self._present()}

    def _seen(self, track: Track, index: int | None, readings: Readings) -> None:
        """Note that the image shows the track, as instance number `index` or without a mask."""
        frame = readings.frame
        track.presence, track.seen_ns, track.label = Presence.SEEN, frame.stamp_ns, 0
        track.seen_by = frame.frame_id
        track.visible_fraction = look_for(track.shape, self._camera_from(track, frame), readings, own=index).seen
        if index is None:
            return
        instance = readings.instances[index]
        track.label = instance.label
        track.note_class(instance.class_id)
        if instance.class_id == track.class_id:      # else it is the score of another class, or of a mask without one
            track.score, track.detector_id = instance.score, instance.detector_id
        track.masked_ns = frame.stamp_ns
        camera_from_object = self._camera_from(track, frame)
        area = readings.area(index)
        if instance.label not in self.shared and not instance.is_box \
                and needs_view(track.views, camera_from_object, area):
            track.views = with_view(track.views, make_view(frame, instance.label, camera_from_object, area))

    def _find_again(self, taken: set[int], readings: Readings) -> set[int]:
        """Look for missing objects in masks that belong to no object; returns the indices of the masks found.

        An object that another camera sees is looked for only near its place, from which errors of the cameras' poses
        may shift it.
        """
        frame = readings.frame
        missing = [t for t in self.tracks.values() if (t.seen_ns, t.seen_by) != (frame.stamp_ns, frame.frame_id)]
        missing.sort(key=lambda track: -track.seen_ns)
        scene_from_camera = self.scene_from_camera(frame)
        scene_up = np.linalg.inv(scene_from_camera)[:3, 2]
        found: set[int] = set()
        searches = 0
        for track in missing:
            for index, points in enumerate(readings.points):
                if index in taken or index in found or len(points) < LEAST_READINGS or searches >= _SEARCHES \
                        or track.presence is Presence.SEEN and not self._is_near(track, points, frame) \
                        or not may_be(track, readings, index) or self._is_fragment(index, readings, besides=track):
                    continue
                searches += 1
                pose = self._camera_from(track, frame)
                registration = relocated(track, readings, index, pose, scene_up if self._in_world else pose[:3, 2])
                if registration is not None:
                    free = motion.predicted(track.belief, _LOST_SECONDS, motion.MOVED)
                    track.belief = motion.updated(free, registration, scene_from_camera)
                    track.restless_until_ns = frame.stamp_ns + RESTLESS_NS
                    track.velocity = np.zeros(3)
                    self._seen(track, index, readings)
                    found.add(index)
                    break
        return found

    def _is_fragment(self, index: int, readings: Readings, besides: Track | None = None) -> bool:
        """Whether a mask that belongs to no object lies on a visible one other than `besides`."""
        visible = (track for track in self.tracks.values() if track.presence is Presence.SEEN and track is not besides)
        return is_piece(visible, readings.points[index], np.linalg.inv(self.scene_from_camera(readings.frame)))

    def _is_near(self, track: Track, points: np.ndarray, frame: Frame) -> bool:
        """Whether depth readings, (N, 3) metres, camera frame, lie about the place of a track."""
        place = self._camera_from(track, frame)[:3, 3]
        return bool(np.linalg.norm(points.mean(axis=0) - place) < track.shape.diagonal / 2)

    def _was_refused(self, index: int, readings: Readings) -> bool:
        """Whether a mask shows a small part of a hidden object, from which a mesh was refused a moment ago, since the
        object's own mesh was made from more of it."""
        points = readings.points[index]
        return len(points) > 0 and any(
            track.presence is Presence.HIDDEN and track.may_be_called(readings.instances[index].class_id)
            and readings.frame.stamp_ns < track.parts_refused_until_ns
            and readings.area(index) < _LESS_IN_VIEW * track.used_area and self._is_near(track, points, readings.frame)
            for track in self.tracks.values())

    def _waits(self, index: int, readings: Readings) -> bool:
        """Whether a mask at this place gave no object a moment ago; needs a known scene frame to tell places apart."""
        is_placed = self._in_world or any(track.presence is Presence.SEEN for track in self.tracks.values())
        return is_placed and self._failed.waits(readings, index, self.scene_from_camera(readings.frame))

    def _forget(self, now_ns: int) -> None:
        """Drop objects that were not seen for long, and visible ones that have had no mask for long: these are no
        objects any more, or no others than older ones."""
        for track in [*self.tracks.values()]:
            is_visible = track.presence is Presence.SEEN or track.id in self._doubles
            unmasked = not self._masks_are_due and is_visible and now_ns - track.masked_ns > self.config.unmasked * 1e9
            if unmasked or now_ns - track.seen_ns > self.config.remember * 1e9:
                del self.tracks[track.id]

    # New meshes

    def _add(self, request: Request, item: Rebuilt) -> Track:
        """A new object, with an id of its own."""
        self.named += 1
        stamp_ns = request.frame.stamp_ns
        mesh = item.mesh
        track = Track(f"object_{self.named}", mesh, item.shape, item.solid,
                      motion.first_belief(item.scene_from_object), mesh.class_id, stamp_ns, stamp_ns, stamp_ns,
                      label=item.label, score=mesh.score, detector_id=mesh.detector_id, attempted_ns=stamp_ns)
        self.tracks[track.id] = track
        return track

    def _note_failures(self, request: Request, ids: Mapping[int, str]) -> None:
        """Note where masks of new objects gave none; ids: label -> id, of those that did."""
        failed = [i for i in request.frame.instances if i.label not in ids and i.label not in request.tracks]
        if failed and request.frame.depth is not None:
            readings = read(replace(request.frame, instances=tuple(failed)))
            for index in range(len(failed)):
                self._failed.note(readings, index, request.scene_from_camera)

    def _at(self, request: Request, item: Rebuilt, others: Collection[str]) -> Track | None:
        """The known object that a rebuilt one is, although its mask was not matched to any; None if it is a new one.

        Its centre must be near, relative to the smaller of the two, and the depth readings of the new one must lie on
        it.  others: ids of objects that the image shows elsewhere.
        """
        place = item.scene_from_object[:3, 3]
        camera_from_scene = np.linalg.inv(request.scene_from_camera)
        points = item.mesh.observed_points.astype(np.float64)
        found = []
        for track in (track for track in self._present() if track.id not in others):
            distance = float(np.linalg.norm(track.belief.scene_from_object[:3, 3] - place))
            smaller = min(track.shape.diagonal, item.shape.diagonal)
            if not track.may_be_called(item.mesh.class_id) or distance > max(_LEAST_PLACE, _SAME_PLACE * smaller):
                continue
            if not len(points) or shows(track, points, camera_from_scene):
                found.append((distance, track))
        return min(found, key=lambda pair: pair[0])[1] if found else None


def warm_up() -> None:
    """Compile what the tracker needs, so that its first image is followed as fast as the next."""
    rows, columns = np.indices((48, 64))
    depth = np.where((abs(rows - 24) < 9) & (abs(columns - 32) < 9), 0.5, 0.6).astype(np.float32)
    frame = Frame(np.zeros((48, 64, 3), np.uint8), depth, (depth < 0.55).astype(np.int32),
                  Intrinsics(64, 48, 60.0, 60.0, 31.5, 23.5), (Instance(1),))
    shape = make_shape(*_BLOCK)
    pose = np.eye(4)
    pose[2, 3] = 0.5 + _BLOCK[0].max()
    readings = read(frame)
    look_for(shape, pose, readings)
    near_share(shape, readings.points[0], pose, NEAR)
    are_on_backs(shape, readings.points[0], pose)
    register(shape, readings.points[0], pose, np.eye(6))
    camera_motion([(shape, pose, readings.points[0])])
    motion.difference(pose, np.eye(4))


_BLOCK = (np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * 0.07,
          np.array([[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
                    [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]]))


def _tells_more(later: Track, track: Track) -> bool:
    """Whether `later`, the same object in a copy with newer images, tells more of where it is: not if it is merely
    hidden from these, and another camera's image with masks showed that it is gone."""
    return later.seen_ns >= track.seen_ns and (track.presence, later.presence) != (Presence.GONE, Presence.HIDDEN)


def _place_anew(track: Track, request: Request, item: Rebuilt) -> None:
    """Put a track where a rebuilt object is, in an object frame of its own: also one that is known from before, as it
    could not be followed to there."""
    track.belief = motion.first_belief(item.scene_from_object)
    track.frame_number += 1
    track.presence, track.label, track.views = Presence.SEEN, item.label, ()
    track.seen_ns = track.masked_ns = max(track.seen_ns, request.frame.stamp_ns)
    track.seen_by = request.frame.frame_id


def _take_mesh(track: Track, request: Request, item: Rebuilt) -> None:
    """Give a track the mesh of a rebuilt object, and note what it was made from."""
    if track.mesh is not item.mesh:
        track.mesh, track.shape, track.solid = item.mesh, item.shape, item.solid
        track.revision += 1
    track.views = tuple(view for view in track.views if agree(view, item.view))
    fused = track.views if request.earlier.get(item.label) else ()
    track.used = [item.view.direction, *(view.direction for view in fused)]
    track.failures = track.failures + 1 if track.fits_badly else 0
    track.used_area, track.misfit = item.area, 0.0
    track.views = with_view(track.views, item.view)
    track.visible_fraction = item.mesh.visible_fraction
    track.note_class(item.mesh.class_id)


def _tracked(track: Track, camera_from_scene: np.ndarray, scene_from_object: np.ndarray) -> TrackedObject:
    """A track at scene_from_object (4, 4), in the camera frame of an image at scene_from_camera, the inverse of
    camera_from_scene (4, 4)."""
    seen = track.presence is Presence.SEEN
    camera_from_object = camera_from_scene @ scene_from_object
    # How well the mesh's frame is known in the object, which turns with it, and how well that was followed since.
    turned_since = camera_from_object[:3, :3] @ track.mesh.camera_from_object[:3, :3].T
    own = motion.rotated(track.mesh.pose_covariance, turned_since)
    followed = motion.rotated(track.belief.covariance, camera_from_scene)
    mesh: ReconstructedObject = replace(
        track.mesh, label=track.label, class_id=track.class_id, score=track.score, detector_id=track.detector_id,
        camera_from_object=camera_from_object, pose_covariance=own + followed,
        visible_fraction=track.visible_fraction if seen else 0.0,
        status=track.mesh.status if seen else Status.HIDDEN)
    return TrackedObject(track.id, track.revision, mesh, track.presence, track.seen_ns)
