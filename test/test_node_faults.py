"""Bad input to the node: no crash, no wrong output, one named diagnostic, and recovery when the input is good again."""
from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402
from geometry_msgs.msg import TransformStamped  # noqa: E402
from node_rig import HEIGHT, OBJECT, WIDTH, BlockPipeline, RefusingPipeline, Rig, scene  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import qos_profile_sensor_data  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image  # noqa: E402
from stand_ins import provide_tf2_ros  # noqa: E402

from sam3d_ros.perception.faults import Fault, FaultCode  # noqa: E402
from sam3d_ros.perception.frame import Frame  # noqa: E402
from sam3d_ros.perception.pipeline import PipelineResult  # noqa: E402
from sam3d_ros.ros.images import decode_pixels, encode_image, stamp_message  # noqa: E402
from sam3d_ros.ros.transforms import matrix_from_pose  # noqa: E402

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("ros")]

Messages = dict[str, Any]


def depth(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Messages], None]:
    """Spoils the depth image by a function of its pixels, (H, W) float32."""
    def spoil(messages: Messages) -> None:
        message = messages["depth_image"]
        changed = change(decode_pixels(message)).astype(np.float32)
        messages["depth_image"] = encode_image(changed, "32FC1", message.header)
    return spoil


def mask(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Messages], None]:
    """Spoils the masks by a function of its labels, (H, W) uint8."""
    def spoil(messages: Messages) -> None:
        message = messages["segmentation"]
        messages["segmentation"] = encode_image(change(decode_pixels(message)), "mono8", message.header)
    return spoil


def field(stream: str, name: str, value: Any) -> Callable[[Messages], None]:
    """Spoils one field of one message."""
    return lambda messages: setattr(messages[stream], name, value)


def truncate(stream: str) -> Callable[[Messages], None]:
    def spoil(messages: Messages) -> None:
        messages[stream].data = messages[stream].data[:-10]
    return spoil


def resize_camera_info(messages: Messages) -> None:
    messages["camera_info"].width, messages["camera_info"].height = 2 * WIDTH, 2 * HEIGHT


def zero_k(messages: Messages) -> None:
    messages["camera_info"].k = [0.0] * 9
    messages["camera_info"].p = [0.0] * 12


def distort(messages: Messages) -> None:
    messages["camera_info"].d = [0.1, 0.0, 0.0, 0.0, 0.0]
    messages["camera_info"].p = [0.0] * 12


def other_depth_frame(messages: Messages) -> None:
    messages["depth_image"].header.frame_id = "depth_camera"


def no_frame(messages: Messages) -> None:
    for message in messages.values():
        message.header.frame_id = ""


def small_depth(messages: Messages) -> None:
    header = messages["depth_image"].header
    messages["depth_image"] = encode_image(np.ones((HEIGHT // 2, WIDTH // 2), np.float32), "32FC1", header)


# name -> code, what spoils the messages of each moment
FRAMES = {
    "camera_info resized": (FaultCode.CAMERA_INFO_SIZE_MISMATCH, resize_camera_info),
    "camera_info K = 0": (FaultCode.CAMERA_INFO_UNCALIBRATED, zero_k),
    "camera_info distorted": (FaultCode.CAMERA_INFO_DISTORTED, distort),
    "image encoding unknown": (FaultCode.IMAGE_ENCODING_UNKNOWN, field("image", "encoding", "jpeg")),
    "image big-endian": (FaultCode.IMAGE_BIG_ENDIAN, field("image", "is_bigendian", 1)),
    "image truncated": (FaultCode.IMAGE_TRUNCATED, truncate("image")),
    "image step too short": (FaultCode.IMAGE_TRUNCATED, field("image", "step", WIDTH)),
    "mask of another size": (FaultCode.MASK_SIZE_MISMATCH, mask(lambda m: m[:, :HEIGHT])),
    "mask all foreground": (FaultCode.MASK_ALL_FOREGROUND, mask(np.ones_like)),
    "mask encoding unknown": (FaultCode.MASK_ENCODING_UNKNOWN, field("segmentation", "encoding", "32FC1")),
    "mask big-endian": (FaultCode.MASK_BIG_ENDIAN, field("segmentation", "is_bigendian", 1)),
    "mask truncated": (FaultCode.MASK_TRUNCATED, truncate("segmentation")),
    "depth all NaN": (FaultCode.DEPTH_EMPTY, depth(lambda d: d * np.nan)),
    "depth all zero": (FaultCode.DEPTH_EMPTY, depth(lambda d: d * 0)),
    "depth infinite": (FaultCode.DEPTH_EMPTY, depth(lambda d: d * np.inf)),
    "depth in millimetres": (FaultCode.DEPTH_UNIT_SUSPECT, depth(lambda d: d * 1000)),
    "depth of another size": (FaultCode.DEPTH_SIZE_MISMATCH, small_depth),
    "depth of another frame": (FaultCode.DEPTH_FRAME_MISMATCH, other_depth_frame),
    "depth encoding unknown": (FaultCode.DEPTH_ENCODING_UNKNOWN, field("depth_image", "encoding", "rgb8")),
    "depth truncated": (FaultCode.IMAGE_TRUNCATED, truncate("depth_image")),
}


@pytest.fixture(scope="module")
def rig(ros: None) -> Iterator[Rig]:
    """One node for all faults of single moments: that it goes on is part of the test."""
    with Rig() as shared:
        yield shared


@pytest.mark.parametrize(("code", "spoil"), FRAMES.values(), ids=FRAMES.keys())
def test_bad_frame_is_named_and_gives_no_output(rig: Rig, code: FaultCode, spoil: Callable[[Messages], None]):
    settled(rig)
    expect_fault(rig, code, spoil)
    expect_recovery(rig)


def settled(rig: Rig) -> None:
    """Send good moments, until nothing more can come of them: the newest has given its result."""
    rig.good()
    rig.wait(lambda: stamp_message(rig.stamp) == rig.objects[-1].header.stamp)


def test_objects_in_images_without_a_frame_are_rebuilt_with_a_warning_but_have_no_place_in_another_frame(
        ros: None, monkeypatch: pytest.MonkeyPatch):
    def send() -> None:
        messages = scene()
        no_frame(messages)
        rig.send(messages)
    with Rig() as rig:
        rig.send_until(send, lambda: "FRAME_ID_MISSING" in rig.codes() and rig.objects and rig.objects[-1].objects)
        assert rig.objects[-1].header.frame_id == ""
    provide_tf2_ros(monkeypatch)
    with Rig(target_frame="base") as rig:
        expect_fault(rig, FaultCode.FRAME_ID_MISSING, no_frame)


def expect_fault(rig: Rig, code: FaultCode, spoil: Callable[[Messages], None]) -> None:
    """Send spoiled moments until the fault is diagnosed; there must be no output and no other fault."""
    rig.spin(0.05)  # the last good results arrive
    rig.wait(lambda: rig.codes()[-1:] == ["OK"])
    rig.diagnostics.clear()
    rig.objects.clear()

    def send() -> None:
        messages = scene()
        spoil(messages)
        rig.send(messages)
    rig.send_until(send, lambda: code.name in rig.codes())
    rig.spin(0.1)
    assert set(rig.codes()) - {"OK"} == {code.name}
    assert rig.objects == []


def expect_recovery(rig: Rig) -> None:
    result = rig.good()
    assert result.objects[0].pose.pose.position.z == pytest.approx(OBJECT, abs=1e-3)
    rig.wait(lambda: rig.codes()[-1:] == ["OK"])


def test_padded_rows_give_the_same_result(rig: Rig):
    expected = rig.good().objects[0].pose
    messages = scene()
    for name in ("image", "depth_image", "segmentation"):
        pad(messages[name])
    before = len(rig.objects)
    rig.send(messages)
    rig.wait(lambda: len(rig.objects) > before)
    np.testing.assert_allclose(matrix_from_pose(rig.objects[-1].objects[0].pose.pose), matrix_from_pose(expected.pose),
                               atol=1e-3)


def pad(message: Image) -> None:
    """Add 12 bytes of rubbish to each row."""
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    message.data = np.pad(rows, ((0, 0), (0, 12)), constant_values=255).tobytes()
    message.step += 12


def test_empty_mask_is_a_warning_and_an_object_that_is_still_there_stays(rig: Rig):
    known = rig.good().objects[0].id
    messages = scene()
    mask(np.zeros_like)(messages)
    before = len(rig.objects)
    rig.send(messages)
    rig.wait(lambda: len(rig.objects) > before and "MASK_EMPTY" in rig.codes())
    assert [(o.id, o.status) for o in rig.objects[-1].objects] == [(known, 0)]
    expect_recovery(rig)


def test_an_image_without_objects_gives_an_empty_array():
    with Rig() as rig:
        messages = scene()
        mask(np.zeros_like)(messages)
        rig.send(messages)
        rig.wait(lambda: rig.objects and "MASK_EMPTY" in rig.codes())
        assert len(rig.objects[-1].objects) == 0


def test_images_without_objects_are_freed_at_once():
    def frames() -> int:
        return sum(isinstance(thing, Frame) for thing in gc.get_objects())

    with Rig() as rig:
        messages = scene()
        mask(np.zeros_like)(messages)
        rig.good()
        gc.collect()
        before = frames()
        gc.disable()
        try:
            for count in range(len(rig.objects) + 1, len(rig.objects) + 6):
                rig.send(messages)
                rig.wait(lambda count=count: len(rig.objects) >= count)
            assert frames() <= before + 1
        finally:
            gc.enable()


def test_an_input_of_another_type_is_named():
    """ROS matches no subscription with it, so that nothing comes on a topic whose name is right."""
    context = rclpy.Context()                      # one participant of DDS cannot have two types on a topic
    rclpy.init(context=context)
    try:
        detector = rclpy.create_node("detector", context=context)
        with Rig(input_timeout=0.5) as rig:
            rig.outside.destroy_publisher(rig.publishers["segmentation"])
            detector.create_publisher(CompressedImage, f"/{rig.namespace}/segmentation", 10)
            inputs = scene()
            del inputs["segmentation"]
            told = f"MASK_MISSING: /{rig.namespace}/segmentation is published as sensor_msgs/msg/CompressedImage, " \
                   "not as sensor_msgs/msg/Image; on segmentation for "
            rig.send_until(lambda: rig.send(inputs), lambda: any(
                status.message.startswith(told) for array in rig.diagnostics for status in array.status))
            assert "/image is published" not in rig.diagnostics[-1].status[0].message
        detector.destroy_node()
    finally:
        rclpy.shutdown(context=context)


def test_an_input_that_is_less_reliable_than_wanted_is_named():
    with Rig(input_timeout=0.5, reliability="reliable") as rig:
        rig.outside.destroy_publisher(rig.publishers["depth_image"])
        rig.publishers["depth_image"] = rig.outside.create_publisher(Image, "depth_image", qos_profile_sensor_data)
        told = f"DEPTH_MISSING: /{rig.namespace}/depth_image is published best effort, and parameter reliability is " \
               "reliable: set it to auto; on depth_image for "
        rig.send_until(lambda: rig.send(scene()), lambda: any(
            status.message.startswith(told) for array in rig.diagnostics for status in array.status))


def test_what_was_mended_of_an_image_is_a_warning():
    class MendingPipeline(BlockPipeline):
        def run(self, *arguments: Any, **named: Any) -> PipelineResult:
            return replace(super().run(*arguments, **named), warnings=(Fault(FaultCode.MASKS_SHIFTED, "moved"),))
    with Rig(MendingPipeline()) as rig:
        rig.send(scene())
        rig.wait(lambda: rig.objects and "MASKS_SHIFTED" in rig.codes())
        (status,) = {status.level: status for array in rig.diagnostics for status in array.status
                     if status.message.startswith("MASKS_SHIFTED")}.values()
        assert status.level == DiagnosticStatus.WARN
        assert [len(o.vertices) > 0 for o in rig.objects[-1].objects] == [True]


def test_too_many_objects_keeps_the_largest():
    def three(labels: np.ndarray) -> np.ndarray:
        labels[:] = 0
        labels[2:8, 2:8], labels[20:40, 20:40], labels[2:12, 40:50] = 1, 2, 3
        return labels
    with Rig(max_objects=2) as rig:
        messages = scene()
        mask(three)(messages)
        rig.send(messages)
        rig.wait(lambda: rig.objects and "TOO_MANY_OBJECTS" in rig.codes())
        assert [len(o.vertices) > 0 for o in rig.objects[-1].objects] == [True, True]
        assert [i.label for i in rig.pipeline.frames[-1].instances] == [2, 3]


@pytest.mark.parametrize(("stamp_ns", "code"), [
    (lambda now: 0, "STAMP_MISSING"),
    (lambda now: now - 100_000_000, "STAMP_OUT_OF_ORDER"),
], ids=["missing", "late"])
def test_message_with_a_bad_stamp_is_dropped(rig: Rig, stamp_ns, code):
    settled(rig)
    rig.diagnostics.clear()
    rig.spin(0.05)
    before, now = len(rig.objects), rig.stamp
    rig.send(scene(), stamp_ns=stamp_ns(now))
    rig.wait(lambda: code in rig.codes())
    assert len(rig.objects) == before
    rig.stamp = now
    expect_recovery(rig)


def test_clock_that_jumps_back_resets(rig: Rig):
    rig.good()
    rig.send(scene(), stamp_ns=rig.stamp - 4_000_000_000)
    rig.wait(lambda: "CLOCK_JUMPED_BACK" in rig.codes())
    expect_recovery(rig)


def test_a_short_bag_in_a_loop_goes_on():
    with Rig(input_timeout=1.0, reconstruct_hz=100.0) as rig:
        rig.good()
        start, counts = rig.stamp + 1_000_000_000, []
        for _ in range(4):
            before = len(rig.objects)
            for step in range(20):
                rig.send(scene(), start + step * 40_000_000)
                rig.spin(0.03)
            counts.append(len(rig.objects) - before)
        assert min(counts) >= 8, counts
        assert "CLOCK_JUMPED_BACK" in rig.codes()
        assert not {"IMAGE_MISSING", "STAMPS_DO_NOT_MATCH"} & set(rig.codes())


# missing stream -> code
MISSING = {
    "image": FaultCode.IMAGE_MISSING,
    "camera_info": FaultCode.CAMERA_INFO_MISSING,
    "depth_image": FaultCode.DEPTH_MISSING,
    "segmentation": FaultCode.MASK_MISSING,
}


@pytest.mark.parametrize(("missing", "code"), MISSING.items(), ids=MISSING.keys())
def test_missing_input_is_named_and_may_come_late(missing: str, code: FaultCode):
    with Rig(input_timeout=0.2) as rig:
        rig.send_until(lambda: rig.send({name: message for name, message in scene().items() if name != missing}),
                       lambda: code.name in rig.codes())
        assert set(rig.codes()) - {"OK"} == {code.name}
        assert rig.objects == []
        expect_recovery(rig)


def test_stamps_that_never_match():
    with Rig(input_timeout=0.3) as rig:
        def send() -> None:
            messages = scene()
            segmentation = messages.pop("segmentation")
            at = rig.send(messages)
            rig.send({"segmentation": segmentation}, at + 10_000_000)
            rig.stamp = at
        rig.send_until(send, lambda: "STAMPS_DO_NOT_MATCH" in rig.codes())
        assert rig.objects == []
        status = rig.diagnostics[-1].status[0]
        assert "+10.0 ms" in status.message
        expect_recovery(rig)


@pytest.mark.parametrize(("offset_s", "code"), [
    (None, FaultCode.TF_MISSING), (-1.0, FaultCode.TF_STALE), (60.0, FaultCode.TF_FUTURE)],
    ids=["missing", "stale", "future"])
def test_transform_not_there(monkeypatch: pytest.MonkeyPatch, offset_s: float | None, code: FaultCode):
    provide_tf2_ros(monkeypatch)
    with Rig(target_frame="base", tf_timeout=0.0) as rig:
        if offset_s is not None:
            publish_transform(rig, rig.stamp + int(offset_s * 1e9))
        rig.send_until(lambda: rig.send(scene()), lambda: code.name in rig.codes())
        assert rig.objects == []
        rig.node._transforms.clear()
        publish_transform(rig, rig.stamp - 4_000_000_000)
        publish_transform(rig, rig.stamp + 4_000_000_000)
        assert rig.good().header.frame_id == "base"


def test_a_fault_of_what_is_no_more_goes():
    """Of an object that has left; of images when none is worked on any more; of a job that a deactivated node had."""
    with Rig(RefusingPipeline(8), reconstruct_hz=20.0) as rig:
        rig.send_until(lambda: rig.send(scene(two=True)), lambda: "TOO_FEW_POINTS" in rig.codes())
        rig.send_until(lambda: rig.send(scene()), lambda: rig.codes()[-1] == "OK")

        def spoil() -> None:
            messages = scene()
            everything = np.ones((HEIGHT, WIDTH), np.uint8)
            messages["segmentation"] = encode_image(everything, "mono8", messages["image"].header)
            rig.send(messages)
        rig.send_until(spoil, lambda: "MASK_ALL_FOREGROUND" in rig.codes())
        rig.node.set_parameters([Parameter("enabled", value=False)])
        rig.send_until(lambda: rig.send(scene()), lambda: rig.codes()[-1] == "OK")


def test_a_node_that_was_deactivated_while_it_waited_for_a_transform_reports_nothing(monkeypatch: pytest.MonkeyPatch):
    provide_tf2_ros(monkeypatch)
    with Rig(target_frame="base", tf_timeout=0.3) as rig:
        rig.send_until(lambda: rig.send(scene()), lambda: "TF_MISSING" in rig.codes())
        rig.send(scene())
        rig.spin(0.1)
        rig.node.trigger_deactivate()
        rig.spin(0.6)
        rig.diagnostics.clear()
        rig.spin(0.4)
        assert rig.codes() == ["OK"]


def publish_transform(rig: Rig, stamp_ns: int) -> None:
    transform = TransformStamped(child_frame_id="camera")
    transform.header.frame_id = "base"
    transform.header.stamp = stamp_message(stamp_ns)
    transform.transform.rotation.w = 1.0
    rig.node._transforms.buffer.set_transform(transform, "test")
