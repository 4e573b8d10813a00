"""sam3d_node: camera images and instance masks in, complete object meshes and 6D poses out.

A lifecycle node.  Callbacks only file messages away; one worker thread decodes, reconstructs and publishes the newest
complete set.
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
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import rclpy
from lifecycle_msgs.srv import ChangeState
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.clock import Clock, ClockType
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.subscription import Subscription
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger

from sam3d_ros.action import Reconstruct
from sam3d_ros.msg import ObjectMeshArray
from sam3d_ros.perception.association import Associator
from sam3d_ros.perception.faults import Fault, FaultCode
from sam3d_ros.perception.frame import Frame
from sam3d_ros.perception.masks import Segmentation
from sam3d_ros.perception.objects import ReconstructedObject
from sam3d_ros.ros.diagnostics import Diagnostics
from sam3d_ros.ros.frames import decode_frame, decode_masks, decode_masks_or_none, input_types, message_bytes
from sam3d_ros.ros.images import stamp_message, stamp_ns
from sam3d_ros.ros.messages import PlacedObject
from sam3d_ros.ros.optional import optional
from sam3d_ros.ros.outputs import Outputs
from sam3d_ros.ros.parameters import Parameters, Settings, pipeline_config
from sam3d_ros.ros.qos import adapted_subscription
from sam3d_ros.ros.requests import PROGRESS, choose, needs_masks
from sam3d_ros.ros.running import run_node
from sam3d_ros.ros.synchroniser import DETECTIONS, IMAGE, MASKS, Match, Synchroniser
from sam3d_ros.ros.transforms import Transforms
from sam3d_ros.ros.worker import Worker

RCLError = rclpy_implementation.RCLError
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


@dataclass(frozen=True)
class _Job:
    """Images for the worker, the generation they belong to, and the goal they serve, if any."""

    match: Match
    generation: int
    goal: ServerGoalHandle | None = None


@dataclass(frozen=True)
class _Waiting:
    """A goal for which there is no image yet, and when it was accepted (monotonic, s)."""

    goal: ServerGoalHandle
    since: float


class _Superseded(Exception):
    """The result is no longer wanted: the goal was cancelled, the node deactivated or the clock set back."""


def load_pipeline(settings: Settings, on_progress: Callable[[int, str], None] = lambda percent, what: None) -> Any:
    """The real pipeline.  Imported here: it takes seconds, in which the node can be seen already."""
    from sam3d_ros.perception.pipeline import Pipeline
    pipeline = Pipeline.from_config(pipeline_config(settings), on_progress)
    pipeline.warm_up()
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
        self._subscriptions_of: dict[str, Subscription] = {}
        self._waiting: list[_Waiting] = []
        self._figures: dict[str, str] = {}
        # Guards what the worker shares with the callbacks: the generation, the associator and publishing.
        self._lock = threading.Lock()
        self._generation = 0
        self._revision = 0
        self._associator = Associator()
        self._declared = Parameters(self, lambda: not self._configured, self._on_settings)
        self._diagnostics = Diagnostics(self, "reconstruction", self.settings.diagnostics_period,
                                        self._diagnostic_values)
        self.create_service(SetBool, "enable", self._on_enable)
        self.create_service(Trigger, "clear", self._on_clear)
        self._action = ActionServer(
            self, Reconstruct, "reconstruct", execute_callback=lambda goal: Reconstruct.Result(),
            goal_callback=self._on_goal, handle_accepted_callback=self._on_accepted,
            cancel_callback=lambda goal: CancelResponse.ACCEPT)

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
        result = super().on_deactivate(state)
        self._while_active.close()
        return result

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return super().on_error(state)

    def destroy_node(self) -> None:
        """Stop the worker, then destroy the node."""
        self._release()
        self._action.destroy()
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
            self._diagnostics.report("setup", self._internal_error(error))
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
        self._worker = Worker(self._process, self._interval)
        self._while_configured.callback(self._worker.stop)
        self._figures = {"engine": self._pipeline.engine_name}
        self._configured = True
        self.get_logger().info(f"configured, engine {self._pipeline.engine_name}")

    def _on_progress(self, percent: int, what: str) -> None:
        self._diagnostics.announce(percent, what)

    def _activate(self, settings: Settings) -> None:
        if settings.build_only:
            raise Fault(FaultCode.PARAMETER_INVALID, "build_only is set: the engine is built, and that is all")
        self._while_active.callback(self._deactivate)
        self._synchroniser = self._make_synchroniser(settings)
        self._synchroniser.start()
        for stream in self._synchroniser.status:
            self._subscribe(stream)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        timer = self.create_timer(settings.diagnostics_period, self._watch, clock=steady)
        self._while_active.callback(self.destroy_timer, timer)
        self._active = True

    def _release(self) -> None:
        self._while_active.close()
        self._while_configured.close()
        self._configured = False
        # rclpy keeps a dead reference to every subscription, publisher and timer that was destroyed.
        entities = self.default_callback_group.entities
        entities -= {reference for reference in entities if reference() is None}

    def _deactivate(self) -> None:
        self._active = False
        self._supersede()
        for unserved in [*self._waiting, *self._worker.clear()]:
            self._abort(unserved.goal, "the node was deactivated")
        self._waiting.clear()
        for subscription in self._subscriptions_of.values():
            self.destroy_subscription(subscription)
        self._subscriptions_of.clear()
        for source in ("input", "stamps", "frame"):
            self._diagnostics.report(source, None)

    def _supersede(self) -> None:
        """Make the result of the job at work unwanted, and forget the tracks."""
        with self._lock:
            self._generation += 1
            self._associator.clear()

    # Input

    def _make_synchroniser(self, settings: Settings) -> Synchroniser:
        optional_streams = {DETECTIONS} if settings.mask_format != "boxes" else set()
        return Synchroniser([s for s in self._input_types if s not in optional_streams],
                            [s for s in self._input_types if s in optional_streams],
                            slop_ns=int(settings.sync_slop * 1e9), history_ns=int(settings.history * 1e9),
                            max_bytes=settings.history_bytes)

    def _subscribe(self, stream: str) -> None:
        """Subscribe, or subscribe anew if the publishers' QoS asks for it."""
        self._subscriptions_of[stream] = adapted_subscription(
            self, self._subscriptions_of.get(stream), self._input_types[stream], stream,
            functools.partial(self._on_message, stream), self.settings.reliability)

    def _on_message(self, stream: str, message: Any) -> None:
        try:
            match = self._synchroniser.add(stream, stamp_ns(message.header.stamp), message, message_bytes(message))
        except Fault as fault:
            self._diagnostics.report("stamps", fault)
            if fault.code is FaultCode.CLOCK_JUMPED_BACK:
                self._on_jump_back()
            return
        self._serve_waiting()
        if match is None:
            return
        self._diagnostics.report("stamps", None)
        self._diagnostics.report("input", None)
        if self.settings.enabled:
            self._worker.put(_Job(match, self._generation))

    def _on_jump_back(self) -> None:
        self._supersede()
        self._worker.put(None)
        if self._transforms:
            self._transforms.clear()

    def _watch(self) -> None:
        """Once a period: missing inputs, changed QoS, goals that wait in vain."""
        self._diagnostics.report("input", self._synchroniser.fault(self.settings.input_timeout))
        for stream in [*self._subscriptions_of]:
            self._subscribe(stream)
        self._serve_waiting()

    # Work, in the worker's thread

    def _interval(self) -> float:
        return 1 / self.settings.max_rate if self.settings.max_rate else 0.0

    def _process(self, job: _Job) -> None:
        try:
            if job.goal:
                self._serve(job)
            else:
                self._reconstruct(job, decode_masks_or_none, lambda stage: None)
        except _Superseded:
            pass
        except Fault as fault:
            self._diagnostics.report("frame", fault)
        except Exception as error:
            self._diagnostics.report("frame", self._internal_error(error))

    def _reconstruct(self, job: _Job, find_masks: Callable[[Match, Settings], Segmentation],
                     on_stage: Callable[[str], None]) -> ObjectMeshArray:
        """Reconstruct and publish the objects of one image.

        Raises Fault, and _Superseded if the node was deactivated or the clock set back meanwhile.
        """
        started, settings = time.monotonic(), self.settings

        def check_stage(stage: str) -> None:
            if job.generation != self._generation:
                raise _Superseded
            on_stage(stage)

        frame = decode_frame(job.match, settings)
        target_from_camera = self._target_from_camera(frame, settings)
        gravity_known = settings.target_frame not in ("", frame.frame_id)
        frame = replace(frame, world_from_camera=target_from_camera if gravity_known else None)
        segmentation = find_masks(job.match, settings)
        frame = replace(frame, labels=segmentation.labels, instances=segmentation.instances)
        result = self._pipeline.run(frame, on_stage=check_stage)
        with self._lock:
            if job.generation != self._generation:
                raise _Superseded
            meshes = self._publish(result.objects, frame, target_from_camera, settings)
        self._publish_times(job.match, started, result.stage_ms)
        faults = (*segmentation.warnings, *(rejection.fault for rejection in result.rejections))
        self._diagnostics.report("frame", faults[0] if faults else None)
        return meshes

    def _target_from_camera(self, frame: Frame, settings: Settings) -> np.ndarray:
        if settings.target_frame in ("", frame.frame_id):
            return np.eye(4)
        if self._transforms is None:
            raise Fault(FaultCode.TF_MISSING, "tf2_ros is not installed: leave target_frame empty")
        return self._transforms.target_from_camera(settings.target_frame, frame.frame_id, frame.stamp_ns,
                                                   settings.tf_timeout)

    def _publish(self, objects: Sequence[ReconstructedObject], frame: Frame, target_from_camera: np.ndarray,
                 settings: Settings) -> ObjectMeshArray:
        self._revision += 1
        ids = self._associator.assign(list(objects), frame.world_from_camera)
        placed = [PlacedObject(identity, self._revision, obj, target_from_camera)
                  for identity, obj in zip(ids, objects, strict=True)]
        header = Header(stamp=stamp_message(frame.stamp_ns), frame_id=settings.target_frame or frame.frame_id)
        return self._outputs.publish(placed, header, frame, settings, self._transforms)

    def _publish_times(self, match: Match, started: float, stage_ms: dict[str, float]) -> None:
        processing_ms = (time.monotonic() - started) * 1e3
        latency_ms = (self.get_clock().now().nanoseconds - match.stamp_ns) / 1e6
        self._outputs.publish_times(processing_ms, latency_ms)
        self._figures |= {"processing_ms": f"{processing_ms:.1f}", "pipeline_latency_ms": f"{latency_ms:.1f}",
                          "images": str(self._revision)}
        self._figures |= {f"{stage}_ms": f"{value:.1f}" for stage, value in stage_ms.items()}

    # Action

    def _on_goal(self, goal: Reconstruct.Goal) -> GoalResponse:
        if not self._active:
            self.get_logger().warning("goal rejected: the node is not active")
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _on_accepted(self, goal: ServerGoalHandle) -> None:
        self._give_feedback(goal, "WAITING")
        self._waiting.append(_Waiting(goal, time.monotonic()))
        self._serve_waiting()

    def _serve_waiting(self) -> None:
        """Hand goals to the worker as soon as there is an image for them; give up after input_timeout."""
        now, timeout = time.monotonic(), self.settings.input_timeout
        for waiting in [*self._waiting]:
            goal = waiting.goal
            with_masks = needs_masks(goal.request)
            match = self._synchroniser.newest(
                [stream for stream in self._synchroniser.required if with_masks or stream not in (MASKS, DETECTIONS)])
            if match and now - match.arrival <= timeout:
                self._worker.request(_Job(match, self._generation, goal))
            elif goal.is_cancel_requested or now - waiting.since > timeout:
                fault = self._synchroniser.fault(timeout, now) or Fault(FaultCode.STAMPS_DO_NOT_MATCH)
                self._abort(goal, str(fault))
            else:
                continue
            self._waiting.remove(waiting)

    def _serve(self, job: _Job) -> None:
        """Reconstruct what a goal asks for; in the worker's thread."""
        goal = job.goal

        def find_masks(match: Match, settings: Settings) -> Segmentation:
            segmentation = decode_masks(match, settings) if needs_masks(goal.request) else None
            image = match.messages[IMAGE]
            return choose(goal.request, segmentation, image.height, image.width, settings.max_objects)

        def on_stage(stage: str) -> None:
            if goal.is_cancel_requested:
                raise _Superseded
            self._give_feedback(goal, stage)

        try:
            meshes = self._reconstruct(job, find_masks, on_stage)
        except _Superseded:
            self._abort(goal, "the node was deactivated or reset")
        except Fault as fault:
            self._abort(goal, str(fault))
        except Exception as error:
            self._abort(goal, str(self._internal_error(error)))
        else:
            self._finish(goal, Reconstruct.Result(success=True, message="", objects=meshes))

    def _give_feedback(self, goal: ServerGoalHandle, stage: str) -> None:
        goal.publish_feedback(Reconstruct.Feedback(stage=stage, progress=PROGRESS[stage]))

    def _abort(self, goal: ServerGoalHandle, reason: str) -> None:
        self._finish(goal, Reconstruct.Result(success=False, message=reason))

    def _finish(self, goal: ServerGoalHandle, result: Reconstruct.Result) -> None:
        """Deliver a result, in the executor.

        The goal begins to execute only here: waiting in an execute callback of rclpy either blocks the executor or
        spins it.
        """
        def deliver(handle: ServerGoalHandle) -> Reconstruct.Result:
            if handle.is_cancel_requested:
                handle.canceled()
            elif result.success:
                handle.succeed()
            else:
                handle.abort()
            return result
        goal.execute(deliver)

    # Services, parameters, diagnostics

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self.set_parameters([rclpy.Parameter("enabled", value=request.data)])
        response.success = True
        response.message = "every image is reconstructed" if request.data else "only the action reconstructs"
        return response

    def _on_clear(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._active
        response.message = "forgot all objects" if self._active else "the node is not active"
        if self._active:
            self._supersede()
            with self._lock:
                self._outputs.clear(Header(stamp=self.get_clock().now().to_msg()))
        return response

    def _on_settings(self, before: Settings, after: Settings) -> None:
        if self._configured and after.target_frame and self._transforms is None and optional("tf2_ros"):
            self._transforms = Transforms(self)
        if before.enabled and not after.enabled and self._active:
            self._worker.put(None)

    def _internal_error(self, error: Exception) -> Fault:
        if self.context.ok():  # else ROS is shutting down, and every call into it fails
            self.get_logger().error("".join(traceback.format_exception(error)))
        return Fault(FaultCode.INTERNAL_ERROR, repr(error))

    def _stop_transforms(self) -> None:
        if self._transforms:
            self._transforms.destroy()
            self._transforms = None

    def _diagnostic_values(self) -> dict[str, str]:
        state = "active" if self._active else "inactive" if self._configured else "unconfigured"
        streams = {"inputs": self._synchroniser.describe()} if self._active else {}
        return {"state": state, **self._figures, **streams}


def main(arguments: Sequence[str] | None = None, load: Callable[[Settings], Any] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; with `autostart`, configured and activated at once.

    With `build_only`, it ends when it is configured; exit status 1 if that failed.
    """
    def start(node: Sam3dNode) -> None:
        if node.settings.build_only:
            sys.exit(0 if node.trigger_configure() == SUCCESS else 1)
        if node.settings.autostart and node.trigger_configure() == SUCCESS:
            node.trigger_activate()
    return run_node(lambda: Sam3dNode(load), arguments, start)


if __name__ == "__main__":
    sys.exit(main())
