"""sam3d_node: camera images and instance masks in, complete object meshes and 6D poses out.

A lifecycle node.  Callbacks only file messages away.  One worker thread decodes the newest complete set, follows the
known objects into it and publishes them, at the camera's rate, for which it goes ahead of masks that lag; another
reconstructs what is new or doubtful, at most `reconstruct_hz` times a second.  A goal of the action goes the same way:
followed into its image, then reconstructed.
"""
from __future__ import annotations

import signal
import sys

if __name__ == "__main__":
    # The imports below take a while: Ctrl-C among them must end the process as quietly as later.
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))

import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import rclpy
from lifecycle_msgs.srv import ChangeState
from rclpy.action.server import ServerGoalHandle
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger

from sam3d_ros.action import Reconstruct
from sam3d_ros.msg import ObjectMeshArray
from sam3d_ros.perception.faults import Fault, FaultCode
from sam3d_ros.perception.frame import Frame, check_frame
from sam3d_ros.perception.masks import Segmentation
from sam3d_ros.ros.camera import CameraInput
from sam3d_ros.ros.diagnostics import Diagnostics
from sam3d_ros.ros.frames import decode_frame, decode_masks, decode_masks_or_none, input_types, masks_to_come
from sam3d_ros.ros.goal_masks import choose, needs_masks
from sam3d_ros.ros.goals import Goals
from sam3d_ros.ros.images import stamp_message
from sam3d_ros.ros.memory import exempt_from_collection, limit_heaps
from sam3d_ros.ros.messages import PlacedObject
from sam3d_ros.ros.optional import optional
from sam3d_ros.ros.outputs import Outputs
from sam3d_ros.ros.parameters import Parameters, Settings, pipeline_config
from sam3d_ros.ros.running import log_exception, run_node
from sam3d_ros.ros.synchroniser import DETECTIONS, IMAGE, Match
from sam3d_ros.ros.transforms import Transforms
from sam3d_ros.ros.worker import Worker
from sam3d_ros.scene import rebuild
from sam3d_ros.scene.ahead import Ahead
from sam3d_ros.scene.resting import Resting
from sam3d_ros.scene.track import TrackedObject
from sam3d_ros.scene.tracker import Tracker, TrackerConfig, warm_up

RCLError = rclpy_implementation.RCLError
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


@dataclass(frozen=True)
class _Job:
    """A complete set of a camera, given by its namespace, the generation and the settings that it belongs to, the goal
    that it serves, if any, what is to be reconstructed, once that is known, and whether it is a set ahead of its masks.
    """

    camera: str
    match: Match
    generation: int
    settings: Settings
    goal: ServerGoalHandle | None = None
    asked: rebuild.Request | None = None
    is_ahead: bool = False


@dataclass(frozen=True)
class _View:
    """An image that was worked on, maybe ahead of its masks: what is needed to publish objects that are given in its
    camera frame."""

    match: Match
    frame: Frame
    target_from_camera: np.ndarray
    settings: Settings
    started: float
    is_ahead: bool


class _Superseded(Exception):
    """The result is no longer wanted: the goal was cancelled, the node deactivated, disabled or cleared, or the clock
    set back."""


def load_pipeline(settings: Settings, on_progress: Callable[[int, str], None] = lambda percent, what: None) -> Any:
    """The real pipeline, and all that is compiled for the node.  Imported here: it takes seconds, in which the node can
    be seen already.

    on_progress: called with percent done, and with what is being done, so that a first start does not look like a hang
    """
    on_progress(0, "the model is loaded")
    from sam3d_ros.perception.pipeline import Pipeline
    pipeline = Pipeline.from_config(pipeline_config(settings), on_progress)
    with ExitStack() as on_failure:
        on_failure.callback(pipeline.close)
        steps = [pipeline.warm_up, warm_up, *[rebuild.warm_up] * settings.physics]
        for number, step in enumerate(steps):
            on_progress(100 * number // len(steps), "code is made ready, for a minute or more at the first start")
            step()
        on_failure.pop_all()
    exempt_from_collection()
    return pipeline


class Sam3dNode(LifecycleNode):
    """The node.

    load: makes the pipeline from the settings; raises Fault MODEL_*, ENGINE_*.  None: the real one
    """

    def __init__(self, load: Callable[[Settings], Any] | None = None, **node_arguments: Any):
        super().__init__("sam3d_node", **node_arguments)
        # rclpy lets a request for an impossible transition end the whole process.
        service = self._service_change_state
        service.callback = functools.partial(self._refuse_impossible, service.callback)
        self._load = load or functools.partial(load_pipeline, on_progress=self._on_progress)
        self._while_configured = ExitStack()
        self._while_active = ExitStack()
        self._configured = self._active = False
        self._transforms: Transforms | None = None
        self._cameras: list[CameraInput] = []
        self._figures: dict[str, str] = {}
        # Guards what the workers share with each other and with the callbacks: generation, tracker and publishing.
        self._lock = threading.Lock()
        self._generation = 0
        self._images = self._reconstructions = 0
        self._rebuilt_once = False
        self._latest: _View | None = None      # the image that the tracker's objects are given in
        self._newest: _View | None = None      # the image that the objects are published in, maybe ahead of its masks
        self._newest_ns: dict[str, int] = {}   # frame_id of a camera -> stamp of the newest image of it
        self._tracker = Tracker()
        self._ahead = Ahead(self._tracker)
        self._has_physics = False
        self._declared = Parameters(self, lambda: not self._configured, self._on_settings)
        self._diagnostics = Diagnostics(self, "reconstruction", self.settings.diagnostics_period,
                                        self._diagnostic_values)
        self.create_service(SetBool, "enable", self._on_enable)
        self.create_service(Trigger, "clear", self._on_clear)
        self._goals = Goals(self, lambda: self._active, self._serve_goals)

    @property
    def settings(self) -> Settings:
        """The present values of the parameters."""
        return self._declared.settings

    # Lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        return super().on_configure(state) if self._attempt(self._configure) else FAILURE

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        return super().on_activate(state) if self._attempt(self._activate) else FAILURE

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._retire()
        result = super().on_deactivate(state)       # the publishers are off from here on
        self._while_active.close()
        return result

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        if self._active:
            self._retire()
        self._release()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return super().on_error(state)

    def destroy_node(self) -> None:
        """Stop the worker, then destroy the node."""
        self._release()
        self._goals.destroy()
        super().destroy_node()

    def _refuse_impossible(self, change_state: Callable[..., ChangeState.Response], request: ChangeState.Request,
                           response: ChangeState.Response) -> ChangeState.Response:
        try:
            return change_state(request, response)
        except RCLError as error:
            self.get_logger().warning(f"transition refused: {error}")
            response.success = False
            return response

    def _attempt(self, step: Callable[[Settings], None]) -> bool:
        """Take a step of the set-up; what fails is undone and reported (rclpy would drop the exception unseen)."""
        try:
            step(self.settings)
        except Fault as fault:
            self._diagnostics.report("setup", fault)
        except Exception as error:
            self._diagnostics.report("setup", self._fault_of(error))
        else:
            self._diagnostics.report("setup", None)
            return True
        (self._while_active if self._configured else self._while_configured).close()
        return False

    def _configure(self, settings: Settings) -> None:
        self._declared.check()
        self._input_types = input_types(settings, with_detections=optional("vision_msgs.msg") is not None)
        self._diagnostics.set_period(settings.diagnostics_period)
        self._while_configured.callback(self._stop_transforms)
        if settings.target_frame or settings.publish_tf:
            self._transforms = Transforms(self)
        self._pipeline = self._load(settings)
        self._while_configured.callback(self._pipeline.close)
        self._outputs = Outputs(self, settings)
        self._while_configured.callback(self._outputs.destroy)
        self._has_physics = settings.physics
        self._tracker = Tracker(TrackerConfig(remember=settings.remember), Resting() if settings.physics else None,
                                self._tracker.named)
        self._ahead = Ahead(self._tracker)
        self._builder = Worker(self._rebuild, lambda: 1 / self.settings.reconstruct_hz)
        self._while_configured.callback(self._builder.stop)
        self._follower = Worker(self._follow, self._interval)
        self._while_configured.callback(self._follower.stop)
        self._figures = {"engine": self._pipeline.engine_name}
        self._configured = True
        self.get_logger().info(f"configured, engine {self._pipeline.engine_name}")

    def _on_progress(self, percent: int, what: str) -> None:
        if not self.context.ok():
            raise ExternalShutdownException         # which ends the building of an engine
        self._diagnostics.announce(percent, what)

    def _activate(self, settings: Settings) -> None:
        if settings.build_only:
            raise Fault(FaultCode.PARAMETER_INVALID, "build_only is set: the engine is built, and that is all")
        self._while_active.callback(self._deactivate)
        optional_streams = {DETECTIONS} if settings.mask_format != "boxes" else set()
        self._cameras = [CameraInput(self, namespace, self._input_types, optional_streams, settings, self._on_match,
                                     self._on_fault) for namespace in settings.camera_namespaces]
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        timer = self.create_timer(settings.diagnostics_period, self._watch, clock=steady)
        self._while_active.callback(self.destroy_timer, timer)
        self._active = True

    def _release(self) -> None:
        try:
            self._while_active.close()
        finally:                                    # else the workers would keep the process from ending
            self._while_configured.close()
        self._configured = False
        # rclpy keeps a dead reference to every subscription, publisher and timer that was destroyed.
        entities = self.default_callback_group.entities
        entities -= {reference for reference in entities if reference() is None}

    def _deactivate(self) -> None:
        self._active = False
        self._supersede()
        jobs = [*self._follower.clear(), *self._builder.clear()]
        for goal in [*self._goals.clear(), *(job.goal for job in jobs)]:
            self._goals.abort(goal, "the node was deactivated")
        for camera in self._cameras:
            camera.destroy()
            for source in ("input", "stamps"):
                self._diagnose(source, None, camera.namespace)
        self._cameras.clear()

    def _supersede(self) -> None:
        """Make the results of the jobs at work unwanted, and forget the objects."""
        with self._lock:
            self._generation += 1
            self._rebuilt_once = False
            self._latest = self._newest = None
            self._newest_ns.clear()
            self._tracker.clear()
            self._figures["objects"] = "0"
            self._forget_faults()

    def _forget_faults(self) -> None:
        """Of images and objects that are of no more interest; with the lock held, so that no job reports one after."""
        for camera in self.settings.camera_namespaces:
            self._forget_images(camera)
        self._diagnostics.report("reconstruction", None)

    def _forget_images(self, camera: str) -> None:
        """Forget the faults of a camera's images."""
        for source in ("frame", "ahead"):
            self._diagnose(source, None, camera)

    def _retire(self) -> None:
        """Forget the objects, and tell everybody so."""
        self._supersede()
        with self._lock:
            self._outputs.clear()

    # Input

    def _on_match(self, camera: CameraInput, match: Match | None) -> None:
        """A message came in; match: the complete set that it ended, if any."""
        self._serve_goals()
        if match is None:
            self._look_ahead(camera)
            return
        for source in ("input", "stamps"):
            self._diagnose(source, None, camera.namespace)
        if fault := self._shared_frame(camera):
            self._diagnostics.report(f"input {camera.namespace}", fault)
        elif self.settings.enabled:
            self._follower.put(_Job(camera.namespace, match, self._generation, self.settings), camera.namespace)

    def _look_ahead(self, camera: CameraInput) -> None:
        """Have the objects followed into an image whose masks lag, if there is one."""
        settings = self.settings
        if settings.enabled and settings.follow_ahead and not self._shared_frame(camera) \
                and (match := camera.synchroniser.ahead()):
            # In a slot of its own: neither it nor a set with masks, which tells more, takes the other's place.
            job = _Job(camera.namespace, match, self._generation, settings, is_ahead=True)
            self._follower.put(job, f"{camera.namespace} ahead")

    def _shared_frame(self, camera: CameraInput) -> Fault | None:
        """That another camera has the frame of this one, if so."""
        twins = [other.namespace for other in self._cameras if camera.frame_id and other.frame_id == camera.frame_id]
        return Fault(FaultCode.PARAMETER_INVALID, f"parameter cameras: {' and '.join(twins)} share the frame "
                     f"'{camera.frame_id}', so that nothing tells where each is") if len(twins) > 1 else None

    def _on_fault(self, camera: CameraInput, fault: Fault) -> None:
        self._diagnose("stamps", fault, camera.namespace)
        if fault.code is FaultCode.CLOCK_JUMPED_BACK:
            self._supersede()
            self._follower.put(None)
            self._builder.put(None)
            if self._transforms:
                self._transforms.clear()

    def _watch(self) -> None:
        """Once a period: missing inputs, changed QoS, goals that wait in vain."""
        for camera in self._cameras:
            fault = camera.fault(self.settings.input_timeout)
            self._diagnose("input", fault, camera.namespace)
            if fault:               # what was wrong with the last images is of no more interest
                self._forget_images(camera.namespace)
            camera.subscribe()
        self._serve_goals()

    # Following objects, in the follower's thread

    def _interval(self) -> float:
        rate = self.settings.max_rate
        return 1 / rate if rate else 0.0

    def _follow(self, job: _Job) -> None:
        """Follow the objects into an image and publish them, or begin with what a goal asks for."""
        if job.goal:
            self._begin(job)
            return
        if job.is_ahead:
            self._follow_ahead(job)
            return
        try:
            view, warnings = self._view(job, decode_masks_or_none)
            with self._lock:
                self._check(job)
                if self._is_passed(view.frame):
                    return
                objects = self._tracker.update(view.frame)
                self._latest = view
                is_newest = self._note(view)
                asked = rebuild.request(self._tracker)
                # Silence while the first objects are made: an empty array would say that there are none.
                if objects or asked is None or self._rebuilt_once:
                    if not is_newest:
                        self._publish_masked(objects, view)
                    elif self._ahead.leads:         # with another camera
                        self._publish(self._ahead.objects(view.frame), view)
                    else:
                        self._publish(objects, view)
                self._diagnose("frame", warnings[0] if warnings else None, job.camera)
                self._diagnose("ahead", None, job.camera)
                if asked is None and not self._tracker.waiting:
                    self._diagnostics.report("reconstruction", None)
                if asked is not None:
                    self._builder.put(replace(job, asked=asked), view.frame.frame_id)
        except _Superseded:
            pass
        except Exception as error:
            self._report(job, "frame", error, job.camera)

    def _follow_ahead(self, job: _Job) -> None:
        """Follow what is known into an image whose masks have not come yet, and publish it."""
        try:
            with self._lock:
                self._check(job)
                image = job.match.messages[IMAGE]
                if not self._tracker.tracks or job.match.stamp_ns <= self._newest_ns.get(image.header.frame_id, 0):
                    return
            view, _ = self._view(job, masks_to_come)
            with self._lock:
                self._check(job)
                self._note(view)
                self._publish(self._ahead.update(view.frame), view)
                self._diagnose("ahead", None, job.camera)
        except _Superseded:
            pass
        except Exception as error:
            self._report(job, "ahead", error, job.camera)

    def _view(self, job: _Job,
              find_masks: Callable[[Match, Settings], Segmentation]) -> tuple[_View, tuple[Fault, ...]]:
        """The image of a job with its masks, and what is to be warned of.  Raises Fault."""
        started, settings = time.monotonic(), job.settings
        frame = decode_frame(job.match, settings)
        if not frame.frame_id:
            raise Fault(FaultCode.FRAME_ID_MISSING)
        target_from_camera = self._target_from_camera(frame, settings)
        gravity_known = settings.target_frame not in ("", frame.frame_id)
        segmentation = find_masks(job.match, settings)
        frame = replace(frame, world_from_camera=target_from_camera if gravity_known else None,
                        labels=segmentation.labels, instances=segmentation.instances)
        check_frame(frame)
        return _View(job.match, frame, target_from_camera, settings, started, job.is_ahead), segmentation.warnings

    def _check(self, job: _Job) -> None:
        """Raise _Superseded if the job is no longer wanted."""
        if job.generation != self._generation or \
                (job.goal.is_cancel_requested if job.goal else not self.settings.enabled):
            raise _Superseded

    def _is_passed(self, frame: Frame) -> bool:
        """Whether a later image of that camera was worked on: a goal may take one that has no masks yet."""
        latest = self._latest.frame if self._latest else frame
        return frame.frame_id == latest.frame_id and frame.stamp_ns < latest.stamp_ns

    def _note(self, view: _View) -> bool:
        """Note an image that was worked on; whether it is the newest of its camera: in no other are poses published."""
        frame = view.frame
        is_newest = frame.stamp_ns >= self._newest_ns.get(frame.frame_id, 0)
        if is_newest:
            self._newest, self._newest_ns[frame.frame_id] = view, frame.stamp_ns
        return is_newest

    def _report(self, job: _Job, source: str, error: Exception, camera: str = "") -> None:
        """Diagnose what became of a job, if that is still wanted."""
        fault = error if isinstance(error, Fault) else self._fault_of(error)
        with self._lock, suppress(_Superseded):
            self._check(job)
            self._diagnose(source, fault, camera)

    # Reconstruction, in the builder's thread

    def _rebuild(self, job: _Job) -> None:
        """Reconstruct what a camera's newest image gives cause for, or what a goal asks for."""
        if job.goal:
            self._serve(job)
            return
        try:
            with self._lock:
                self._check(job)
                if self._latest.frame.frame_id == job.asked.frame.frame_id:
                    asked = rebuild.request(self._tracker)
                else:       # of another camera, that may not see what is asked for
                    asked = rebuild.still_wanted(self._tracker, job.asked)
            if asked is not None:
                self._reconstruct(asked, job, lambda stage: None)
                with self._lock:
                    self._check(job)
                    self._publish_where_they_are()
        except _Superseded:
            pass
        except Exception as error:
            self._report(job, "reconstruction", error)

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
            elif not self._tracker.waiting:              # else there are masks of which none was made before
                self._diagnostics.report("reconstruction", None)
        self._figures |= {f"{stage}_ms": f"{value:.1f}" for stage, value in result.stage_ms.items()}
        self._figures["reconstructions"] = str(self._reconstructions)
        return set(ids.values()), faults

    def _publish_where_they_are(self, whole: bool = False) -> ObjectMeshArray:
        """Publish the objects, new ones among them, in the newest image: that which they were made from is older."""
        started, latest, newest = time.monotonic(), self._latest, self._newest
        follow = self._tracker.objects if latest.frame.depth is None else self._tracker.update
        objects = follow(latest.frame)
        if newest is not latest:
            objects = self._ahead.update(newest.frame)
        return self._publish(objects, replace(newest, started=started), whole)

    def _target_from_camera(self, frame: Frame, settings: Settings) -> np.ndarray:
        """(4, 4) at the image's stamp; the identity without a target_frame.  Raises Fault TF_*, PARAMETER_INVALID."""
        if len(settings.camera_namespaces) > 1 and settings.target_frame == frame.frame_id:
            raise Fault(FaultCode.PARAMETER_INVALID, f"parameter target_frame: '{frame.frame_id}' is the frame of a "
                                                     "camera, and several need one whose +Z points up")
        if settings.target_frame in ("", frame.frame_id):
            return np.eye(4)
        if self._transforms is None:
            raise Fault(FaultCode.TF_MISSING, "tf2_ros is not installed: leave target_frame empty")
        return self._transforms.target_from_camera(settings.target_frame, frame.frame_id, frame.stamp_ns,
                                                   settings.tf_timeout)

    def _publish(self, objects: Sequence[TrackedObject], view: _View, whole: bool = False) -> ObjectMeshArray:
        """Publish objects given in the camera frame of `view`; whole: with their meshes, whether sent before or not."""
        placed, header = self._placed(objects, view)
        meshes = self._outputs.publish(placed, header, view.frame, view.settings, self._transforms, whole)
        if not view.is_ahead:
            self._outputs.publish_masked(placed, header, view.frame, view.settings)
        self._images += 1
        processing_ms = (time.monotonic() - view.started) * 1e3
        latency_ms = (self.get_clock().now().nanoseconds - view.match.stamp_ns) / 1e6
        self._outputs.publish_times(processing_ms, latency_ms)
        self._figures |= {"processing_ms": f"{processing_ms:.1f}", "pipeline_latency_ms": f"{latency_ms:.1f}",
                          "images": str(self._images), "objects": str(len(objects))}
        return meshes

    def _publish_masked(self, objects: Sequence[TrackedObject], view: _View) -> None:
        """Publish only what the masks of an image tell of its objects: poses in a newer one are out already."""
        self._outputs.publish_masked(*self._placed(objects, view), view.frame, view.settings)

    @staticmethod
    def _placed(objects: Sequence[TrackedObject], view: _View) -> tuple[list[PlacedObject], Header]:
        """Objects given in the camera frame of `view`, and the header of the frame that they are published in."""
        frame_id = view.settings.target_frame or view.frame.frame_id
        return ([PlacedObject(item, view.target_from_camera) for item in objects],
                Header(stamp=stamp_message(view.frame.stamp_ns), frame_id=frame_id))

    # Action

    def _serve_goals(self) -> None:
        """Hand goals to the follower as soon as there is an image for them; give up after input_timeout."""
        now, timeout = time.monotonic(), self.settings.input_timeout

        def start(goal: ServerGoalHandle) -> bool:
            match = self._fresh_match(goal.request, now - timeout)
            if match:
                self._follower.request(_Job(self._cameras[0].namespace, match, self._generation, self.settings, goal))
            return match is not None

        def lack() -> Fault:
            camera = self._cameras[0]
            return self._shared_frame(camera) or camera.fault(timeout, now) or Fault(FaultCode.STAMPS_DO_NOT_MATCH)
        self._goals.serve(start, timeout, lack)

    def _fresh_match(self, request: Reconstruct.Goal, since: float) -> Match | None:
        """The newest set for a goal that came in after `since` (monotonic, s), with masks if there is one."""
        if self._shared_frame(self._cameras[0]):
            return None
        synchroniser = self._cameras[0].synchroniser
        choices = [synchroniser.required]
        if not needs_masks(request):
            choices.append(synchroniser.without_masks)
        return next((match for match in map(synchroniser.newest, choices) if match and match.arrival >= since), None)

    def _begin(self, job: _Job) -> None:
        """Follow the objects into the image of a goal, one of the first camera, and have what it asks for rebuilt."""
        wanted: list[int] = []

        def find_masks(match: Match, settings: Settings) -> Segmentation:
            """All masks, so that no object seems to have none; but boxes stand alone."""
            request, image = job.goal.request, match.messages[IMAGE]
            segmentation = decode_masks(match, settings) if needs_masks(request) else None
            chosen = choose(request, segmentation, image.height, image.width, settings.max_objects)
            wanted.extend(instance.label for instance in chosen.instances)
            return chosen if request.boxes else segmentation

        with self._abort_on_error(job.goal):
            view, _ = self._view(job, find_masks)
            with self._lock:
                self._check(job)
                self._tracker.update(view.frame)
                self._latest = view
                self._note(view)
                asked = rebuild.request(self._tracker, wanted)
                self._builder.request(replace(job, asked=asked))

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

    @contextmanager
    def _abort_on_error(self, goal: ServerGoalHandle) -> Iterator[None]:
        """Tell the goal's client what went wrong."""
        try:
            yield
        except _Superseded:
            self._goals.abort(goal, "the node was deactivated or reset")
        except Fault as fault:
            self._goals.abort(goal, str(fault))
        except Exception as error:
            self._goals.abort(goal, str(self._fault_of(error)))

    # Services, parameters, diagnostics

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self.set_parameters([rclpy.Parameter("enabled", value=request.data)])
        response.success = True
        response.message = "every image is worked on" if request.data else "only the action does"
        return response

    def _on_clear(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._active
        response.message = "forgot all objects" if self._active else "the node is not active"
        if self._active:
            self._retire()
        return response

    def _on_settings(self, before: Settings, after: Settings) -> None:
        if self._configured and after.target_frame and self._transforms is None and optional("tf2_ros"):
            self._transforms = Transforms(self)
        if not self._active:
            return
        if before.target_frame != after.target_frame:
            self._supersede()                       # poses in the old frame mean nothing in the new one
        if before.enabled and not after.enabled:
            self._follower.put(None)
            self._builder.put(None)
            with self._lock:                        # what is being published goes out before this is answered
                self._forget_faults()

    def _diagnose(self, source: str, fault: Fault | None, camera: str = "") -> None:
        """Report the state of a source of faults; of several cameras, say which one it is."""
        if fault and camera and len(self.settings.camera_namespaces) > 1:
            fault = Fault(fault.code, f"camera {camera}: {fault.detail}".removesuffix(": "))
        self._diagnostics.report(f"{source} {camera}".strip(), fault)

    def _fault_of(self, error: Exception) -> Fault:
        if isinstance(error, ModuleNotFoundError):
            return Fault(FaultCode.PACKAGE_MISSING, str(error))
        log_exception(self, error)
        return Fault(FaultCode.INTERNAL_ERROR, repr(error))

    def _stop_transforms(self) -> None:
        if self._transforms:
            self._transforms.destroy()
            self._transforms = None

    def _diagnostic_values(self) -> dict[str, str]:
        state = "active" if self._active else "inactive" if self._configured else "unconfigured"
        streams = {f"inputs {camera.namespace}".strip(): camera.synchroniser.describe() for camera in self._cameras}
        at_rest = {"not_put_at_rest": ", ".join(self._tracker.not_put_at_rest)} if self._has_physics else {}
        return {"state": state, **self._figures, **at_rest, **streams}


def main(arguments: Sequence[str] | None = None, load: Callable[[Settings], Any] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; with `autostart`, configured and activated at once.

    With `build_only`, it ends when it is configured; exit status 1 if that failed.
    """
    def start(node: Sam3dNode) -> None:
        if node.settings.build_only:
            sys.exit(0 if node.trigger_configure() == SUCCESS else 1)
        if node.settings.autostart and node.trigger_configure() == SUCCESS:
            node.trigger_activate()
    limit_heaps()
    return run_node(lambda: Sam3dNode(load), arguments, start)


if __name__ == "__main__":
    sys.exit(main())
