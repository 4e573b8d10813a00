"""sam3d_node: camera images and instance masks in, complete object meshes and 6D poses out.

A lifecycle node.  Its callbacks only store messages, and hand complete sets of them and goals of the action to the
threads of `LiveScene` (ros/live_scene.py), which turn them into results.
"""
from __future__ import annotations

import signal
import sys

if __name__ == "__main__":
    # The imports below take a while: Ctrl-C among them must end the process as quietly as later.
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import rclpy
from lifecycle_msgs.srv import ChangeState
from rclpy.action.server import ServerGoalHandle
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_srvs.srv import SetBool, Trigger

from sam3d_ros.action import Reconstruct
from sam3d_ros.perception.faults import Fault, FaultCode
from sam3d_ros.ros.camera import CameraInput, shared_frame
from sam3d_ros.ros.diagnostics import IMAGES, INPUTS, CameraDiagnostics
from sam3d_ros.ros.frames import input_types
from sam3d_ros.ros.goal_masks import needs_masks
from sam3d_ros.ros.goals import Goals
from sam3d_ros.ros.live_scene import LiveScene
from sam3d_ros.ros.memory import exempt_from_collection, limit_heaps
from sam3d_ros.ros.optional import optional
from sam3d_ros.ros.outputs import Outputs
from sam3d_ros.ros.parameters import Parameters, Settings, pipeline_config
from sam3d_ros.ros.running import fault_of, run_node
from sam3d_ros.ros.synchroniser import DETECTIONS, Match
from sam3d_ros.ros.transforms import Transforms
from sam3d_ros.scene import rebuild
from sam3d_ros.scene.tracker import warm_up

RCLError = rclpy_implementation.RCLError
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
# At most, seconds: so late is another QoS of a publisher noticed, and an image missed that a goal waits for.
_WATCH_PERIOD = 1.0


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
        self._declared = Parameters(self, lambda: not self._configured, self._on_settings)
        self._diagnostics = CameraDiagnostics(self, "reconstruction", self.settings.diagnostics_period,
                                              self._diagnostic_values, lambda: self.settings.camera_namespaces)
        self.create_service(SetBool, "enable", self._on_enable)
        self.create_service(Trigger, "clear", self._on_clear)
        self._goals = Goals(self, lambda: self._active, self._serve_goals)
        self._scene = LiveScene(self, lambda: self.settings, lambda: self._transforms, self._goals, self._diagnostics)

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
        self._scene.retire()
        result = super().on_deactivate(state)       # the publishers are off from here on
        self._while_active.close()
        return result

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        if self._active:
            self._scene.retire()
        self._release()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._release()
        return super().on_error(state)

    def destroy_node(self) -> None:
        """End the threads, then destroy the node."""
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
        except Exception as error:
            self._diagnostics.report("setup", fault_of(self, error))
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
        pipeline = self._load(settings)
        self._while_configured.callback(pipeline.close)
        outputs = Outputs(self, settings)
        self._while_configured.callback(outputs.destroy)
        self._scene.open(pipeline, outputs, settings)
        self._while_configured.callback(self._scene.close)
        self._configured = True
        self.get_logger().info(f"configured, engine {pipeline.engine_name}")

    def _on_progress(self, percent: int, what: str) -> None:
        if not self.context.ok():
            raise ExternalShutdownException         # which ends the building of an engine
        self._diagnostics.announce(percent, what)

    def _activate(self, settings: Settings) -> None:
        if settings.build_only:
            raise Fault(FaultCode.PARAMETER_INVALID, "build_only is set: the engine is built, and that is all")
        self._while_active.callback(self._deactivate)
        if self._transforms:
            self._transforms.clear()        # nobody noticed whether time was set back while no image came
        optional_streams = {DETECTIONS} if settings.mask_format != "boxes" else set()
        self._cameras = [CameraInput(self, namespace, self._input_types, optional_streams, settings, self._on_match,
                                     self._on_fault) for namespace in settings.camera_namespaces]
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        timer = self.create_timer(min(settings.diagnostics_period, _WATCH_PERIOD), self._watch, clock=steady)
        self._while_active.callback(self.destroy_timer, timer)
        self._active = True

    def _release(self) -> None:
        try:
            self._while_active.close()
        finally:                                    # else the threads would keep the process from ending
            self._while_configured.close()
        self._configured = False
        # rclpy keeps a dead reference to every subscription, publisher and timer that was destroyed.
        entities = self.default_callback_group.entities
        entities -= {reference for reference in entities if reference() is None}

    def _deactivate(self) -> None:
        self._active = False
        self._scene.forget()
        for goal in [*self._goals.clear(), *self._scene.drop_all()]:
            self._goals.abort(goal, "the node was deactivated")
        for camera in self._cameras:
            camera.destroy()
            self._diagnostics.forget(INPUTS, camera.namespace)
        self._cameras.clear()

    # Input

    def _on_match(self, camera: CameraInput, match: Match | None) -> None:
        """A message came in; match: the complete set that it ended, if any."""
        self._serve_goals()
        if match is None:
            self._look_ahead(camera)
            return
        self._diagnostics.forget(INPUTS, camera.namespace)
        if fault := shared_frame(camera, self._cameras):
            self._diagnostics.report(f"input {camera.namespace}", fault)
        elif self.settings.enabled:
            self._scene.follow(camera.namespace, match)

    def _look_ahead(self, camera: CameraInput) -> None:
        """Have the objects followed into an image whose masks lag, if there is one."""
        settings = self.settings
        if settings.enabled and settings.follow_ahead and not shared_frame(camera, self._cameras) \
                and (match := camera.synchroniser.ahead()):
            self._scene.follow(camera.namespace, match, is_ahead=True)

    def _on_fault(self, camera: CameraInput, fault: Fault) -> None:
        self._diagnostics.report("stamps", fault, camera.namespace)
        if fault.code is FaultCode.CLOCK_JUMPED_BACK:
            self._scene.forget()
            self._scene.drop_waiting()
            if self._transforms:
                self._transforms.clear()

    def _watch(self) -> None:
        """Once a period: missing inputs, changed QoS, goals that wait in vain."""
        for camera in self._cameras:
            fault = camera.fault(self.settings.input_timeout)
            self._diagnostics.report("input", fault, camera.namespace)
            if fault:               # what was wrong with the last images is of no more interest
                self._diagnostics.forget(IMAGES, camera.namespace)
            camera.subscribe()
        self._serve_goals()

    # Action

    def _serve_goals(self) -> None:
        """Hand goals to the scene as soon as there is an image of the first camera for them; give up after
        input_timeout."""
        now, timeout, camera = time.monotonic(), self.settings.input_timeout, self._cameras[0]
        shared = shared_frame(camera, self._cameras)

        def start(goal: ServerGoalHandle) -> bool:
            match = None if shared else self._fresh_match(goal.request, now - timeout)
            if match:
                self._scene.serve(goal, camera.namespace, match)
            return match is not None

        self._goals.serve(start, timeout, lambda: shared or camera.fault(timeout, now) or
                          Fault(FaultCode.STAMPS_DO_NOT_MATCH))

    def _fresh_match(self, request: Reconstruct.Goal, since: float) -> Match | None:
        """The newest set for a goal that came in after `since` (monotonic, s), with masks if there is one."""
        synchroniser = self._cameras[0].synchroniser
        choices = [synchroniser.required]
        if not needs_masks(request):
            choices.append(synchroniser.without_masks)
        return next((match for match in map(synchroniser.newest, choices) if match and match.arrival >= since), None)

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
            self._scene.retire()
        return response

    def _on_settings(self, before: Settings, after: Settings) -> None:
        if self._configured and after.target_frame and self._transforms is None and optional("tf2_ros"):
            self._transforms = Transforms(self)
        if not self._active:
            return
        if before.target_frame != after.target_frame:
            self._scene.forget()                    # poses in the old frame mean nothing in the new one
        if before.enabled and not after.enabled:
            self._scene.drop_waiting()

    def _stop_transforms(self) -> None:
        if self._transforms:
            self._transforms.destroy()
            self._transforms = None

    def _diagnostic_values(self) -> dict[str, str]:
        state = "active" if self._active else "inactive" if self._configured else "unconfigured"
        streams = {f"inputs {camera.namespace}".strip(): camera.synchroniser.describe() for camera in self._cameras}
        return {"state": state, **self._scene.figures, **streams}


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
