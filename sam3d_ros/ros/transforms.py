"""Poses in the target frame: tf2 look-ups at the image's stamp, and 4x4 matrices to messages and back.

tf2_ros is not among the ROS 2 wheels of PyPI, and neither are its messages.  Without it poses are given in the camera's
frame only: a `target_frame` is refused with TF_MISSING.
"""
from __future__ import annotations

import time

import numpy as np
from geometry_msgs.msg import Point, Pose, Quaternion, Transform, TransformStamped, Vector3
from rclpy.node import Node
from rclpy.time import Time
from scipy.spatial.transform import Rotation
from std_msgs.msg import Header

from ..perception.faults import Fault, FaultCode
from .images import stamp_ns
from .optional import optional

# How often to look for a transform that has not come yet, seconds.
_POLL = 0.005


class Transforms:
    """Listens to TF, and broadcasts the objects' poses."""

    def __init__(self, node: Node):
        """Raises Fault TF_MISSING where tf2_ros is not installed."""
        tf2_ros = optional("tf2_ros")
        if tf2_ros is None:
            raise Fault(FaultCode.TF_MISSING, "tf2_ros is not installed: leave target_frame empty and publish_tf false")
        self._error = tf2_ros.TransformException
        self.buffer = tf2_ros.Buffer()
        self._listener = tf2_ros.TransformListener(self.buffer, node)
        self._broadcaster = tf2_ros.TransformBroadcaster(node)
        self._sent_ns, self._sent = 0, set[str]()       # the newest stamp, and the children sent with it
        self._node = node

    def destroy(self) -> None:
        """Release the subscriptions and the publisher."""
        self._listener.unregister()
        self._node.destroy_publisher(self._broadcaster.pub_tf)

    def clear(self) -> None:
        """Forget all transforms but the static ones."""
        self.buffer.clear()

    def target_from_camera(self, target_frame: str, camera_frame: str, at_ns: int, timeout: float) -> np.ndarray:
        """(4, 4) float64, camera frame -> target frame, at the stamp `at_ns`; waits `timeout` seconds for it.

        Blocks: not for the thread that the node's callbacks run in.
        Raises Fault TF_MISSING, TF_STALE, TF_FUTURE.
        """
        deadline = time.monotonic() + timeout
        at = Time(nanoseconds=at_ns)
        while True:
            try:
                return matrix_from_transform(self.buffer.lookup_transform(target_frame, camera_frame, at).transform)
            except self._error as error:
                if time.monotonic() >= deadline:
                    raise self._fault(target_frame, camera_frame, at_ns, str(error)) from error
            time.sleep(_POLL)

    def broadcast(self, poses: dict[str, np.ndarray], header: Header) -> None:
        """Publish (4, 4) poses, child frame -> matrix, in the frame and at the stamp of `header`; each child once for a
        stamp: TF keeps the first, and warns of the others."""
        if stamp_ns(header.stamp) != self._sent_ns:
            self._sent_ns, self._sent = stamp_ns(header.stamp), set()
        self._broadcaster.sendTransform([
            TransformStamped(header=header, child_frame_id=child, transform=transform_from_matrix(matrix))
            for child, matrix in poses.items() if child not in self._sent])
        self._sent |= poses.keys()

    def _fault(self, target_frame: str, camera_frame: str, at_ns: int, reason: str) -> Fault:
        """Why there is no transform at that time: compared with the newest that there is."""
        try:
            newest = self.buffer.lookup_transform(target_frame, camera_frame, Time())
        except self._error:
            return Fault(FaultCode.TF_MISSING, f"{camera_frame} -> {target_frame}: {reason}")
        behind = (at_ns - stamp_ns(newest.header.stamp)) / 1e9
        code = FaultCode.TF_STALE if behind > 0 else FaultCode.TF_FUTURE
        return Fault(code, f"{camera_frame} -> {target_frame}: newest transform {abs(behind):.3f} s "
                           f"{'before' if behind > 0 else 'after'} the image")


def quaternion_from_matrix(matrix: np.ndarray) -> Quaternion:
    """Orientation of a (4, 4) or (3, 3) matrix."""
    x, y, z, w = Rotation.from_matrix(matrix[:3, :3]).as_quat().tolist()
    return Quaternion(x=x, y=y, z=z, w=w)


def pose_from_matrix(matrix: np.ndarray) -> Pose:
    """Pose message of a (4, 4) matrix, metres."""
    x, y, z = matrix[:3, 3].tolist()
    return Pose(position=Point(x=x, y=y, z=z), orientation=quaternion_from_matrix(matrix))


def transform_from_matrix(matrix: np.ndarray) -> Transform:
    """Transform message of a (4, 4) matrix, metres."""
    x, y, z = matrix[:3, 3].tolist()
    return Transform(translation=Vector3(x=x, y=y, z=z), rotation=quaternion_from_matrix(matrix))


def matrix_from_pose(pose: Pose) -> np.ndarray:
    """(4, 4) float64 of a Pose message."""
    return _matrix(pose.position, pose.orientation)


def matrix_from_transform(transform: Transform) -> np.ndarray:
    """(4, 4) float64 of a Transform message."""
    return _matrix(transform.translation, transform.rotation)


def _matrix(translation: Point | Vector3, rotation: Quaternion) -> np.ndarray:
    """(4, 4) float64."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_quat([rotation.x, rotation.y, rotation.z, rotation.w]).as_matrix()
    matrix[:3, 3] = translation.x, translation.y, translation.z
    return matrix


