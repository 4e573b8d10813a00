"""Reconstructed objects to messages, and ObjectMesh messages back to arrays."""
from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from geometry_msgs.msg import Point, Pose, PoseArray, PoseWithCovariance, Vector3
from sensor_msgs.msg import PointCloud2, PointField
from shape_msgs.msg import Mesh, MeshTriangle
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from sam3d_ros.msg import ObjectMesh, ObjectMeshArray

from ..perception.appearance import vertex_normals
from ..perception.objects import ReconstructedObject
from ..scene.motion import rotated
from ..scene.planning import planning_mesh
from ..scene.track import Presence, TrackedObject
from .images import stamp_message, to_array
from .transforms import pose_from_matrix

_MARKER_NAMESPACE = "sam3d"
# Every mesh is sent again as often, for subscribers that missed the message with it.
MESH_PERIOD = 5.0      # seconds
# Baked shading: light that comes from the camera and above, so that no side is black.
_AMBIENT = 0.55
_POINT_STEP = 16


@dataclass(frozen=True)
class PlacedObject:
    """A tracked object and its place in the frame that is published.

    target_from_camera: (4, 4) float64
    """

    tracked: TrackedObject
    target_from_camera: np.ndarray

    @property
    def id(self) -> str:
        """The same for an object from image to image."""
        return self.tracked.id

    @property
    def revision(self) -> int:
        """Of its mesh."""
        return self.tracked.revision

    @property
    def object(self) -> ReconstructedObject:
        """Its mesh, and where it is in the camera frame."""
        return self.tracked.object

    @property
    def seen(self) -> bool:
        """Whether the image shows it."""
        return self.tracked.presence is Presence.SEEN

    @property
    def target_from_object(self) -> np.ndarray:
        """(4, 4) float64, object frame -> target frame."""
        return self.target_from_camera @ self.object.camera_from_object


@dataclass(frozen=True)
class MeshArrays:
    """The arrays of an ObjectMesh: views into the message.

    vertices: (N, 3) float32, metres, object frame; triangles: (M, 3) uint32; vertex_rgba: (N, 4) uint8 or (0, 4);
    vertex_std: (N,) float32 or (0,), metres
    """

    vertices: np.ndarray
    triangles: np.ndarray
    vertex_rgba: np.ndarray
    vertex_std: np.ndarray


def _object_mesh(placed: PlacedObject, header: Header, with_mesh: bool = True, is_still: bool = False) -> ObjectMesh:
    """ObjectMesh with its pose in the frame of `header`, whose stamp is the image's.  Without its mesh, the arrays are
    empty.

    is_still: the frame stands still, so that the pose of an object that the image does not show is that of the last
    image that did, and has its stamp; in a frame that moves, the pose is that at the stamp of `header`
    """
    obj = placed.object
    if is_still and not placed.seen:
        header = Header(stamp=stamp_message(placed.tracked.seen_ns), frame_id=header.frame_id)
    arrays = {}
    if with_mesh:
        arrays = {"vertices": to_array("f", np.asarray(obj.vertices, np.float32)),
                  "triangles": to_array("I", np.asarray(obj.triangles, np.uint32)),
                  "vertex_rgba": to_array("B", np.asarray(obj.vertex_rgba, np.uint8)),
                  "vertex_std": to_array("f", np.asarray(obj.vertex_std, np.float32))}
    return ObjectMesh(
        header=header, id=placed.id, class_id=obj.class_id, score=float(obj.score),
        pose=_pose_with_covariance(placed),
        size=_vector(obj.size), mesh_revision=placed.revision,
        scale_source=int(obj.scale_source), scale_std=float(obj.scale_std),
        visible_fraction=float(obj.visible_fraction), watertight=True, status=int(obj.status),
        **arrays)


def object_mesh_array(placed: Sequence[PlacedObject], header: Header, without_mesh: Collection[str] = (),
                      is_still: bool = False) -> ObjectMeshArray:
    """ObjectMeshArray of all objects at the moment of one image.

    without_mesh: ids of those whose mesh is known; is_still: whether the frame of `header` stands still
    """
    return ObjectMeshArray(header=header, objects=[
        _object_mesh(p, header, p.id not in without_mesh, is_still) for p in placed])


def mesh_arrays(message: ObjectMesh) -> MeshArrays:
    """The arrays of a received ObjectMesh, without a copy."""
    return MeshArrays(np.frombuffer(message.vertices, np.float32).reshape(-1, 3),
                      np.frombuffer(message.triangles, np.uint32).reshape(-1, 3),
                      np.frombuffer(message.vertex_rgba, np.uint8).reshape(-1, 4),
                      np.frombuffer(message.vertex_std, np.float32))


class MeshSchedule:
    """Which meshes go out with the poses: new ones, and every one again after MESH_PERIOD."""

    def __init__(self) -> None:
        self._sent: dict[str, tuple[int, float]] = {}      # id -> revision, and when it is due again

    def known(self, placed: Sequence[PlacedObject], now: float, whole: bool = False) -> list[str]:
        """Ids of the objects whose mesh is left out of the message that is sent at `now` (seconds); whole: of none."""
        known = [] if whole else [p.id for p in placed if self._is_known(p, now)]
        due = [p for p in placed if p.id not in known]
        # Those that go out together are due again one after the other, so that no message has to bear them all.
        again = {p.id: (p.revision, now + MESH_PERIOD * number / len(due)) for number, p in enumerate(due, start=1)}
        # Subscribers, too, forget an object that a message leaves out.
        self._sent = {identity: self._sent[identity] for identity in known} | again
        return known

    def _is_known(self, placed: PlacedObject, now: float) -> bool:
        revision, until = self._sent.get(placed.id, (None, 0.0))
        return revision == placed.revision and now < until


class MeshMemory:
    """For subscribers of `objects`: puts the meshes back into updates of the pose alone."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], ObjectMesh] = {}

    def complete(self, message: ObjectMeshArray) -> ObjectMeshArray:
        """The message with its empty arrays filled; objects whose mesh has not come yet are left out.

        Meshes of objects that are not in it are forgotten: if one returns, its mesh is sent again.
        """
        for item in message.objects:
            known = self._known.get((item.id, item.mesh_revision))
            if not len(item.vertices) and known:
                item.vertices, item.triangles = known.vertices, known.triangles
                item.vertex_rgba, item.vertex_std = known.vertex_rgba, known.vertex_std
        message.objects = [item for item in message.objects if len(item.vertices)]
        self._known = {(item.id, item.mesh_revision): item for item in message.objects}
        return message


def pose_array(placed: Sequence[PlacedObject], header: Header) -> PoseArray:
    """Poses alone, of the objects that the image shows, in the order of the ObjectMeshArray."""
    return PoseArray(header=header, poses=[pose_from_matrix(p.target_from_object) for p in placed if p.seen])


def detection_3d_array(vision_msgs: ModuleType, placed: Sequence[PlacedObject], header: Header) -> object:
    """vision_msgs/Detection3DArray of the objects that the image shows; each has one entry in `results`, without which
    RViz crashes.  The pose is that of the object frame, the box that of the mesh."""
    def one(p: PlacedObject) -> object:
        hypothesis = vision_msgs.ObjectHypothesis(class_id=p.object.class_id, score=float(p.object.score))
        result = vision_msgs.ObjectHypothesisWithPose(hypothesis=hypothesis, pose=_pose_with_covariance(p))
        low, high = p.object.vertices.min(axis=0), p.object.vertices.max(axis=0)
        centre = p.target_from_object.copy()
        centre[:3, 3] += centre[:3, :3] @ (low.astype(np.float64) + high) / 2
        box = vision_msgs.BoundingBox3D(center=pose_from_matrix(centre), size=_vector(p.object.size))
        return vision_msgs.Detection3D(header=header, id=p.id, results=[result], bbox=box)
    return vision_msgs.Detection3DArray(header=header, detections=[one(p) for p in placed if p.seen])


def _mesh_marker(placed: PlacedObject, marker_id: int, header: Header) -> Marker:
    """TRIANGLE_LIST marker with vertex colours; viewers draw coloured lists unlit, so shading is baked in."""
    obj = placed.object
    points = [Point(x=x, y=y, z=z) for x, y, z in obj.vertices.tolist()]
    rgb = obj.vertex_rgba[:, :3] / 255.0 * _shading(placed)[:, None]
    colours = [ColorRGBA(r=r, g=g, b=b, a=1.0) for r, g, b in rgb.tolist()]
    corners = obj.triangles.ravel().tolist()
    marker = _marker(marker_id, header, Marker.ADD)
    marker.type = Marker.TRIANGLE_LIST
    marker.pose = pose_from_matrix(placed.target_from_object)
    marker.scale = Vector3(x=1.0, y=1.0, z=1.0)
    marker.color = ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0)
    # The corners share one message per vertex: building one for each corner takes six times as long.
    marker.points = [points[i] for i in corners]
    marker.colors = [colours[i] for i in corners]
    return marker


def _delete_marker(marker_id: int, header: Header) -> Marker:
    """Marker that removes another one."""
    return _marker(marker_id, header, Marker.DELETE)


class MarkerTracker:
    """Numbers for the markers of string ids, and deletion of those that vanished."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._next = 0

    def update(self, placed: Sequence[PlacedObject], header: Header) -> MarkerArray:
        """Markers of the present objects, after deletions of the vanished ones."""
        present = {p.id for p in placed}
        markers = [_delete_marker(self._numbers.pop(old), header) for old in [*self._numbers] if old not in present]
        for p in placed:
            if p.id not in self._numbers:
                self._numbers[p.id] = self._next
                self._next += 1
            markers.append(_mesh_marker(p, self._numbers[p.id], header))
        return MarkerArray(markers=markers)


def object_points(placed: Sequence[PlacedObject], header: Header) -> PointCloud2:
    """The depth readings that the objects were built from, in the frame of `header`, with colours."""
    blocks = [_points(p) for p in placed]
    cloud = np.concatenate(blocks) if blocks else np.empty(0, _POINT_TYPE)
    message = PointCloud2(header=header, height=1, width=len(cloud), point_step=_POINT_STEP,
                          row_step=_POINT_STEP * len(cloud), is_dense=True)
    message.fields = [PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1)
                      for i, name in enumerate(("x", "y", "z", "rgb"))]
    message.data = to_array("B", cloud)
    return message


class PlanningSceneTracker:
    """moveit_msgs/PlanningScene diffs: ADD with the mesh at first sight and whenever it changed, else MOVE without it,
    REMOVE when it is gone or forgotten.

    An object that is hidden stays where it was last seen: it is an obstacle all the same.  One that the robot holds is
    its own affair: it is left alone until it is let go, and then added anew.

    place: before the objects' ids, which other nodes may give as well
    """

    def __init__(self, moveit_msgs: ModuleType, place: str):
        self._msgs = moveit_msgs
        self._place = place
        # id -> revision that was added; None: to be added anew
        self._revisions: dict[str, int | None] = {}
        self._attached: set[str] = set()
        # What the robot holds comes in while an update is at work in another thread.
        self._lock = threading.Lock()

    def note_attached(self, robot_state: object) -> None:
        """Take in which objects the robot holds: the robot_state of a moveit_msgs/PlanningScene."""
        objects = [attached.object for attached in robot_state.attached_collision_objects]
        held = self._own(o.id for o in objects if o.operation != self._msgs.CollisionObject.REMOVE)
        with self._lock:
            if robot_state.is_diff:
                held |= self._attached - self._own(o.id for o in objects)
            for identity in self._attached | held:
                self._revisions.pop(identity, None)
            self._attached = held

    def note_world(self, names: Iterable[str]) -> None:
        """Take in the names of all that is in the planning scene.  Objects of an earlier run of this node, which could
        not remove them, are removed with the next update."""
        with self._lock:
            for identity in self._own(names) - self._attached:
                self._revisions.setdefault(identity, None)

    def add_anew(self) -> None:
        """Take it that a planner has come that knows nothing: the next update adds everything.  Others still learn what
        is gone."""
        with self._lock:
            self._revisions = dict.fromkeys(self._revisions)

    def forget(self) -> None:
        """Take it that no planner is left that knows anything."""
        with self._lock:
            self._revisions.clear()

    def is_news(self, placed: Sequence[PlacedObject]) -> bool:
        """Whether there is more to tell than motion."""
        with self._lock:
            return self._revisions != {p.id: p.revision for p in placed if p.id not in self._attached}

    def update(self, placed: Sequence[PlacedObject], header: Header) -> object:
        """Diff that takes the planning scene from the last update to this one."""
        with self._lock:
            objects = self._changes(placed, header)
        scene = self._msgs.PlanningScene(is_diff=True)
        scene.robot_state.is_diff = True  # an empty state that is no diff would reset the robot
        scene.world.collision_objects = objects
        return scene

    def _changes(self, placed: Sequence[PlacedObject], header: Header) -> list[object]:
        kinds = self._msgs.CollisionObject
        free = [p for p in placed if p.id not in self._attached]
        gone = sorted(set(self._revisions) - {p.id for p in free})
        objects = [self._object(old, Pose(), header, kinds.REMOVE) for old in gone]
        for old in gone:
            del self._revisions[old]
        for p in free:
            new = self._revisions.get(p.id) != p.revision
            if not new and not p.seen:
                continue
            pose = pose_from_matrix(p.target_from_object)
            message = self._object(p.id, pose, header, kinds.ADD if new else kinds.MOVE)
            if new:
                message.meshes = [_shape_mesh(*planning_mesh(p.object.vertices, p.object.triangles))]
                message.mesh_poses = [Pose()]  # the mesh's own pose in the object frame: the identity
            self._revisions[p.id] = p.revision
            objects.append(message)
        return objects

    def _object(self, identity: str, pose: Pose, header: Header, operation: bytes) -> object:
        return self._msgs.CollisionObject(header=header, id=f"{self._place}/{identity}", pose=pose, operation=operation)

    def _own(self, names: Iterable[str]) -> set[str]:
        """Ids of those among the objects with these names that are this node's."""
        parts = (name.rpartition("/") for name in names)
        return {identity for place, _, identity in parts if place == self._place}


def _shape_mesh(vertices: np.ndarray, triangles: np.ndarray) -> Mesh:
    """shape_msgs/Mesh of (N, 3) and (M, 3) arrays; slow to build and to send, so only for planning scenes."""
    return Mesh(vertices=[Point(x=x, y=y, z=z) for x, y, z in vertices.tolist()],
                triangles=[MeshTriangle(vertex_indices=row) for row in np.asarray(triangles, np.uint32)])


_POINT_TYPE = np.dtype([("xyz", np.float32, 3), ("rgb", np.uint32)])


def _pose_with_covariance(placed: PlacedObject) -> PoseWithCovariance:
    covariance = rotated(placed.object.pose_covariance, placed.target_from_camera)
    return PoseWithCovariance(pose=pose_from_matrix(placed.target_from_object), covariance=covariance.ravel())


def _points(placed: PlacedObject) -> np.ndarray:
    """(P,) of _POINT_TYPE in the target frame; rgb is packed 0x00RRGGBB in the bytes of a float32, as PCL has it."""
    points = np.empty(len(placed.object.observed_points), _POINT_TYPE)
    rotation, translation = placed.target_from_camera[:3, :3], placed.target_from_camera[:3, 3]
    points["xyz"] = placed.object.observed_points @ rotation.T + translation
    rgb = placed.object.observed_rgb.astype(np.uint32)
    points["rgb"] = rgb[:, 0] << 16 | rgb[:, 1] << 8 | rgb[:, 2]
    return points


def _shading(placed: PlacedObject) -> np.ndarray:
    """(N,) brightness of each vertex, 2 * _AMBIENT - 1 to 1, lit from the camera and a little from above it."""
    to_light = np.array([0.0, -0.4, -1.0]) @ placed.object.camera_from_object[:3, :3]
    normals, _ = vertex_normals(placed.object.vertices, placed.object.triangles)
    facing = normals @ (to_light / np.linalg.norm(to_light))
    return _AMBIENT + (1 - _AMBIENT) * facing


def _marker(marker_id: int, header: Header, action: int) -> Marker:
    return Marker(header=header, ns=_MARKER_NAMESPACE, id=marker_id, action=action)


def _vector(values: np.ndarray) -> Vector3:
    x, y, z = (float(v) for v in values)
    return Vector3(x=x, y=y, z=z)
