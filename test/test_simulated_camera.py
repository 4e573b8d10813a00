"""The simulated camera node, in-process: one stamp per image, truth that agrees with the images, wrong parameters."""
from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import open3d as o3d
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")

from geometry_msgs.msg import PoseStamped  # noqa: E402
from rclpy.context import Context  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image  # noqa: E402

from sam3d_ros.msg import ObjectMeshArray  # noqa: E402
from sam3d_ros.nodes.simulated_camera import IMAGE_QOS, LATCHED, SimulatedCamera  # noqa: E402
from sam3d_ros.perception.frame import back_project  # noqa: E402
from sam3d_ros.ros.images import decode_camera_info, decode_colour, decode_depth, decode_pixels, stamp_ns  # noqa: E402
from sam3d_ros.ros.transforms import matrix_from_pose  # noqa: E402

pytestmark = pytest.mark.timeout(60)

TOPICS = {"image": Image, "depth_image": Image, "segmentation": Image, "camera_info": CameraInfo}
SMALL = {"objects": 2, "width": 160, "height": 120, "image_qos": "reliable"}


class Listener(Node):
    """Keeps what the camera publishes."""

    def __init__(self, context: Context):
        super().__init__("listener", context=context)
        self.received: dict[str, list] = defaultdict(list)
        for topic, message_type in TOPICS.items():
            self.create_subscription(message_type, topic, self.received[topic].append, IMAGE_QOS["reliable"])
        self.create_subscription(PoseStamped, "camera_pose", self.received["camera_pose"].append, 10)
        self.create_subscription(Clock, "/clock", self.received["clock"].append, 10)
        self.create_subscription(ObjectMeshArray, "ground_truth", self.received["ground_truth"].append, LATCHED)

    def complete_stamps(self) -> list[int]:
        """Stamps at which all of image, depth, masks, camera_info and camera_pose have come."""
        per_topic = [{stamp_ns(m.header.stamp) for m in self.received[topic]} for topic in (*TOPICS, "camera_pose")]
        return sorted(set.intersection(*per_topic))

    def clock_stamps(self) -> set[int]:
        return {stamp_ns(message.clock) for message in self.received["clock"]}

    def at(self, topic: str, stamp: int):
        """The message of a topic with this stamp."""
        return next(m for m in self.received[topic] if stamp_ns(m.header.stamp) == stamp)


@pytest.fixture
def context() -> Iterator[Context]:
    context = Context()
    rclpy.init(context=context)
    yield context
    context.try_shutdown()


def make_camera(context: Context, **values) -> SimulatedCamera:
    overrides = [Parameter(name, value=value) for name, value in (SMALL | values).items()]
    return SimulatedCamera(context=context, parameter_overrides=overrides)


def run(context: Context, camera: SimulatedCamera, until: Callable[[Listener], bool]) -> Listener:
    """Spin the camera and a listener until the condition holds; fails after 20 s."""
    listener = Listener(context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(camera)
    executor.add_node(listener)
    deadline = time.monotonic() + 20
    while not until(listener):
        assert time.monotonic() < deadline, {topic: len(messages) for topic, messages in listener.received.items()}
        executor.spin_once(timeout_sec=0.1)
    executor.shutdown()
    return listener


def test_images_share_a_stamp_and_the_latched_truth_lies_on_their_depth(context: Context) -> None:
    camera = make_camera(context, noise=0.0, depth_encoding="32FC1")
    listener = run(context, camera, lambda got: len(got.complete_stamps()) >= 2 and got.received["ground_truth"])
    stamp = listener.complete_stamps()[0]
    info = decode_camera_info(listener.at("camera_info", stamp), 160, 120, is_rectified=True)
    depth = decode_depth(listener.at("depth_image", stamp))
    labels = decode_pixels(listener.at("segmentation", stamp))
    assert decode_colour(listener.at("image", stamp)).shape == (120, 160, 3)

    truth = listener.received["ground_truth"][0]
    pose = listener.at("camera_pose", stamp)
    assert truth.header.frame_id == pose.header.frame_id == "world"
    camera_from_world = np.linalg.inv(matrix_from_pose(pose.pose))
    assert [o.id for o in truth.objects] == ["1", "2"]
    for true in truth.objects:
        camera_from_object = camera_from_world @ matrix_from_pose(true.pose.pose)
        vertices = np.frombuffer(true.vertices, np.float32).reshape(-1, 3)
        triangles = np.frombuffer(true.triangles, np.uint32).reshape(-1, 3)
        assert np.allclose(np.ptp(vertices, axis=0), [true.size.x, true.size.y, true.size.z], atol=1e-6)
        assert len(true.vertex_rgba) == 4 * len(vertices)
        scene = o3d.t.geometry.RaycastingScene()
        posed = vertices @ camera_from_object[:3, :3].T + camera_from_object[:3, 3]
        scene.add_triangles(o3d.core.Tensor(posed.astype(np.float32)), o3d.core.Tensor(triangles))
        rows, columns = np.nonzero(labels == int(true.id))
        points = back_project(depth, info, rows, columns).astype(np.float32)
        assert len(points) > 50
        assert scene.compute_distance(o3d.core.Tensor(points)).numpy().max() < 1e-4


def test_both_depth_encodings_give_the_same_metres(context: Context) -> None:
    depths = []
    for encoding in ("16UC1", "32FC1"):
        camera = make_camera(context, noise=0.0, depth_encoding=encoding)
        listener = run(context, camera, lambda got: bool(got.received["depth_image"]))
        assert listener.received["depth_image"][0].encoding == encoding
        depths.append(decode_depth(listener.received["depth_image"][0]))
        camera.destroy_node()
        listener.destroy_node()
    assert np.abs(depths[0] - depths[1]).max() <= 0.000501


def test_orbit_moves_the_camera_to_and_fro_and_the_clock_follows_the_images(context: Context) -> None:
    camera = make_camera(context, motion="orbit", orbit_frames=3, publish_clock=True, rate=20.0)
    listener = run(context, camera, lambda got: len(got.complete_stamps()) >= 6
                   and got.complete_stamps()[5] in got.clock_stamps())
    stamps = listener.complete_stamps()[:6]
    assert {b - a for a, b in zip(stamps[:-1], stamps[1:], strict=True)} == {50_000_000}
    assert set(stamps) <= listener.clock_stamps()
    positions = [matrix_from_pose(listener.at("camera_pose", stamp).pose)[:3, 3] for stamp in stamps]
    assert np.allclose(positions[0], positions[4]) and np.allclose(positions[1], positions[5])
    assert np.linalg.norm(positions[0] - positions[1]) > 0.01
    assert not np.array_equal(decode_pixels(listener.at("segmentation", stamps[0])),
                              decode_pixels(listener.at("segmentation", stamps[1])))


def test_the_camera_that_is_the_clock_does_not_wait_for_it(context: Context) -> None:
    camera = make_camera(context, publish_clock=True, use_sim_time=True, rate=20.0)
    listener = run(context, camera, lambda got: len(got.complete_stamps()) >= 3)
    stamps = listener.complete_stamps()[:3]
    assert {b - a for a, b in zip(stamps[:-1], stamps[1:], strict=True)} == {50_000_000}


@pytest.mark.parametrize("name, value", [("motion", "dance"), ("objects", 99), ("rate", 0.0),
                                         ("depth_encoding", "rgb8"), ("width", "wide")])
def test_wrong_parameters_are_refused_by_name(context: Context, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"parameter {name}:"):
        make_camera(context, **{name: value})
