"""Readings in a mask that are not its object's: islands, what is far behind a coarse mask's rim, the support."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from sam3d_ros.perception.candidates import _outline, find_candidates
from sam3d_ros.perception.evidence import Observation
from sam3d_ros.perception.frame import Frame, Instance, Intrinsics, back_project, pixel_directions
from sam3d_ros.perception.objects import Status
from sam3d_ros.perception.pieces import _pieces, in_one_piece
from sam3d_ros.perception.support import off_support

CAMERA = Intrinsics(320, 240, 300.0, 300.0, 159.5, 119.5)
TABLE = np.array([0.0, 0.0, -1.0, 0.8])             # 0.8 m below a camera that looks straight down
OBJECT = np.s_[80:130, 140:200]                     # 10 x 12 cm, 20 cm above what is behind


def scene(*changes: tuple[tuple[slice, slice], int, float]) -> Frame:
    """A block, label 1, 0.6 m from the camera, and 0.8 m away what is behind it; changes: window, label, depth."""
    depth, labels = np.full((240, 320), 0.8, np.float32), np.zeros((240, 320), np.int32)
    for window, label, metres in ((OBJECT, 1, 0.6), *changes):
        depth[window], labels[window] = metres, label
    return Frame(np.zeros((240, 320, 3), np.uint8), depth, labels, CAMERA, (Instance(1),))


def kept(frame: Frame, support: float = 9.0) -> np.ndarray:
    """(H, W) bool: the readings that count as the object's; support: metres from the camera."""
    rows, columns = np.nonzero((frame.labels == 1) & (frame.depth > 0))
    found = np.zeros(frame.labels.shape, bool)
    points = back_project(frame.depth, CAMERA, rows, columns)
    found[rows, columns] = in_one_piece(frame, rows, columns, points, points[:, 2] < support)
    return found


@pytest.mark.parametrize(("near", "step", "gap", "pieces"), [
    (0.6, 0.015, 0, 1), (0.6, 0.035, 0, 2),         # an edge is 1 cm and a pixel's width times five
    (0.6, 0.035, 2, 1), (0.6, 0.055, 2, 2),         # or three pixels' width, past readings that are missing
    (0.6, 0.001, 3, 2),                             # of which more than two are a gap
    (2.0, 0.055, 0, 1), (2.0, 0.090, 0, 2)])        # and noise grows with the square of the distance
def test_depth_that_goes_on_smoothly_is_one_piece(near, step, gap, pieces):
    depth = np.full((20, 30), near, np.float32)
    depth[:, 15:] += step
    depth[:, 15:15 + gap] = 0
    for turned in (depth, depth[:, ::-1], depth.T):
        found = _pieces(np.ascontiguousarray(turned), 5 / CAMERA.fx, beside=3)
        assert len(np.unique(found[turned > 0])) == pieces


def test_what_is_far_behind_the_rim_of_a_coarse_mask_is_left_out():
    """The rim has more readings than the object."""
    exact = scene()
    coarse = replace(exact, labels=ndimage.grey_dilation(exact.labels, (51, 51)))
    assert (coarse.labels == 1).sum() > 2 * (exact.labels == 1).sum()
    np.testing.assert_array_equal(kept(coarse), exact.labels == 1)


def test_of_object_and_a_larger_patch_of_the_support_the_object_is_kept():
    frame = scene((np.s_[130:220, 100:240], 1, 0.8))
    np.testing.assert_array_equal(kept(frame, support=0.79), scene().labels == 1)


def test_islands_are_left_out():
    islands = [(np.s_[row:row + 15, column:column + 15], 1, 0.8) for row, column in ((10, 20), (200, 30), (30, 290))]
    np.testing.assert_array_equal(kept(scene(*islands)), scene().labels == 1)


@pytest.mark.parametrize("half", [18, 23])
def test_of_a_ring_and_what_is_seen_through_it_the_ring_is_kept(half):
    """Outlines fill holes.  Behind the wider one are most readings, and behind both those deepest in the mask."""
    hole = np.s_[105 - half:105 + half, 170 - half:170 + half]
    frame, ring = scene((hole, 1, 1.0)), scene().labels == 1
    ring[hole] = False
    np.testing.assert_array_equal(kept(frame), ring)


def test_cap_and_base_of_a_glass_bottle_are_one_object():
    """The mask holds what is seen through the bottle, where an island of a mask has nothing around it.  The bottle is 4
    cm wide, with 6 cm between cap and base: farther than either is large.
    """
    cap, glass, base = (np.s_[rows, 160:180] for rows in (slice(80, 88), slice(88, 118), slice(118, 130)))
    narrow = [(np.s_[80:130, columns], 0, 0.8) for columns in (slice(140, 160), slice(180, 200))]
    found = kept(scene(*narrow, (glass, 1, 0.8)), support=0.79)
    assert found[cap].all()
    assert found[base].all()
    found = kept(scene(*narrow, (glass, 0, 0.8)))
    assert not found[cap].any()
    assert found[base].all()


@pytest.mark.parametrize(("label", "metres", "whole"), [(2, 0.45, True), (0, 0.0, True), (0, 0.8, False)],
                         ids=["a neighbour before it", "no reading", "nothing"])
def test_two_parts_are_one_object_unless_nothing_is_seen_between(label, metres, whole):
    frame = scene((np.s_[80:130, 185:260], 1, 0.6), (np.s_[60:150, 165:250], label, metres))
    both = (frame.labels == 1) & (frame.depth > 0)
    larger = both & (np.arange(320) < 165)
    np.testing.assert_array_equal(kept(frame), both if whole else larger)


def test_parts_that_are_nearer_than_they_are_large_are_one_object():
    """The legs of a bridge, of which an eroded mask has lost what joins them."""
    frame = scene((np.s_[60:150, 165:185], 0, 0.8))
    np.testing.assert_array_equal(kept(frame), frame.labels == 1)


def test_sparse_and_noisy_readings_are_all_kept():
    rng = np.random.default_rng(0)
    frame = scene()
    noisy = frame.depth + rng.normal(scale=0.002, size=frame.depth.shape).astype(np.float32)
    sparse = replace(frame, depth=np.where(rng.random(noisy.shape) < 0.6, 0, noisy))
    np.testing.assert_array_equal(kept(sparse), (frame.labels == 1) & (sparse.depth > 0))


def test_the_cube_of_a_mask_that_takes_in_the_table_is_that_of_the_object():
    exact = scene()
    for leak in (ndimage.grey_dilation(exact.labels, (21, 21)), scene((np.s_[130:180, 140:200], 1, 0.8)).labels):
        cubes = [found.cube for frame in (exact, replace(exact, labels=leak))
                 for found in find_candidates(frame, frame.labels, TABLE, None, {}, 50, 16)[1]]
        assert cubes[1].edge == pytest.approx(cubes[0].edge, rel=0.01)
        np.testing.assert_allclose(cubes[1].centre, cubes[0].centre, atol=0.001)


def test_the_cube_is_that_of_the_object_though_its_mask_in_another_view_takes_in_the_table():
    exact = scene()
    exact.depth[OBJECT] = 0.76
    wide = replace(exact, labels=ndimage.grey_dilation(exact.labels, (41, 41)))
    others = [{1: [Observation(frame, 1, np.eye(4))]} for frame in (exact, wide)]
    cubes = [find_candidates(exact, exact.labels, TABLE, None, views, 50, 16)[1][0].cube for views in others]
    assert cubes[1].edge == pytest.approx(cubes[0].edge, rel=0.01)
    np.testing.assert_allclose(cubes[1].centre, cubes[0].centre, atol=0.001)


def test_the_cube_takes_in_what_of_an_object_reaches_below_the_support():
    """Over the edge of a table, beyond which is the floor."""
    frame = scene((np.s_[130:], 0, 1.2))
    frame.depth[:130][frame.labels[:130] == 0], frame.depth[OBJECT] = 0.8, 0.75
    hanging = replace(frame, depth=frame.depth.copy(), labels=frame.labels.copy())
    hanging.labels[130:150, 140:200] = 1
    hanging.depth[130:150, 140:200] = 0.755 + 0.005 * np.arange(20)[:, None]        # down to 5 cm below the table
    cubes = [find_candidates(hanging, hanging.labels, plane, None, {}, 50, 16)[1][0].cube for plane in (None, TABLE)]
    assert cubes[1].edge == pytest.approx(cubes[0].edge)
    assert cubes[1].edge > 1.15 * find_candidates(frame, frame.labels, TABLE, None, {}, 50, 16)[1][0].cube.edge


def test_mirror_images_below_the_support_are_taken_away():
    """A polished block on the table mirrors what is before it, as far behind its top as it stands before: 12 cm."""
    exact = scene()
    mirrored = replace(exact, depth=exact.depth.copy())
    mirrored.depth[OBJECT], mirrored.depth[85:110, 145:175] = 0.75, 0.87
    exact.depth[OBJECT] = 0.75
    found, candidates, _ = find_candidates(mirrored, mirrored.labels, TABLE, None, {}, 50, 16)
    assert (found.depth[85:110, 145:175] == 0).all()
    np.testing.assert_array_equal(found.depth[found.depth > 0], exact.depth[found.depth > 0])
    cube = find_candidates(exact, exact.labels, TABLE, None, {}, 50, 16)[1][0].cube
    assert candidates[0].cube.edge == pytest.approx(cube.edge, rel=0.02)
    np.testing.assert_allclose(candidates[0].cube.centre, cube.centre, atol=0.002)


def test_what_reaches_into_a_recess_of_the_support_is_no_mirror_image():
    """From 5 cm above the support down to 7 cm below it, with the support all around."""
    frame = scene()
    frame.depth[frame.labels == 0] = 0.8
    frame.depth[OBJECT] = np.linspace(0.75, 0.87, 50)[:, None]
    frame.depth[112:114, 140:200] = 0                              # a band without readings at the support's height
    found, [candidate], _ = find_candidates(frame, frame.labels, TABLE, None, {}, 50, 16)
    np.testing.assert_array_equal(found.depth, frame.depth)
    assert len(candidate.points) == 48 * 60
    frame.depth[OBJECT] = 0.75
    stray = np.s_[130:135, 140:150]                                # the support's noise, which a wide mask includes
    frame.labels[stray], frame.depth[stray] = 1, 0.815
    assert (find_candidates(frame, frame.labels, TABLE, None, {}, 50, 16)[0].depth[stray] == 0).all()


@pytest.mark.parametrize(("share", "status"), [(0.4, Status.OK), (0.15, Status.LOW_QUALITY)])
def test_the_cube_holds_the_whole_mask_where_most_of_a_black_object_gives_no_reading(share, status):
    exact = scene()
    black = replace(exact, depth=exact.depth.copy())
    black.depth[80:130, 140 + round(60 * share):200] = 0
    whole, part = (find_candidates(frame, frame.labels, TABLE, None, {}, 50, 16)[1][0] for frame in (exact, black))
    assert part.cube.edge == pytest.approx(whole.cube.edge, rel=0.06)
    np.testing.assert_allclose(part.cube.centre, whole.cube.centre, atol=0.005)
    assert (whole.status, part.status) == (Status.OK, status)


@pytest.mark.parametrize("depth", [True, False], ids=["depth", "no depth"])
def test_a_large_mask_is_thinned_out_and_gives_the_same_cube(depth):
    """A block that fills much of a 4K image; an island beside it is still told from it."""
    small = scene((np.s_[10:25, 20:35], 1, 0.8)) if depth else replace(scene(), depth=None)
    k, n = CAMERA, 16
    large = replace(small, colour=np.zeros((240 * n, 320 * n, 3), np.uint8),
                    depth=np.kron(small.depth, np.ones((n, n), np.float32)) if depth else None,
                    labels=np.kron(small.labels, np.ones((n, n), np.int32)),
                    intrinsics=Intrinsics(320 * n, 240 * n, k.fx * n, k.fy * n, k.cx * n + 7.5, k.cy * n + 7.5))
    found, expected = (find_candidates(frame, frame.labels, TABLE if depth else None, None, {}, 50, 16)[1][0]
                       for frame in (large, small))
    assert found.cube.edge == pytest.approx(expected.cube.edge, rel=0.02)
    np.testing.assert_allclose(found.cube.centre, expected.cube.centre, atol=0.004)
    assert found.readings == pytest.approx(50 * n * 60 * n, rel=0.01)
    assert 25_000 < len(found.rows) < 400_000
    assert (large.labels[found.rows, found.columns] == 1).all()
    assert found.rows.min() >= 80 * n
    if depth:
        np.testing.assert_allclose(back_project(large.depth, large.intrinsics, found.rows, found.columns), found.points)


@pytest.mark.parametrize("plane", [TABLE, None], ids=["table", "no table"])
def test_a_mask_over_two_objects_is_doubtful_and_one_over_table_and_floor_is_not(plane):
    """A neighbour stands 5 cm lower beside the block; the table is only in a coarse mask."""
    two = scene((np.s_[80:130, 200:230], 1, 0.65))
    touched = scene((np.s_[80:130, 200:206], 1, 0.65))              # by a mask that is a little too wide
    coarse = replace(scene(), labels=ndimage.grey_dilation(scene().labels, (41, 41)))
    black = scene((np.s_[80:130, 160:180], 1, 0.0))                 # a stripe without readings divides it
    found = [find_candidates(frame, frame.labels, plane, None, {}, 50, 16)[1][0].status
             for frame in (two, touched, coarse, black, scene())]
    assert found == [Status.LOW_QUALITY, *[Status.OK] * 4]


@pytest.mark.parametrize(("metres", "on_another_level"), [(0.8, True), (1.6, False)])
def test_what_is_below_the_support_lies_on_another_level_unless_it_is_noise(metres, on_another_level):
    """A block, and a ledge 1.5 cm below the support, which from afar is no more than the error of a stereo camera."""
    plane = np.array([0.0, 0.0, -1.0, metres])
    labels, depth = np.zeros((240, 320), np.int32), np.full((240, 320), metres, np.float32)
    block, ledge = np.s_[60:180, 100:160], np.s_[60:180, 160:220]
    labels[block] = labels[ledge] = 1
    depth[block], depth[ledge] = metres - 0.05, metres + 0.015
    points = back_project(depth, CAMERA, *np.nonzero(labels))
    off = np.zeros(labels.shape, bool)
    off[labels == 1] = off_support(points, plane)
    assert off[block].all() and (off[ledge] == on_another_level).all()


def test_an_outline_is_the_first_and_the_last_pixel_of_each_row_and_column():
    rows, columns = np.indices((240, 320))
    mask = (rows - 100) ** 2 + (columns - 150) ** 2 < 20.5 ** 2
    frame = replace(scene(), labels=mask.astype(np.int32))
    found = {tuple(direction) for direction in _outline(frame, *np.nonzero(mask)).round(9)}
    edge = mask & ~ndimage.binary_erosion(mask)                 # of a convex mask
    assert found == {tuple(direction) for direction in pixel_directions(CAMERA, *np.nonzero(edge)).round(9)}


def test_pixels_without_a_reading_are_thinned_out_as_those_with_one_are():
    frame = scene((np.s_[30:230, 40:280], 1, 0.6))
    frame.depth[60:120, 60:260] = 0                             # a quarter of the mask
    candidate = find_candidates(frame, frame.labels, None, None, {}, 100, 9)[1][0]
    assert 4000 <= len(candidate.seen) < 5000
    assert len(candidate.unread) / len(candidate.seen) == pytest.approx(60 * 200 / (200 * 240 - 60 * 200), rel=0.01)
