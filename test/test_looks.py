"""Objects that several images show: seen a second time from the most different one."""
from dataclasses import replace

import numpy as np
import pytest
from test_cube_and_evidence import ball_frame, cube_of

from sam3d_ros.perception.candidates import Candidate
from sam3d_ros.perception.cube import NO_POINTS
from sam3d_ros.perception.evidence import Observation
from sam3d_ros.perception.frame import Instance
from sam3d_ros.perception.looks import Look, first_look, merged, network_inputs, second_look
from sam3d_ros.perception.objects import Status
from sam3d_ros.runtime.signature import STUDENT

BALL = np.array([0.05, -0.08, 0.75])
TABLE = np.array([0.0, -0.8, -0.6, 0.57])      # over which the ball's centre is 18.4 cm high


def turned_about_the_ball(degrees):
    """(4, 4) camera_from_observer of a camera that went round the ball on the right, at the same distance."""
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    pose = np.eye(4)
    pose[:3, :3] = [[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]]
    pose[:3, 3] = BALL - pose[:3, :3] @ BALL
    return pose


def seen_from(degrees):
    """The ball (10 cm in radius, label 1), as that camera sees it, which has it at the same place in its frame."""
    return Observation(ball_frame(BALL), 1, turned_about_the_ball(degrees))


@pytest.fixture
def candidate():
    cube = cube_of(ball_frame(BALL))
    nothing = np.empty(0, int)
    return Candidate(Instance(1), 0, NO_POINTS, nothing, nothing, NO_POINTS, NO_POINTS, NO_POINTS, cube,
                     Status.OK)


def test_the_second_look_begins_with_the_most_different_view(candidate):
    frame, others = ball_frame(BALL), [seen_from(20), seen_from(70), seen_from(40)]
    first = first_look(frame, candidate, others, TABLE, TABLE[:3])
    second = second_look(frame, candidate, others, TABLE, TABLE[:3])
    assert [len(look.views) for look in (first, second)] == [4, 4]
    turn = second.cube_from_candidate
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)
    # The optical axis of each look's cube is that of its first view; those of both views are 70 degrees apart.
    assert np.rad2deg(np.arccos(turn[2, 2])) == pytest.approx(70, abs=3)
    # The image at hand is now a further view, of which the axis is that of the candidate's cube.
    axis = second.views[1][1][6:9]
    np.testing.assert_allclose(axis, turn[:, 2], atol=1e-6)
    assert first.support[4] == second.support[4] == 1
    np.testing.assert_allclose(second.support[:3], turn @ first.support[:3], atol=1e-6)
    assert second.support[3] == pytest.approx(first.support[3], abs=1e-6)


def test_without_other_views_there_is_no_second_look(candidate):
    assert second_look(ball_frame(BALL), candidate, [], TABLE, TABLE[:3]) is None
    behind = turned_about_the_ball(30)
    behind[:3, :3] = behind[:3, :3] @ np.diag([-1, 1, -1])         # a camera that looks the other way
    assert second_look(ball_frame(BALL), candidate, [Observation(ball_frame(BALL), 1, behind)], None, None) is None


def test_a_view_that_shows_little_of_the_object_is_not_the_first_of_the_second_look(candidate):
    """From the farthest side there is no depth, no pixel of the mask, or the image ends in it."""
    frame, poor = ball_frame(BALL), seen_from(70)
    columns = np.nonzero((poor.frame.labels == 1).any(axis=0))[0]
    cut = poor.frame.labels.copy()
    cut[:, columns[len(columns) // 3]:] = 0
    for changes in ({"depth": None}, {"labels": np.zeros_like(cut)}, {"labels": cut}):
        other = replace(poor, frame=replace(poor.frame, **changes))
        assert second_look(frame, candidate, [other], TABLE, TABLE[:3]) is None
        look = second_look(frame, candidate, [other, seen_from(40)], TABLE, TABLE[:3])
        assert np.rad2deg(np.arccos(look.cube_from_candidate[2, 2])) == pytest.approx(40, abs=3)
        assert len(look.views) == 3
    assert second_look(replace(frame, depth=None), candidate, [seen_from(40)], None, None) is None


def test_without_up_the_second_look_is_upright_in_its_own_image(candidate):
    """As the first one is, and as the network was trained: of a camera that is turned by 40 degrees about its axis."""
    other = seen_from(60)
    cosine, sine = np.cos(np.deg2rad(40)), np.sin(np.deg2rad(40))
    roll = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    pose = other.camera_from_observer.copy()
    pose[:3, :3] = pose[:3, :3] @ roll
    look = second_look(ball_frame(BALL), candidate, [replace(other, camera_from_observer=pose)], None, None)
    across = (look.cube_from_candidate @ candidate.cube.virtual_from_camera @ pose[:3, :3])[0]
    assert across[1] == pytest.approx(0, abs=1e-9) and across[0] > 0.9
    assert not look.support.any()


def ball_volume(centre, radius):
    """(64, 64, 64) float32 signed distance, voxels, to a ball; centre, radius: in edges, cube's frame."""
    ticks = (np.arange(64) + 0.5) / 64 - 0.5
    points = np.stack(np.meshgrid(ticks, ticks, ticks, indexing="ij"), axis=-1)
    return (64 * (np.linalg.norm(points - centre, axis=-1) - radius)).astype(np.float32)


def test_the_mean_of_both_looks_lies_where_both_see_the_object():
    turn = turned_about_the_ball(65)[:3, :3] @ np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])
    centre = np.array([0.1, -0.12, 0.15])                          # in the first look's cube
    outputs = {name: np.zeros(shape, np.float32) for name, shape in STUDENT.output_shapes(batch=3).items()}
    outputs["distance"][0] = 7.0                                   # an object with one view only
    outputs["distance"][1], outputs["distance"][2] = ball_volume(centre, 0.2), ball_volume(turn @ centre, 0.24)
    outputs["log_std"][1], outputs["log_std"][2] = -1, 1
    outputs["layout"][:, 0] = [1, 2, 3]
    both = merged(outputs, {1: Look([], np.zeros(5), turn)})
    assert {name: array.shape for name, array in both.items()} == STUDENT.output_shapes(batch=2)
    assert (both["distance"][0] == 7).all() and both["layout"][:, 0].tolist() == [1, 2]
    wanted = ball_volume(centre, 0.22)
    near = np.abs(wanted) < 3
    assert np.abs(both["distance"][1, 0] - wanted)[near].max() < 0.15
    assert np.abs(both["log_std"][1, 0, 12:20, 12:20, 12:20]).max() < 1e-5
    assert both["distance"][1, 0, 0, 0, 0] == ball_volume(centre, 0.2)[0, 0, 0]        # a corner only the first has


def test_objects_with_fewer_views_are_filled_up(candidate):
    frame = ball_frame(BALL)
    looks = [first_look(frame, candidate, views, None, None) for views in ([], [seen_from(30), seen_from(60)])]
    inputs = network_inputs(looks)
    assert {name: array.shape for name, array in inputs.items()} == STUDENT.input_shapes(batch=2, views=3)
    assert inputs["views"][:, :, 10].tolist() == [[1, 0, 0], [1, 1, 1]]
