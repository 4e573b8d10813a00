"""Records what the node makes of the simulated camera's images, beside the truth."""
from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, Image

from sam3d_ros.msg import ObjectMesh, ObjectMeshArray

from ..demo_report import PosedMesh, RebuiltMesh, Recording
from ..ros.diagnostics import CONFIGURING
from ..ros.images import decode_camera_info, decode_colour, decode_pixels, stamp_ns
from ..ros.messages import MeshMemory, mesh_arrays
from ..ros.qos import RESULTS
from ..ros.transforms import matrix_from_pose
from .simulated_camera import LATCHED

FIRST_RESULT_TIMEOUT = 120.0      # seconds; an orbit is rendered meanwhile
NEXT_RESULT_TIMEOUT = 20.0
SETUP_TIMEOUT = 1800.0            # without news of the node's set-up: on a slow machine, a step of it takes minutes
HISTORY = 90                      # images and poses kept while their result is awaited: 3 s at 30 Hz


class NoResult(RuntimeError):
    """No result came; the message says why."""


class DemoRecorder(Node):
    """Listens to results, truth and diagnostics, and on demand to images."""

    def __init__(self):
        super().__init__("demo_recorder")
        self.is_measuring = False
        self.latencies_ms: list[float] = []
        self.arrivals: list[float] = []
        self.results: dict[int, ObjectMeshArray] = {}
        self._meshes = MeshMemory()
        self.truth: ObjectMeshArray | None = None
        self.setup_fault = ""
        self.last_said = "the node has published nothing"
        self._is_configuring = False
        self._last_progress = 0.0      # when the node last told of its set-up, or that it had ended, monotonic
        self.poses: dict[int, PoseStamped] = {}
        self.images: dict[int, Image] = {}
        self.labels: dict[int, Image] = {}
        self.camera_info: dict[int, CameraInfo] = {}
        self.create_subscription(ObjectMeshArray, "objects", self._on_result, RESULTS)
        self.create_subscription(ObjectMeshArray, "ground_truth", self._on_truth, LATCHED)
        self.create_subscription(PoseStamped, "camera_pose", lambda m: _keep(self.poses, m), 10)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def listen_to_images(self) -> None:
        """Begin to receive images; not earlier than needed, since that takes a share of the processor."""
        qos = qos_profile_sensor_data
        self.create_subscription(Image, "image", lambda m: _keep(self.images, m), qos)
        self.create_subscription(Image, "segmentation", lambda m: _keep(self.labels, m), qos)
        self.create_subscription(CameraInfo, "camera_info", lambda m: _keep(self.camera_info, m), qos)

    def is_overdue(self, since: float, timeout: float) -> bool:
        """Whether `timeout` seconds have passed since `since` (monotonic) and the end of the node's set-up, or
        SETUP_TIMEOUT without news of the latter."""
        limit = SETUP_TIMEOUT if self._is_configuring else timeout
        return time.monotonic() - max(since, self._last_progress) > limit

    def complete_stamp(self) -> int | None:
        """Newest stamp of which result, image, masks, camera_info and pose are there."""
        stores = (self.results, self.images, self.labels, self.camera_info, self.poses)
        return max(set.intersection(*(set(store) for store in stores)), default=None)

    def recording(self, stamp: int) -> Recording:
        """What was received of the image with this stamp, and the timing of all results."""
        world_from_camera = matrix_from_pose(self.poses[stamp].pose)
        image = self.images[stamp]
        return Recording(
            colour=decode_colour(image), labels=decode_pixels(self.labels[stamp]),
            intrinsics=decode_camera_info(self.camera_info[stamp], image.width, image.height, is_rectified=True),
            world_from_camera=world_from_camera,
            truth=tuple(PosedMesh(**_mesh_fields(true, np.eye(4))) for true in self.truth.objects),
            rebuilt=tuple(_rebuilt(mesh, world_from_camera) for mesh in self.results[stamp].objects),
            latencies_ms=np.array(self.latencies_ms), arrivals=np.array(self.arrivals))

    def _on_result(self, message: ObjectMeshArray) -> None:
        if self.is_measuring:
            self.arrivals.append(time.monotonic())
            self.latencies_ms.append((self.get_clock().now().nanoseconds - stamp_ns(message.header.stamp)) / 1e6)
        _keep(self.results, self._meshes.complete(message))

    def _on_truth(self, message: ObjectMeshArray) -> None:
        self.truth = message

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {pair.key: pair.value for pair in status.values}
            was_configuring, self._is_configuring = self._is_configuring, values.get("code") == CONFIGURING
            if was_configuring or self._is_configuring:
                self._last_progress = time.monotonic()
            if self._is_configuring:
                self.last_said = status.message
            elif status.level == DiagnosticStatus.ERROR:
                self.last_said = status.message
                if values.get("state") == "unconfigured":
                    self.setup_fault = status.message


def record(seconds: float, check_alive: Callable[[], None], on_progress: Callable[[float], None]) -> Recording:
    """Record results for `seconds` after the first one, then take one image with its result.

    check_alive: called often, raises if a process has ended; on_progress: called with the seconds recorded so far.
    Raises NoResult if none comes.
    """
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)     # Ctrl-C is the caller's
    recorder = DemoRecorder()
    executor = SingleThreadedExecutor()
    executor.add_node(recorder)
    try:
        def spin_until(done: Callable[[], bool], timeout: float, missing: str) -> None:
            started = time.monotonic()
            while not done():
                check_alive()
                if recorder.setup_fault and not recorder.results:
                    raise NoResult(recorder.setup_fault)
                if recorder.is_overdue(started, timeout):
                    raise NoResult(f"no {missing} in {time.monotonic() - started:.0f} s; last diagnostic: "
                                   f"{recorder.last_said}")
                executor.spin_once(timeout_sec=0.1)

        spin_until(lambda: bool(recorder.results and recorder.truth), FIRST_RESULT_TIMEOUT, "result")
        recorder.is_measuring = True      # from the second result on: the first bears the marks of starting up
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            check_alive()
            executor.spin_once(timeout_sec=0.1)
            on_progress(seconds - max(0.0, end - time.monotonic()))
        spin_until(lambda: len(recorder.arrivals) >= 2, NEXT_RESULT_TIMEOUT, "second result")
        recorder.is_measuring = False     # receiving images takes its own share of the processor
        recorder.listen_to_images()
        spin_until(lambda: recorder.complete_stamp() is not None, NEXT_RESULT_TIMEOUT, "image together with its result")
        return recorder.recording(recorder.complete_stamp())
    finally:
        executor.shutdown()
        recorder.destroy_node()
        rclpy.try_shutdown()


def _keep(store: dict[int, object], message) -> None:
    """File a message under its stamp; the oldest goes when there are too many."""
    store[stamp_ns(message.header.stamp)] = message
    if len(store) > HISTORY:
        del store[next(iter(store))]


def _mesh_fields(message: ObjectMesh, world_from_frame: np.ndarray) -> dict:
    """Fields of PosedMesh; world_from_frame: (4, 4), of the frame that the message's pose is in."""
    arrays = mesh_arrays(message)
    return {"name": message.class_id, "vertices": arrays.vertices, "triangles": arrays.triangles,
            "rgb": arrays.vertex_rgba[:, :3],
            "world_from_object": world_from_frame @ matrix_from_pose(message.pose.pose)}


def _rebuilt(message: ObjectMesh, world_from_camera: np.ndarray) -> RebuiltMesh:
    """A result whose pose is in the camera frame; world_from_camera: (4, 4)."""
    size = np.array([message.size.x, message.size.y, message.size.z])
    return RebuiltMesh(**_mesh_fields(message, world_from_camera), size=size, visible_fraction=message.visible_fraction)
