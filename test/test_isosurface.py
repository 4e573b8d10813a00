"""Iso-surfaces and their decimation: closed, where they should be, and as small as asked for."""
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import trimesh

from sam3d_ros.perception.decimation import decimated
from sam3d_ros.perception.isosurface import zero_surface


def is_closed(triangles):
    """Whether exactly two triangles run along every edge, in opposite directions."""
    edges = {(int(a), int(b)) for row in triangles for a, b in zip(row, np.roll(row, -1), strict=True)}
    return len(edges) == 3 * len(triangles) and all((b, a) in edges for a, b in edges)


def plain(vertices, triangles):
    return trimesh.Trimesh(vertices, triangles, process=False)


def distances(shape, function):
    return function(*np.indices(shape).astype(float)).astype(np.float32)


def test_the_surface_of_an_off_centre_ball_is_where_it_is():
    centre = np.array([9.3, 17.1, 12.6])
    vertices, triangles = zero_surface(distances((24, 30, 26), lambda *at: np.linalg.norm(
        np.stack(at, axis=-1) - centre, axis=-1) - 7.5))
    mesh = plain(vertices, triangles)
    assert is_closed(triangles) and mesh.euler_number == 2
    np.testing.assert_allclose(np.linalg.norm(vertices - centre, axis=1), 7.5, atol=0.02)
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 7.5 ** 3, rel=0.02)         # positive: outward


def test_plane_sides_are_met_exactly():
    """A box whose sides lie between voxels, away from its edges."""
    low, high = np.array([3.2, 4.7, 2.4]), np.array([11.6, 9.9, 12.3])
    vertices, _ = zero_surface(distances((16, 16, 16), lambda *at: np.maximum(
        low - np.stack(at, axis=-1), np.stack(at, axis=-1) - high).max(axis=-1)))
    np.testing.assert_allclose(vertices.min(axis=0), low, atol=1e-5)
    np.testing.assert_allclose(vertices.max(axis=0), high, atol=1e-5)


@pytest.mark.parametrize("inside", range(1, 256))
def test_every_set_of_corners_gives_a_closed_surface(inside):
    volume = np.ones((4, 4, 4), np.float32)
    volume[1:3, 1:3, 1:3][tuple(np.array([[c >> 2, c >> 1 & 1, c & 1] for c in range(8) if inside >> c & 1]).T)] = -1
    vertices, triangles = zero_surface(volume)
    assert is_closed(triangles) and plain(vertices, triangles).volume > 0


def test_noise_gives_a_closed_surface():
    volume = np.ones((24, 24, 24), np.float32)
    volume[1:-1, 1:-1, 1:-1] = np.random.default_rng(0).normal(size=(22,) * 3)
    assert is_closed(zero_surface(volume)[1])


def test_a_thin_oblique_wall_has_no_holes():
    """Voxels of a wall at 45 degrees, 0.9 voxels thick: many of them touch along edges only."""
    wall = distances((30, 30, 20), lambda x, y, z: np.maximum.reduce([
        np.abs(x - y - 0.3) / np.sqrt(2) - 0.45, np.abs(x - 14.4) - 8.2, np.abs(z - 9.6) - 6.3]))
    mesh = plain(*zero_surface(wall))
    assert mesh.body_count == 1 and mesh.euler_number == 2


def test_decimated_balls_of_many_threads():
    balls = [trimesh.creation.icosphere(4, radius) for radius in (1.0, 2.0, 3.0, 4.0)] * 5
    with ThreadPoolExecutor(4) as workers:
        found = list(workers.map(lambda ball: decimated(ball.vertices + [0, 0, 50], ball.faces, 500), balls))
    for ball, (vertices, triangles) in zip(balls, found, strict=True):
        assert is_closed(triangles) and 490 < len(triangles) <= 500
        assert plain(vertices, triangles).volume == pytest.approx(ball.volume, rel=0.01)
        assert np.linalg.norm(vertices - [0, 0, 50], axis=1) == pytest.approx(ball.extents[0] / 2, rel=0.02)


def test_edges_and_corners_survive():
    """A box of 3072 triangles needs no more than 12; with 60 it is still the box."""
    box = trimesh.creation.box([0.3, 0.2, 0.1])
    for _ in range(4):
        box = box.subdivide()
    vertices, triangles = decimated(box.vertices + [0.4, -0.2, 0.8], box.faces, 60)
    found = plain(vertices, triangles)
    assert is_closed(triangles) and len(triangles) <= 60
    np.testing.assert_allclose(found.bounds, box.bounds + [0.4, -0.2, 0.8], atol=1e-5)
    assert found.volume == pytest.approx(0.006, rel=2e-4) and found.area == pytest.approx(0.22, rel=2e-4)


def test_a_wall_thinner_than_its_triangles_stays_two_sheets():
    wall = trimesh.creation.annulus(0.9, 0.905, 1.0, sections=256).subdivide().subdivide()
    vertices, triangles = decimated(wall.vertices, wall.faces, len(wall.faces) // 20)
    assert is_closed(triangles) and len(triangles) <= len(wall.faces) // 20
    assert plain(vertices, triangles).euler_number == 0              # still a ring
    assert plain(vertices, triangles).volume == pytest.approx(wall.volume, rel=0.2)


def test_the_border_of_an_open_mesh_stays():
    box = trimesh.creation.box([1, 1, 1]).subdivide().subdivide().subdivide()
    lower = box.submesh([box.triangles_center[:, 2] < 0.1], append=True)
    alone = trimesh.grouping.group_rows(lower.edges_sorted, require_count=1)
    border = lower.vertices[np.unique(lower.edges_sorted[alone])]
    vertices, triangles = decimated(lower.vertices, lower.faces, 100)
    assert len(border) == 32 and len(triangles) < len(lower.faces) / 2
    assert {tuple(v) for v in border} <= {tuple(v) for v in vertices}


def test_what_cannot_lose_more_is_left():
    four = trimesh.creation.icosphere(0)
    vertices, triangles = decimated(four.vertices, four.faces, 1)
    assert is_closed(triangles) and len(triangles) >= 4
    vertices, triangles = decimated(four.vertices, four.faces, 20)
    np.testing.assert_array_equal(vertices, four.vertices)
    np.testing.assert_array_equal(triangles, four.faces)
