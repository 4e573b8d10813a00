"""Grasps for a parallel gripper on the node's meshes: it is there to close the loop and to measure, not to replace a
motion planner.

Reads objects (the +Z of target_frame must point up), publishes grasps (PoseArray, the best first; +Z is the approach,
+Y along which the fingers close, the origin between the fingertips) and grasp_markers, in the frame of the objects.
"""
from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from geometry_msgs.msg import Point, PoseArray, Vector3
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from sam3d_ros.msg import ObjectMesh, ObjectMeshArray

from ..grasping.antipodal import Grasp, SceneMesh, plan_grasps
from ..grasping.gripper import FRANKA, ParallelGripper
from ..ros.messages import MeshMemory, mesh_arrays
from ..ros.qos import RESULTS
from ..ros.running import log_exception, run_node
from ..ros.transforms import matrix_from_pose, pose_from_matrix
from ..ros.worker import Worker

_LEAST_UPRIGHT = math.cos(math.radians(45))    # cosine between an upright object's +Z and the frame's
_EXCUSE_PERIOD = 10.0        # seconds at least between two lines that say why there is no grasp


class GraspConsumer(Node):
    """The node."""

    def __init__(self, **node_arguments: Any):
        super().__init__("grasp_consumer", **node_arguments)
        self._height = self._parameter("support_height", math.nan, "height of the support in the objects' frame; not a "
                                                                   "number: where the lowest object ends [m]")
        self._parameter("target", "", "id or class of what is to be grasped; empty: any object", live=True)
        self._count = self._parameter("max_grasps", 10, "grasps published per message at most")
        self._gripper = ParallelGripper(
            self._parameter("max_opening", FRANKA.max_opening, "between the open fingers [m]"), FRANKA.finger_length,
            FRANKA.finger_width, FRANKA.finger_thickness, FRANKA.palm)
        self._memory = MeshMemory()
        self._doubted_frame: str | None = None
        self._poses = self.create_publisher(PoseArray, "grasps", RESULTS)
        self._markers = self.create_publisher(MarkerArray, "grasp_markers", RESULTS)
        # Planning takes longer than an image: in a thread of its own, so that no message with a mesh is lost meanwhile.
        self._planner = Worker(self._plan, lambda: 0.0)
        self.create_subscription(ObjectMeshArray, "objects", self._on_objects, RESULTS)

    def destroy_node(self) -> None:
        """Stop the planner, then destroy the node."""
        self._planner.stop()
        super().destroy_node()

    def _parameter(self, name: str, default: float | int | str, description: str, live: bool = False) -> Any:
        descriptor = ParameterDescriptor(description=description, read_only=not live)
        if name == "max_opening":
            descriptor.floating_point_range = [FloatingPointRange(from_value=0.02, to_value=0.5, step=0.0)]
        elif isinstance(default, int):
            descriptor.integer_range = [IntegerRange(from_value=1, to_value=1000, step=1)]
        return self.declare_parameter(name, default, descriptor).value

    def _on_objects(self, message: ObjectMeshArray) -> None:
        self._planner.put(self._memory.complete(message))

    def _plan(self, message: ObjectMeshArray) -> None:
        """Publish grasps for the newest message, in the planner's thread."""
        try:
            self._publish_grasps(message)
        except Exception as error:
            log_exception(self, error)

    def _publish_grasps(self, message: ObjectMeshArray) -> None:
        objects, wanted = message.objects, self.get_parameter("target").value
        self._doubt_frame(message)
        meshes = [_posed(item) for item in objects]
        # What is hidden may still be in the way, but where it is now is not known well enough to grasp it.
        seen = [index for index, item in enumerate(objects) if item.status != ObjectMesh.STATUS_HIDDEN]
        targets = [index for index in seen if wanted in ("", objects[index].id, objects[index].class_id)]
        grasps = plan_grasps(meshes, self._support(meshes), self._gripper, targets, self._count) if targets else []
        self._poses.publish(PoseArray(header=message.header,
                                      poses=[pose_from_matrix(grasp.world_from_grasp) for grasp in grasps]))
        self._markers.publish(grasp_markers(grasps, self._gripper, message.header))
        if seen and not grasps:
            self.get_logger().info(_excuse([objects[index] for index in seen], [objects[index] for index in targets],
                                           wanted), throttle_duration_sec=_EXCUSE_PERIOD)

    def _doubt_frame(self, message: ObjectMeshArray) -> None:
        """Say once of a frame that its +Z does not point up, where it is far from that of every object."""
        frame = message.header.frame_id
        upright = [matrix_from_pose(item.pose.pose)[2, 2] for item in message.objects]
        if upright and max(upright) < _LEAST_UPRIGHT and frame != self._doubted_frame:
            self._doubted_frame = frame
            self.get_logger().warning(f"no object stands upright in '{frame}': its +Z seems not to point up, so that "
                                      "grasps come from a wrong side; set sam3d_node's target_frame")

    def _support(self, meshes: list[SceneMesh]) -> np.ndarray:
        height = self._height
        if math.isnan(height):
            height = min((float(mesh.vertices[:, 2].min()) for mesh in meshes), default=0.0)
        return np.array([0.0, 0.0, 1.0, -height])


def grasp_markers(grasps: list[Grasp], gripper: ParallelGripper, header: Header) -> MarkerArray:
    """The hand at each grasp as lines, the better the greener, after deletion of the earlier ones."""
    markers = [Marker(header=header, action=Marker.DELETEALL)]
    for number, grasp in enumerate(grasps):
        marker = Marker(header=header, ns="grasps", id=number, type=Marker.LINE_LIST, action=Marker.ADD)
        marker.pose = pose_from_matrix(grasp.world_from_grasp)
        marker.scale = Vector3(x=0.004)
        quality = min(grasp.score / grasps[0].score, 1.0)      # doubtful meshes come last, whatever their score
        marker.color = ColorRGBA(r=1.0 - quality, g=quality, b=0.1, a=1.0)
        half, back = grasp.opening / 2, -gripper.finger_length
        for y0, z0, y1, z1 in ((half, 0.0, half, back), (-half, 0.0, -half, back), (half, back, -half, back),
                               (0.0, back, 0.0, 2 * back)):
            marker.points += [Point(y=y0, z=z0), Point(y=y1, z=z1)]
        markers.append(marker)
    return MarkerArray(markers=markers)


def _excuse(seen: list[ObjectMesh], targets: list[ObjectMesh], wanted: str) -> str:
    """Why there is no grasp of the targets, those of the objects seen that `wanted` names."""
    names = ", ".join(f"{item.id} ({item.class_id})" if item.class_id else item.id for item in targets or seen)
    if not targets:
        return f"nothing in view has the id or class '{wanted}'; there is {names}"
    return f"no grasp found of {names}: too wide for max_opening, too low, too uncertain, or others are in the way"


def _posed(item: ObjectMesh) -> SceneMesh:
    arrays, frame_from_object = mesh_arrays(item), matrix_from_pose(item.pose.pose)
    vertices = arrays.vertices @ frame_from_object[:3, :3].T + frame_from_object[:3, 3]
    return SceneMesh(vertices, arrays.triangles, arrays.vertex_std if len(arrays.vertex_std) else None,
                     item.status == ObjectMesh.STATUS_LOW_QUALITY)


def main() -> int:
    """Run the node until it is interrupted; the exit status."""
    return run_node(GraspConsumer)


if __name__ == "__main__":
    sys.exit(main())
