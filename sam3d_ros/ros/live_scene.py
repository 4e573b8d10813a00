"""How images become results.

Two threads share the work.  The follower decodes the newest complete set of each camera, follows the known objects into
it and publishes them, at the camera's rate; while masks lag, it does so with images that have none yet.  The builder
reconstructs what is new or doubtful, at most `reconstruct_hz` times a second, and publishes it where it is by then.  A
goal of the action goes the same way: its objects are followed into its image, then reconstructed.
"""
from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from rclpy.action.server import ServerGoalHandle
from rclpy.node import Node

from sam3d_ros.action import Reconstruct
from sam3d_ros.msg import ObjectMeshArray

from ..perception.faults import Fault
from ..perception.masks import Segmentation
from ..scene import rebuild
from ..scene.ahead import Ahead
from ..scene.resting import Resting
from ..scene.track import TrackedObject
from ..scene.tracker import Tracker, TrackerConfig
from .decoded_set import DecodedSet, decode_set
from .diagnostics import IMAGES, CameraDiagnostics
from .frames import decode_masks, decode_masks_or_none, masks_to_come
from .goal_masks import choose, needs_masks
from .goals import Goals
from .outputs import Outputs
from .parameters import Settings
from .running import fault_of
from .synchroniser import IMAGE, Match
from .transforms import Transforms
from .worker import Worker


@dataclass(frozen=True)
class _Job:
    """A complete set of messages to work on.

    camera: its namespace; generation, settings: of the scene when it came, a later generation makes it void
    goal: that it serves, if any; asked: what is to be reconstructed, once that is known
    is_ahead: whether its masks have not come yet
    """

    camera: str
    match: Match
    generation: int
    settings: Settings
    goal: ServerGoalHandle | None = None
    asked: rebuild.Request | None = None
    is_ahead: bool = False


class _Superseded(Exception):
    """The result is no longer wanted: the goal was cancelled, the node deactivated, disabled or cleared, or the clock
    set back."""


class LiveScene:
    """The objects in front of the cameras, kept up to date with every set of messages, and published.

    Its methods are for the executor's thread.  Between `open` and `close` its two threads run.

    settings, transforms: give the present ones; goals: that are served with results; diagnostics: told of faults
    """

    def __init__(self, node: Node, settings: Callable[[], Settings], transforms: Callable[[], Transforms | None],
                 goals: Goals, diagnostics: CameraDiagnostics):
        self._node = node
        self._settings = settings
        self._transforms = transforms
        self._goals = goals
        self._diagnostics = diagnostics
        # Guards what the threads share with each other and with the callbacks: generation, tracker and publishing.
        self._lock = threading.Lock()
        self._generation = 0
        self._images = self._reconstructions = 0
        self._figures: dict[str, str] = {}
        self._rebuilt_once = False
        self._tracked: DecodedSet | None = None     # whose image the tracker's objects are given in
        self._newest: DecodedSet | None = None      # whose image they are published in, maybe ahead of its masks
        self._newest_ns: dict[str, int] = {}        # frame_id of a camera -> stamp of its newest image
        self._tracker = Tracker()
        self._ahead = Ahead(self._tracker)
        self._has_physics = False

    def open(self, pipeline: Any, outputs: Outputs, settings: Settings) -> None:
        """Begin without objects, and start the threads; ids go on counting."""
        self._pipeline, self._outputs = pipeline, outputs
        self._has_physics = settings.physics
        self._tracker = Tracker(TrackerConfig(remember=settings.remember), Resting() if settings.physics else None,
                                self._tracker.named)
        self._ahead = Ahead(self._tracker)
        self._builder = Worker(self._build, lambda: 1 / self._settings().reconstruct_hz)
        self._follower = Worker(self._work_on, self._interval)
        self._figures = {"engine": pipeline.engine_name}

    def close(self) -> None:
        """End the threads after the jobs at work."""
        try:
            self._follower.stop()
        finally:
            self._builder.stop()

    @property
    def figures(self) -> dict[str, str]:
        """For diagnostics: name -> text."""
        at_rest = {"not_put_at_rest": ", ".join(self._tracker.not_put_at_rest)} if self._has_physics else {}
        return self._figures | at_rest

    # What is to be done

    def follow(self, camera: str, match: Match, is_ahead: bool = False) -> None:
        """Have the objects followed into the set of a camera, in place of an older one that still waits.

        is_ahead: whether its masks have not come yet.  Such a set has a slot of its own: neither it nor a set with
        masks, which tells more, takes the other's place.
        """
        job = _Job(camera, match, self._generation, self._settings(), is_ahead=is_ahead)
        self._follower.put(job, f"{camera} ahead" if is_ahead else camera)

    def serve(self, goal: ServerGoalHandle, camera: str, match: Match) -> None:
        """Have reconstructed what a goal asks for, from the set of a camera."""
        self._follower.request(_Job(camera, match, self._generation, self._settings(), goal))

    def drop_waiting(self) -> None:
        """Drop the sets that wait, and what was wrong with those before; goals stay."""
        self._follower.put(None)
        self._builder.put(None)
        with self._lock:            # what is being published goes out before this returns
            self._forget_faults()

    def drop_all(self) -> list[ServerGoalHandle]:
        """Drop the sets that wait; the goals among them."""
        return [job.goal for job in [*self._follower.clear(), *self._builder.clear()]]

    def forget(self) -> None:
        """Forget the objects, and make the results of the jobs at work unwanted."""
        with self._lock:
            self._generation += 1
            self._rebuilt_once = False
            self._tracked = self._newest = None
            self._newest_ns.clear()
            self._tracker.clear()
            self._figures["objects"] = "0"
            self._forget_faults()

    def retire(self) -> None:
        """Forget the objects, and tell everybody so."""
        self.forget()
        with self._lock:
            self._outputs.clear()

    def _forget_faults(self) -> None:
        """Forget faults of images and objects that no longer matter; with the lock held, so that no job reports one
        afterwards."""
        for camera in self._settings().camera_namespaces:
            self._diagnostics.forget(IMAGES, camera)
        self._diagnostics.report("reconstruction", None)

    # Following objects, in the follower's thread

    def _interval(self) -> float:
        rate = self._settings().max_rate
        return 1 / rate if rate else 0.0

    def _work_on(self, job: _Job) -> None:
        if job.goal:
            self._begin(job)
        elif job.is_ahead:
            self._follow_ahead(job)
        else:
            self._follow(job)

    def _follow(self, job: _Job) -> None:
        """Follow the objects into an image, publish them, and ask for what it gives cause to reconstruct."""
        with self._diagnosed(job, "frame", job.camera):
            decoded, warnings = self._decode(job, decode_masks_or_none)
            with self._lock:
                self._check(job)
                if self._tracker.was_passed(decoded.frame):     # by a goal, before its masks had come
                    return
                objects = self._tracker.update(decoded.frame)
                self._tracked = decoded
                is_newest = self._note(decoded)
                asked = rebuild.request(self._tracker)
                # Silence while the first objects are made: an empty array would say that there are none.
                if objects or asked is None or self._rebuilt_once:
                    self._publish_followed(objects, decoded, is_newest)
                self._diagnostics.report("frame", warnings[0] if warnings else None, job.camera)
                self._diagnostics.report("ahead", None, job.camera)
                if asked is None and not self._tracker.waiting:
                    self._diagnostics.report("reconstruction", None)
                if asked is not None:
                    self._builder.put(replace(job, asked=asked), decoded.frame.frame_id)

    def _publish_followed(self, objects: Sequence[TrackedObject], decoded: DecodedSet, is_newest: bool) -> None:
        """Publish the tracker's objects in the image that it was just updated with.

        is_newest: whether it is its camera's newest; if not, poses in a newer one are out already
        """
        if not is_newest:
            self._outputs.publish_masked(*decoded.placed(objects), decoded.frame, decoded.settings)
        elif self._ahead.leads:         # with another camera
            self._publish(self._ahead.objects(decoded.frame), decoded)
        else:
            self._publish(objects, decoded)

    def _follow_ahead(self, job: _Job) -> None:
        """Follow what is known into an image whose masks have not come yet, and publish it."""
        with self._diagnosed(job, "ahead", job.camera):
            with self._lock:
                self._check(job)
                image = job.match.messages[IMAGE]
                if not self._tracker.tracks or job.match.stamp_ns <= self._newest_ns.get(image.header.frame_id, 0):
                    return
            decoded, _ = self._decode(job, masks_to_come)
            with self._lock:
                self._check(job)
                self._note(decoded)
                self._publish(self._ahead.update(decoded.frame), decoded)
                self._diagnostics.report("ahead", None, job.camera)

    def _begin(self, job: _Job) -> None:
        """Follow the objects into the image of a goal, one of the first camera, and ask for what the goal wants.

        If a newer image of that camera was followed already, this is done in a copy: the tracker does not go back.
        """
        wanted: list[int] = []

        def find_masks(match: Match, settings: Settings) -> Segmentation:
            """All masks, so that no object seems to have none; but boxes stand alone."""
            request, image = job.goal.request, match.messages[IMAGE]
            segmentation = decode_masks(match, settings) if needs_masks(request) else None
            chosen = choose(request, segmentation, image.height, image.width, settings.max_objects)
            wanted.extend(instance.label for instance in chosen.instances)
            return chosen if request.boxes else segmentation

        with self._abort_on_error(job.goal):
            decoded, _ = self._decode(job, find_masks)
            with self._lock:
                self._check(job)
                if self._tracker.was_passed(decoded.frame):
                    tracker = self._tracker.fork()
                else:
                    tracker, self._tracked = self._tracker, decoded
                    self._note(decoded)
                tracker.update(decoded.frame, all_masks=not job.goal.request.boxes)
                asked = rebuild.request(tracker, wanted)
                self._builder.request(replace(job, asked=asked))

    def _decode(self, job: _Job,
                find_masks: Callable[[Match, Settings], Segmentation]) -> tuple[DecodedSet, tuple[Fault, ...]]:
        return decode_set(job.match, job.settings, self._transforms(), find_masks, job.is_ahead)

    def _note(self, decoded: DecodedSet) -> bool:
        """Note that an image was worked on.  Returns whether it is the newest of its camera: poses are published only
        in such an image."""
        frame = decoded.frame
        is_newest = frame.stamp_ns >= self._newest_ns.get(frame.frame_id, 0)
        if is_newest:
            self._newest, self._newest_ns[frame.frame_id] = decoded, frame.stamp_ns
        return is_newest

    # Reconstruction, in the builder's thread

    def _build(self, job: _Job) -> None:
        if job.goal:
            self._serve(job)
        else:
            self._rebuild(job)

    def _rebuild(self, job: _Job) -> None:
        """Reconstruct what a camera's newest image gives cause for, and publish it where it is by now."""
        with self._diagnosed(job, "reconstruction"):
            with self._lock:
                self._check(job)
                if self._tracked.frame.frame_id == job.asked.frame.frame_id:
                    asked = rebuild.request(self._tracker)
                else:       # of another camera, that may not see what is asked for
                    asked = rebuild.still_wanted(self._tracker, job.asked)
            if asked is not None:
                self._reconstruct(asked, job, lambda stage: None)
                with self._lock:
                    self._check(job)
                    self._publish_where_they_are()

    def _serve(self, job: _Job) -> None:
        """Reconstruct what a goal asks for, and publish it where it is by now."""
        with self._abort_on_error(job.goal):
            ids, faults = self._reconstruct(job.asked, job, lambda stage: self._goals.report(job.goal, stage))
            with self._lock:
                self._check(job)
                scene = self._publish_where_they_are(whole=True)
            found = [item for item in scene.objects if item.id in ids]
            if faults and not found:
                raise faults[0]
            message = "; ".join(map(str, faults)) if found else "what was asked for has moved away since its image"
            self._goals.finish(job.goal, Reconstruct.Result(
                success=bool(found), message=message, objects=ObjectMeshArray(header=scene.header, objects=found)))

    def _reconstruct(self, asked: rebuild.Request, job: _Job,
                     on_stage: Callable[[str], None]) -> tuple[set[str], list[Fault]]:
        """Reconstruct objects and give them to the tracker; their ids, and why others were not reconstructed.

        Raises Fault, and _Superseded.
        """
        def check_stage(stage: str) -> None:
            self._check(job)
            on_stage(stage)

        result = rebuild.run(self._pipeline, asked, check_stage, self._has_physics)
        rebuilt = rebuild.prepare(asked, result.objects)
        with self._lock:
            self._check(job)
            ids = self._tracker.absorb(asked, rebuilt, result.plane)
            self._rebuilt_once = True
            self._reconstructions += 1
            faults = [rejection.fault for rejection in result.rejections]
            if told := [*faults, *result.warnings]:
                self._diagnostics.report("reconstruction", told[0])
            elif not self._tracker.waiting:              # else what was reported of masks that wait still holds
                self._diagnostics.report("reconstruction", None)
        self._figures |= {f"{stage}_ms": f"{value:.1f}" for stage, value in result.stage_ms.items()}
        self._figures["reconstructions"] = str(self._reconstructions)
        return set(ids.values()), faults

    def _publish_where_they_are(self, whole: bool = False) -> ObjectMeshArray:
        """Publish the objects after a reconstruction, in the newest image: that which it was made from is older."""
        started, tracked, newest = time.monotonic(), self._tracked, self._newest
        follow = self._tracker.objects if tracked.frame.depth is None else self._tracker.update
        objects = follow(tracked.frame)
        if newest is not tracked:
            objects = self._ahead.update(newest.frame)
        return self._publish(objects, replace(newest, started=started), whole)

    # Both threads

    def _publish(self, objects: Sequence[TrackedObject], decoded: DecodedSet, whole: bool = False) -> ObjectMeshArray:
        """Publish objects given in the camera frame of a set; whole: with their meshes, whether sent before or not."""
        placed, header = decoded.placed(objects)
        meshes = self._outputs.publish(placed, header, decoded.frame, decoded.settings, self._transforms(), whole)
        if not decoded.is_ahead:
            self._outputs.publish_masked(placed, header, decoded.frame, decoded.settings)
        self._images += 1
        processing_ms = (time.monotonic() - decoded.started) * 1e3
        latency_ms = (self._node.get_clock().now().nanoseconds - decoded.match.stamp_ns) / 1e6
        self._outputs.publish_times(processing_ms, latency_ms)
        self._figures |= {"processing_ms": f"{processing_ms:.1f}", "pipeline_latency_ms": f"{latency_ms:.1f}",
                          "images": str(self._images), "objects": str(len(objects))}
        return meshes

    def _check(self, job: _Job) -> None:
        """Raise _Superseded if the job is no longer wanted."""
        if job.generation != self._generation or \
                (job.goal.is_cancel_requested if job.goal else not self._settings().enabled):
            raise _Superseded

    @contextmanager
    def _diagnosed(self, job: _Job, source: str, camera: str = "") -> Iterator[None]:
        """Report what goes wrong with a job as the fault of a source, if the job is still wanted."""
        try:
            yield
        except _Superseded:
            pass
        except Exception as error:
            self._report(job, source, error, camera)

    def _report(self, job: _Job, source: str, error: Exception, camera: str) -> None:
        # In a frame of its own: a fault among the locals of one in its own traceback would keep the images alive.
        fault = fault_of(self._node, error)
        with self._lock, suppress(_Superseded):
            self._check(job)
            self._diagnostics.report(source, fault, camera)

    @contextmanager
    def _abort_on_error(self, goal: ServerGoalHandle) -> Iterator[None]:
        """Tell the goal's client what went wrong."""
        try:
            yield
        except _Superseded:
            self._goals.abort(goal, "the node was deactivated or reset")
        except Exception as error:
            self._goals.abort(goal, str(fault_of(self._node, error)))
