"""The cube around an object and the crops that show it, with numbers."""
from dataclasses import replace

import numpy as np
import pytest
from evidence_reference import TRUNCATION, evidence

from sam3d_ros.perception.cube import (
    CENTRE_PER_EXTENT,
    EDGE_PER_EXTENT,
    Cube,
    fit_cube,
    fit_cube_to_mask,
    inlier_points,
    rotation_towards,
)
from sam3d_ros.perception.evidence import Observation, first_view, further_view, support_row
from sam3d_ros.perception.frame import Frame, Intrinsics, back_project, nearest_pixels
from sam3d_ros.runtime.signature import CROP, CROP_SPAN

CAMERA = Intrinsics(160, 120, 200.0, 210.0, 79.5, 59.5)


def ball_frame(centre, radius=0.1, camera=CAMERA, up=None):
    """A red ball, label 1, before nothing."""
    rows, columns = np.indices((camera.height, camera.width))
    rays = np.stack([(columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy, np.ones(rows.shape)], axis=-1)
    a, b = (rays ** 2).sum(-1), rays @ centre
    root = b ** 2 - a * (centre @ centre - radius ** 2)
    depth = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, 0).astype(np.float32)
    colour = np.where((depth > 0)[..., None], [200, 40, 30], [90, 90, 90]).astype(np.uint8)
    return Frame(colour, depth, (depth > 0).astype(np.int32), camera)


def cube_of(frame):
    rows, columns = np.nonzero(frame.labels)
    return fit_cube(back_project(frame.depth, frame.intrinsics, rows, columns))


def test_back_projection_puts_pixel_centres_at_integers():
    depth = np.zeros((120, 160), np.float32)
    depth[100, 20] = 2.0
    point = back_project(depth, CAMERA, np.array([100]), np.array([20]))
    np.testing.assert_allclose(point, [[(20 - 79.5) / 200 * 2, (100 - 59.5) / 210 * 2, 2.0]])


def test_points_are_shown_by_the_pixels_they_were_read_at_if_these_are_in_the_image():
    depth = np.full((120, 160), 1.3, np.float32)
    every = np.indices(depth.shape).reshape(2, -1)
    rows, columns, inside = nearest_pixels(back_project(depth, CAMERA, *every), CAMERA)
    np.testing.assert_array_equal([rows, columns], every)
    assert inside.all()
    beside = back_project(depth, CAMERA, *every[:, :1]) - [[0.6 * 1.3 / 200, 0, 0]]        # 0.6 pixels
    *pixel, inside = nearest_pixels(np.concatenate([beside, -beside]), CAMERA)             # and behind the camera
    assert not inside.any() and not np.any(pixel)


def test_virtual_camera_looks_along_the_direction_and_stays_level():
    direction = np.array([0.3, -0.2, 0.9])
    rotation = rotation_towards(direction)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(rotation @ direction, [0, 0, np.linalg.norm(direction)], atol=1e-12)
    assert rotation[0, 1] == pytest.approx(0) and np.linalg.det(rotation) == pytest.approx(1)


def test_virtual_camera_has_up_above():
    """A camera on its side, whose x axis points down: up in the world, -x, is -y of the virtual camera."""
    up = np.array([-1.0, 0, 0])
    rotation = rotation_towards(np.array([0.1, 0.2, 1.0]), up)
    seen = rotation @ up
    assert seen[0] == pytest.approx(0, abs=1e-12) and seen[1] < -0.9 and np.linalg.det(rotation) == pytest.approx(1)
    along = rotation_towards(np.array([-1.0, 0.05, 0.1]), up)      # up is the optical axis: the rows decide
    np.testing.assert_allclose(along @ along.T, np.eye(3), atol=1e-12)
    down = rotation_towards(np.array([0.0, 0, 1.0]), np.array([0.1, 0, -np.sqrt(0.99)]))       # nearly so
    np.testing.assert_allclose(down, np.eye(3), atol=1e-12)


def test_cube_of_an_off_centre_box_contains_it():
    rng = np.random.default_rng(0)
    centre = np.array([0.4, -0.2, 0.9])
    points = centre + rng.uniform(-0.5, 0.5, (5000, 3)) * [0.1, 0.06, 0.04]
    cube = fit_cube(points)
    in_cube = cube.from_camera(points)
    assert (np.abs(in_cube) < 0.5).all(axis=1).mean() > 0.999
    np.testing.assert_allclose(cube.to_camera(in_cube), points, atol=1e-12)
    extent = cube.edge / EDGE_PER_EXTENT
    assert 0.09 < extent < 0.12
    near = np.percentile(points @ cube.virtual_from_camera[2], 1)
    assert cube.distance == pytest.approx(near + CENTRE_PER_EXTENT * extent, rel=2e-3)
    np.testing.assert_allclose(cube.virtual_from_camera @ cube.centre, [0, 0, cube.distance], atol=1e-12)


def test_cube_takes_in_what_other_views_add():
    """A face of 6 cm, seen from the front, of something that other views saw to be 30 cm deep."""
    rng = np.random.default_rng(0)
    face = [0.0, 0.0, 0.6] + rng.uniform(-0.5, 0.5, (2000, 3)) * [0.06, 0.06, 0.0]
    behind = [0.0, 0.0, 0.75] + rng.uniform(-0.5, 0.5, (2000, 3)) * [0.06, 0.06, 0.3]
    cube = fit_cube(face, further=behind)
    assert cube.edge == pytest.approx(EDGE_PER_EXTENT * 0.3, rel=0.03)
    assert (np.abs(cube.from_camera(np.concatenate([face, behind]))) < 0.5).all()


def test_voxels_along_a_ray_lie_on_it_one_in_each_layer():
    n = 8
    cube = Cube(rotation_towards(np.array([0.3, -0.2, 0.9])), 0.8, 0.2)
    rays = np.array([[0.3, -0.2, 0.9], [0.33, -0.25, 0.9]])
    voxels = cube.along(rays, n)
    points = cube.to_camera(((voxels + 0.5) / n - 0.5).reshape(-1, 3)).reshape(voxels.shape)
    np.testing.assert_allclose(voxels[..., 2], [range(n)] * 2, atol=1e-9)
    np.testing.assert_allclose(np.cross(points, rays[:, None]), 0, atol=1e-12)


def test_cube_of_a_mask_is_that_of_a_flat_object_at_one_metre():
    rows, columns = np.indices((21, 41)).reshape(2, -1)
    cube = fit_cube_to_mask(rows + 30, columns + 70, CAMERA)
    assert cube.edge == pytest.approx(EDGE_PER_EXTENT * 40 / 200, rel=0.05)
    assert cube.distance == pytest.approx(1 + CENTRE_PER_EXTENT * 40 / 200, rel=0.05)
    aim = cube.centre / cube.centre[2]
    np.testing.assert_allclose(aim[:2], [(90 - 79.5) / 200, (40 - 59.5) / 210], atol=0.004)


def test_flying_pixels_are_no_inliers():
    rng = np.random.default_rng(1)
    points = np.r_[rng.normal(0, 0.02, (500, 3)), [[0, 0, 0.5], [0.4, 0, 0]]] + [0, 0, 1]
    keep = inlier_points(points)
    assert keep[:500].mean() > 0.98 and not keep[500:].any()


def test_crop_of_a_wall():
    """A wall at 1 m straight ahead, the cube 0.4 m wide; the left half has another label, the top no depth."""
    depth = np.full((120, 160), 1.0, np.float32)
    depth[:30] = 0
    labels = np.zeros((120, 160), np.int32)
    labels[:, 80:] = 7
    colour = np.zeros((120, 160, 3), np.uint8)
    colour[:, :80], colour[:, 80:] = (255, 0, 0), (0, 102, 255)
    crop, view = first_view(Frame(colour, depth, labels, CAMERA), 7, Cube(np.eye(3), 1.05, 0.4))
    np.testing.assert_allclose(view, [1, 0, 0, 0, 1, 0, 0, 0, 1, 1.05 / 0.4, 1], rtol=1e-6)
    middle = CROP // 2
    np.testing.assert_allclose(crop[0, middle:, :], -0.05 / 0.4, atol=1e-6)
    assert crop[1, middle:].all() and not crop[1, :19].any() and not crop[0, :19].any()
    assert not crop[2, :, :middle].any() and crop[2, :, middle:].all()
    np.testing.assert_allclose(crop[3:, 60, 10], [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(crop[3:, 60, 80], [0, 0.4, 1], atol=1e-6)
    # the first row of depth is image row 30: (30 - 0.5 - 59.5) / 210 m at 1 m, in crop pixels
    edge_row = np.flatnonzero(crop[1, :, middle])[0]
    expected = ((30 - 0.5 - 59.5) / 210 * 1.05 / 0.4 / CROP_SPAN + 0.5) * CROP
    assert abs(edge_row - expected) <= 1


def test_a_crop_reads_the_pixels_that_its_directions_point_at():
    """Depth that differs from pixel to pixel, seen by a turned virtual camera; pixels are not square."""
    camera = replace(CAMERA, fy=150.0)
    rng = np.random.default_rng(0)
    frame = Frame(np.zeros((120, 160, 3), np.uint8), rng.uniform(0.9, 1.1, (120, 160)).astype(np.float32),
                  np.ones((120, 160), np.int32), camera)
    cube = Cube(rotation_towards(np.array([0.2, -0.15, 1.0]), np.array([0.5, -0.8, 0.0])), 1.0, 0.4)
    crop, _ = first_view(frame, 1, cube)
    ticks = ((np.arange(CROP) + 0.5) / CROP - 0.5) * CROP_SPAN * 0.4
    x, y = np.meshgrid(ticks, ticks)
    directions = np.stack([x, y, np.ones(x.shape)], axis=-1).reshape(-1, 3) @ cube.virtual_from_camera
    rows, columns, inside = nearest_pixels(directions, camera)
    along = back_project(frame.depth, camera, rows, columns) @ cube.virtual_from_camera[2]
    expected = np.where(inside, (along - 1.0) / 0.4, 0)
    assert 0.5 < inside.mean() < 1
    assert (np.abs(crop[0].ravel() - expected) < 1e-5).mean() > 0.999           # a border may fall either way


def test_a_crop_beyond_the_image_is_empty():
    frame = Frame(np.full((120, 160, 3), 255, np.uint8), np.ones((120, 160), np.float32), np.ones((120, 160), np.int32),
                  CAMERA)
    cube = fit_cube(np.array([2.0, 0, 1]) + np.random.default_rng(0).normal(size=(99, 3)) * 0.02)
    assert not first_view(frame, 1, cube)[0].any()


def test_without_depth_a_crop_holds_colour_and_mask():
    frame = ball_frame(np.array([0, 0, 1.0]))
    crop, _ = first_view(replace(frame, depth=None), 1, cube_of(frame))
    assert not crop[:2].any() and crop[2].any() and crop[3:].any()


def test_an_object_at_the_border_looks_like_one_in_the_middle():
    direction = np.array([0.25, 0.12, 1.0])
    aside, ahead = ball_frame(direction / np.linalg.norm(direction)), ball_frame(np.array([0.0, 0.0, 1.0]))
    crops = [first_view(frame, 1, cube_of(frame))[0] for frame in (aside, ahead)]
    assert ((crops[0][2] > 0) == (crops[1][2] > 0)).mean() > 0.98
    both = (crops[0][1] > 0) & (crops[1][1] > 0)
    assert np.abs(crops[0][0] - crops[1][0])[both].mean() < 0.01
    volumes = [evidence(*first_view(frame, 1, cube_of(frame))) for frame in (aside, ahead)]
    assert np.abs(volumes[0][0] - volumes[1][0]).mean() < 0.03


def test_the_evidence_is_the_signed_distance_to_the_depth():
    frame = ball_frame(np.array([0.1, -0.05, 0.9]))
    cube = cube_of(frame)
    volume = evidence(*first_view(frame, 1, cube))
    ticks = (np.arange(64) + 0.5) / 64 - 0.5
    points = cube.to_camera(np.stack(np.meshgrid(ticks, ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 3))
    to_centre = np.linalg.norm(points - [0.1, -0.05, 0.9], axis=1).reshape(64, 64, 64)
    at_surface = (np.abs(volume[0]) < 0.1) & (volume[2] > 0)
    assert np.abs(to_centre[at_surface] - 0.1).mean() < 0.003          # the front of the ball, 10 cm from its centre
    assert (to_centre[(volume[0] >= 1) & (volume[2] > 0)] > 0.1 - 1e-3).all() and TRUNCATION * cube.edge > 0.01


def test_another_camera_sees_the_same_cube():
    """The same ball from 0.8 m to the right, looking left: both crops put the ball's centre into the middle."""
    ball = np.array([0.05, 0.02, 1.0])
    camera_from_observer = np.eye(4)
    camera_from_observer[:3, :3] = [[0.6, 0, -0.8], [0, 1, 0], [0.8, 0, 0.6]]     # observer's z axis is (-0.8, 0, 0.6)
    camera_from_observer[:3, 3] = ball - 0.9 * np.array([-0.8, 0, 0.6])
    inverse = np.linalg.inv(camera_from_observer)
    other = ball_frame(inverse[:3, :3] @ ball + inverse[:3, 3])
    frame = ball_frame(ball)
    cube = cube_of(frame)
    crop, view = further_view(Observation(other, 1, camera_from_observer), cube)
    turn = view[:9].reshape(3, 3)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-6)
    volume = evidence(crop, view)
    ticks = (np.arange(64) + 0.5) / 64 - 0.5
    points = cube.to_camera(np.stack(np.meshgrid(ticks, ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 3))
    at_surface = ((np.abs(volume[0]) < 0.1) & (volume[2] > 0)).ravel()
    assert np.abs(np.linalg.norm(points[at_surface] - ball, axis=1) - 0.1).mean() < 0.003
    assert (points[at_surface, 0] > ball[0] - 0.03).mean() > 0.9                  # the ball's right side
    behind = camera_from_observer.copy()
    behind[:3, :3] = behind[:3, :3] @ np.diag([-1, 1, -1])                        # looks the other way
    assert further_view(Observation(other, 1, behind), cube) is None


def test_support_in_the_cube():
    cube = Cube(rotation_towards(np.array([0.1, 0.3, 1.0])), 0.8, 0.2)
    plane = np.array([0.0, -0.8, -0.6, 0.7])
    row = support_row(cube, None, plane)
    point = np.array([[0.1, 0.2, 0.75]])
    height = (point @ plane[:3] + plane[3])[0]
    assert row[:3] @ cube.from_camera(point)[0] + row[3] == pytest.approx(height / 0.2, abs=1e-6) and row[4] == 1
    np.testing.assert_allclose(support_row(cube, plane[:3], None), [*(cube.virtual_from_camera @ plane[:3]), 0, 0],
                               atol=1e-6)
    assert not support_row(cube, None, None).any()
