"""The node's publishers."""
from __future__ import annotations

from collections.abc import Sequence

from geometry_msgs.msg import PoseArray
from rclpy.lifecycle import LifecycleNode
from rclpy.lifecycle.publisher import LifecyclePublisher
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Float64, Header
from visualization_msgs.msg import MarkerArray

from sam3d_ros.msg import ObjectMeshArray

from ..perception.faults import Fault, FaultCode
from ..perception.frame import Frame
from .debug_image import draw
from .images import encode_image
from .messages import (
    MarkerTracker,
    PlacedObject,
    PlanningSceneTracker,
    detection_3d_array,
    object_mesh_array,
    object_points,
    pose_array,
)
from .optional import optional
from .parameters import Settings
from .qos import RESULTS
from .transforms import Transforms


class Outputs:
    """Publishes the objects of an image on all topics; what is costly only while somebody listens."""

    def __init__(self, node: LifecycleNode, settings: Settings):
        """Raises Fault PARAMETER_INVALID if publish_planning_scene is set and moveit_msgs is not installed."""
        self._node = node
        self._vision_msgs = optional("vision_msgs.msg")
        moveit_msgs = optional("moveit_msgs.msg") if settings.publish_planning_scene else None
        if settings.publish_planning_scene and moveit_msgs is None:
            raise Fault(FaultCode.PARAMETER_INVALID, "parameter publish_planning_scene: needs the package moveit_msgs")
        self._publishers: list[LifecyclePublisher] = []
        self._objects = self._create(ObjectMeshArray, "objects")
        self._poses = self._create(PoseArray, "poses")
        self._markers = self._create(MarkerArray, "markers")
        self._points = self._create(PointCloud2, "object_points")
        self._processing = self._create(Float64, "debug/processing_ms")
        self._latency = self._create(Float64, "debug/pipeline_latency_ms")
        self._image = self._create(Image, "debug/image")
        self._detections = self._scene = None
        if self._vision_msgs:
            self._detections = self._create(self._vision_msgs.Detection3DArray, "detections_3d")
        if moveit_msgs:
            self._scene = self._create(moveit_msgs.PlanningScene, "planning_scene")
        self._marker_tracker = MarkerTracker()
        self._scene_tracker = PlanningSceneTracker(moveit_msgs) if moveit_msgs else None

    def destroy(self) -> None:
        """Release the publishers."""
        for publisher in self._publishers:
            self._node.destroy_lifecycle_publisher(publisher)

    def publish(self, placed: Sequence[PlacedObject], header: Header, frame: Frame, settings: Settings,
                transforms: Transforms | None) -> ObjectMeshArray:
        """Publish the objects of `frame`, placed in the frame of `header`; returns the ObjectMeshArray."""
        meshes = object_mesh_array(placed, header)
        self._objects.publish(meshes)
        self._poses.publish(pose_array(placed, header))
        if self._detections:
            self._detections.publish(detection_3d_array(self._vision_msgs, meshes))
        if settings.publish_tf and transforms:
            transforms.broadcast({f"sam3d/{p.id}": p.target_from_object for p in placed}, header)
        if self._scene:
            self._scene.publish(self._scene_tracker.update(placed, header))
        if settings.publish_markers and self._markers.get_subscription_count():
            self._markers.publish(self._marker_tracker.update(placed, header))
        if settings.publish_object_points and self._points.get_subscription_count():
            self._points.publish(object_points(placed, header))
        if settings.publish_debug_image and self._image.get_subscription_count():
            image_header = Header(stamp=header.stamp, frame_id=frame.frame_id)
            self._image.publish(encode_image(draw(frame, [p.object for p in placed]), "rgb8", image_header))
        return meshes

    def clear(self, header: Header) -> None:
        """Tell the viewers and the planner that all objects are gone."""
        self._markers.publish(self._marker_tracker.update([], header))
        if self._scene:
            self._scene.publish(self._scene_tracker.update([], header))

    def publish_times(self, processing_ms: float, latency_ms: float) -> None:
        """Times of one image: at work, and from its stamp to now."""
        self._processing.publish(Float64(data=processing_ms))
        self._latency.publish(Float64(data=latency_ms))

    def _create(self, message_type: type, topic: str) -> LifecyclePublisher:
        publisher = self._node.create_lifecycle_publisher(message_type, topic, RESULTS)
        self._publishers.append(publisher)
        return publisher


