"""The plane that objects stand on, among other planes."""
from dataclasses import replace

import numpy as np
import pytest
import tabletop_toys
from tabletop_toys import CAMERA, CAN, Toy, camera_at, picture, pose

from sam3d_ros.perception.frame import Frame, Intrinsics, back_project
from sam3d_ros.perception.support import support_plane

SHELF = 0.2               # metres from its edge to the wall


def before_walls(elevation: float, normals: np.ndarray) -> Frame:
    """A can on a shelf, the plane z = 0 where it is within SHELF of each wall; walls: through (-0.1, 0, 0), with
    horizontal `normals` (W, 2)."""
    frame = picture([(CAN, pose(0, 0, 0.055))], camera_at(0.0, elevation, 0.6), [1], 0.0)
    rows, columns = np.indices(frame.depth.shape)
    world_from_camera = frame.world_from_camera
    points = back_project(np.ones_like(frame.depth), CAMERA, rows.ravel(), columns.ravel())
    rays = (points @ world_from_camera[:3, :3].T).reshape(*rows.shape, 3)
    wall = np.full(rows.shape, np.inf)
    for normal in normals:
        from_wall = (world_from_camera[:2, 3] + [0.1, 0]) @ normal
        wall = np.minimum(wall, np.where(rays[..., :2] @ normal < 0, -from_wall / (rays[..., :2] @ normal), np.inf))
    places = world_from_camera[:2, 3] + frame.depth[..., None] * rays[..., :2] + [0.1, 0]
    is_open = (frame.labels == 0) & ((frame.depth == 0) | ((places @ np.transpose(normals)).max(axis=-1) > SHELF))
    depth = np.where(is_open, np.inf, frame.depth)
    depth = np.where((wall < depth) & (frame.labels == 0), wall, depth)
    depth += 0.001 * np.random.default_rng(0).normal(size=depth.shape)
    return replace(frame, depth=np.where(np.isfinite(depth), depth, 0).astype(np.float32))


@pytest.mark.parametrize("elevation", [0.15, 0.4])
@pytest.mark.parametrize("normals", [[[1.0, 0.0]], [[0.8, 0.6], [0.8, -0.6]]], ids=["wall", "corner"])
def test_a_shelf_is_the_support_before_a_larger_wall(elevation, normals):
    frame = before_walls(elevation, np.array(normals))
    world_from_camera = frame.world_from_camera
    plane = support_plane(frame)
    assert plane[:3] @ world_from_camera[2, :3] > np.cos(np.deg2rad(2))
    foot = np.linalg.inv(world_from_camera)[:3, 3]            # of the can, camera frame
    assert plane[:3] @ foot + plane[3] == pytest.approx(0, abs=0.003)


def test_depth_in_every_second_row_shows_the_support(monkeypatch):
    """As registered to an image of twice the size, which is so large that not all of it is looked at; a corner of it is
    empty."""
    monkeypatch.setattr(tabletop_toys, "CAMERA", Intrinsics(480, 360, 460.0, 460.0, 239.5, 179.5))
    frame = picture([(CAN, pose(0, 0, 0.055))], camera_at(0.0), [1], rng=np.random.default_rng(0))
    depth = np.zeros_like(frame.depth)
    depth[1::2] = frame.depth[1::2]
    depth[:130, :170] = 0
    plane = support_plane(replace(frame, depth=depth))
    np.testing.assert_allclose(plane, [*frame.world_from_camera[2, :3], frame.world_from_camera[2, 3]], atol=0.004)


def test_a_board_above_all_objects_is_no_support():
    board = Toy("box", np.array([0.3, 0.5, 0.02]))
    scene = [(CAN, pose(0, 0, 0.055)), (board, pose(-0.2, 0, 0.2))]
    frame = picture(scene, camera_at(0.0, 0.9, 0.7), [1, 0], rng=np.random.default_rng(0))
    floor = [*frame.world_from_camera[2, :3], frame.world_from_camera[2, 3]]
    points = back_project(frame.depth, CAMERA, *np.nonzero(frame.depth))
    lower = (points @ floor[:3] + floor[3] < 0.15) & (frame.labels[frame.depth > 0] == 0)
    rows, columns = (pixels[lower] for pixels in np.nonzero(frame.depth))
    seen = frame.depth.copy()
    seen[rows, columns] = 0
    assert support_plane(replace(frame, depth=seen)) is None
    seen[rows[::20], columns[::20]] = frame.depth[rows[::20], columns[::20]]     # less of it than of the board
    np.testing.assert_allclose(support_plane(replace(frame, depth=seen)), floor, atol=0.004)


def test_a_wall_alone_is_no_support():
    frame = before_walls(0.15, np.array([[1.0, 0.0]]))
    rows, columns = np.nonzero(frame.depth)
    points = back_project(frame.depth, CAMERA, rows, columns)
    heights = points @ frame.world_from_camera[2, :3] + frame.world_from_camera[2, 3]
    depth = frame.depth.copy()
    depth[rows[heights < 0.01], columns[heights < 0.01]] = 0
    frame = replace(frame, depth=depth)
    assert support_plane(frame) is None
    given = support_plane(replace(frame, support_height=0.0))
    np.testing.assert_allclose(given, [*frame.world_from_camera[2, :3], frame.world_from_camera[2, 3]])
