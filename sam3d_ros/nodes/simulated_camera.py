"""A simulated RGB-D camera and detector over a tabletop of household objects: something to run the node on.

Publishes, with one stamp per image:
  image (rgb8), depth_image (16UC1 or 32FC1), camera_info, segmentation (mono16 instance labels, 0 = background),
  camera_pose (PoseStamped: the camera in the world frame), and /tf where tf2_msgs is installed;
and once, latched:
  ground_truth (ObjectMeshArray in the world frame: the scene stands still, so camera_pose at an image's stamp takes the
  true objects into that image's camera frame). An object's id is its label in `segmentation`.

Rendering a picture takes longer than a 30 Hz period.  So with motion `still` it is rendered once, and with motion
`orbit` a swing of the camera around the objects is rendered at start-up and replayed to and fro; sensor noise is drawn
anew for every image.
"""
from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, TransformStamped
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.clock import Clock as NodeClock
from rclpy.clock import ClockType
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from tqdm import tqdm

from sam3d_ros.msg import ObjectMesh, ObjectMeshArray

from ..perception.frame import Intrinsics
from ..ros.images import encode_image, stamp_message, to_array
from ..ros.optional import optional
from ..ros.running import run_node
from ..ros.transforms import pose_from_matrix, transform_from_matrix
from ..synth.raycaster import View
from ..synth.tabletop import MAX_OBJECTS, PlacedObject, SensorNoise, Tabletop, camera_intrinsics

LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
IMAGE_QOS = {"sensor_data": qos_profile_sensor_data,
             "reliable": QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)}
SWING = np.deg2rad(15)            # either side of the scene's viewpoint
TRUTH_EDGE = 0.0025               # metres between the vertices of the true meshes, so that they can carry the texture
CLOCK_START_NS = 1_000_000_000    # where simulated time begins; 0 would read as `no stamp`


@dataclass(frozen=True)
class Shot:
    """A noiseless picture, where it was taken from, and its depth discontinuities (H, W) bool."""

    view: View
    world_from_camera: np.ndarray
    edges: np.ndarray


def _setting(default: bool | int | float | str, description: str, low: float | None = None, high: float | None = None,
             choices: tuple[str, ...] = ()) -> Any:
    return dataclasses.field(default=default, metadata={"description": description, "low": low, "high": high,
                                                        "choices": choices})


@dataclass(frozen=True)
class CameraSettings:
    """The node's parameters; they are read at start-up."""

    seed: int = _setting(1, "decides the objects, where they lie, and the viewpoint", 0, 2**31 - 1)
    objects: int = _setting(5, "objects on the table", 1, MAX_OBJECTS)
    motion: str = _setting("still", "of the camera; orbit: a swing around the objects", choices=("still", "orbit"))
    orbit_frames: int = _setting(60, "pictures of one swing, rendered at start-up", 2, 1000)
    rate: float = _setting(30.0, "images per second", 0.1, 120.0)
    width: int = _setting(640, "of the images, pixels", 64, 4096)
    height: int = _setting(480, "of the images, pixels", 64, 4096)
    depth_encoding: str = _setting("16UC1", "16UC1: millimetres; 32FC1: metres", choices=("16UC1", "32FC1"))
    noise: float = _setting(1.0, "sensor noise; 0: none, 1: as a good RGB-D camera", 0.0, 10.0)
    image_qos: str = _setting("sensor_data", "QoS of images and camera_info", choices=tuple(IMAGE_QOS))
    world_frame: str = _setting("world", "frame of camera_pose and ground_truth, +Z up")
    camera_frame: str = _setting("camera_color_optical_frame", "optical frame of all images")
    publish_clock: bool = _setting(False, "publish /clock and stamp images with it, for nodes with use_sim_time")

    @classmethod
    def declared_on(cls, node: Node) -> CameraSettings:
        """Declare the parameters on a node and read them. Raises ValueError naming a wrong one."""
        return cls(**{setting.name: _declared(node, setting) for setting in dataclasses.fields(cls)})


def _declared(node: Node, setting: dataclasses.Field) -> bool | int | float | str:
    low, high, choices = (setting.metadata[key] for key in ("low", "high", "choices"))
    descriptor = ParameterDescriptor(description=setting.metadata["description"], read_only=True)
    if choices:
        descriptor.additional_constraints = f"one of: {', '.join(choices)}"
    elif isinstance(low, float):
        descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high, step=0.0)]
    elif low is not None:
        descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
    try:
        value = node.declare_parameter(setting.name, setting.default, descriptor).value
    except (InvalidParameterTypeException, InvalidParameterValueException) as error:
        raise ValueError(f"parameter {setting.name}: {error}") from error
    if choices and value not in choices:
        raise ValueError(f"parameter {setting.name}: '{value}' is not one of {', '.join(choices)}")
    return value


class SimulatedCamera(Node):
    """The camera node; renders its pictures when constructed. Raises ValueError naming a wrong parameter."""

    def __init__(self, **node_arguments):
        super().__init__("simulated_camera", **node_arguments)
        self.settings = CameraSettings.declared_on(self)
        self._intrinsics = camera_intrinsics(self.settings.width, self.settings.height)
        self._noise = SensorNoise(self.settings.noise, (self.settings.height, self.settings.width), self.settings.seed)
        self.scene = Tabletop(self.settings.seed, self.settings.objects)
        self._shots = self._take_shots()
        self._order = [*range(len(self._shots)), *range(len(self._shots) - 2, 0, -1)]      # to and fro
        self._images_published = 0
        self._create_publishers()
        self._truth.publish(self._truth_message())
        # Simulated time would stand still for a timer that waits for it to go on.
        clock = NodeClock(clock_type=ClockType.STEADY_TIME) if self.settings.publish_clock else None
        self.create_timer(1 / self.settings.rate, self._publish, clock=clock)
        kinds = ", ".join(placed.shape.kind for placed in self.scene.objects)
        self.get_logger().info(f"{kinds}; {self.settings.width} x {self.settings.height} at {self.settings.rate:g} Hz")

    def _create_publishers(self) -> None:
        qos = IMAGE_QOS[self.settings.image_qos]
        self._image = self.create_publisher(Image, "image", qos)
        self._depth = self.create_publisher(Image, "depth_image", qos)
        self._segmentation = self.create_publisher(Image, "segmentation", qos)
        self._info = self.create_publisher(CameraInfo, "camera_info", qos)
        self._camera_pose = self.create_publisher(PoseStamped, "camera_pose", 10)
        self._truth = self.create_publisher(ObjectMeshArray, "ground_truth", LATCHED)
        self._clock_publisher = self.create_publisher(Clock, "/clock", 10) if self.settings.publish_clock else None
        self._tf_messages = optional("tf2_msgs.msg")
        self._tf = self.create_publisher(self._tf_messages.TFMessage, "/tf", 100) if self._tf_messages else None

    def _take_shots(self) -> list[Shot]:
        """The pictures to replay: one, or those of a swing that is slow at its ends."""
        if self.settings.motion == "still":
            return [self._shot(0.0)]
        turns = SWING * np.sin(np.linspace(-np.pi / 2, np.pi / 2, self.settings.orbit_frames))
        return [self._shot(turn) for turn in tqdm(turns, "rendering", disable=None)]

    def _shot(self, turn: float) -> Shot:
        pose = self.scene.camera_pose(self._intrinsics, turn)
        view = self.scene.render(self._intrinsics, pose)
        return Shot(view, pose, view.depth_edges())

    def _publish(self) -> None:
        shot = self._shots[self._order[self._images_published % len(self._order)]]
        stamp_ns = self._next_stamp_ns()
        self._images_published += 1
        header = Header(stamp=stamp_message(stamp_ns), frame_id=self.settings.camera_frame)
        depth = self._noise.depth(shot.view.depth, shot.edges)
        if self.settings.depth_encoding == "16UC1":
            depth = np.round(depth * 1000).astype(np.uint16)
        in_world = Header(stamp=header.stamp, frame_id=self.settings.world_frame)
        if self._tf:
            transform = TransformStamped(header=in_world, child_frame_id=self.settings.camera_frame,
                                         transform=transform_from_matrix(shot.world_from_camera))
            self._tf.publish(self._tf_messages.TFMessage(transforms=[transform]))
        self._camera_pose.publish(PoseStamped(header=in_world, pose=pose_from_matrix(shot.world_from_camera)))
        self._info.publish(camera_info_message(self._intrinsics, header))
        self._depth.publish(encode_image(depth, self.settings.depth_encoding, header))
        self._segmentation.publish(encode_image(shot.view.labels, "mono16", header))
        self._image.publish(encode_image(self._noise.colour(shot.view.colour), "rgb8", header))

    def _next_stamp_ns(self) -> int:
        """The clock's time; or, if this node is the clock, that of the image's number."""
        if self._clock_publisher is None:
            return self.get_clock().now().nanoseconds
        stamp_ns = CLOCK_START_NS + round(self._images_published * 1e9 / self.settings.rate)
        self._clock_publisher.publish(Clock(clock=stamp_message(stamp_ns)))
        return stamp_ns

    def _truth_message(self) -> ObjectMeshArray:
        now_ns = CLOCK_START_NS if self._clock_publisher else self.get_clock().now().nanoseconds
        header = Header(stamp=stamp_message(now_ns), frame_id=self.settings.world_frame)
        return ObjectMeshArray(header=header, objects=[true_object_message(o, header) for o in self.scene.objects])


def camera_info_message(intrinsics: Intrinsics, header: Header) -> CameraInfo:
    """camera_info of a rectified pinhole camera."""
    fx, fy, cx, cy = intrinsics.fx, intrinsics.fy, intrinsics.cx, intrinsics.cy
    return CameraInfo(header=header, width=intrinsics.width, height=intrinsics.height, distortion_model="plumb_bob",
                      d=[0.0] * 5, k=[fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0],
                      r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
                      p=[fx, 0.0, cx, 0.0, 0.0, fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0])


def true_object_message(placed: PlacedObject, header: Header) -> ObjectMesh:
    """The true mesh and pose of a scene's object."""
    mesh, rgb = placed.shape.refined(TRUTH_EDGE)
    message = ObjectMesh(header=header, id=str(placed.label), class_id=placed.shape.kind, score=1.0, mesh_revision=1,
                         scale_source=ObjectMesh.SCALE_GIVEN, watertight=True, status=ObjectMesh.STATUS_OK)
    message.pose.pose = pose_from_matrix(placed.world_from_object)
    message.size.x, message.size.y, message.size.z = (float(extent) for extent in mesh.extents)
    message.vertices = to_array("f", mesh.vertices.astype(np.float32))
    message.triangles = to_array("I", mesh.faces.astype(np.uint32))
    message.vertex_rgba = to_array("B", np.column_stack([rgb, np.full(len(rgb), 255, np.uint8)]))
    return message


def main() -> int:
    """Run the node until it is interrupted; the exit status."""
    return run_node(SimulatedCamera)


if __name__ == "__main__":
    sys.exit(main())
