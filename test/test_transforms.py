"""Matrices to messages and back, tf2 look-ups."""
from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy")

import rclpy  # noqa: E402
from geometry_msgs.msg import TransformStamped  # noqa: E402
from scipy.spatial.transform import Rotation  # noqa: E402
from stand_ins import provide_tf2_ros  # noqa: E402
from std_msgs.msg import Header  # noqa: E402

from sam3d_ros.perception.faults import Fault, FaultCode  # noqa: E402
from sam3d_ros.ros.images import stamp_message  # noqa: E402
from sam3d_ros.ros.optional import optional  # noqa: E402
from sam3d_ros.ros.transforms import (  # noqa: E402
    Transforms,
    matrix_from_pose,
    matrix_from_transform,
    pose_from_matrix,
    transform_from_matrix,
)

SECOND = 1_000_000_000
T0 = 1000 * SECOND


def pose(x: float, y: float, z: float, degrees: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = x, y, z
    return matrix


def test_matrices_there_and_back():
    matrix = pose(1, -2, 3, (10, 20, 170))
    np.testing.assert_allclose(matrix_from_pose(pose_from_matrix(matrix)), matrix, atol=1e-12)
    np.testing.assert_allclose(matrix_from_transform(transform_from_matrix(matrix)), matrix, atol=1e-12)
    quarter = pose_from_matrix(pose(0, 0, 0, (0, 0, 90))).orientation
    assert (quarter.z, quarter.w) == pytest.approx((np.sqrt(0.5), np.sqrt(0.5)))


@pytest.fixture
def transforms(ros: None, monkeypatch: pytest.MonkeyPatch):
    provide_tf2_ros(monkeypatch)
    node = rclpy.create_node("listener")
    yield Transforms(node)
    node.destroy_node()


def give(transforms: Transforms, at_ns: int, matrix: np.ndarray) -> None:
    message = TransformStamped(child_frame_id="camera", transform=transform_from_matrix(matrix))
    message.header.frame_id = "base"
    message.header.stamp = stamp_message(at_ns)
    transforms.buffer.set_transform(message, "test")


def test_look_up_interpolates_at_the_stamp(transforms: Transforms):
    give(transforms, T0, pose(0, 0, 1))
    give(transforms, T0 + SECOND, pose(1, 0, 1, (0, 0, 90)))
    found = transforms.target_from_camera("base", "camera", T0 + SECOND // 2, 0.0)
    np.testing.assert_allclose(found, pose(0.5, 0, 1, (0, 0, 45)), atol=1e-6)
    # Direction: a point at the camera's origin lies at (1, 0, 1) of the base.
    found = transforms.target_from_camera("base", "camera", T0 + SECOND, 0.0)
    np.testing.assert_allclose(found @ [0, 0, 0, 1], [1, 0, 1, 1], atol=1e-6)


@pytest.mark.parametrize(("at_ns", "code", "words"), [
    (T0 + 3 * SECOND, FaultCode.TF_STALE, "2.000 s before"), (T0 - SECOND, FaultCode.TF_FUTURE, "2.000 s after")])
def test_look_up_faults(transforms: Transforms, at_ns: int, code: FaultCode, words: str):
    with pytest.raises(Fault) as caught:
        transforms.target_from_camera("base", "camera", at_ns, 0.0)
    assert caught.value.code == FaultCode.TF_MISSING
    give(transforms, T0, pose(0, 0, 1))
    give(transforms, T0 + SECOND, pose(0, 0, 1))
    with pytest.raises(Fault) as caught:
        transforms.target_from_camera("base", "camera", at_ns, 0.01)
    assert caught.value.code == code
    assert words in caught.value.detail


def test_each_child_is_sent_once_for_a_stamp(transforms: Transforms, monkeypatch: pytest.MonkeyPatch):
    sent: list[TransformStamped] = []
    monkeypatch.setattr(transforms._broadcaster, "sendTransform", sent.extend)
    for at_ns, children in ((T0, "ab"), (T0, "bc"), (T0 + SECOND, "b")):
        header = Header(stamp=stamp_message(at_ns), frame_id="base")
        transforms.broadcast({child: pose(ord(child), 0, 0) for child in children}, header)
    assert [t.child_frame_id for t in sent] == ["a", "b", "c", "b"]
    assert [t.transform.translation.x for t in sent] == [97, 98, 99, 98] and sent[3].header.stamp.sec == 1001


def test_without_tf2_ros_the_reason_is_given(ros: None):
    if optional("tf2_ros"):
        pytest.skip("tf2_ros is installed")
    with pytest.raises(Fault, match="tf2_ros is not installed"):
        Transforms(None)


def test_optional_packages():
    assert optional("no_such_package.msg") is None
    assert optional("json").loads("1") == 1
