"""The simulated tabletop: settled, repeatable, and pictured without error until noise is added."""
from __future__ import annotations

import time

import numpy as np
import open3d as o3d
import pytest
import trimesh

from sam3d_ros.perception.frame import back_project
from sam3d_ros.synth.raycaster import Body, Lamp, Raycaster, vertex_paint
from sam3d_ros.synth.tabletop import SensorNoise, Tabletop, camera_intrinsics

INTRINSICS = camera_intrinsics(320, 240)


@pytest.fixture(scope="module")
def scene() -> Tabletop:
    return Tabletop(seed=1, count=5)


@pytest.fixture(scope="module")
def pose(scene: Tabletop) -> np.ndarray:
    return scene.camera_pose(INTRINSICS)


@pytest.fixture(scope="module")
def view(scene: Tabletop, pose: np.ndarray):
    return scene.render(INTRINSICS, pose)


def world_mesh(placed) -> trimesh.Trimesh:
    return placed.shape.mesh.copy().apply_transform(placed.world_from_object)


@pytest.mark.parametrize("seed", range(5))
def test_objects_rest_on_the_table(seed: int) -> None:
    placed_objects = Tabletop(seed, 4).objects
    meshes = [world_mesh(placed) for placed in placed_objects]
    lowest = [mesh.bounds[0, 2] for mesh in meshes]
    assert min(lowest) > -0.002                                  # contacts give by a fraction of a millimetre
    for placed, mesh, low in zip(placed_objects, meshes, lowest, strict=True):
        assert np.allclose(np.linalg.det(placed.world_from_object[:3, :3]), 1)
        others = [other for other in meshes if other is not mesh]
        on_another = any((other.bounds[1] > mesh.bounds[0]).all() and (other.bounds[0] < mesh.bounds[1]).all()
                         for other in others)
        assert low < 0.002 or on_another


def test_same_seed_gives_the_same_scene_and_another_seed_another(scene: Tabletop) -> None:
    again, other = Tabletop(1, 5), Tabletop(2, 5)
    for first, second in zip(scene.objects, again.objects, strict=True):
        assert first.shape.kind == second.shape.kind
        assert np.array_equal(first.world_from_object, second.world_from_object)
    assert not np.allclose(scene.objects[0].world_from_object, other.objects[0].world_from_object)
    assert np.array_equal(scene.camera_pose(INTRINSICS), again.camera_pose(INTRINSICS))


def test_labels_are_consecutive_and_all_in_view(scene: Tabletop, view) -> None:
    assert [placed.label for placed in scene.objects] == [1, 2, 3, 4, 5]
    assert set(np.unique(view.labels)) == {0, 1, 2, 3, 4, 5}
    margins = np.concatenate([view.labels[:4].ravel(), view.labels[-4:].ravel(), view.labels[:, :4].ravel(),
                              view.labels[:, -4:].ravel()])
    assert not margins.any()


def test_depth_and_labels_lie_on_the_true_posed_meshes(scene: Tabletop, pose: np.ndarray, view) -> None:
    for placed in scene.objects:
        rows, columns = np.nonzero(view.labels == placed.label)
        points = trimesh.transform_points(back_project(view.depth, INTRINSICS, rows, columns), pose)
        raycasting = o3d.t.geometry.RaycastingScene()
        mesh = world_mesh(placed)
        raycasting.add_triangles(o3d.core.Tensor(mesh.vertices.astype(np.float32)),
                                 o3d.core.Tensor(mesh.faces.astype(np.uint32)))
        distances = raycasting.compute_distance(o3d.core.Tensor(points.astype(np.float32))).numpy()
        assert distances.max() < 1e-4


def test_camera_looks_down_at_the_objects_and_turns_around_them(scene: Tabletop) -> None:
    first, turned = scene.camera_pose(INTRINSICS), scene.camera_pose(INTRINSICS, turn=0.2)
    for pose in (first, turned):
        assert np.allclose(pose[:3, :3].T @ pose[:3, :3], np.eye(3)) and np.linalg.det(pose[:3, :3]) > 0
        assert pose[2, 3] > 0.2                # above the table
        assert pose[2, 2] < -0.4               # optical axis downwards
        assert pose[2, 1] < 0                  # image y downwards
    azimuths = [np.arctan2(-pose[1, 2], -pose[0, 2]) for pose in (first, turned)]
    assert (azimuths[1] - azimuths[0]) % (2 * np.pi) == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize("count", [0, 13])
def test_number_of_objects_is_checked(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 12"):
        Tabletop(0, count)


def test_no_noise_changes_nothing(view) -> None:
    noise = SensorNoise(0.0, view.depth.shape, seed=0)
    assert np.array_equal(noise.depth(view.depth, view.depth_edges()), view.depth)
    assert np.array_equal(noise.colour(view.colour), view.colour)


def test_noise_is_of_the_stated_size_loses_edges_and_differs_between_images(view) -> None:
    noise = SensorNoise(1.0, view.depth.shape, seed=0)
    edges = view.depth_edges()
    depth = noise.depth(view.depth, edges)
    assert (depth[~edges & (view.depth > 0)] > 0).all()
    far = np.full_like(view.depth, 2.0)
    error = noise.depth(far, np.zeros_like(edges)) - far
    assert error.std() == pytest.approx(0.0012 * 2.0 ** 2, rel=0.05) and abs(error.mean()) < 1e-4
    assert 0.5 < (depth[edges] == 0).mean() < 0.7
    assert np.allclose(depth * 1000, np.round(depth * 1000), atol=1e-3)     # steps of 1 mm
    assert not np.array_equal(depth, noise.depth(view.depth, edges))
    assert not np.array_equal(noise.colour(view.colour), noise.colour(view.colour))


def test_noise_takes_a_small_part_of_a_30_hz_period() -> None:
    depth, edges = np.full((480, 640), 0.8, np.float32), np.zeros((480, 640), bool)
    colour = np.full((480, 640, 3), 128, np.uint8)
    noise = SensorNoise(1.0, depth.shape, seed=0)
    start = time.process_time()
    for _ in range(10):
        noise.depth(depth, edges)
        noise.colour(colour)
    assert (time.process_time() - start) / 10 < 0.03


def test_vertex_colours_are_interpolated_and_shadows_darken() -> None:
    floor = trimesh.creation.box([2, 2, 0.1]).apply_translation([0, 0, -0.05])
    grey = Body(floor, vertex_paint(np.full((8, 3), 180, np.uint8)), np.eye(4))
    block = Body(trimesh.creation.box([0.2, 0.2, 0.2]), vertex_paint(np.full((8, 3), 180, np.uint8)),
                 trimesh.transformations.translation_matrix([0, 0, 0.5]), label=3)
    pose = np.diag([1.0, -1, -1, 1])
    pose[:3, 3] = 0, 0, 1.5
    lamp = Lamp(position=np.array([-1.0, 0, 2.0]), radius=0.0, samples=1)
    open_view, view = (Raycaster(bodies, lamp).render(INTRINSICS, pose) for bodies in ([grey], [grey, block]))
    assert view.labels[120, 160] == 3 and view.depth[120, 160] == pytest.approx(0.9, abs=1e-6)
    # The lamp at x = -1 casts the block's shadow to x > 0: right in the image.
    shadow = (view.labels == 0) & (view.colour[..., 0] + 40.0 < open_view.colour[..., 0])
    columns = np.nonzero(shadow)[1]
    assert len(columns) > 100 and columns.min() > 160
