"""Objects to messages and back."""
from __future__ import annotations

import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trimesh

pytest.importorskip("rclpy")

from geometry_msgs.msg import Point, Pose  # noqa: E402
from made_objects import made_object  # noqa: E402
from rclpy.serialization import deserialize_message, serialize_message  # noqa: E402
from std_msgs.msg import Header  # noqa: E402
from visualization_msgs.msg import Marker  # noqa: E402

from sam3d_ros.msg import ObjectMesh, ObjectMeshArray  # noqa: E402
from sam3d_ros.perception.objects import ReconstructedObject, Status  # noqa: E402
from sam3d_ros.ros.images import stamp_message  # noqa: E402
from sam3d_ros.ros.messages import (  # noqa: E402
    MarkerTracker,
    MeshMemory,
    PlacedObject,
    PlanningSceneTracker,
    detection_3d_array,
    mesh_arrays,
    object_mesh_array,
    object_points,
    pose_array,
)
from sam3d_ros.ros.optional import optional  # noqa: E402
from sam3d_ros.ros.transforms import matrix_from_pose  # noqa: E402
from sam3d_ros.scene.planning import planning_mesh  # noqa: E402
from sam3d_ros.scene.track import Presence, TrackedObject  # noqa: E402

SEEN_NS = 5_000_000_007
HEADER = Header(stamp=stamp_message(SEEN_NS), frame_id="base")
VERTICES = np.array([[0, 0, 0], [0.3, 0, 0], [0, 0.2, 0], [0, 0, 0.1]], np.float32) - np.float32([0.15, 0.1, 0.05])
TRIANGLES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.uint32)
# A camera 1 m above the base's origin, level, looking along the base's x: no rotation that is its own inverse.
BASE_FROM_CAMERA = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1], [0, 0, 0, 1]])
CAMERA_FROM_OBJECT = np.array([[0.0, -1, 0, 0.1], [1, 0, 0, 0.2], [0, 0, 1, 0.8], [0, 0, 0, 1]])


def tetrahedron(**fields: Any) -> ReconstructedObject:
    obj = made_object(
        VERTICES, TRIANGLES, CAMERA_FROM_OBJECT, label=3, class_id="cup", score=0.75, detector_id="t1",
        pose_covariance=np.diag([1.0, 2, 3, 4, 5, 6]), size=np.array([0.3, 0.2, 0.1]),
        vertex_rgba=np.tile(np.uint8([255, 128, 0, 255]), (4, 1)),
        vertex_std=np.float32([0.001, 0.002, 0.003, 0.004]), scale_std=0.02, visible_fraction=0.5,
        status=Status.LOW_QUALITY, observed_points=np.float32([[0.1, 0.2, 0.8], [0.0, 0.0, 1.0]]),
        observed_rgb=np.uint8([[255, 0, 0], [1, 2, 3]]))
    return replace(obj, **fields)


def placed(identity: str = "object_1", **fields: Any) -> PlacedObject:
    return place(TrackedObject(identity, 9, tetrahedron(**fields), Presence.SEEN, SEEN_NS))


def place(tracked: TrackedObject) -> PlacedObject:
    return PlacedObject(tracked, BASE_FROM_CAMERA)


def hidden(identity: str) -> PlacedObject:
    return place(TrackedObject(identity, 9, tetrahedron(status=Status.HIDDEN), Presence.HIDDEN, 4_000_000_001))


def test_object_mesh_there_and_back_over_the_wire():
    sent = object_mesh_array([placed()], HEADER)
    [found] = deserialize_message(serialize_message(sent), ObjectMeshArray).objects
    arrays = mesh_arrays(found)
    np.testing.assert_array_equal(arrays.vertices, VERTICES)
    np.testing.assert_array_equal(arrays.triangles, TRIANGLES)
    np.testing.assert_array_equal(arrays.vertex_rgba, tetrahedron().vertex_rgba)
    np.testing.assert_array_equal(arrays.vertex_std, tetrahedron().vertex_std)
    assert (found.id, found.class_id, found.score, found.mesh_revision) == ("object_1", "cup", 0.75, 9)
    assert (found.scale_source, found.status) == (ObjectMesh.SCALE_DEPTH, ObjectMesh.STATUS_LOW_QUALITY)
    assert found.watertight
    assert found.scale_std == pytest.approx(0.02)
    assert (found.size.x, found.size.y, found.size.z) == (0.3, 0.2, 0.1)
    assert found.header == HEADER


def test_an_off_centre_vertex_lands_where_the_camera_saw_it():
    """The tetrahedron's tip along the object's x: by hand, through the camera, to the base."""
    [mesh] = object_mesh_array([placed()], HEADER).objects
    tip = matrix_from_pose(mesh.pose.pose) @ [*mesh_arrays(mesh).vertices[1], 1]
    # object (0.15, -0.1, -0.05) -> camera (0.1 + 0.1, 0.2 + 0.15, 0.8 - 0.05) -> base (z, -x, 1 - y)
    np.testing.assert_allclose(tip[:3], [0.75, -0.2, 0.65], atol=1e-7)
    np.testing.assert_allclose(np.diag(mesh.pose.covariance.reshape(6, 6)), [3, 1, 2, 6, 4, 5])


def test_poses():
    [pose] = pose_array([placed()], HEADER).poses
    np.testing.assert_allclose(matrix_from_pose(pose)[:3, 3], [0.8, -0.1, 0.8], atol=1e-12)


def test_markers_are_added_kept_and_deleted():
    tracker = MarkerTracker()
    first = tracker.update([placed("a"), placed("b")], HEADER).markers
    assert [m.action for m in first] == [Marker.ADD, Marker.ADD]
    assert first[0].id != first[1].id
    assert first[0].type == Marker.TRIANGLE_LIST
    assert first[0].points[4] == Point(x=float(VERTICES[1, 0]), y=float(VERTICES[1, 1]), z=float(VERTICES[1, 2]))
    assert len(first[0].points) == len(first[0].colors) == 12
    assert all(0 <= c.b <= c.g <= c.r <= 1 and c.a == 1 for c in first[0].colors)
    assert len({c.r for c in first[0].colors}) > 1  # shaded
    gone, kept, new = tracker.update([placed("b"), placed("c")], HEADER).markers
    assert (gone.action, gone.id) == (Marker.DELETE, first[0].id)
    assert (kept.action, kept.id) == (Marker.ADD, first[1].id)
    assert new.id not in (first[0].id, first[1].id)
    assert [m.action for m in tracker.update([], HEADER).markers] == [Marker.DELETE] * 2


def test_markers_are_lit_from_the_camera_and_above():
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.05)
    item = placed(vertices=ball.vertices.astype(np.float32), triangles=ball.faces.astype(np.uint32),
                  vertex_rgba=np.full((len(ball.vertices), 4), 255, np.uint8))
    [marker] = MarkerTracker().update([item], HEADER).markers
    brightest = marker.points[int(np.argmax([colour.r for colour in marker.colors]))]
    facing = CAMERA_FROM_OBJECT[:3, :3] @ [brightest.x, brightest.y, brightest.z] / 0.05
    np.testing.assert_allclose(facing, np.array([0.0, -0.4, -1.0]) / np.hypot(0.4, 1), atol=0.05)


def test_object_points():
    cloud = object_points([placed()], HEADER)
    assert (cloud.width, cloud.height, cloud.point_step) == (2, 1, 16)
    data = np.frombuffer(cloud.data, [("xyz", "<f4", 3), ("rgb", "<u4")])
    np.testing.assert_allclose(data["xyz"], [[0.8, -0.1, 0.8], [1, 0, 1]], atol=1e-7)
    assert data["rgb"].tolist() == [0xFF0000, 0x010203]
    assert object_points([], HEADER).width == 0


def stand_in(*names: str, **constants: Any) -> Any:
    """Module whose message classes take any field."""
    def message(name: str) -> type:
        return type(name, (SimpleNamespace,), dict(constants) if name == "CollisionObject" else {})
    return SimpleNamespace(**{name: message(name) for name in names})


def test_detections_have_one_result_each():
    module = optional("vision_msgs.msg") or stand_in(
        "Detection3DArray", "Detection3D", "BoundingBox3D", "ObjectHypothesis", "ObjectHypothesisWithPose")
    meshes = object_mesh_array([placed()], HEADER)
    [found] = detection_3d_array(module, [placed(), hidden("b")], HEADER).detections
    assert found.id == "object_1"
    assert found.bbox.size == meshes.objects[0].size
    assert found.bbox.center == meshes.objects[0].pose.pose
    [result] = found.results
    assert (result.hypothesis.class_id, result.hypothesis.score) == ("cup", 0.75)
    assert result.pose == meshes.objects[0].pose


def test_the_box_of_a_detection_is_around_a_mesh_that_is_off_its_frame():
    module = optional("vision_msgs.msg") or stand_in(
        "Detection3DArray", "Detection3D", "BoundingBox3D", "ObjectHypothesis", "ObjectHypothesisWithPose")
    shifted = placed(vertices=VERTICES + np.float32([0.1, 0, 0]))
    [found] = detection_3d_array(module, [shifted], HEADER).detections
    expected = BASE_FROM_CAMERA @ CAMERA_FROM_OBJECT @ [0.1, 0, 0, 1]
    np.testing.assert_allclose(matrix_from_pose(found.bbox.center)[:3, 3], expected[:3], atol=1e-7)


def test_a_known_mesh_is_left_out():
    first, second = object_mesh_array([placed("a"), placed("b")], HEADER, without_mesh=["b"]).objects
    assert len(first.vertices) == 12
    assert not len(second.vertices) and not len(second.triangles) and not len(second.vertex_std)
    assert (second.mesh_revision, second.pose, second.size) == (9, first.pose, first.size)


def test_a_subscriber_puts_meshes_and_poses_together():
    memory = MeshMemory()
    assert not memory.complete(object_mesh_array([placed("a")], HEADER, without_mesh=["a"])).objects
    memory.complete(object_mesh_array([placed("a")], HEADER))
    moved = placed("a", camera_from_object=np.eye(4))
    [found] = memory.complete(object_mesh_array([moved], HEADER, without_mesh=["a"])).objects
    np.testing.assert_array_equal(mesh_arrays(found).vertices, VERTICES)
    np.testing.assert_allclose(matrix_from_pose(found.pose.pose), BASE_FROM_CAMERA)
    other = place(replace(placed("a").tracked, revision=10))
    assert not memory.complete(object_mesh_array([other], HEADER, without_mesh=["a"])).objects


def test_meshes_of_objects_that_are_gone_are_forgotten():
    memory = MeshMemory()
    for number in range(20):
        memory.complete(object_mesh_array([placed("a"), placed(f"passing_{number}")], HEADER))
    assert len(memory._known) == 2
    assert [o.id for o in memory.complete(object_mesh_array([placed("a")], HEADER, ["a"])).objects] == ["a"]
    assert len(memory._known) == 1


def test_a_hidden_object_is_never_shown_as_fresh():
    both = [placed("a"), hidden("b")]
    shown, old = object_mesh_array(both, HEADER, is_still=True).objects
    assert (shown.status, shown.header.stamp) == (ObjectMesh.STATUS_LOW_QUALITY, HEADER.stamp)
    assert (old.status, old.header.stamp) == (int(Status.HIDDEN), stamp_message(4_000_000_001))
    assert old.header.frame_id == HEADER.frame_id
    assert len(pose_array(both, HEADER).poses) == 1
    # In a frame that moves its pose is that of the array's moment, and only the status says that it is not seen.
    shown, old = object_mesh_array(both, HEADER).objects
    assert (old.status, old.header) == (int(Status.HIDDEN), HEADER)


def moveit_stand_in() -> Any:
    module = stand_in("PlanningScene", "PlanningSceneComponents", "CollisionObject", ADD=b"\0", REMOVE=b"\1",
                      MOVE=b"\3")
    module.PlanningSceneComponents.WORLD_OBJECT_NAMES = 16
    module.PlanningScene.__init__ = lambda self, **fields: self.__dict__.update(
        fields, robot_state=SimpleNamespace(), world=SimpleNamespace())
    return module


def test_planning_scene_adds_moves_and_removes():
    module = optional("moveit_msgs.msg") or moveit_stand_in()
    tracker = PlanningSceneTracker(module, "sam3d")
    kinds = module.CollisionObject
    assert tracker.is_news([placed()])
    scene = tracker.update([placed()], HEADER)
    [added] = scene.world.collision_objects
    assert scene.is_diff
    assert scene.robot_state.is_diff
    assert (added.id, added.operation, added.header) == ("sam3d/object_1", kinds.ADD, HEADER)
    assert len(added.meshes[0].vertices) == 4
    assert added.meshes[0].triangles[1].vertex_indices.tolist() == [0, 1, 3]
    assert added.mesh_poses == [Pose()]
    assert not tracker.is_news([placed()])
    [moved] = tracker.update([placed()], HEADER).world.collision_objects
    assert moved.operation == kinds.MOVE
    assert not getattr(moved, "meshes", [])
    np.testing.assert_allclose(matrix_from_pose(moved.pose)[:3, 3], [0.8, -0.1, 0.8], atol=1e-12)
    # Hidden: still an obstacle where it was. A new mesh: added anew.
    assert tracker.update([hidden("object_1")], HEADER).world.collision_objects == []
    better = place(replace(placed().tracked, revision=10))
    assert tracker.is_news([better])
    [again] = tracker.update([better], HEADER).world.collision_objects
    assert again.operation == kinds.ADD and len(again.meshes) == 1
    [removed] = tracker.update([], HEADER).world.collision_objects
    assert (removed.id, removed.operation) == ("sam3d/object_1", kinds.REMOVE)
    assert tracker.update([], HEADER).world.collision_objects == []


def test_what_the_robot_holds_is_left_alone_until_it_is_let_go():
    module = moveit_stand_in()
    tracker = PlanningSceneTracker(module, "sam3d")
    kinds = module.CollisionObject

    def robot(*held: tuple[str, bytes], is_diff: bool = False) -> Any:
        return SimpleNamespace(is_diff=is_diff, attached_collision_objects=[
            SimpleNamespace(object=SimpleNamespace(id=name, operation=operation)) for name, operation in held])
    both = [placed("a"), placed("b")]
    tracker.update(both, HEADER)
    tracker.note_attached(robot(("sam3d/a", kinds.ADD), ("sam3d/left/b", kinds.ADD), ("b", kinds.ADD), is_diff=True))
    assert [o.id for o in tracker.update(both, HEADER).world.collision_objects] == ["sam3d/b"]
    only_b = tracker.update(both[1:], HEADER).world.collision_objects
    assert [o.id for o in only_b] == ["sam3d/b"]                          # and no REMOVE of a
    tracker.note_world(["sam3d/a", "sam3d/b"])                            # asked before the robot took it
    assert not tracker.is_news(both)
    tracker.note_attached(robot(is_diff=True))
    assert [o.id for o in tracker.update(both, HEADER).world.collision_objects] == ["sam3d/b"]
    tracker.note_attached(robot(("sam3d/a", kinds.REMOVE), is_diff=True))
    found = tracker.update(both, HEADER).world.collision_objects
    assert [(o.id, o.operation) for o in found] == [("sam3d/a", kinds.ADD), ("sam3d/b", kinds.MOVE)]


@pytest.mark.parametrize("operation", [b"\0", b"\1"], ids=["add", "remove"])
def test_the_robot_may_take_an_object_while_its_obstacle_is_made(operation: bytes):
    """What it holds comes in from another thread; the object is not removed from the scene after that."""
    module = moveit_stand_in()
    kinds = module.CollisionObject
    tracker = PlanningSceneTracker(module, "sam3d")
    if operation == kinds.REMOVE:
        tracker.update([placed("a")], HEADER)
    state = SimpleNamespace(is_diff=True, attached_collision_objects=[
        SimpleNamespace(object=SimpleNamespace(id="sam3d/a", operation=kinds.ADD))])
    taking = threading.Thread(target=tracker.note_attached, args=(state,))

    def make(**fields: Any) -> Any:
        if not taking.ident:
            taking.start()
            taking.join(0.2)
        return SimpleNamespace(**fields)
    make.ADD, make.REMOVE, make.MOVE = kinds.ADD, kinds.REMOVE, kinds.MOVE
    module.CollisionObject = make
    [changed] = tracker.update([placed("a")] if operation == kinds.ADD else [], HEADER).world.collision_objects
    assert (changed.id, changed.operation) == ("sam3d/a", operation)
    taking.join()
    assert tracker.update([], HEADER).world.collision_objects == []


def test_a_planner_gets_few_faces():
    import trimesh
    ball = trimesh.creation.icosphere(5)
    vertices, triangles = planning_mesh(ball.vertices, ball.faces)
    assert len(triangles) <= 2000
    np.testing.assert_allclose(np.linalg.norm(vertices, axis=1), 1, atol=0.02)


def test_a_mesh_of_20k_vertices_is_cheap_to_fill_and_to_serialise():
    rng = np.random.default_rng(0)
    big = placed(vertices=rng.random((20_000, 3), np.float32),
                 triangles=rng.integers(0, 20_000, (40_000, 3), np.uint32),
                 vertex_rgba=rng.integers(0, 255, (20_000, 4), np.uint8), vertex_std=rng.random(20_000, np.float32))

    def cost() -> float:
        started = time.perf_counter()
        serialize_message(object_mesh_array([big], HEADER))
        return time.perf_counter() - started
    assert min(cost() for _ in range(20)) < 0.005
