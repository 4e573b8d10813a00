"""What the rasteriser sees, against a ray caster."""
import numpy as np
import open3d as o3d
import pytest
import trimesh

from sam3d_ros.perception.frame import Intrinsics, back_project, lengths, pixel_directions
from sam3d_ros.perception.raycasting import ray_scene
from sam3d_ros.synth.rasteriser import blended, first_hits

CAMERA = Intrinsics(60, 40, 55.0, 50.0, 28.3, 21.1)
LIGHT = np.array([0.6, -0.64, -0.48])
# Under the camera and behind it as well as before it: its triangles pass through the plane of the camera's centre.
FLOOR = np.array([[-3, 0.2, -2], [3, 0.2, -2], [3, 0.2, 4], [-3, 0.2, 4.0]]), np.array([[0, 1, 2], [0, 2, 3]])


def scene(seed):
    """A floor, a mesh without triangles, and three balls and rings that hide parts of each other, one cut off by the
    image's border."""
    rng = np.random.default_rng(seed)
    meshes = [FLOOR, (np.empty((0, 3)), np.empty((0, 3), np.int32))]
    for place in ([0, 0, 0.6], [0.12, 0.02, 0.75], [-0.35, 0.05, 0.7]):
        body = trimesh.creation.icosphere(2, 0.1) if rng.random() < 0.5 else trimesh.creation.annulus(0.05, 0.1, 0.06)
        body.apply_transform(trimesh.transformations.random_rotation_matrix(rng.random(3)))
        meshes.append((body.vertices + place, body.faces.astype(np.int32)))
    return meshes


def cast(meshes):
    """What Open3D's rays through the pixels' centres hit."""
    rays = pixel_directions(CAMERA, *np.indices((CAMERA.height, CAMERA.width)))
    from_centre = np.concatenate([np.zeros_like(rays), rays], axis=-1).astype(np.float32)
    hits = ray_scene(meshes).cast_rays(o3d.core.Tensor(from_centre))
    return rays, {name: tensor.numpy() for name, tensor in hits.items()}


@pytest.mark.parametrize("seed", range(4))
def test_pixels_show_what_rays_hit(seed):
    meshes = scene(seed)
    depth, body, face, weights, facing, lit = first_hits(*zip(*meshes, strict=True), CAMERA, LIGHT)
    rays, hits = cast(meshes)
    # Open3D's are of single precision, and edges belong to either side.
    same = (body == hits["geometry_ids"].astype(np.int32)) & ((body < 0) | (face == hits["primitive_ids"]))
    assert same.mean() > 0.99 and set(np.unique(body[same])) == {-1, 0, 2, 3, 4}
    seen = same & (body >= 0)
    np.testing.assert_allclose(depth[seen], hits["t_hit"][seen], rtol=1e-5)
    assert (depth[body < 0] == 0).all() and (facing[body < 0] == 1).all()
    along = (hits["primitive_normals"] * rays).sum(axis=-1)
    np.testing.assert_allclose(facing[seen], (np.abs(along) / lengths(rays))[seen], atol=1e-4)
    towards = np.where(along[..., None] > 0, -1, 1) * hits["primitive_normals"]
    np.testing.assert_allclose(lit[seen], np.maximum(towards @ LIGHT, 0)[seen], atol=1e-4)
    for index in (0, 2, 3, 4):
        rows, columns = np.nonzero(body == index)
        points = blended(*meshes[index], face[rows, columns], weights[rows, columns])
        np.testing.assert_allclose(points, back_project(depth, CAMERA, rows, columns), atol=1e-6)


def test_of_surfaces_in_one_place_the_first_is_seen_and_slivers_are_not():
    """A wall, twice; before it triangles without area, and one that lies in a plane with the camera's centre."""
    wall = np.array([[-9, -9, 2], [9, -9, 2], [9, 9, 2], [-9, 9, 2.0]])
    slivers = np.array([[-1, 0.3, 1], [1, 0.3, 1], [0, 0.3, 1], [-1, 0, 1], [1, 0, 1], [0, 0, 1.5]])
    faces = np.array([[0, 1, 2], [0, 0, 0], [3, 4, 5]])
    halves = FLOOR[1]
    level = Intrinsics(61, 41, 50.0, 50.0, 30.0, 20.0)          # whose middle row looks along the last of them
    depth, body, _, weights, facing, _ = first_hits([slivers, wall, wall], [faces, halves, halves], level, LIGHT)
    assert (body == 1).all() and np.allclose(depth, 2) and np.isfinite(weights).all()
    assert facing[20, 30] == 1 and facing[0, 0] == pytest.approx(1 / np.sqrt(1 + 0.6 ** 2 + 0.4 ** 2))
