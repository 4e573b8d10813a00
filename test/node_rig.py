"""A node under test with a camera, a detector and listeners around it, all in one process."""
from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TransformStamped
from made_objects import BOX_CORNERS, BOX_SIDES, made_object
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from sam3d_ros.msg import ObjectMeshArray
from sam3d_ros.nodes.sam3d_node import SUCCESS, Sam3dNode
from sam3d_ros.perception.faults import Fault, FaultCode
from sam3d_ros.perception.frame import Frame, Instance, back_project, check_frame
from sam3d_ros.perception.objects import ReconstructedObject, Rejection, Status
from sam3d_ros.perception.pipeline import PipelineResult
from sam3d_ros.perception.support import support_plane
from sam3d_ros.ros.images import encode_image, stamp_message
from sam3d_ros.ros.transforms import transform_from_matrix
from sam3d_ros.scene import rebuild, tracker

WIDTH, HEIGHT, FOCAL = 64, 48, 60.0
TABLE, OBJECT = 1.0, 0.8  # metres from the camera
SIZE = np.array([2 / 15, 0.16, 0.04])    # as large as the scene's object looks; x is the camera's y
_numbers = itertools.count()

# As the loading of a real pipeline does; before any test, since compiling may take longer than a test of a node may.
tracker.warm_up()
rebuild.warm_up()


def block(frame: Frame, instance: Instance) -> ReconstructedObject:
    """A block of SIZE behind the median of the instance's points, turned a quarter about the optical axis.

    Its origin is that median, on its front, so that the tests can tell where it should be.
    """
    rows, columns = np.nonzero(frame.labels == instance.label)
    points = back_project(frame.depth, frame.intrinsics, rows, columns)
    camera_from_object = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    camera_from_object[:3, 3] = np.median(points, axis=0)
    return made_object(
        BOX_CORNERS * SIZE + [0, 0, SIZE[2] / 2], BOX_SIDES, camera_from_object, label=instance.label,
        class_id=instance.class_id, score=instance.score, detector_id=instance.detector_id, size=SIZE,
        pose_covariance=np.diag([1e-4, 4e-4, 9e-4, 0.01, 0.02, 0.03]), scale_std=0.02,
        status=Status.LOW_QUALITY if instance.is_box else Status.OK, observed_points=points.astype(np.float32),
        observed_rgb=frame.colour[rows, columns])


class BlockPipeline:
    """Stands in for the pipeline: the same checks and stages, a block for every instance.

    delay: seconds that inference takes
    """

    engine_name = "blocks"

    def __init__(self, delay: float = 0.0):
        self.delay = delay
        self.closed = False
        self.frames: list[Frame] = []

    def run(self, frame: Frame, earlier: Any, on_stage: Callable[[str], None], others: Any) -> PipelineResult:
        assert not self.closed
        check_frame(frame)
        self.frames = [frame]
        for stage in ("EVIDENCE", "INFERENCE", "SURFACE", "DONE"):
            on_stage(stage)
            time.sleep(self.delay if stage == "INFERENCE" else 0.0)
        return PipelineResult([block(frame, i) for i in frame.instances], (), {}, support_plane(frame))

    def close(self) -> None:
        self.closed = True


class HeldPipeline(BlockPipeline):
    """One whose work, once it has begun (`busy`), does not go on before it may (`go_on`)."""

    def __init__(self) -> None:
        super().__init__()
        self.busy, self.go_on = threading.Event(), threading.Event()

    def run(self, frame: Frame, earlier: Any, on_stage: Callable[[str], None], others: Any) -> PipelineResult:
        self.busy.set()
        self.go_on.wait(20)
        return super().run(frame, earlier, on_stage, others)


class RefusingPipeline(BlockPipeline):
    """One that refuses the object with a label."""

    def __init__(self, label: int):
        super().__init__()
        self._label = label

    def run(self, frame: Frame, earlier: Any, on_stage: Callable[[str], None], others: Any) -> PipelineResult:
        result = super().run(frame, earlier, on_stage, others)
        fault = Fault(FaultCode.TOO_FEW_POINTS, f"label {self._label}: 40 readings")
        refused = tuple(Rejection(item.label, fault) for item in result.objects if item.label == self._label)
        return replace(result, objects=[item for item in result.objects if item.label != self._label],
                       rejections=refused)


def scene(two: bool = False, shift: int = 0) -> dict[str, Any]:
    """Messages of one moment, without stamps: an object, 7, right of and below the middle, on a table.

    two: another, 8, left of and above the middle; shift: columns by which all appear farther to the left
    """
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[26:36, 40 - shift:52 - shift] = 7
    if two:
        labels[6:16, 10 - shift:22 - shift] = 8
    inside = labels > 0
    colour = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    colour[inside] = [200, 40, 30]
    info = CameraInfo(header=Header(frame_id="camera"), width=WIDTH, height=HEIGHT)
    info.k = [FOCAL, 0.0, WIDTH / 2, 0.0, FOCAL, HEIGHT / 2, 0.0, 0.0, 1.0]
    info.p = [FOCAL, 0.0, WIDTH / 2, 0.0, 0.0, FOCAL, HEIGHT / 2, 0.0, 0.0, 0.0, 1.0, 0.0]
    depth = np.where(inside, OBJECT, TABLE).astype(np.float32)
    images = {"image": (colour, "rgb8"), "depth_image": (depth, "32FC1"),
              "segmentation": (labels, "mono8")}
    return {"camera_info": info} | {name: encode_image(pixels, encoding, Header(frame_id="camera"))
                                    for name, (pixels, encoding) in images.items()}


class Rig:
    """The node, active, and what it needs.

    parameters: of the node; types: of the inputs that are not images
    """

    def __init__(self, pipeline: Any | None = None, types: dict[str, type] | None = None, activate: bool = True,
                 **parameters: Any):
        self.pipeline = pipeline or BlockPipeline()
        # The block floats: physics would put it on the table.
        defaults = {"diagnostics_period": 0.1, "input_timeout": 2.0, "sync_slop": 0.001, "physics": False}
        overrides = [Parameter(name, value=value) for name, value in (defaults | parameters).items()]
        # A namespace of its own: several rigs may be alive at once.
        self.namespace = f"rig_{next(_numbers)}"
        self.node = Sam3dNode(load=lambda settings: self.pipeline, namespace=self.namespace,
                              parameter_overrides=overrides)
        self.outside = rclpy.create_node("outside", namespace=self.namespace)
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.executor.add_node(self.outside)
        types = {"image": Image, "camera_info": CameraInfo, "depth_image": Image, "segmentation": Image} | (types or {})
        self.publishers = {name: self.outside.create_publisher(kind, name, 10) for name, kind in types.items()}
        self.objects: list[ObjectMeshArray] = self.collect(ObjectMeshArray, "objects")
        self.diagnostics: list[DiagnosticArray] = self.collect(DiagnosticArray, "/diagnostics")
        self.stamp = time.time_ns()
        if activate:
            assert self.node.trigger_configure() == SUCCESS
            assert self.node.trigger_activate() == SUCCESS
            self.wait(lambda: all(p.get_subscription_count() for p in self.publishers.values()))

    def collect(self, kind: type, topic: str, qos: QoSProfile | int = 10) -> list[Any]:
        """List to which the messages of a topic will be added."""
        received: list[Any] = []
        self.outside.create_subscription(kind, topic, received.append, qos)
        return received

    def wait(self, condition: Callable[[], Any], timeout: float = 10.0) -> None:
        """Spin until the condition holds; fails after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain; diagnostics: {self.codes()}"
            self.executor.spin_once(timeout_sec=0.02)

    def spin(self, seconds: float) -> None:
        """Spin for a while, to see that something does not happen."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.02)

    def send(self, messages: dict[str, Any], stamp_ns: int | None = None) -> int:
        """Publish the messages with one stamp, by default 40 ms after the last; returns it."""
        self.stamp = self.stamp + 40_000_000 if stamp_ns is None else stamp_ns
        for name, message in messages.items():
            message.header.stamp = stamp_message(self.stamp)
            self.publishers[name].publish(message)
        return self.stamp

    def send_until(self, send: Callable[[], Any], condition: Callable[[], Any], timeout: float = 10.0) -> None:
        """Call `send` every 30 ms until the condition holds; fails after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"sent in vain; diagnostics: {self.codes()}"
            send()
            self.spin(0.03)

    def set_transform(self, target_from_camera: np.ndarray, seconds: float, target: str = "base",
                      camera: str = "camera") -> None:
        """TF, (4, 4), so many seconds after the newest stamp."""
        transform = TransformStamped(child_frame_id=camera, transform=transform_from_matrix(target_from_camera))
        transform.header.frame_id = target
        transform.header.stamp = stamp_message(self.stamp + int(seconds * 1_000_000_000))
        self.node._transforms.buffer.set_transform(transform, "test")

    def good(self) -> ObjectMeshArray:
        """Send good frames until objects come out; the newest."""
        before = len(self.objects)
        self.send_until(lambda: self.send(scene()), lambda: len(self.objects) > before)
        return self.objects[-1]

    def codes(self) -> list[str]:
        """Names of the faults diagnosed so far, repetitions left out."""
        values = [next(v.value for v in s.values if v.key == "code") for d in self.diagnostics for s in d.status
                  if s.name.startswith(f"{self.namespace}/")]
        return [v for i, v in enumerate(values) if i == 0 or v != values[i - 1]]

    def close(self) -> None:
        """Destroy the nodes."""
        self.executor.shutdown()
        self.node.destroy_node()
        self.outside.destroy_node()

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


