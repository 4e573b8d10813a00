"""From signed distance to closed, metric, outward-oriented meshes."""
import numpy as np
import pytest
import trimesh
from scipy import ndimage

from sam3d_ros.perception.appearance import vertex_normals
from sam3d_ros.perception.cube import Cube
from sam3d_ros.perception.following import follow_depth
from sam3d_ros.perception.object_frame import object_frame
from sam3d_ros.perception.surface import extract_surface
from sam3d_ros.perception.uncertainty import pose_uncertainty, voxel_std
from sam3d_ros.synth.render import random_rotation

GRID = np.stack(np.meshgrid(*[(np.arange(64) + 0.5) / 64 - 0.5] * 3, indexing="ij"), axis=-1)


def ball(centre, radius):
    """Signed distance in voxels, in a unit cube."""
    return ((np.linalg.norm(GRID - centre, axis=-1) - radius) * 64).astype(np.float32)


UNSEEN = np.empty((0, 3))


def surface_of(distance, cube=None, max_faces=5000, log_std=None, observed=UNSEEN, outline=UNSEEN):
    """Of a cube of edge 1, 2 m ahead; one voxel of standard deviation."""
    log_std = np.zeros((32,) * 3, np.float32) if log_std is None else log_std
    return extract_surface(distance, log_std, cube or Cube(np.eye(3), 2.0, 1.0), max_faces, observed, outline)


def test_an_off_centre_ball_comes_out_where_it_is():
    rotation = random_rotation(np.random.default_rng(0))
    cube = Cube(rotation, 0.8, 0.3)
    spread = np.zeros((32,) * 3, np.float32)
    spread[:20] = np.log(2)
    surface = surface_of(ball([0.1, -0.05, 0.2], 0.2), cube, log_std=spread)
    mesh = trimesh.Trimesh(surface.vertices, surface.triangles)
    expected = (np.array([0.1, -0.05, 0.2]) * 0.3 + [0, 0, 0.8]) @ rotation   # virtual -> camera
    assert mesh.is_watertight and len(mesh.faces) <= 5000
    np.testing.assert_allclose(mesh.center_mass, expected, atol=2e-4)
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.06 ** 3, rel=0.02)  # positive: oriented outward
    left = cube.from_camera(surface.vertices)[:, 0] < 0           # two voxels of deviation there, one elsewhere
    assert np.median(surface.vertex_std[~left]) == pytest.approx(0.3 / 64, rel=1e-3)
    # Known on the left by its images: with half a voxel for what the sides of things differ by.
    assert np.median(surface.vertex_std[left]) == pytest.approx(np.hypot(1, 0.5) * 0.3 / 64, rel=1e-2)


def test_what_was_seen_from_afar_is_less_sure():
    """The front of a ball of 12 cm, seen at 0.6 and at 1.8 m: a quarter of a voxel and 0.2 % of the depth."""
    directions = trimesh.creation.icosphere(4).vertices
    front = 0.2 * directions[directions[:, 2] < -0.2]
    for distance in (0.6, 1.8):
        cube = Cube(np.eye(3), distance, 0.3)
        surface = surface_of(ball([0, 0, 0], 0.2), cube, log_std=np.full((32,) * 3, np.log(4)),
                             observed=cube.to_camera(front))
        at = cube.from_camera(surface.vertices)[:, 2]
        expected = np.hypot(0.25 * 0.3 / 64, 0.002 * distance)
        assert np.median(surface.vertex_std[at < -0.1]) == pytest.approx(expected, rel=1e-3)


def test_what_the_network_says_of_its_certainty_is_interpolated():
    along = np.linspace(1, 4, 32, dtype=np.float32)
    fine = np.interp((np.arange(64) + 0.5) / 2 - 0.5, np.arange(32), along)
    for axis in range(3):
        told = np.moveaxis(np.broadcast_to(along, (32,) * 3), 2, axis)
        std = voxel_std(np.log(told), np.zeros((64,) * 3, np.float32), 0.1)
        np.testing.assert_allclose(std, np.moveaxis(np.broadcast_to(fine, (64,) * 3), 2, axis), rtol=1e-4)


def test_only_the_largest_solid_is_kept_and_cavities_are_filled():
    hollow = np.maximum(ball([0.1, 0, 0], 0.3), -ball([0.1, 0, 0], 0.1))
    surface = surface_of(np.minimum(hollow, ball([-0.4, -0.4, -0.4], 0.05)), max_faces=20000)
    mesh = trimesh.Trimesh(surface.vertices, surface.triangles)
    assert mesh.body_count == 1 and mesh.volume == pytest.approx(4 / 3 * np.pi * 0.3 ** 3, rel=0.02)


def test_the_surface_follows_the_depth_where_there_is_some():
    """A ball guessed 1.5 voxels too large, of which the front is seen, with readings of something else behind."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(4000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    front = 0.3 * directions[directions[:, 2] < 0] + rng.normal(size=(np.sum(directions[:, 2] < 0), 3)) * 0.004
    outliers = rng.uniform(0.42, 0.49, (50, 3))
    followed, share = follow_depth(ball([0, 0, 0], 0.3 + 1.5 / 64), np.r_[front, outliers])
    radius = np.linalg.norm(GRID, axis=-1)
    at_surface = np.abs(radius - 0.3) < 0.5 / 64
    ahead, behind = at_surface & (GRID[..., 2] < -0.1), at_surface & (GRID[..., 2] > 0.1)
    assert np.abs(np.median(followed[ahead])) < 0.15
    np.testing.assert_allclose(np.median(followed[behind]), -1.5, atol=0.1)
    assert np.median(share[ahead]) == 1 and np.median(share[behind]) == 0
    unseen = ball([0, 0, 0], 0.3)
    np.testing.assert_array_equal(follow_depth(unseen, UNSEEN)[0], unseen)


def test_edges_that_were_seen_stay_sharp():
    """A box guessed as rounded as a wide blur makes it; three of its sides are seen, with noise of 0.2 voxels."""
    half = 0.25
    true = np.abs(GRID).max(axis=-1) - half
    blurred = ndimage.gaussian_filter(true * 64, 4).astype(np.float32)
    rng = np.random.default_rng(0)
    seen = []
    for axis in range(3):
        side = rng.uniform(-half, half, (4000, 3))
        side[:, axis] = half
        seen.append(side + rng.normal(size=side.shape) * 0.2 / 64)
    followed, _ = follow_depth(blurred, np.concatenate(seen))
    edge = np.array([[half, half, t] for t in np.linspace(-0.2, 0.2, 30)])
    before, after = (np.abs(ndimage.map_coordinates(d, ((edge + 0.5) * 64 - 0.5).T, order=1)).mean()
                     for d in (blurred, followed))
    assert after < 0.15 < 1.5 < before


def test_without_depth_the_surface_reaches_the_outline_of_the_mask():
    """Predicted is a ball of radius 0.25, of which the mask shows one of 0.28 (edges), turned away from the axis."""
    rotation = random_rotation(np.random.default_rng(1))
    turn = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    far, size = 2.0, 0.28
    ring = np.stack([np.cos(turn), np.sin(turn), np.full(90, np.sqrt(far ** 2 - size ** 2) / size)], axis=1)
    outline = ring / ring[:, 2:] @ rotation                        # of the cone that touches the ball
    for radius, expected in ((0.25, size), (0.33, 0.33)):          # one that is too large stays
        surface = surface_of(ball([0, 0, 0], radius), Cube(rotation, far, 1.0), outline=outline)
        found = np.linalg.norm(surface.vertices - far * rotation[2], axis=1)
        assert np.median(found) == pytest.approx(expected, abs=0.004)


def test_pieces_that_were_seen_belong_to_the_object():
    """Two balls, as links of a chain: both are kept if both were seen; a third, unseen, is not."""
    balls = [([-0.3, 0, 0], 0.12), ([0.15, 0, 0], 0.2), ([0.3, 0.35, 0.3], 0.08)]
    distance = np.minimum.reduce([ball(*b) for b in balls])
    seen = np.array([[-0.3, 0, 1.88], [-0.3, 0.01, 1.88], [0.15, 0, 1.8]])
    mesh = trimesh.Trimesh(*(lambda s: (s.vertices, s.triangles))(surface_of(distance, observed=seen)))
    assert mesh.body_count == 2 and mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * (0.12 ** 3 + 0.2 ** 3), rel=0.03)


def test_what_was_seen_is_not_missed():
    """A ball is predicted; seen are that ball and, as more than a third of all points, a thin rod beside it."""
    rod = np.stack([np.full(300, -0.2), np.linspace(-0.3, 0.3, 300), np.full(300, 2.0)], axis=1)
    sphere = trimesh.creation.icosphere(3, 0.15).vertices[:500] + [0.2, 0, 2]
    seen = np.concatenate([rod, sphere])
    surface = surface_of(ball([0.2, 0, 0], 0.15), observed=seen)
    mesh = trimesh.Trimesh(surface.vertices, surface.triangles)
    assert mesh.is_watertight and mesh.body_count == 2
    assert np.linalg.norm(mesh.vertices[:, None] - rod[::10], axis=2).min(axis=0).max() < 0.05
    alone = surface_of(ball([0.2, 0, 0], 0.15), observed=np.concatenate([rod[::4], sphere]))     # stray readings
    assert trimesh.Trimesh(alone.vertices, alone.triangles).body_count == 1
    assert surface_of(np.full((64,) * 3, 4.0, np.float32), observed=seen) is None


def test_a_solid_that_is_cut_by_the_cube_is_closed_there():
    surface = surface_of(ball([0, 0, 0.5], 0.3))
    assert trimesh.Trimesh(surface.vertices, surface.triangles).is_watertight


@pytest.mark.parametrize("distance", [np.full((64,) * 3, 3.0), np.full((64,) * 3, -3.0), ball([0, 0, 0], 0.02),
                                    np.random.default_rng(0).normal(size=(64,) * 3)],
                         ids=["all outside", "all inside", "a speck", "noise"])
def test_no_mesh_is_made_from_garbage(distance):
    assert surface_of(distance.astype(np.float32)) is None


def test_thin_walls_stay_closed_when_decimated():
    shell = np.maximum(ball([0, 0, 0], 0.4), np.abs(ball([0, 0, 0], 0.39)) - 1.5 * 0.6)
    opened = np.where(GRID[..., 2] > 0.1, 3, shell).astype(np.float32)
    surface = surface_of(opened, max_faces=3000)
    assert trimesh.Trimesh(surface.vertices, surface.triangles).is_watertight


def test_normals_and_areas_of_vertices():
    ball = trimesh.creation.icosphere(4, 0.1)
    normals, areas = vertex_normals(ball.vertices + [0.3, 0, 0.7], ball.faces)
    np.testing.assert_allclose(normals, ball.vertices / 0.1, atol=6e-3)
    assert areas.sum() == pytest.approx(ball.area) and (areas > 0).all()


@pytest.mark.parametrize("turned", [30, -30, 75, -75])
def test_object_frame_of_a_turned_box(turned):
    """A 20 x 10 x 5 cm box, turned by so many degrees on a table seen by a tilted camera."""
    turn = np.deg2rad(turned)
    up = np.array([0.0, -np.cos(0.6), -np.sin(0.6)])
    side = np.array([1.0, 0, 0])
    forward = np.cross(up, side)
    x = np.cos(turn) * side + np.sin(turn) * forward
    rotation = np.stack([x, np.cross(up, x), up], axis=1)
    centre = np.array([0.2, 0.1, 0.7])
    box = trimesh.creation.box([0.2, 0.1, 0.05]).subdivide()
    pose, size = object_frame(box.vertices @ rotation.T + centre, up)
    np.testing.assert_allclose(size, [0.2, 0.1, 0.05], atol=1e-9)
    np.testing.assert_allclose(pose[:3, 3], centre, atol=1e-9)
    np.testing.assert_allclose(pose[:3, 2], up, atol=1e-9)
    assert abs(pose[:3, 0] @ x) == pytest.approx(1, abs=1e-9) and pose[0, 0] > 0
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)


def test_object_frame_under_a_camera_on_its_side():
    box = trimesh.creation.box([0.05, 0.2, 0.1]).vertices + [0.0, 0.0, 0.7]
    pose, size = object_frame(box, np.array([1.0, 0, 0]))
    np.testing.assert_allclose(size, [0.2, 0.1, 0.05], atol=1e-9)
    np.testing.assert_allclose(np.abs(pose[:3, :3]), [[0, 0, 1], [1, 0, 0], [0, 1, 0]], atol=1e-9)
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)


def test_an_uncertain_side_makes_the_pose_uncertain_along_it():
    box = trimesh.creation.box([0.1, 0.1, 0.2]).subdivide().subdivide()
    std = np.where(box.vertices[:, 2] < -0.05, 0.02, 0.001).astype(np.float32)
    pose = np.eye(4)
    covariance, scale_std = pose_uncertainty(box.vertices, std, np.array([0.1, 0.1, 0.2]), pose)
    assert np.sqrt(covariance[2, 2]) == pytest.approx(0.5 * np.hypot(0.02, 0.001), rel=1e-3)
    assert covariance[2, 2] > 1.5 * covariance[0, 0] and 0.05 < scale_std < 0.2
    pose[:3, :3] = [[0, 0, 1], [1, 0, 0], [0, 1, 0]]   # the object's z axis along the camera's x
    turned, _ = pose_uncertainty(box.vertices, std, np.array([0.1, 0.1, 0.2]), pose)
    assert turned[0, 0] == pytest.approx(covariance[2, 2])
    # The longer a body is, the better is known how it is tilted; not so how it is turned about its length.
    assert covariance[5, 5] > 1.5 * covariance[3, 3] and turned[3, 3] == pytest.approx(covariance[5, 5])
    assert (np.linalg.eigvalsh(covariance) > 0).all()
