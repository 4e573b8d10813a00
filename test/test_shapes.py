"""Procedural objects: closed, outward, of household size, repeatable and cheap."""
from __future__ import annotations

import time

import numpy as np
import open3d as o3d
import pytest

from sam3d_ros.synth.shapes import KINDS, MAX_EXTENT, MAX_FACES, MIN_EXTENT, random_shape


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_one_closed_outward_solid_of_household_size(kind: str) -> None:
    for seed in range(8):
        mesh = random_shape(np.random.default_rng(seed), kind).mesh
        assert mesh.is_watertight and mesh.is_winding_consistent and mesh.body_count == 1
        assert 1e-6 < mesh.volume < np.prod(mesh.extents) * 1.001
        assert len(mesh.faces) <= MAX_FACES
        assert MIN_EXTENT <= mesh.extents.max() <= MAX_EXTENT
        assert np.allclose(mesh.bounds.sum(axis=0), 0, atol=1e-6)


def test_same_seed_gives_the_same_object_and_another_seed_another() -> None:
    first, again, other = (random_shape(np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert first.kind == again.kind
    assert np.array_equal(first.mesh.vertices, again.mesh.vertices)
    assert np.array_equal(first.mesh.faces, again.mesh.faces)
    assert np.array_equal(first.rgb, again.rgb)
    assert not np.allclose(first.mesh.extents, other.mesh.extents, rtol=1e-3)


@pytest.mark.parametrize("kind", ["mug", "bowl", "cup", "skillet", "pitcher"])
def test_containers_are_hollow(kind: str) -> None:
    mesh = random_shape(np.random.default_rng(0), kind).mesh
    assert mesh.volume < 0.5 * mesh.convex_hull.volume


def test_colours_belong_to_vertices_and_the_label_shows() -> None:
    shape = random_shape(np.random.default_rng(3), "can")
    assert shape.rgb.shape == (len(shape.mesh.vertices), 3) and shape.rgb.dtype == np.uint8
    assert len(np.unique(shape.rgb, axis=0)) >= 3


def test_refined_mesh_is_the_same_closed_surface_with_short_edges() -> None:
    shape = random_shape(np.random.default_rng(1), "mug")
    mesh, rgb = shape.refined(0.004)
    assert mesh.is_watertight and len(rgb) == len(mesh.vertices)
    assert mesh.edges_unique_length.max() < 2 * 0.004
    assert mesh.volume == pytest.approx(shape.mesh.volume, rel=1e-3)


def test_a_shape_takes_milliseconds() -> None:
    rng = np.random.default_rng(0)
    random_shape(rng)
    start = time.process_time()
    for _ in range(60):
        random_shape(rng)
    assert (time.process_time() - start) / 60 < 0.1


@pytest.mark.parametrize("kind", ["mug", "pitcher"])
def test_handles_end_inside_the_wall(kind: str) -> None:
    """Seen from its axis, the cavity is as deep on the handle's side (+X) as on the other."""
    for seed in range(10):
        mesh = random_shape(np.random.default_rng(seed), kind).mesh
        scene = o3d.t.geometry.RaycastingScene()
        scene.add_triangles(o3d.core.Tensor(mesh.vertices.astype(np.float32)),
                            o3d.core.Tensor(mesh.faces.astype(np.uint32)))
        axis_x = mesh.bounds[0, 0] + mesh.extents[1] / 2
        heights = np.linspace(-0.3, 0.45, 40) * mesh.extents[2]
        depths = [scene.cast_rays(o3d.core.Tensor(np.array([[axis_x, 0, z, side, 0, 0] for z in heights], np.float32)))
                  ["t_hit"].numpy() for side in (1, -1)]
        assert np.abs(depths[0] - depths[1]).max() < 0.0005
