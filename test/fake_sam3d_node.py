"""Stands in for sam3d_node in tests of the demo: publishes the truth as its result, moved by a known distance.

`python fake_sam3d_node.py` is started with the parameter `model` set to what it shall do: work, fault or die.
"""
from __future__ import annotations

import copy
import sys

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node

from sam3d_ros.msg import ObjectMeshArray
from sam3d_ros.nodes.simulated_camera import LATCHED
from sam3d_ros.ros.transforms import matrix_from_pose, pose_from_matrix

SHIFT = 0.004                # metres upwards, of every object
FAULT = "MODEL_MISSING: a test's fault"


class FakeNode(Node):
    """Publishes `objects`, or a fault, at the rate of camera_pose."""

    def __init__(self):
        super().__init__("sam3d_node")
        self.behaviour = self.declare_parameter("model", "work").value
        self.truth: ObjectMeshArray | None = None
        self.objects = self.create_publisher(ObjectMeshArray, "objects", 5)
        self.diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_subscription(ObjectMeshArray, "ground_truth", self.keep_truth, LATCHED)
        self.create_subscription(PoseStamped, "camera_pose", self.answer, 10)

    def keep_truth(self, message: ObjectMeshArray) -> None:
        self.truth = message

    def answer(self, message: PoseStamped) -> None:
        if self.behaviour == "die":
            raise ValueError("a test's crash")
        if self.behaviour == "fault":
            status = DiagnosticStatus(level=DiagnosticStatus.ERROR, message=FAULT,
                                      values=[KeyValue(key="state", value="unconfigured")])
            self.diagnostics.publish(DiagnosticArray(status=[status]))
        elif self.truth:
            self.objects.publish(self.shifted_truth(message))

    def shifted_truth(self, camera: PoseStamped) -> ObjectMeshArray:
        """The true objects in the camera frame, without the last one."""
        result = copy.deepcopy(self.truth)
        result.header.stamp, result.header.frame_id = camera.header.stamp, "camera"
        del result.objects[-1]
        camera_from_world = np.linalg.inv(matrix_from_pose(camera.pose))
        for mesh in result.objects:
            mesh.header = result.header
            mesh.pose.pose.position.z += SHIFT
            mesh.pose.pose = pose_from_matrix(camera_from_world @ matrix_from_pose(mesh.pose.pose))
        return result


if __name__ == "__main__":
    rclpy.init()
    try:
        rclpy.spin(FakeNode())
    except (KeyboardInterrupt, ExternalShutdownException):
        sys.exit(0)
