"""Grasp planning, grasps in simulation, and the node that publishes them."""
from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from sam3d_ros.evaluation import grasping
from sam3d_ros.evaluation.grasp_trial import attempt
from sam3d_ros.grasping.antipodal import RETREAT, Grasp, SceneMesh, plan_grasps
from sam3d_ros.grasping.gripper import FRANKA
from sam3d_ros.perception.faults import Fault, FaultCode
from sam3d_ros.perception.pipeline import PipelineResult
from sam3d_ros.synth.clutter import Model, Placed, packed_scene, pile_scene

FLOOR = np.array([0.0, 0.0, 1.0, 0.0])


def mesh_at(shape: trimesh.Trimesh, position, std=None) -> SceneMesh:
    return SceneMesh(shape.vertices + position, shape.faces, std)


def model(name: str, shape: trimesh.Trimesh) -> Model:
    return Model(name, shape, np.full((len(shape.vertices), 3), 120, np.uint8), (shape.convex_hull.vertices,))


SHAPES = {"box": trimesh.creation.box([0.05, 0.08, 0.1]), "can": trimesh.creation.cylinder(0.03, 0.1),
          "ball": trimesh.creation.icosphere(3, 0.03), "bar": trimesh.creation.box([0.04, 0.04, 0.15])}
MODELS = [model(name, shape) for name, shape in SHAPES.items()]


def test_grasps_close_on_opposite_sides_and_touch_nothing():
    box = trimesh.creation.box([0.05, 0.12, 0.1])
    grasps = plan_grasps([mesh_at(box, [0, 0, 0.05])], FLOOR)
    assert grasps
    for grasp in grasps:
        pose = grasp.world_from_grasp
        np.testing.assert_allclose(pose[:3, :3].T @ pose[:3, :3], np.eye(3), atol=1e-9)
        assert abs(pose[0, 1]) > 0.95                                      # closes across the thin side
        assert grasp.width == pytest.approx(0.05, rel=0.05)
        assert grasp.width < grasp.opening <= FRANKA.max_opening
        tips = pose[:3, :3] @ [0, 0, 0] + pose[:3, 3]
        assert 0 < tips[2] < 0.1
    assert [g.score for g in grasps] == sorted((g.score for g in grasps), reverse=True)


def test_no_grasp_comes_twice():
    for shape in SHAPES.values():
        places = [grasp.world_from_grasp
                  for grasp in plan_grasps([mesh_at(shape, [0, 0, shape.extents[2] / 2])], FLOOR, count=100)]
        assert len(np.unique(np.round(places, 6), axis=0)) == len(places) > 10


def test_the_wall_and_the_whole_of_a_hollow_are_grasped():
    tube = mesh_at(trimesh.creation.annulus(0.026, 0.030, 0.09), [0, 0, 0.045])
    widths = np.array([grasp.width for grasp in plan_grasps([tube], FLOOR, count=10_000)])
    assert np.all((widths < 0.006) | (widths > 0.050))
    assert 0 < (widths < 0.006).sum() < len(widths)


def test_too_wide_and_walled_in_objects_have_no_grasp():
    wide = trimesh.creation.box([0.12, 0.12, 0.1])
    assert plan_grasps([mesh_at(wide, [0, 0, 0.05])], FLOOR) == []
    ball = trimesh.creation.icosphere(3, 0.03)
    walls = trimesh.creation.annulus(0.035, 0.05, 0.3)
    meshes = [mesh_at(ball, [0, 0, 0.03]), mesh_at(walls, [0, 0, 0.15])]
    assert plan_grasps(meshes, FLOOR, targets=[0]) == []
    assert plan_grasps(meshes[:1], FLOOR, targets=[0])
    assert plan_grasps([], FLOOR) == []


@pytest.mark.parametrize("height", [0.01, 0.015])
def test_low_objects_are_lifted_with_the_fingertips(height: float):
    plate = model("plate", trimesh.creation.cylinder(0.03, height))
    mesh = mesh_at(plate.mesh, [0.02, 0.01, height / 2])
    grasp = plan_grasps([mesh], FLOOR)[0]
    assert grasp.world_from_grasp[2, 3] > 0.004                            # the fingertips, over the support
    pose = trimesh.transformations.translation_matrix([0.02, 0.01, height / 2])
    assert attempt([Placed(plate, pose)], grasp, FRANKA).held == 0


def test_the_tips_alone_grasp_only_what_is_low():
    half = np.array([0.025, 0.04, 0.05])
    best = plan_grasps([mesh_at(trimesh.creation.box(2 * half), [0, 0, 0.05])], FLOOR, count=1)[0].world_from_grasp
    back, tips = -best[:3, 2], best[:3, 3] - [0, 0, 0.05]
    assert (np.abs(tips) < half).all()
    depth = ((np.sign(back) * half - tips) / np.where(back == 0, 1e-9, back)).min()       # of the tips, to the surface
    assert depth > 0.01


def test_the_tips_alone_do_not_pinch_a_ridge_high_up():
    block = trimesh.creation.box([0.12, 0.12, 0.1])
    ridge = trimesh.creation.box([0.006, 0.1, 0.006], trimesh.transformations.translation_matrix([0, 0, 0.053]))
    meshes = [mesh_at(block + ridge, [0, 0, 0.05])]
    assert plan_grasps(meshes, FLOOR) == []
    assert plan_grasps([mesh_at(ridge, [0, 0, -0.045])], FLOOR)            # the same ridge on the floor


def test_guessed_surfaces_are_avoided():
    bar = trimesh.creation.box([0.04, 0.2, 0.04]).subdivide_to_size(0.02)
    std = np.where(bar.vertices[:, 1] > 0, 0.001, 0.012)
    grasps = plan_grasps([mesh_at(bar, [0, 0, 0.02], std)], FLOOR)
    assert min(grasp.world_from_grasp[1, 3] for grasp in grasps) > -0.01


def test_a_hand_that_comes_near_to_guessed_surfaces_lowers_the_score():
    ball = mesh_at(trimesh.creation.icosphere(3, 0.02), [0, 0, 0.02])
    wall = trimesh.creation.box([0.02, 0.3, 0.03], trimesh.transformations.translation_matrix([0.06, 0, 0.015]))
    wall = wall.subdivide_to_size(0.004)

    def grasps(std: float) -> list[Grasp]:
        beside = mesh_at(wall, [0, 0, 0], np.full(len(wall.vertices), std))
        return plan_grasps([ball, beside], FLOOR, targets=[0], count=1000)

    def clearance(grasp: Grasp) -> float:
        """From the wall to the hand on its way in."""
        pose, boxes = grasp.world_from_grasp, FRANKA.boxes(grasp.opening, RETREAT)
        inside = (wall.vertices - pose[:3, 3]) @ pose[:3, :3]
        return min(np.linalg.norm(inside - np.clip(inside, *box), axis=1).min() for box in boxes)

    known = {grasp.world_from_grasp.tobytes(): grasp.score for grasp in grasps(0.0)}
    guessed = grasps(0.008)
    scores = np.array([grasp.score for grasp in guessed])
    assert len(scores) == len(known) and (np.diff(scores) <= 0).all()
    lowered = scores < [known[grasp.world_from_grasp.tobytes()] for grasp in guessed]
    clearances = np.array([clearance(grasp) for grasp in guessed])
    assert clearances[~lowered].min() > 0.0075
    assert clearances[lowered].max() < 0.008 * 3 ** 0.5 + 0.002            # of a box's corner


def test_grasps_that_would_not_hold_are_none():
    ball = trimesh.creation.icosphere(3, 0.03)

    def grasps(std: float) -> list[Grasp]:
        return plan_grasps([mesh_at(ball, [0, 0, 0.03], np.full(len(ball.vertices), std))], FLOOR, count=500)

    assert min(grasp.score for grasp in grasps(0.004)) >= 0.05
    assert grasps(0.02) == []


def test_doubtful_meshes_are_grasped_last():
    places = [mesh_at(SHAPES["ball"], [x, 0, 0.03]) for x in (-0.15, 0.15)]
    usual = [grasp.target for grasp in plan_grasps(places, FLOOR, count=100_000)]
    assert 0 < usual.count(0) < len(usual) and usual != sorted(usual)
    places[0] = replace(places[0], is_doubtful=True)
    assert [grasp.target for grasp in plan_grasps(places, FLOOR, count=100_000)] == sorted(usual, reverse=True)


def test_the_same_seed_gives_the_same_grasps():
    meshes = [mesh_at(SHAPES["can"], [0, 0, 0.05])]
    first, second = (plan_grasps(meshes, FLOOR, seed=3)[0].world_from_grasp for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_scenes_are_at_rest_and_apart():
    packed = packed_scene(MODELS, np.random.default_rng(1))
    assert len(packed) == len(MODELS)
    for item in packed:
        lowest = trimesh.transform_points(item.model.mesh.vertices, item.world_from_object)[:, 2].min()
        assert lowest == pytest.approx(0, abs=2e-3)
    pile = pile_scene(MODELS, np.random.default_rng(1))
    assert pile and all(item.world_from_object[2, 3] > 0.01 for item in pile)


def test_a_good_grasp_lifts_and_a_bad_one_does_not():
    placed = packed_scene([MODELS[0]], np.random.default_rng(0))
    shape = placed[0].model.mesh
    mesh = SceneMesh(trimesh.transform_points(shape.vertices, placed[0].world_from_object), shape.faces)
    grasp = plan_grasps([mesh], FLOOR)[0]
    trial = attempt(placed, grasp, FRANKA)
    assert (trial.held, trial.remaining) == (0, [])
    beside = grasp.world_from_grasp.copy()
    beside[:3, 3] += [0.12, 0.12, 0]
    trial = attempt(placed, Grasp(0, beside, grasp.opening, grasp.width, 0.5), FRANKA)
    assert trial.held is None and len(trial.remaining) == 1


@pytest.mark.parametrize("order", grasping.ORDERS)
def test_a_round_with_true_meshes_clears_the_table(order: str):
    placed = packed_scene(MODELS, np.random.default_rng(2))
    played = grasping.ORDERS[order](placed, grasping.true_meshes, 2)
    assert played.successes == played.objects == 4


def test_a_round_without_meshes_ends():
    placed = packed_scene(MODELS[:2], np.random.default_rng(2))
    assert grasping.play(placed, lambda view: {}, 0) == grasping.Round(2, 0, 0, is_aborted=True)
    assert grasping.play_in_turn(placed, lambda view: {}, 0).successes == 0


def test_the_view_shows_every_object_and_the_baseline_finds_them():
    placed = packed_scene(MODELS[:2], np.random.default_rng(2))
    view = grasping.View(placed, 0)
    assert {instance.label for instance in view.frame.instances} == {1, 2}
    for label, mesh in grasping.extruded(view).items():
        middle = (mesh.vertices.min(axis=0) + mesh.vertices.max(axis=0)) / 2
        assert np.linalg.norm(middle - placed[label - 1].world_from_object[:3, 3]) < 0.03


def test_an_engine_that_fails_ends_the_benchmark():
    class Pipeline:
        def run(self, frame):
            raise Fault(FaultCode.ENGINE_FAILED, "openvino int8: it broke")

    with pytest.raises(Fault, match="it broke"):
        grasping.play(packed_scene(MODELS[:1], np.random.default_rng(2)), grasping.rebuilt(Pipeline()), 0)


def test_a_view_in_which_nothing_is_rebuilt_gives_no_meshes():
    class Pipeline:
        def run(self, frame):
            return PipelineResult([], (), {})

    placed = packed_scene(MODELS[:1], np.random.default_rng(2))
    assert grasping.rebuilt(Pipeline())(grasping.View(placed, 0)) == {}


def test_report():
    report = grasping.report([grasping.Round(5, 6, 5, False), grasping.Round(5, 2, 0, False)])
    assert (report["success_rate"], report["declutter_rate"]) == (5 / 8, 0.5)
    low, high = grasping.wilson_interval(8, 10)
    assert (low, high) == (pytest.approx(0.490, abs=1e-3), pytest.approx(0.943, abs=1e-3))
    assert "62.5" in grasping.table({"packed, any": {"sam3d": report}})


def test_node_publishes_grasps_and_keeps_meshes_of_moved_objects(ros):
    from std_msgs.msg import Header

    from sam3d_ros.msg import ObjectMesh, ObjectMeshArray
    from sam3d_ros.nodes.grasp_consumer import GraspConsumer
    from sam3d_ros.ros.messages import to_array
    from sam3d_ros.ros.transforms import pose_from_matrix

    node = GraspConsumer(namespace="grasp_test")
    published = []
    node._poses = type("Publisher", (), {"publish": staticmethod(published.append)})

    def send(message: ObjectMeshArray) -> None:
        """And wait for what is made of it."""
        before = len(published)
        node._on_objects(message)
        deadline = time.monotonic() + 20
        while len(published) == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    try:
        pose = np.eye(4)
        pose[:3, 3] = [0.4, 0, 0.05]
        item = ObjectMesh(id="a", class_id="box", vertices=to_array("f", SHAPES["box"].vertices.astype(np.float32)),
                          triangles=to_array("I", SHAPES["box"].faces.astype(np.uint32)))
        item.pose.pose = pose_from_matrix(pose)
        header = Header(frame_id="base")
        send(ObjectMeshArray(header=header, objects=[item]))
        pose[0, 3] = 0.6
        moved = ObjectMesh(id="a", class_id="box")
        moved.pose.pose = pose_from_matrix(pose)
        send(ObjectMeshArray(header=header, objects=[moved]))
        send(ObjectMeshArray(header=header, objects=[]))
        doubtful, other = (ObjectMesh(id=name, class_id="box", vertices=item.vertices, triangles=item.triangles,
                                      pose=moved.pose, status=status)
                           for name, status in (("a", ObjectMesh.STATUS_LOW_QUALITY), ("b", ObjectMesh.STATUS_OK)))
        pose[0, 3] = 0.2
        other.pose.pose = pose_from_matrix(pose)
        send(ObjectMeshArray(header=header, objects=[doubtful, other]))
    finally:
        node.destroy_node()
    assert [message.header.frame_id for message in published] == ["base"] * 4
    assert [round(message.poses[0].position.x, 1) for message in published[:2]] == [0.4, 0.6]
    assert published[2].poses == []
    assert {round(grasp.position.x, 1) for grasp in published[3].poses} == {0.2}      # ten are asked for


def test_the_node_says_once_that_a_frame_is_not_upright(ros, monkeypatch):
    from std_msgs.msg import Header

    from sam3d_ros.msg import ObjectMesh, ObjectMeshArray
    from sam3d_ros.nodes.grasp_consumer import GraspConsumer
    from sam3d_ros.ros.messages import to_array
    from sam3d_ros.ros.transforms import pose_from_matrix

    node = GraspConsumer(namespace="frame_test")
    said = []
    monkeypatch.setattr(node.get_logger(), "warning", said.append)

    def publish(frame: str, *rotations: Rotation) -> int:
        objects = []
        for rotation in rotations:
            pose = np.eye(4)
            pose[:3, :3] = rotation.as_matrix()
            objects.append(ObjectMesh(status=ObjectMesh.STATUS_HIDDEN))
            objects[-1].pose.pose = pose_from_matrix(pose)
            objects[-1].vertices, objects[-1].triangles = (to_array("f", SHAPES["box"].vertices.astype(np.float32)),
                                                           to_array("I", SHAPES["box"].faces.astype(np.uint32)))
        node._publish_grasps(ObjectMeshArray(header=Header(frame_id=frame), objects=objects))
        return len(said)
    upright, lying = Rotation.from_euler("z", 70, degrees=True), Rotation.from_euler("x", 90, degrees=True)
    seen = Rotation.from_euler("x", -120, degrees=True)      # from a camera that looks down by 30 degrees
    try:
        assert publish("base") == 0
        assert publish("base", lying, upright) == 0
        assert publish("camera", seen, seen) == 1
        assert publish("camera", seen) == 1
    finally:
        node.destroy_node()
    assert "'camera'" in said[0] and "target_frame" in said[0]


def test_the_node_says_why_there_is_no_grasp_and_takes_another_target(ros, monkeypatch):
    from rclpy.parameter import Parameter
    from std_msgs.msg import Header

    from sam3d_ros.msg import ObjectMesh, ObjectMeshArray
    from sam3d_ros.nodes.grasp_consumer import GraspConsumer
    from sam3d_ros.ros.messages import to_array
    from sam3d_ros.ros.transforms import pose_from_matrix

    def item(name: str, kind: str, shape: trimesh.Trimesh, x: float, status: int = ObjectMesh.STATUS_OK) -> ObjectMesh:
        made = ObjectMesh(id=name, class_id=kind, status=status, triangles=to_array("I", shape.faces.astype(np.uint32)),
                          vertices=to_array("f", shape.vertices.astype(np.float32)))
        made.pose.pose = pose_from_matrix(trimesh.transformations.translation_matrix([x, 0, shape.extents[2] / 2]))
        return made

    node = GraspConsumer(namespace="excuse_test", parameter_overrides=[Parameter("target", value="Mug")])
    said, published = [], []
    node._poses = type("Publisher", (), {"publish": staticmethod(lambda message: published.append(len(message.poses)))})
    monkeypatch.setattr(node.get_logger(), "info", lambda text, throttle_duration_sec: said.append(text))
    crate = trimesh.creation.box([0.2, 0.2, 0.1])
    scene = ObjectMeshArray(header=Header(frame_id="base"), objects=[
        item("object_1", "mug", SHAPES["can"], 0.0), item("object_2", "", crate, 0.5),
        item("object_3", "ball", SHAPES["ball"], -0.5, ObjectMesh.STATUS_HIDDEN)])
    try:
        for target in ("Mug", "object_2", "object_3", "mug"):
            assert node.set_parameters([Parameter("target", value=target)])[0].successful
            node._publish_grasps(scene)
        node._publish_grasps(ObjectMeshArray(header=Header(frame_id="base")))
    finally:
        node.destroy_node()
    assert published == [0, 0, 0, 10, 0]
    assert said[0] == "nothing in view has the id or class 'Mug'; there is object_1 (mug), object_2"
    assert said[1].startswith("no grasp found of object_2: too wide")
    assert said[2].startswith("nothing in view has the id or class 'object_3'") and len(said) == 3


def test_marker_colours_are_colours(ros):
    from std_msgs.msg import Header

    from sam3d_ros.nodes.grasp_consumer import grasp_markers

    sure, doubtful = (Grasp(0, np.eye(4), 0.06, 0.04, score) for score in (0.3, 0.8))
    for marker in grasp_markers([sure, doubtful], FRANKA, Header(frame_id="base")).markers[1:]:
        assert 0 <= min(marker.color.r, marker.color.g) and max(marker.color.r, marker.color.g) <= 1


def test_the_node_takes_every_message_while_it_plans(ros, monkeypatch):
    """The mesh of "b" comes once, while the first message is planned on, which fails."""
    from std_msgs.msg import Header

    from sam3d_ros.msg import ObjectMesh, ObjectMeshArray
    from sam3d_ros.nodes import grasp_consumer
    from sam3d_ros.ros.messages import to_array

    node = grasp_consumer.GraspConsumer(namespace="slow_grasp_test")
    planned, is_planning, all_sent = [], threading.Event(), threading.Event()

    def plan(meshes: list[SceneMesh], *arguments) -> list[Grasp]:
        planned.append(len(meshes))
        is_planning.set()
        assert all_sent.wait(20)
        if len(planned) == 1:
            raise RuntimeError("a mesh that cannot be grasped")
        return []
    monkeypatch.setattr(grasp_consumer, "plan_grasps", plan)

    def send(names: str, with_mesh: bool) -> None:
        objects = [ObjectMesh(id=name) for name in names]
        if with_mesh:
            objects[-1].vertices = to_array("f", SHAPES["box"].vertices.astype(np.float32))
            objects[-1].triangles = to_array("I", SHAPES["box"].faces.astype(np.uint32))
        node._on_objects(ObjectMeshArray(header=Header(frame_id="base"), objects=objects))
    sending = threading.Thread(target=lambda: [send("ab", number == 0) for number in range(20)])
    try:
        send("a", True)
        assert is_planning.wait(20)
        sending.start()
        sending.join(5)
        assert not sending.is_alive()
        all_sent.set()
        deadline = time.monotonic() + 20
        while len(planned) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        all_sent.set()
        node.destroy_node()
    assert planned == [1, 2]
