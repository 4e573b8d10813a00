"""Planes of symmetry, and what a shape's other sides tell of a hidden one."""
from __future__ import annotations

import numpy as np
import pytest
import trimesh

from sam3d_ros.perception.cube import Cube
from sam3d_ros.perception.surface import extract_surface
from sam3d_ros.perception.symmetry import completed, fitted_planes, mirrored, plausible_planes, shape_of
from sam3d_ros.synth.render import random_rotation

N = 64
VOXELS = np.moveaxis(np.indices((N, N, N)), 0, -1).astype(float)
CENTRE = np.array([33.3, 29.1, 35.7])
SURE, FAIRLY_SURE, UNSURE = np.float32(0.4), np.float32(0.6), np.float32(4)


def box(half: np.ndarray, rotation: np.ndarray, centre: np.ndarray = CENTRE) -> np.ndarray:
    """Signed distance, voxels, of a box whose axes are the rows of `rotation`."""
    beyond = np.abs((VOXELS - centre) @ rotation.T) - half
    return (np.linalg.norm(np.maximum(beyond, 0), axis=-1) + np.minimum(beyond.max(axis=-1), 0)).astype(np.float32)


def ball(radius: float, centre: np.ndarray = CENTRE) -> np.ndarray:
    return (np.linalg.norm(VOXELS - centre, axis=-1) - radius).astype(np.float32)


def everywhere(std: np.float32) -> np.ndarray:
    return np.full((N, N, N), std, np.float32)


def symmetry_planes(distance: np.ndarray, std: np.ndarray) -> np.ndarray:
    shape = shape_of(distance, std)
    return fitted_planes(shape, plausible_planes(shape), steps=5)[1]


def mirrored_in_its_planes(distance: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return mirrored(shape_of(distance, std), symmetry_planes(distance, std))


@pytest.mark.parametrize("seed", range(4))
def test_a_box_is_found_to_have_its_three_planes(seed):
    rotation = random_rotation(np.random.default_rng(seed))
    planes = symmetry_planes(box(np.array([16, 11, 7.0]), rotation), everywhere(SURE))
    assert len(planes) == 3 and (planes[:, 0] < 0.05).all()
    closeness = np.abs(planes[:, 1:4] @ rotation.T)
    assert sorted(closeness.argmax(axis=1)) == [0, 1, 2]
    assert np.degrees(np.arccos(np.minimum(closeness.max(axis=1), 1))).max() < 1
    np.testing.assert_allclose(planes[:, 1:4] @ CENTRE, planes[:, 4], atol=0.15)


def test_a_shape_without_symmetry_stays_as_it_is():
    """Four balls of different sizes, not all in a plane, of which all is seen."""
    places = np.array([[20, 24, 30], [42, 28, 26], [30, 44, 34], [33, 30, 50.0]])
    shape = np.minimum.reduce([ball(r, c) for r, c in zip((11, 7, 9, 5), places, strict=True)])
    at_surface = np.abs(shape) < 1
    for std, most in ((SURE, 1e-6), (FAIRLY_SURE, 0.15)):
        planes = symmetry_planes(shape, everywhere(std))
        assert (planes[:, 0] > 0.5).all()                          # square voxels: no good plane
        changed, _ = mirrored(shape_of(shape, everywhere(std)), planes)
        assert np.abs(changed - shape)[at_surface].mean() < most


@pytest.mark.parametrize("shape", [everywhere(np.float32(3)), everywhere(np.float32(-3)), ball(2.0)])
def test_next_to_no_surface_has_no_plane(shape):
    assert symmetry_planes(shape, everywhere(SURE)).shape == (0, 5)


TURN, HALF = random_rotation(np.random.default_rng(5)), np.array([16, 11, 7.0])
IN_BOX = (VOXELS - CENTRE) @ TURN.T


def cut_box() -> tuple[np.ndarray, np.ndarray]:
    """A box of which a corner of 12 x 9 voxels is cut off, because nothing is known of what is there."""
    hidden = np.minimum(IN_BOX[..., 0] - 4, IN_BOX[..., 1] - 2)
    return np.maximum(box(HALF, TURN), hidden).astype(np.float32), np.where(hidden > -2, UNSURE, SURE)


def test_what_is_hidden_on_one_side_is_told_by_the_others():
    distance, std = cut_box()
    true = box(HALF, TURN)
    whole, told = mirrored_in_its_planes(distance, std)
    corner = (np.abs(true) < 1) & (IN_BOX[..., 0] > 7) & (IN_BOX[..., 1] > 5)
    before, after = (np.abs(d[corner] - true[corner]).mean() for d in (distance, whole))
    assert after < 1 < 4 < before
    assert (told[corner] < 1.5).mean() > 0.9                       # no longer 4: nearly as sure as of the other sides
    known = (np.abs(distance) < 2) & (IN_BOX[..., 0] < 0)
    assert np.abs(whole[known] - distance[known]).max() < 0.5
    np.testing.assert_array_equal(told[known], std[known])         # repeating a guess does not make it surer


def test_a_side_that_is_surely_different_stays():
    """A box with a knob, all of it seen: what is on the other side of the plane does not make it vanish."""
    knob = np.minimum(box(np.array([14, 9, 9.0]), np.eye(3)), ball(3.5, CENTRE + [15, 0, 0]))
    std = everywhere(SURE)
    whole, _ = mirrored_in_its_planes(knob, std)
    outermost = VOXELS[(whole < 0)][:, 0].max()
    assert outermost == pytest.approx(CENTRE[0] + 18.5, abs=1.5)
    assert (whole[VOXELS[..., 0] < CENTRE[0] - 16] > 0).all()  # and none grows there


@pytest.mark.parametrize("seed", range(3))
def test_planes_that_fit_by_and_large_do_not_move_what_was_right(seed):
    """A box nearly as wide as high, of which all but the underside was seen: it is nearly its own image across edges,
    too.
    """
    turn, half = random_rotation(np.random.default_rng(seed)), np.array([6, 14, 16.0])
    true, height = box(half, turn), ((VOXELS - CENTRE) @ turn.T)[..., 2]
    whole, _ = completed(true, np.where(height < -13, np.float32(1.5), SURE), np.empty((0, 3)))
    underside = (np.abs(true) < 1) & (height < -15.5)
    assert np.abs(whole - true)[underside].mean() < 0.5            # voxels; 1.1 to 1.3 if all are trusted alike


def test_the_mesh_of_an_object_is_completed():
    """End to end: the cut box in a cube of 0.3 m, one of its large sides observed as far as it is not hidden."""
    distance, std = cut_box()
    cube = Cube(np.eye(3), 0.8, 0.3)
    log_std = np.log(std).reshape(32, 2, 32, 2, 32, 2).mean(axis=(1, 3, 5)).astype(np.float32)
    side = np.random.default_rng(0).uniform(-HALF, HALF, (4000, 3))
    side[:, 2] = HALF[2]
    side = side[(side[:, 0] < 4) | (side[:, 1] < 2)]
    surface = extract_surface(distance, log_std, cube, 5000, cube.to_camera((side @ TURN + CENTRE + 0.5) / N - 0.5))
    mesh = trimesh.Trimesh(surface.vertices, surface.triangles)
    true = trimesh.creation.box(2 * HALF).apply_transform(
        np.vstack([np.column_stack([TURN.T, CENTRE + 0.5]), [0, 0, 0, 1]]))
    true.apply_translation([-N / 2] * 3).apply_scale(cube.voxel).apply_translation([0, 0, 0.8])
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(true.volume, rel=0.04)     # of which a sixth was missing
    assert 1e3 * np.abs(mesh.bounds - true.bounds).max() < 1.5 * 1e3 * cube.voxel
