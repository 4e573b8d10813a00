"""Hollows that no reading shows are closed, those that readings show are left."""
from __future__ import annotations

import numpy as np
import pytest

from sam3d_ros.perception.cube import NO_POINTS, Cube
from sam3d_ros.perception.hollows import without_unseen_hollows

N = 64
VOXELS = np.moveaxis(np.indices((N, N, N)), 0, -1).astype(np.float32)
CENTRE = np.array([30.0, 34.0, 33.0])
CUBE = Cube(np.eye(3), 0.9, 0.3)


def cylinder(radius: float, near: float, far: float) -> np.ndarray:
    """Signed distance, voxels, of a cylinder along the optical axis, from layer `near` to layer `far`."""
    across = np.linalg.norm(VOXELS[..., :2] - CENTRE[:2], axis=-1) - radius
    return np.maximum(across, np.maximum(near - VOXELS[..., 2], VOXELS[..., 2] - far))


SOLID = cylinder(15, 20, 45)
CUP = np.maximum(SOLID, -cylinder(12, 10, 42))      # open towards the camera
RIM = 13.5


def at(voxels: np.ndarray) -> np.ndarray:
    """Points (P, 3) in the cube's frame, edges, of voxels (P, 3)."""
    return (voxels + 0.5) / N - 0.5


def disc(count: int, layer: float, radius: float) -> np.ndarray:
    """(P, 3) voxels spread over a disc across the optical axis."""
    index = np.arange(count)
    distance, angle = radius * np.sqrt((index + 0.5) / count), index * np.pi * (3 - np.sqrt(5))
    return np.stack([CENTRE[0] + distance * np.cos(angle), CENTRE[1] + distance * np.sin(angle),
                     np.full(count, layer)], axis=1)


def ring(count: int) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([CENTRE[0] + RIM * np.cos(angle), CENTRE[1] + RIM * np.sin(angle), np.full(count, 20.0)], axis=1)


def directions(voxels: np.ndarray) -> np.ndarray:
    return CUBE.to_camera(at(voxels))


def test_an_opening_without_readings_is_a_lid():
    closed = without_unseen_hollows(CUP, CUBE, at(ring(400)), directions(disc(800, 42, 9)))
    inside = (cylinder(11, 22, 41) < 0)
    assert (closed[inside] < 0).all()
    outside = SOLID > 1.5
    assert (closed[outside] > 0).all()                             # and nothing grows beyond the lid
    np.testing.assert_allclose(closed[30, 34, 18:23], SOLID[30, 34, 18:23], atol=0.6)


def test_of_many_rays_that_are_thinned_out_each_counts_for_several():
    """Of 600 pixels without a reading 500 look into the cup, which are more than the 400 that were read there."""
    seen = at(np.concatenate([ring(700), disc(400, 42, 11)]))
    closed = without_unseen_hollows(CUP, CUBE, seen, directions(np.concatenate([disc(500, 42, 9), ring(100)])))
    assert (closed[cylinder(11, 22, 41) < 0] < 0).all()


def test_an_opening_whose_inside_was_read_stays_open():
    seen = at(np.concatenate([ring(400), disc(600, 42, 11)]))
    assert without_unseen_hollows(CUP, CUBE, seen, directions(disc(600, 42, 9))) is CUP


@pytest.mark.parametrize("unread", [NO_POINTS, directions(disc(30, 42, 9))])
def test_few_missing_readings_change_nothing(unread):
    assert without_unseen_hollows(CUP, CUBE, at(ring(1000)), unread) is CUP


def test_an_opening_of_what_gives_few_readings_anywhere_stays_open():
    """A black cup: of its rim and side, too, most is missing."""
    unread = directions(np.concatenate([disc(300, 42, 9), ring(300)]))
    assert without_unseen_hollows(CUP, CUBE, at(ring(400)), unread) is CUP


def test_missing_readings_of_an_even_side_change_nothing():
    assert without_unseen_hollows(SOLID, CUBE, at(ring(400)), directions(disc(800, 20, 14))) is SOLID


def test_nothing_and_what_is_flat_have_no_hollow():
    nothing, flat = np.full((N, N, N), 3, np.float32), np.full((N, N, N), 3, np.float32)
    flat[20:40, 20:40, 30] = -0.4
    for distance in (nothing, flat):
        assert without_unseen_hollows(distance, CUBE, at(ring(100)), directions(disc(800, 42, 9))) is distance
