"""The node in normal operation: conventions, services, action, parameters, topics."""
from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")

import rclpy  # noqa: E402
from geometry_msgs.msg import PoseArray, TransformStamped  # noqa: E402
from node_rig import FOCAL, HEIGHT, OBJECT, WIDTH, BlockPipeline, HeldPipeline, Rig, scene  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image, PointCloud2  # noqa: E402
from stand_ins import provide_tf2_ros  # noqa: E402
from std_msgs.msg import Float64  # noqa: E402
from std_srvs.srv import SetBool, Trigger  # noqa: E402
from visualization_msgs.msg import Marker, MarkerArray  # noqa: E402

from sam3d_ros.msg import ObjectMeshArray  # noqa: E402
from sam3d_ros.nodes.sam3d_node import FAILURE, SUCCESS  # noqa: E402
from sam3d_ros.perception.pipeline import PipelineResult  # noqa: E402
from sam3d_ros.ros.images import decode_pixels, encode_image, stamp_ns  # noqa: E402
from sam3d_ros.ros.transforms import matrix_from_pose  # noqa: E402

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("ros")]

# Mean pixel of the scene's object, and what that is at 0.8 m.
COLUMN, ROW = 45.5, 30.5
POSITION = np.array([(COLUMN - WIDTH / 2) / FOCAL * OBJECT, (ROW - HEIGHT / 2) / FOCAL * OBJECT, OBJECT])


@pytest.fixture(scope="module")
def rig(ros: None) -> Iterator[Rig]:
    with Rig() as shared:
        yield shared


def test_physics_moves_a_floating_object_towards_its_support():
    with Rig(physics=True) as rig:
        [found] = rig.good().objects
        assert 0.81 < found.pose.pose.position.z < 0.9          # seen at 0.8 m, floating 16 cm over the table


def test_what_could_not_be_put_at_rest_is_listed_until_it_is_forgotten():
    with Rig(physics=True) as rig:
        def value(key: str) -> str:
            return {v.key: v.value for v in rig.diagnostics[-1].status[0].values}.get(key, "")
        [found] = rig.good().objects
        rig.spin(0.5)                                 # what was on its way
        rig.node._scene._tracker._resting.refused = (found.id, "object_of_old")
        rig.wait(lambda: (value("not_put_at_rest"), value("objects")) == (found.id, "1"))
        rig.node.set_parameters([Parameter("enabled", value=False)])
        assert call(rig, Trigger, "clear", Trigger.Request()).success
        rig.wait(lambda: (value("not_put_at_rest"), value("objects")) == ("", "0"))


def test_an_off_centre_object_is_where_it_should_be(rig: Rig):
    result = rig.good()
    assert result.header.frame_id == "camera"
    assert stamp_ns(result.header.stamp) <= rig.stamp
    pose = matrix_from_pose(result.objects[0].pose.pose)
    np.testing.assert_allclose(pose[:3, 3], POSITION, atol=3e-3)
    np.testing.assert_allclose(pose[:3, :3], [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-3)
    variances = np.diag(result.objects[0].pose.covariance.reshape(6, 6))
    np.testing.assert_allclose(variances, [1e-4, 4e-4, 9e-4, 0.01, 0.02, 0.03], rtol=0.1)


def test_16uc1_and_32fc1_give_the_same_result(rig: Rig):
    expected = rig.good().objects[0]
    messages = scene()
    metres = decode_pixels(messages["depth_image"])
    messages["depth_image"] = encode_image(np.round(metres * 1000).astype(np.uint16), "16UC1", messages["image"].header)
    before = len(rig.objects)
    rig.send(messages)
    rig.wait(lambda: len(rig.objects) > before)
    found = rig.objects[-1].objects[0]
    np.testing.assert_allclose(matrix_from_pose(found.pose.pose), matrix_from_pose(expected.pose.pose), atol=3e-3)


def test_a_mesh_is_sent_once_and_to_every_new_listener():
    with Rig() as rig:
        rig.good()
        for _ in range(45):
            rig.send(scene())
            rig.spin(0.03)
        items = [item for array in rig.objects for item in array.objects]
        full = [item for item in items if len(item.vertices)]
        assert items[0] is full[0] and len(full[0].vertices) == 24
        assert len(full) <= 3 < len(items)                   # new, and when the listener was surely matched
        assert {(item.id, item.mesh_revision) for item in items} == {(items[0].id, 1)}
        newcomer = rig.collect(ObjectMeshArray, "objects")
        rig.send_until(lambda: rig.send(scene()), lambda: any(len(o.vertices) for a in newcomer for o in a.objects))
        for _ in range(40):
            rig.send(scene())
            rig.spin(0.03)
        # One that goes and comes back between two images, too.
        rig.outside.destroy_subscription([*rig.outside.subscriptions][-1])
        restarted = rig.collect(ObjectMeshArray, "objects")
        rig.send_until(lambda: rig.send(scene()), lambda: any(len(o.vertices) for a in restarted for o in a.objects),
                       timeout=3.0)


SIDES = {"left": 0, "right": round(0.1 * FOCAL / OBJECT)}    # camera -> columns by which all is farther to the left


@contextmanager
def two_cameras(monkeypatch: pytest.MonkeyPatch, **parameters: Any) -> Iterator[Rig]:
    """Side by side, 0.1 m apart; TF knows them in the frame "base"."""
    provide_tf2_ros(monkeypatch)
    types = {f"{side}/{name}": kind for side in SIDES
             for name, kind in (("image", Image), ("camera_info", CameraInfo), ("depth_image", Image),
                                ("segmentation", Image))}
    with Rig(types=types, cameras="left, right", activate=False, **parameters) as rig:
        for name in [n for n in rig.publishers if "/" not in n]:
            rig.outside.destroy_publisher(rig.publishers.pop(name))
        assert rig.node.trigger_configure() == SUCCESS
        assert rig.node.trigger_activate() == SUCCESS
        rig.wait(lambda: all(p.get_subscription_count() for p in rig.publishers.values()))
        for side, columns in SIDES.items():
            for seconds in (-10, 10):
                matrix = np.eye(4)
                matrix[0, 3] = columns * OBJECT / FOCAL
                rig.set_transform(matrix, seconds, camera=side)
        yield rig


def send_side(rig: Rig, side: str, messages: dict[str, Any], stamp_ns: int | None = None) -> int:
    """What one of the two cameras sees; as `Rig.send`."""
    for name in messages.keys() & {"image", "depth_image", "segmentation"}:
        header, encoding = messages[name].header, messages[name].encoding
        messages[name] = encode_image(np.roll(decode_pixels(messages[name]), -SIDES[side], axis=1), encoding, header)
    for message in messages.values():
        message.header.frame_id = side
    return rig.send({f"{side}/{name}": message for name, message in messages.items()}, stamp_ns)


def test_two_cameras_look_at_one_scene(monkeypatch: pytest.MonkeyPatch):
    def send() -> None:
        for side in SIDES:
            send_side(rig, side, scene())
    with two_cameras(monkeypatch, target_frame="base") as rig:
        rig.send_until(send, lambda: len(rig.objects) > 10)
        ids = {item.id for array in rig.objects for item in array.objects}
        assert ids == {"object_1"}
        for array in rig.objects:
            pose = matrix_from_pose(array.objects[0].pose.pose)
            np.testing.assert_allclose(pose[:3, 3], POSITION, atol=2e-3)


def test_what_one_of_two_cameras_shows_is_reconstructed_whatever_the_other_shows(monkeypatch: pytest.MonkeyPatch):
    def send_right() -> None:
        """Nothing of the left half."""
        messages = scene()
        depth = decode_pixels(messages["depth_image"]).copy()
        depth[:, :WIDTH // 2] = 0
        send_side(rig, "right", messages | {"depth_image": encode_image(depth, "32FC1", messages["image"].header)})
    with two_cameras(monkeypatch, target_frame="base") as rig:
        rig.send_until(lambda: send_side(rig, "left", scene()), lambda: rig.objects and rig.objects[-1].objects)
        send_side(rig, "left", scene(two=True))       # once, within the time for which reconstructions wait
        rig.send_until(send_right, lambda: len(rig.objects[-1].objects) == 2, timeout=3.0)


def test_each_of_two_cameras_has_faults_of_its_own(monkeypatch: pytest.MonkeyPatch):
    """Of several, each is told until it has gone, whatever the other camera does; results of the good one go on."""
    def told() -> dict[str, str]:
        rig.diagnostics.clear()
        rig.wait(lambda: [s for array in rig.diagnostics for s in array.status if s.name.startswith(rig.namespace)])
        return {value.key: value.value for value in rig.diagnostics[-1].status[0].values}

    def send(left: bool = True) -> None:
        messages = scene()
        messages["camera_info"].p, messages["camera_info"].k = np.zeros(12), np.zeros(9)
        if left:
            send_side(rig, "left", messages)
        messages = scene()
        messages["camera_info"].width += 1
        send_side(rig, "right", messages)
    with two_cameras(monkeypatch, target_frame="base", input_timeout=0.5) as rig:
        rig.send_until(send, lambda: "also" in told())
        values = told()
        both = f"{values['code']}: {values['detail']}; {values['also']}"
        assert "CAMERA_INFO_UNCALIBRATED: camera left: fx = 0" in both
        assert "CAMERA_INFO_SIZE_MISMATCH: camera right: camera_info 65" in both
        rig.send_until(lambda: send_side(rig, "right", scene()), lambda: (values := told())["code"] == "IMAGE_MISSING"
                       and values["detail"].startswith("camera left: on image for ") and "also" not in values)
        assert len(rig.objects[-1].objects) == 1


def test_several_cameras_need_a_common_frame():
    with Rig(cameras="left,right", activate=False) as rig:
        assert rig.node.trigger_configure() == FAILURE
        rig.wait(lambda: "PARAMETER_INVALID" in rig.codes())


def test_several_cameras_keep_a_common_frame(monkeypatch: pytest.MonkeyPatch):
    with two_cameras(monkeypatch, target_frame="base") as rig:
        [result] = rig.node.set_parameters([Parameter("target_frame", value="")])
        assert not result.successful and "several cameras" in result.reason


def test_the_frame_of_one_of_several_cameras_is_refused_by_name(monkeypatch: pytest.MonkeyPatch):
    with two_cameras(monkeypatch, target_frame="left") as rig:
        rig.send_until(lambda: send_side(rig, "left", scene()), lambda: "PARAMETER_INVALID" in rig.codes())


def test_cameras_that_share_a_frame_are_named(monkeypatch: pytest.MonkeyPatch):
    with two_cameras(monkeypatch, target_frame="base") as rig:
        def send() -> None:
            for side in SIDES:
                rig.send({f"{side}/{name}": message for name, message in scene().items()})
        rig.send_until(send, lambda: "PARAMETER_INVALID" in rig.codes())


def test_a_camera_with_an_absolute_name_is_outside_the_node_s_namespace():
    with Rig(cameras="/outside_cam", types={"/outside_cam/image": Image}, activate=False) as rig:
        assert rig.node.trigger_configure() == SUCCESS
        assert rig.node.trigger_activate() == SUCCESS
        rig.wait(lambda: rig.publishers["/outside_cam/image"].get_subscription_count())
        assert not rig.publishers["image"].get_subscription_count()


@pytest.mark.parametrize("cameras", ["1left", "left,left"])
def test_wrong_names_of_cameras_are_refused_while_configuring(cameras: str):
    with Rig(cameras=cameras, target_frame="camera", activate=False) as rig:
        assert rig.node.trigger_configure() == FAILURE
        rig.wait(lambda: "PARAMETER_INVALID" in rig.codes())
        assert "INTERNAL_ERROR" not in rig.codes()


# The camera looks straight down from 1.5 m.
BASE_FROM_CAMERA = np.array([[0.0, -1, 0, 0.2], [-1, 0, 0, 0.1], [0, 0, -1, 1.5], [0, 0, 0, 1]])


def set_transforms(rig: Rig, speed: float) -> None:
    """TF of a camera that moves along the base's x, m/s; at BASE_FROM_CAMERA at the rig's present stamp."""
    for seconds in (-2, 2):
        moved = BASE_FROM_CAMERA.copy()
        moved[0, 3] += speed * seconds
        rig.set_transform(moved, seconds)


def set_two_frames(rig: Rig) -> None:
    """TF of a camera that stands still, in `base` and, 5 m along x, in `odom`."""
    for name, x in (("base", 0.0), ("odom", 5.0)):
        for seconds in (-2, 20):
            matrix = BASE_FROM_CAMERA.copy()
            matrix[0, 3] += x
            rig.set_transform(matrix, seconds, target=name)


def test_poses_and_covariances_in_the_target_frame(monkeypatch: pytest.MonkeyPatch):
    provide_tf2_ros(monkeypatch)
    with Rig(target_frame="base") as rig:
        set_transforms(rig, speed=0.0)
        result = rig.good()
        assert result.header.frame_id == "base"
        pose = matrix_from_pose(result.objects[0].pose.pose)
        expected = BASE_FROM_CAMERA[:3, :3] @ POSITION + BASE_FROM_CAMERA[:3, 3]
        np.testing.assert_allclose(pose[:3, 3], expected, atol=3e-3)
        assert pose[2, 3] == pytest.approx(1.5 - OBJECT, abs=1e-3)
        # The variances along the camera's x and y (also about them) have changed places.
        np.testing.assert_allclose(np.diag(result.objects[0].pose.covariance.reshape(6, 6)),
                                   [4e-4, 1e-4, 9e-4, 0.02, 0.01, 0.03], rtol=0.1)


def test_the_transform_is_that_of_the_image_s_stamp(monkeypatch: pytest.MonkeyPatch):
    provide_tf2_ros(monkeypatch)
    with Rig(target_frame="base") as rig:
        start = rig.stamp
        set_transforms(rig, speed=1.0)
        rig.good()
        frame = rig.pipeline.frames[-1]
        moment = (frame.stamp_ns - start) / 1e9
        assert 0 < moment < 2
        expected = BASE_FROM_CAMERA.copy()
        expected[0, 3] += moment
        np.testing.assert_allclose(frame.world_from_camera, expected, atol=1e-9)


def test_target_frame_can_change_at_run_time(monkeypatch: pytest.MonkeyPatch):
    provide_tf2_ros(monkeypatch)
    with Rig(tf_timeout=0.0) as rig:
        assert rig.good().header.frame_id == "camera"
        rig.node.set_parameters([Parameter("target_frame", value="base")])
        rig.send_until(lambda: rig.send(scene()), lambda: "TF_MISSING" in rig.codes())
        rig.node.set_parameters([Parameter("target_frame", value="")])
        assert rig.good().header.frame_id == "camera"


def test_a_change_of_target_frame_leaves_nothing_at_its_old_coordinates(monkeypatch: pytest.MonkeyPatch):
    provide_tf2_ros(monkeypatch)
    with Rig(target_frame="base") as rig:
        set_two_frames(rig)
        before = rig.good().objects[0]
        rig.node.set_parameters([Parameter("target_frame", value="odom")])
        rig.send_until(lambda: rig.send(scene()), lambda: rig.objects[-1].header.frame_id == "odom")
        for array in [array for array in rig.objects if array.header.frame_id == "odom"]:
            for item in array.objects:
                assert item.pose.pose.position.x == pytest.approx(before.pose.pose.position.x + 5.0, abs=3e-3)


def test_an_image_that_waited_while_the_target_frame_changed_is_not_given_in_the_new_one(
        monkeypatch: pytest.MonkeyPatch):
    provide_tf2_ros(monkeypatch)
    with Rig(target_frame="base", max_rate=5.0) as rig:
        set_two_frames(rig)
        before = rig.good().objects[0]
        rig.send(scene())
        rig.spin(0.05)
        forget = rig.node._scene.forget

        def slowly() -> None:
            time.sleep(0.5)
            forget()
        monkeypatch.setattr(rig.node._scene, "forget", slowly)
        rig.node.set_parameters([Parameter("target_frame", value="odom")])
        rig.send_until(lambda: rig.send(scene()), lambda: rig.objects[-1].header.frame_id == "odom")
        for array in rig.objects:
            x = before.pose.pose.position.x + 5.0 * (array.header.frame_id == "odom")
            assert [item.pose.pose.position.x for item in array.objects] == pytest.approx([x], abs=3e-3)


def test_objects_as_tf_frames(monkeypatch: pytest.MonkeyPatch):
    provide_tf2_ros(monkeypatch)
    with Rig(publish_tf=True) as rig:
        sent: list[TransformStamped] = []
        monkeypatch.setattr(rig.node._transforms._broadcaster, "sendTransform", sent.extend)
        result = rig.good()
        rig.wait(lambda: any(t.header.stamp == result.header.stamp for t in sent))     # sent after `objects`
        frame = next(t for t in sent if t.header.stamp == result.header.stamp)
        child = f"sam3d/{rig.namespace}/{result.objects[0].id}"
        assert (frame.header.frame_id, frame.child_frame_id) == ("camera", child)
        translation = frame.transform.translation
        np.testing.assert_allclose([translation.x, translation.y, translation.z], POSITION, atol=3e-3)
        # Published again in the newest image when another object is ready, but not as the same frame.
        rig.send_until(lambda: rig.send(scene(two=True)), lambda: len(rig.objects[-1].objects) == 2)
        stamps = [stamp_ns(array.header.stamp) for array in rig.objects]
        assert len(set(stamps)) < len(stamps)
        frames = [(t.child_frame_id, stamp_ns(t.header.stamp)) for t in sent]
        assert len(set(frames)) == len(frames)


def test_simulated_time_that_stands_still():
    """Neither results nor diagnostics wait for /clock."""
    with Rig(use_sim_time=True, input_timeout=0.3) as rig:
        assert rig.good().objects
        rig.wait(lambda: "IMAGE_MISSING" in rig.codes())
        assert rig.good().objects


def test_the_other_topics(rig: Rig):
    topics = {"poses": PoseArray, "markers": MarkerArray, "object_points": PointCloud2, "debug/image": Image,
              "debug/processing_ms": Float64, "debug/pipeline_latency_ms": Float64}
    received = {topic: rig.collect(kind, topic) for topic, kind in topics.items()}
    rig.send_until(lambda: rig.send(scene()), lambda: all(received.values()))
    np.testing.assert_allclose(matrix_from_pose(received["poses"][-1].poses[0])[:3, 3], POSITION, atol=3e-3)
    assert received["markers"][-1].markers[0].type == Marker.TRIANGLE_LIST
    assert len(received["markers"][-1].markers[0].points) == 36
    assert received["object_points"][-1].width == 120
    picture = decode_pixels(received["debug/image"][-1])
    assert not np.array_equal(picture, decode_pixels(scene()["image"]))
    assert 0 < received["debug/processing_ms"][-1].data < 1000


def test_several_images_wait_for_a_lagging_detector():
    """Masks come five images late and belong to the image with their stamp, not to the newest."""
    with Rig() as rig:
        first = scene()
        masks = first.pop("segmentation")
        stamps = [rig.send(first)]
        for _ in range(5):
            later = scene()
            del later["segmentation"]
            farther = np.full((HEIGHT, WIDTH), 2.0, np.float32)
            later["depth_image"] = encode_image(farther, "32FC1", later["image"].header)
            stamps.append(rig.send(later))
        rig.spin(0.2)
        assert rig.objects == []
        rig.send({"segmentation": masks}, stamps[0])
        rig.wait(lambda: rig.objects)
        assert stamp_ns(rig.objects[0].header.stamp) == stamps[0]
        assert rig.objects[0].objects[0].pose.pose.position.z == pytest.approx(OBJECT, abs=1e-3)


def test_objects_are_followed_at_the_camera_s_rate_however_slow_the_pipeline_is():
    with Rig(BlockPipeline(delay=0.5)) as rig:
        first = rig.good()
        for _ in range(40):
            rig.send(scene())
            rig.spin(0.03)
        last = rig.stamp
        rig.wait(lambda: stamp_ns(rig.objects[-1].header.stamp) == last)
        assert len(rig.objects) > 20
        assert {o.id for array in rig.objects for o in array.objects} == {first.objects[0].id}


def test_max_rate():
    with Rig(max_rate=5.0) as rig:
        for _ in range(30):
            rig.send(scene())
            rig.spin(0.03)
        rig.spin(0.3)
        assert 4 <= len(rig.objects) <= 9


def test_max_rate_may_be_raised_while_an_image_waits():
    with Rig() as rig:
        rig.good()
        rig.node.set_parameters([Parameter("max_rate", value=1e-11)])
        rig.send(scene())
        rig.spin(0.5)
        before = len(rig.objects)
        rig.send(scene())
        rig.spin(0.5)
        assert len(rig.objects) == before
        rig.node.set_parameters([Parameter("max_rate", value=10.0)])
        rig.wait(lambda: len(rig.objects) > before, timeout=1.0)


def test_best_effort_cameras_are_heard():
    from rclpy.qos import qos_profile_sensor_data
    with Rig() as rig:
        for name in ("image", "depth_image", "camera_info", "segmentation"):
            kind = rig.publishers[name].msg_type
            rig.outside.destroy_publisher(rig.publishers[name])
            rig.publishers[name] = rig.outside.create_publisher(kind, name, qos_profile_sensor_data)
        assert rig.good().objects


def test_a_camera_info_that_came_once_is_heard_whatever_the_images_reliability():
    from rclpy.qos import DurabilityPolicy, QoSProfile
    with Rig(reliability="best_effort", activate=False) as rig:
        rig.outside.destroy_publisher(rig.publishers["camera_info"])
        once = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        rig.publishers["camera_info"] = rig.outside.create_publisher(CameraInfo, "camera_info", once)
        messages = scene()
        rig.send({"camera_info": messages.pop("camera_info")})
        rig.spin(0.3)
        assert rig.node.trigger_configure() == rig.node.trigger_activate() == SUCCESS
        rig.send_until(lambda: rig.send(messages), lambda: rig.objects)


def test_enable_and_clear(rig: Rig):
    rig.good()
    assert call(rig, SetBool, "enable", SetBool.Request(data=False)).success
    rig.spin(0.1)
    before = len(rig.objects)
    for _ in range(5):
        rig.send(scene())
        rig.spin(0.03)
    assert len(rig.objects) == before
    assert call(rig, SetBool, "enable", SetBool.Request(data=True)).success
    old = rig.good().objects[0].id
    assert rig.good().objects[0].id == old
    poses = rig.collect(PoseArray, "poses")
    rig.send_until(lambda: rig.send(scene()), lambda: poses and poses[-1].poses)
    rig.spin(0.1)
    assert call(rig, Trigger, "clear", Trigger.Request()).success
    rig.wait(lambda: not rig.objects[-1].objects and not poses[-1].poses)
    assert stamp_ns(rig.objects[-1].header.stamp) == rig.stamp and rig.objects[-1].header.frame_id == "camera"
    assert rig.good().objects[0].id != old


def test_what_is_at_work_when_the_node_is_disabled_is_not_published():
    with Rig(BlockPipeline(delay=0.5)) as rig:
        rig.good()
        rig.send_until(lambda: rig.send(scene(two=True)), lambda: len(rig.pipeline.frames[-1].instances) > 0
                       and {i.label for i in rig.pipeline.frames[-1].instances} == {8})
        assert call(rig, SetBool, "enable", SetBool.Request(data=False)).success
        rig.spin(0.1)                                 # what was on its way
        before = len(rig.objects)
        rig.spin(1.0)
        assert len(rig.objects) == before


def test_a_deactivated_node_takes_its_markers_back():
    with Rig() as rig:
        received = rig.collect(MarkerArray, "markers")
        rig.send_until(lambda: rig.send(scene()), lambda: received)
        shown = {marker.id for marker in received[-1].markers}
        rig.node.trigger_deactivate()
        rig.wait(lambda: {m.id for m in received[-1].markers if m.action in (Marker.DELETE, Marker.DELETEALL)})
        last = received[-1].markers
        assert any(m.action == Marker.DELETEALL for m in last) or shown <= {m.id for m in last
                                                                           if m.action == Marker.DELETE}


def call(rig: Rig, kind: type, name: str, request: Any) -> Any:
    client = rig.outside.create_client(kind, name)
    rig.wait(client.service_is_ready)
    future = client.call_async(request)
    rig.wait(future.done)
    return future.result()


def test_parameters_are_refused_by_name(rig: Rig):
    [result] = rig.node.set_parameters([Parameter("mask_format", value="binary")])
    assert not result.successful
    assert "mask_format" in result.reason
    assert "unconfigured" in result.reason
    [result] = rig.node.set_parameters([Parameter("max_rate", value=-1.0)])
    assert not result.successful
    assert "max_rate" in result.reason
    [result] = rig.node.set_parameters([Parameter("classes", value="cup")])
    assert result.successful
    rig.send_until(lambda: rig.send(scene()), lambda: "MASK_EMPTY" in rig.codes())
    rig.node.set_parameters([Parameter("classes", value="")])
    rig.send_until(lambda: rig.send(scene()), lambda: rig.objects[-1].objects)


def test_a_programming_error_is_reported_and_survived():
    class Broken(BlockPipeline):
        def run(self, frame: Any, earlier: Any, on_stage: Any, others: Any) -> PipelineResult:
            raise ZeroDivisionError("oops")
    with Rig(Broken()) as rig:
        rig.send_until(lambda: rig.send(scene()), lambda: "INTERNAL_ERROR" in rig.codes())
        rig.node._scene._pipeline = BlockPipeline()
        assert rig.good().objects
        assert math.isclose(rig.objects[-1].objects[0].score, 1.0)


def test_callbacks_do_not_wait_for_inference():
    """While the worker is busy, a service is still answered."""
    with Rig(HeldPipeline()) as rig:
        rig.send_until(lambda: rig.send(scene()), rig.pipeline.busy.is_set)
        assert call(rig, SetBool, "enable", SetBool.Request(data=True)).success
        rig.pipeline.go_on.set()
        rig.wait(lambda: rig.objects)
    assert rclpy.ok()
