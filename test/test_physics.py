"""Poses settled by contact and gravity, and surfaces that give way before."""
from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
import trimesh
from made_objects import made_object
from numba.core.dispatcher import Dispatcher

from sam3d_ros.perception.objects import ReconstructedObject
from sam3d_ros.perception.raycasting import raycasting_scene
from sam3d_ros.scene import distance_grid, physics, rebuild, solid
from sam3d_ros.scene import yielding as giving
from sam3d_ros.scene.physics import TOUCH, Body, Outcome, rigid_covariance, settle
from sam3d_ros.scene.solid import solid_from_mesh
from sam3d_ros.scene.yielding import yielding

FLOOR = np.array([0.0, 0.0, 1.0, 0.0])
BLOCK = trimesh.creation.box([0.08, 0.05, 0.10]).subdivide().subdivide().subdivide()
COVARIANCE = np.diag([0.003 ** 2] * 3 + [0.03 ** 2] * 3)


def body(position, angles=(0.0, 0.0, 0.0), mesh: trimesh.Trimesh = BLOCK, covariance: np.ndarray = COVARIANCE) -> Body:
    pose = trimesh.transformations.euler_matrix(*angles)
    pose[:3, 3] = position
    return Body(solid_from_mesh(mesh.vertices, mesh.faces), pose, covariance)


def test_a_floating_and_a_sunken_body_come_to_rest_upright():
    settled = settle([body([0, 0, 0.054]), body([0.3, 0, 0.046])], FLOOR)
    np.testing.assert_allclose(settled.poses[:, 2, 3], 0.05, atol=2e-4)
    np.testing.assert_allclose(settled.poses[:, :2, 3], [[0, 0], [0.3, 0]], atol=2e-4)
    assert [item.outcome for item in settled.report] == [Outcome.MOVED] * 2
    assert all(item.is_stable and item.gap_after < TOUCH for item in settled.report)
    assert settled.report[0].gap_before == pytest.approx(0.004)
    assert settled.report[1].penetration_before == pytest.approx(0.004)


def test_a_tilted_body_turns_towards_its_face_until_it_stands():
    tilted = body([0, 0, 0.052], (0.03, 0.02, 0.4))
    settled = settle([tilted], FLOOR)
    before, after = (np.arccos(pose[2, 2]) for pose in (tilted.world_from_object, settled.poses[0]))
    assert after < before / 2
    assert settled.report[0].is_stable


def test_overlapping_bodies_part_the_uncertain_one_giving_way():
    sure = np.diag([5e-4 ** 2] * 3 + [0.005 ** 2] * 3)
    settled = settle([body([0, 0, 0.05], covariance=sure), body([0.076, 0, 0.05])], FLOOR)
    moves = settled.poses[:, 0, 3] - [0, 0.076]
    assert moves[1] - moves[0] == pytest.approx(0.004, abs=5e-4)
    assert moves[1] > 5 * abs(moves[0])
    assert max(item.penetration_after for item in settled.report) < 5e-4


def test_a_stack_rests_on_what_is_below():
    settled = settle([body([0, 0, 0.047]), body([0, 0, 0.150])], FLOOR)
    np.testing.assert_allclose(settled.poses[:, 2, 3], [0.05, 0.15], atol=1e-3)
    assert all(item.is_stable for item in settled.report)


@pytest.mark.parametrize(("radius", "is_stable"), [(0.05, False), (0.3, True)])
def test_a_tall_body_on_a_round_underside_is_not_stable(radius, is_stable):
    """Its centre of mass is at 9 cm: above the middle of the smaller sphere, and below that of the larger."""
    across = np.linspace(0, 0.025, 12)
    bottle = trimesh.creation.revolve([*zip(across, radius - np.sqrt(radius ** 2 - across ** 2), strict=True),
                                       (0.025, 0.18), (0, 0.18)], sections=48)
    assert settle([body([0, 0, 0], mesh=bottle)], FLOOR).report[0].is_stable == is_stable


def test_what_would_move_too_far_stays_and_is_reported():
    high, deep = settle([body([0, 0, 0.07]), body([0.3, 0, 0.03])], FLOOR).report
    for item in (high, deep):
        assert (item.outcome, item.translation) == (Outcome.REFUSED, 0.0)
    assert (high.gap_after, high.is_stable) == (pytest.approx(0.02), False)
    assert deep.penetration_after == pytest.approx(0.02)


def test_the_frame_does_not_matter():
    turn = trimesh.transformations.rotation_matrix(1.1, [1, 2, 0.5])
    turn[:3, 3] = [0.2, -0.4, 0.9]
    plane = np.append(turn[:3, :3] @ FLOOR[:3], -turn[:3, :3] @ FLOOR[:3] @ turn[:3, 3])
    bodies = [body([0, 0, 0.054]), body([0.075, 0.01, 0.047])]
    turned = [dataclasses.replace(item, world_from_object=turn @ item.world_from_object) for item in bodies]
    here, there = settle(bodies, FLOOR).poses, settle(turned, plane).poses
    np.testing.assert_allclose(turn @ here, there, atol=1e-3)


def test_nothing_to_settle():
    assert settle([], FLOOR).report == ()


def test_eight_bodies_take_milliseconds():
    bodies = [body([0.082 * (k % 4), 0.054 * (k // 4), 0.05 + 0.001 * k]) for k in range(8)]
    settle(bodies, FLOOR)
    times = []
    for _ in range(5):
        started = time.thread_time()
        settle(bodies, FLOOR)
        times.append(time.thread_time() - started)
    assert min(times) < 0.03      # the bar of 10 ms is measured by `sam3d bench physics`; this machine may be busy


def rebuilt(mesh: trimesh.Trimesh, position, std: float) -> ReconstructedObject:
    pose = np.eye(4)
    pose[:3, 3] = position
    return made_object(mesh.vertices, mesh.faces, pose, pose_covariance=COVARIANCE,
                       vertex_std=np.full(len(mesh.vertices), std, np.float32))


def test_unsure_surfaces_give_way_and_the_rest_stays():
    sunk = rebuilt(BLOCK, [0, 0, 0.044], 0.004)
    slim = BLOCK.copy().apply_scale([1, 0.5, 0.5])
    sure, unsure = rebuilt(BLOCK, [0.3, 0, 0.05], 0.0005), rebuilt(slim, [0.37, 0, 0.05], 0.005)
    found = yielding([sunk, sure, unsure], FLOOR)
    world = [item.vertices + item.camera_from_object[:3, 3] for item in found]
    assert world[0][:, 2].min() == pytest.approx(0, abs=1e-6)
    assert world[0][:, 2].max() == pytest.approx(0.094, abs=1e-6)          # the side that was seen
    assert world[1][:, 0].max() == pytest.approx(0.34, abs=5e-4)
    assert world[2][:, 0].min() == pytest.approx(0.34, abs=3e-3)
    for item in found:
        np.testing.assert_allclose(item.vertices.min(axis=0) + item.vertices.max(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(np.ptp(item.vertices, axis=0), item.size, atol=1e-6)


def test_a_foot_is_drawn_down_and_the_top_stays():
    found, = yielding([rebuilt(BLOCK, [0, 0, 0.053], 0.002)], FLOOR)
    heights = found.vertices[:, 2] + found.camera_from_object[2, 3]
    assert heights.min() == pytest.approx(0, abs=1e-6) and heights.max() == pytest.approx(0.103, abs=1e-6)
    above, = yielding([rebuilt(BLOCK, [0, 0, 0.06], 0.002)], FLOOR)                  # a gap of 5 sigma
    assert above.vertices[:, 2].min() + above.camera_from_object[2, 3] == pytest.approx(0.004, abs=1e-6)


def test_what_is_held_high_over_the_support_stays_as_it_is():
    held = rebuilt(BLOCK, [0, 0, 0.2], 0.005)
    found, = yielding([held], FLOOR)
    np.testing.assert_allclose(found.size, held.size, atol=1e-6)


@pytest.mark.parametrize("bottom", [-0.05, -0.3])
def test_what_stands_on_a_lower_level_than_the_support_keeps_its_shape(bottom):
    """The camera saw its front down to where it ends; its back is a guess."""
    item = rebuilt(BLOCK, [0, 0, bottom + 0.05], 0.0)
    std = np.where(item.vertices[:, 0] > 0, 0.001, 0.015).astype(np.float32)
    found, = yielding([dataclasses.replace(item, vertex_std=std)], FLOOR)
    np.testing.assert_allclose(found.vertices, item.vertices, atol=1e-6)


def test_what_is_raised_to_the_support_keeps_an_inside():
    flat = trimesh.creation.box([0.08, 0.05, 0.015]).subdivide_to_size(0.01)
    found, = yielding([rebuilt(flat, [0, 0, -0.0125], 0.01)], FLOOR)
    heights = found.vertices[:, 2] + found.camera_from_object[2, 3]
    assert heights.min() == pytest.approx(0, abs=1e-6) and heights.max() > 5e-4
    assert trimesh.Trimesh(found.vertices, found.triangles, process=False).volume > 0


def test_an_unsure_side_gives_way_to_what_is_half_inside():
    ball = trimesh.creation.icosphere(3, 0.02)
    block = trimesh.creation.box([0.1, 0.1, 0.1]).subdivide_to_size(0.004)
    beside = rebuilt(block, [0.05, 0, 0.05], 0.01)
    sure, unsure = yielding([rebuilt(ball, [0, 0, 0.05], 0.0005), beside], FLOOR)
    np.testing.assert_allclose(sure.size, 0.04, rtol=0.05)
    dented = trimesh.Trimesh(unsure.vertices + unsure.camera_from_object[:3, 3], unsure.triangles, process=False)
    inside = raycasting_scene(dented).compute_signed_distance(
        (ball.vertices + [0, 0, 0.05]).astype(np.float32)).numpy()
    assert inside.min() > -0.004
    assert dented.bounds[1, 0] == pytest.approx(0.1, abs=1e-6)                       # the far side stays


def test_an_unsure_face_is_dented_by_a_rod_that_none_of_its_vertices_is_in():
    rod = trimesh.creation.cylinder(0.002, 0.1, sections=24).subdivide_to_size(0.003)
    rod.apply_transform(trimesh.transformations.rotation_matrix(np.pi / 2, [0, 1, 0]))
    block = trimesh.creation.box([0.1, 0.1, 0.1]).subdivide_to_size(0.009)
    far = rebuilt(block, [0.05, 0, 0.05], 0.012)
    far.vertex_std[far.vertices[:, 0] > -0.049] = 0.001                              # its other faces were seen
    sure, dented = yielding([rebuilt(rod, [-0.03, 0.0013, 0.0517], 0.001), far], FLOOR)    # 20 mm deep
    mesh = trimesh.Trimesh(dented.vertices + dented.camera_from_object[:3, 3], dented.triangles, process=False)
    axis = np.array([[x, 0.0013, 0.0517] for x in (0.005, 0.01, 0.018)], np.float32)
    before = raycasting_scene(block.copy().apply_translation([0.05, 0, 0.05]))
    assert before.compute_signed_distance(axis, nsamples=3).numpy() == pytest.approx([-0.005, -0.01, -0.018], abs=1e-4)
    assert raycasting_scene(mesh).compute_signed_distance(axis, nsamples=3).numpy().min() > -0.002
    assert sure.size[0] == pytest.approx(0.1, abs=2e-3)
    corners = np.abs(block.vertices[:, 1:]).min(axis=1) > 0.049
    moved = np.linalg.norm(mesh.vertices - (block.vertices + [0.05, 0, 0.05]), axis=1)
    assert moved[corners].max() < 0.003 and moved[block.vertices[:, 0] > 0].max() < 1e-3


def test_objects_far_inside_each_other_part_by_no_more_than_three_sigma():
    def parted(std: float) -> tuple[float, list[np.ndarray]]:
        ball = trimesh.creation.icosphere(4, 0.05)
        given = [rebuilt(ball, [x, 0, 0.05], std) for x in (0, 0.04)]
        found = yielding(given, FLOOR)
        old, new = ([item.vertices + item.camera_from_object[:3, 3] for item in items] for items in (given, found))
        first = raycasting_scene(trimesh.Trimesh(new[0], ball.faces, process=False))
        deepest = -first.compute_signed_distance(new[1].astype(np.float32)).numpy().min()
        return deepest, [np.linalg.norm(b - a, axis=1) for a, b in zip(old, new, strict=True)]

    deepest, _ = parted(0.015)
    assert deepest < 0.008                             # 40 mm before, 10 mm after a single round
    _, ways = parted(0.008)
    assert all(way.max() <= 0.024 + 1e-6 for way in ways)


def test_the_centre_of_mass_of_a_cone_far_from_the_origin():
    cone = trimesh.creation.cone(0.03, 0.08, sections=64).apply_translation([0.4, -1.2, 2.0])
    centre = solid_from_mesh(cone.vertices, cone.faces).centre_of_mass
    np.testing.assert_allclose(centre, [0.4, -1.2, 2.02], atol=1e-9)                  # a quarter of its height


def test_the_centre_of_mass_of_a_flat_mesh_is_its_middle():
    sheet = np.array([[0.0, 0, 1], [0.1, 0, 1], [0.1, 0.2, 1], [0, 0.2, 1]])
    both_sides = np.array([[0, 1, 2], [0, 2, 3], [0, 2, 1], [0, 3, 2]])
    np.testing.assert_allclose(solid_from_mesh(sheet, both_sides).centre_of_mass, [0.05, 0.1, 1], atol=1e-9)


def test_warm_up_compiles_all_that_objects_need():
    def compiled() -> dict[str, list]:
        modules = (distance_grid, physics, solid, giving)
        return {f"{module.__name__}.{name}": list(kernel.signatures) for module in modules
                for name, kernel in vars(module).items() if isinstance(kernel, Dispatcher)}

    rebuild.warm_up()
    before = compiled()
    assert len(before) > 10
    ball = trimesh.creation.icosphere(3, 0.02)
    objects = yielding([rebuilt(ball, [0, 0, 0.05], 0.0005), rebuilt(BLOCK, [0.03, 0, 0.05], 0.01)], FLOOR)
    settle([physics.body_from_object(item) for item in objects], FLOOR)
    assert compiled() == before


def test_what_was_seen_holds_the_mesh():
    item = rebuilt(BLOCK.subdivide_to_size(0.01), [0, 0, 0.05], 0.01)
    std = np.where(item.vertices[:, 2] > 0.049, 0.001, 0.01).astype(np.float32)
    free = dataclasses.replace(item, vertex_std=std, pose_covariance=np.eye(6) * 0.01)
    found = np.sqrt(np.diag(rigid_covariance(free)))
    assert found[2] < 0.001 and found[0] > 2 * found[2] and found[1] > 2 * found[2]
    sure = dataclasses.replace(item, pose_covariance=np.eye(6) * 1e-8)
    assert (np.diag(rigid_covariance(sure)) < [1e-6] * 3 + [1e-5] * 3).all()
