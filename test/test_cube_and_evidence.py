"""The cube around an object and the evidence in it, with numbers."""
import numpy as np
import pytest

from sam3d_ros.perception.cube import (
    CENTRE_PER_EXTENT,
    EDGE_PER_EXTENT,
    Cube,
    fit_cube,
    inlier_points,
    rotation_towards,
)
from sam3d_ros.perception.evidence import TRUNCATION, evidence
from sam3d_ros.perception.frame import Intrinsics, back_project

CAMERA = Intrinsics(160, 120, 200.0, 210.0, 79.5, 59.5)


def test_back_projection_puts_pixel_centres_at_integers():
    depth = np.zeros((120, 160), np.float32)
    depth[100, 20] = 2.0
    point = back_project(depth, CAMERA, np.array([100]), np.array([20]))
    np.testing.assert_allclose(point, [[(20 - 79.5) / 200 * 2, (100 - 59.5) / 210 * 2, 2.0]])


def test_virtual_camera_looks_along_the_direction_and_stays_level():
    direction = np.array([0.3, -0.2, 0.9])
    rotation = rotation_towards(direction)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(rotation @ direction, [0, 0, np.linalg.norm(direction)], atol=1e-12)
    assert rotation[0, 1] == pytest.approx(0) and np.linalg.det(rotation) == pytest.approx(1)


def test_cube_of_an_off_centre_box_contains_it():
    rng = np.random.default_rng(0)
    centre = np.array([0.4, -0.2, 0.9])
    points = centre + rng.uniform(-0.5, 0.5, (5000, 3)) * [0.1, 0.06, 0.04]
    cube = fit_cube(points)
    in_virtual = points @ cube.virtual_from_camera.T
    assert (np.abs(in_virtual - cube.centre) < cube.edge / 2).mean() > 0.999
    extent = cube.edge / EDGE_PER_EXTENT
    assert 0.09 < extent < 0.12
    near = np.percentile(in_virtual[:, 2], 1)
    assert cube.centre[2] == pytest.approx(near + CENTRE_PER_EXTENT * extent, abs=1e-9)


def test_flying_pixels_are_no_inliers():
    rng = np.random.default_rng(1)
    points = np.r_[rng.normal(0, 0.02, (500, 3)), [[0, 0, 0.5], [0.4, 0, 0]]] + [0, 0, 1]
    keep = inlier_points(points)
    assert keep[:500].mean() > 0.98 and not keep[500:].any()


def test_evidence_of_a_wall_is_its_signed_distance():
    """A wall at 1 m straight ahead, the cube around it: the first channel is (depth - z) / (truncation x edge)."""
    depth = np.full((120, 160), 1.0, np.float32)
    labels = np.zeros((120, 160), np.int32)
    labels[:, 80:] = 7
    depth[:30] = 0
    cube = Cube(np.eye(3), np.array([0.0, 0.0, 1.0]), 0.4)
    volume = evidence(depth, labels, CAMERA, [cube], [7])[0]
    z = ((np.arange(64) + 0.5) / 64 - 0.5) * 0.4 + 1
    expected = np.clip((1 - z) / (TRUNCATION * 0.4), -1, 1)
    np.testing.assert_allclose(volume[0, 40, 40], expected, atol=1e-5)
    assert volume[1, 50, 32].all() and not volume[1, 10, 32].any()           # own mask: the right half
    assert volume[2, 32, 40].all()
    top = volume[:, 32, 0]                                                  # rows 7 to 25: no reading
    assert not top[2].any() and not top[0].any()


def test_evidence_outside_the_image_is_empty():
    depth = np.ones((120, 160), np.float32)
    cube = Cube(np.eye(3), np.array([2.0, 0.0, 1.0]), 0.2)
    assert not evidence(depth, np.ones((120, 160), np.int32), CAMERA, [cube], [1]).any()


def test_a_turned_camera_sees_the_same_evidence():
    """A ball at the image's border and the same ball in the middle fill the cube alike: the axes follow the object."""
    def seen_from(centre):
        rows, columns = np.indices((120, 160))
        rays = np.stack([(columns - CAMERA.cx) / CAMERA.fx, (rows - CAMERA.cy) / CAMERA.fy,
                         np.ones((120, 160))], axis=-1)
        a, b = (rays ** 2).sum(-1), rays @ centre
        root = b ** 2 - a * (centre @ centre - 0.1 ** 2)
        depth = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, 0).astype(np.float32)
        labels = (depth > 0).astype(np.int32)
        r, c = np.nonzero(labels)
        return evidence(depth, labels, CAMERA, [fit_cube(back_project(depth, CAMERA, r, c))], [1])[0]

    direction = np.array([0.25, 0.12, 1.0])
    aside = seen_from(direction / np.linalg.norm(direction))
    ahead = seen_from(np.array([0.0, 0.0, 1.0]))
    assert ((aside[1] > 0) == (ahead[1] > 0)).mean() > 0.97
    assert np.abs(aside[0] - ahead[0]).mean() < 0.03
