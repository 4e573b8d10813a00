"""The node's publishers."""
from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from geometry_msgs.msg import PoseArray
from rclpy.lifecycle import LifecycleNode
from rclpy.lifecycle.publisher import LifecyclePublisher
from rclpy.task import Future
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Float64, Header
from visualization_msgs.msg import MarkerArray

from sam3d_ros.msg import ObjectMeshArray

from ..perception.faults import Fault, FaultCode
from ..perception.frame import Frame, back_project
from .debug_image import draw
from .images import encode_image
from .messages import (
    MarkerTracker,
    MeshSchedule,
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

# Markers carry whole meshes, which viewers redraw: not at the camera's rate.
_MARKER_PERIOD = 0.5      # seconds
_PLANNING_PERIOD = 0.2    # between diffs of motion alone: a planner checks its plan again after each of them
# A new subscriber gets the meshes at once, and once more after this time: at first it may not receive yet.
_GREETING = 1.0           # seconds
# The identities of a topic's subscribers take 0.1 ms and more, so they are not asked for with every image.
_LOOK_PERIOD = 0.2        # seconds


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
        # Transforms and planning scenes are shared by all nodes of a robot.
        self._place = f"sam3d{node.get_namespace().rstrip('/')}"
        self._monitor = self._client = None
        self._is_world_known = False
        self._header: Header | None = None
        self._schedule = MeshSchedule()
        self._listeners = _Listeners(node, self._objects)
        self._planners = _Listeners(node, self._scene) if self._scene else None
        self._marked = self._planned = 0.0
        self._marked_revisions: dict[str, int] = {}
        self._marker_tracker = MarkerTracker()
        self._scene_tracker = PlanningSceneTracker(moveit_msgs, self._place) if moveit_msgs else None
        if moveit_msgs:
            self._moveit_msgs = moveit_msgs
            self._client = node.create_client(optional("moveit_msgs.srv").GetPlanningScene, "get_planning_scene")
            self._monitor = node.create_subscription(
                moveit_msgs.PlanningScene, "monitored_planning_scene",
                lambda scene: self._scene_tracker.note_attached(scene.robot_state), RESULTS)

    def destroy(self) -> None:
        """Release the publishers."""
        if self._monitor:
            self._node.destroy_subscription(self._monitor)
            self._node.destroy_client(self._client)
        for publisher in self._publishers:
            self._node.destroy_lifecycle_publisher(publisher)

    def publish(self, placed: Sequence[PlacedObject], header: Header, frame: Frame, settings: Settings,
                transforms: Transforms | None, whole: bool = False) -> ObjectMeshArray:
        """Publish the objects at the moment of `frame`, placed in the frame of `header`, but for what `publish_masked`
        does; returns the ObjectMeshArray.

        A mesh is sent when it is new, every MESH_PERIOD, to subscribers that are new, and if `whole`.
        """
        now = time.monotonic()
        self._header = header
        known = self._schedule.known(placed, now, self._listeners.have_come(now) or whole)
        # The camera's own frame may move, the target frame stands still: a hidden object keeps its place in it.
        meshes = object_mesh_array(placed, header, known, is_still=header.frame_id != frame.frame_id)
        self._publish_objects(placed, meshes)
        seen = [p for p in placed if p.seen]
        if settings.publish_tf and transforms:
            transforms.broadcast({f"{self._place}/{p.id}": p.target_from_object for p in seen}, header)
        if self._scene:
            self._publish_scene(placed, header, now)
        marked = placed if settings.publish_markers else []       # switched off: those that are shown are deleted
        if self._markers.get_subscription_count() and self._is_marker_time(marked, now):
            self._markers.publish(self._marker_tracker.update(marked, header))
        return meshes

    def publish_masked(self, placed: Sequence[PlacedObject], header: Header, frame: Frame, settings: Settings) -> None:
        """Publish what the masks of `frame` tell of the objects; arguments as of `publish`."""
        seen = [p for p in placed if p.seen]
        if settings.publish_object_points and self._points.get_subscription_count():
            self._points.publish(object_points([_with_points(p, frame) for p in seen], header))
        if settings.publish_debug_image and self._image.get_subscription_count():
            image_header = Header(stamp=header.stamp, frame_id=frame.frame_id)
            self._image.publish(encode_image(draw(frame, [p.object for p in seen]), "rgb8", image_header))

    def clear(self) -> None:
        """Tell all subscribers that the objects are gone: as of the last image, so that no later result is older than
        this.  If there was none, nobody knows of any object."""
        if self._header is None:
            return
        header, now = self._header, time.monotonic()
        self._schedule.known([], now)
        self._publish_objects([], object_mesh_array([], header))
        self._markers.publish(self._marker_tracker.update([], header))
        if self._scene:
            self._publish_scene([], header, now)

    def _publish_objects(self, placed: Sequence[PlacedObject], meshes: ObjectMeshArray) -> None:
        self._objects.publish(meshes)
        self._poses.publish(pose_array(placed, meshes.header))
        if self._detections:
            self._detections.publish(detection_3d_array(self._vision_msgs, placed, meshes.header))

    def _publish_scene(self, placed: Sequence[PlacedObject], header: Header, now: float) -> None:
        tracker = self._scene_tracker
        if not self._scene.get_subscription_count():
            tracker.forget()
            return
        if self._planners.have_come(now):
            tracker.add_anew()
            self._is_world_known = False
        if not self._is_world_known and self._client.service_is_ready():
            self._is_world_known = True
            self._ask_for_world()
        if tracker.is_news(placed) or now - self._planned > _PLANNING_PERIOD:
            self._planned = now
            self._scene.publish(tracker.update(placed, header))

    def _ask_for_world(self) -> None:
        """Have the planning scene tell what is in it: maybe what an earlier run of this node left there."""
        def note(future: Future) -> None:
            self._scene_tracker.note_world(o.id for o in future.result().scene.world.collision_objects)
        components = self._moveit_msgs.PlanningSceneComponents
        request = self._client.srv_type.Request(
            components=components(components=components.WORLD_OBJECT_NAMES))
        self._client.call_async(request).add_done_callback(note)

    def _is_marker_time(self, placed: Sequence[PlacedObject], now: float) -> bool:
        revisions = {p.id: p.revision for p in placed}
        if revisions == self._marked_revisions and (not revisions or now - self._marked < _MARKER_PERIOD):
            return False
        self._marked, self._marked_revisions = now, revisions
        return True

    def publish_times(self, processing_ms: float, latency_ms: float) -> None:
        """Times of one image: at work, and from its stamp to now."""
        self._processing.publish(Float64(data=processing_ms))
        self._latency.publish(Float64(data=latency_ms))

    def _create(self, message_type: type, topic: str) -> LifecyclePublisher:
        publisher = self._node.create_lifecycle_publisher(message_type, topic, RESULTS)
        self._publishers.append(publisher)
        return publisher


class _Listeners:
    """The subscribers of a topic: tells when some have come that know nothing yet."""

    def __init__(self, node: LifecycleNode, publisher: LifecyclePublisher):
        self._node = node
        self._publisher = publisher
        self._count = 0
        self._present: set[bytes] = set()
        self._next_look = 0.0
        self._greet_again: float | None = None

    def have_come(self, now: float) -> bool:
        """Whether some have come lately, at `now` (monotonic, s); true once more _GREETING later."""
        if self._are_new(now):
            self._greet_again = now + _GREETING
            return True
        if self._greet_again is not None and now >= self._greet_again:
            self._greet_again = None
            return True
        return False

    def _are_new(self, now: float) -> bool:
        count = self._publisher.get_subscription_count()
        if count == self._count and now < self._next_look:
            return False
        self._count, self._next_look = count, now + _LOOK_PERIOD
        # Not by their number: one may have gone and another come since the last look.
        before = self._present
        topic = self._publisher.topic_name
        self._present = {bytes(s.endpoint_gid) for s in self._node.get_subscriptions_info_by_topic(topic)}
        return not self._present <= before


def _with_points(placed: PlacedObject, frame: Frame) -> PlacedObject:
    """With the depth readings of its mask in `frame`."""
    obj = placed.object
    if not obj.label or frame.depth is None:
        points, rgb = np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8)
    else:
        rows, columns = np.nonzero((frame.labels == obj.label) & (frame.depth > 0))
        points = back_project(frame.depth, frame.intrinsics, rows, columns).astype(np.float32)
        rgb = frame.colour[rows, columns]
    return replace(placed, tracked=replace(placed.tracked, object=replace(obj, observed_points=points,
                                                                          observed_rgb=rgb)))
