"""Reconstructed objects to messages, and ObjectMesh messages back to arrays."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from geometry_msgs.msg import Point, Pose, PoseArray, PoseWithCovariance, Vector3
from sensor_msgs.msg import PointCloud2, PointField
from shape_msgs.msg import Mesh, MeshTriangle
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from sam3d_ros.msg import ObjectMesh, ObjectMeshArray

from ..perception.objects import ReconstructedObject
from .images import to_array
from .transforms import pose_from_matrix, rotate_covariance

MARKER_NAMESPACE = "sam3d"
# Baked shading: light that comes from the camera and above, so that no side is black.
_AMBIENT = 0.55
_POINT_STEP = 16


@dataclass(frozen=True)
class PlacedObject:
    """An object with its id, its mesh's revision and its place in the frame that is published.

    target_from_camera: (4, 4) float64
    """

    id: str
    revision: int
    object: ReconstructedObject
    target_from_camera: np.ndarray

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


def object_mesh(placed: PlacedObject, header: Header) -> ObjectMesh:
    """ObjectMesh with its pose in the frame of `header`."""
    obj = placed.object
    covariance = rotate_covariance(obj.pose_covariance, placed.target_from_camera)
    return ObjectMesh(
        header=header, id=placed.id, class_id=obj.class_id, score=float(obj.score),
        pose=PoseWithCovariance(pose=pose_from_matrix(placed.target_from_object), covariance=covariance.ravel()),
        size=_vector(obj.size), mesh_revision=placed.revision,
        vertices=to_array("f", np.asarray(obj.vertices, np.float32)),
        triangles=to_array("I", np.asarray(obj.triangles, np.uint32)),
        vertex_rgba=to_array("B", np.asarray(obj.vertex_rgba, np.uint8)),
        vertex_std=to_array("f", np.asarray(obj.vertex_std, np.float32)),
        scale_source=int(obj.scale_source), scale_std=float(obj.scale_std),
        visible_fraction=float(obj.visible_fraction), watertight=bool(obj.watertight), status=int(obj.status))


def object_mesh_array(placed: Sequence[PlacedObject], header: Header) -> ObjectMeshArray:
    """ObjectMeshArray of all objects of one image."""
    return ObjectMeshArray(header=header, objects=[object_mesh(p, header) for p in placed])


def mesh_arrays(message: ObjectMesh) -> MeshArrays:
    """The arrays of a received ObjectMesh, without a copy."""
    return MeshArrays(np.frombuffer(message.vertices, np.float32).reshape(-1, 3),
                      np.frombuffer(message.triangles, np.uint32).reshape(-1, 3),
                      np.frombuffer(message.vertex_rgba, np.uint8).reshape(-1, 4),
                      np.frombuffer(message.vertex_std, np.float32))


def pose_array(placed: Sequence[PlacedObject], header: Header) -> PoseArray:
    """Poses alone, in the order of the ObjectMeshArray."""
    return PoseArray(header=header, poses=[pose_from_matrix(p.target_from_object) for p in placed])


def detection_3d_array(vision_msgs: ModuleType, meshes: ObjectMeshArray) -> object:
    """vision_msgs/Detection3DArray of the same objects; each has one entry in `results`, without which RViz crashes."""
    def one(mesh: ObjectMesh) -> object:
        hypothesis = vision_msgs.ObjectHypothesis(class_id=mesh.class_id, score=mesh.score)
        return vision_msgs.Detection3D(
            header=mesh.header, id=mesh.id,
            results=[vision_msgs.ObjectHypothesisWithPose(hypothesis=hypothesis, pose=mesh.pose)],
            bbox=vision_msgs.BoundingBox3D(center=mesh.pose.pose, size=mesh.size))
    return vision_msgs.Detection3DArray(header=meshes.header, detections=[one(mesh) for mesh in meshes.objects])


def mesh_marker(placed: PlacedObject, marker_id: int, header: Header) -> Marker:
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


def delete_marker(marker_id: int, header: Header) -> Marker:
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
        markers = [delete_marker(self._numbers.pop(old), header) for old in [*self._numbers] if old not in present]
        for p in placed:
            if p.id not in self._numbers:
                self._numbers[p.id] = self._next
                self._next += 1
            markers.append(mesh_marker(p, self._numbers[p.id], header))
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
    """moveit_msgs/PlanningScene diffs: ADD with the mesh at first sight, then MOVE without it, REMOVE when vanished."""

    def __init__(self, moveit_msgs: ModuleType):
        self._msgs = moveit_msgs
        self._known: set[str] = set()

    def update(self, placed: Sequence[PlacedObject], header: Header) -> object:
        """Diff that takes the planning scene from the last image to this one."""
        present = {p.id for p in placed}
        objects = [self._object(old, Pose(), header, self._msgs.CollisionObject.REMOVE)
                   for old in sorted(self._known - present)]
        for p in placed:
            new = p.id not in self._known
            operation = self._msgs.CollisionObject.ADD if new else self._msgs.CollisionObject.MOVE
            collision_object = self._object(p.id, pose_from_matrix(p.target_from_object), header, operation)
            if new:
                collision_object.meshes = [shape_mesh(p.object)]
                collision_object.mesh_poses = [Pose()]  # the mesh's own pose in the object frame: the identity
            objects.append(collision_object)
        self._known = present
        scene = self._msgs.PlanningScene(is_diff=True)
        scene.robot_state.is_diff = True  # an empty state that is no diff would reset the robot
        scene.world.collision_objects = objects
        return scene

    def _object(self, identity: str, pose: Pose, header: Header, operation: bytes) -> object:
        return self._msgs.CollisionObject(header=header, id=identity, pose=pose, operation=operation)


def shape_mesh(obj: ReconstructedObject) -> Mesh:
    """shape_msgs/Mesh in the object frame; slow to build and to send, so only for planning scenes."""
    triangles = np.asarray(obj.triangles, np.uint32)
    return Mesh(vertices=[Point(x=x, y=y, z=z) for x, y, z in obj.vertices.tolist()],
                triangles=[MeshTriangle(vertex_indices=row) for row in triangles])


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """(N, 3) unit normals of a mesh, weighted by area; (N, 3) vertices, (M, 3) triangles."""
    corners = vertices[triangles].astype(np.float64)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flat = triangles.ravel()
    summed = np.stack([np.bincount(flat, np.repeat(normals[:, axis], 3), len(vertices)) for axis in range(3)], axis=1)
    return summed / np.maximum(np.linalg.norm(summed, axis=1, keepdims=True), 1e-20)


_POINT_TYPE = np.dtype([("xyz", np.float32, 3), ("rgb", np.uint32)])


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
    facing = vertex_normals(placed.object.vertices, placed.object.triangles) @ (to_light / np.linalg.norm(to_light))
    return _AMBIENT + (1 - _AMBIENT) * facing


def _marker(marker_id: int, header: Header, action: int) -> Marker:
    return Marker(header=header, ns=MARKER_NAMESPACE, id=marker_id, action=action)


def _vector(values: np.ndarray) -> Vector3:
    x, y, z = (float(v) for v in values)
    return Vector3(x=x, y=y, z=z)
