"""The tracker on toys on a table: ids, poses, covariances, hiding, finding again, when to reconstruct."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tabletop_toys
import trimesh
from made_objects import BOX_CORNERS, BOX_SIDES, made_object
from tabletop_toys import BOX, CAN, EGG, Toy, camera_at, picture, pose, reconstruction

from sam3d_ros.perception.frame import Instance, Intrinsics, back_project
from sam3d_ros.perception.objects import Status
from sam3d_ros.perception.support import support_plane
from sam3d_ros.scene import rebuild
from sam3d_ros.scene.distance_grid import distance_grid
from sam3d_ros.scene.fusion import View, agree, make_view, observations, with_view
from sam3d_ros.scene.motion import difference, rotated
from sam3d_ros.scene.physics import Outcome, Settled, settle
from sam3d_ros.scene.readings import read
from sam3d_ros.scene.registration import register
from sam3d_ros.scene.resting import Resting
from sam3d_ros.scene.sampling import surface_samples
from sam3d_ros.scene.shape import make_shape
from sam3d_ros.scene.track import Presence, Request, moved_mesh
from sam3d_ros.scene.tracker import Tracker, TrackerConfig

NO_PRIOR = np.eye(6) * 1e-3
PLACES = [pose(-0.12, 0.0, 0.03, 0.4), pose(0.1, 0.08, 0.025, -0.3), pose(0.08, -0.12, 0.055, 0.2)]
TOYS = [BOX, EGG, CAN]


class World:
    """A tracker, and toys that it has reconstructed from the first picture."""

    def __init__(self, in_world: bool = True, config: TrackerConfig | None = None, seed: int = 0,
                 resting: Resting | None = None):
        self.tracker = Tracker(config or TrackerConfig(), resting)
        self.places = [*PLACES]
        self.rng = np.random.default_rng(seed)
        self.in_world = in_world
        self.toys = [*TOYS]
        self.look(0.0, camera_at(0.3))
        self.build()
        self.ids = {track.label: track.id for track in self.tracker.tracks.values()}

    def look(self, seconds: float, world_from_camera: np.ndarray, labels: tuple[int, ...] = (1, 2, 3),
             places: list[np.ndarray] | None = None, board: bool = False) -> dict:
        """Show a picture; id -> TrackedObject.  board: something that covers the image's left half."""
        toys = [(toy, place) for toy, place in zip(self.toys, places or self.places, strict=True)]
        self.camera = world_from_camera
        frame = picture(toys, world_from_camera, labels, seconds, self.in_world, self.rng)
        if board:
            depth, mask = frame.depth.copy(), frame.labels.copy()
            depth[:, :120], mask[:, :120] = 0.25, 0
            frame = replace(frame, depth=depth, labels=mask,
                            instances=tuple(i for i in frame.instances if (mask == i.label).any()))
        return {item.id: item for item in self.tracker.update(frame)}

    def build(self, asked: Request | None = None) -> None:
        """Reconstruct what the tracker asks for, or what is asked for."""
        asked = asked or rebuild.request(self.tracker)
        if asked is not None:
            inverse = np.linalg.inv(self.camera)
            made = [reconstruction(self.toys[i.label - 1], inverse @ self.places[i.label - 1], i.label, seed=i.label)
                    for i in asked.frame.instances]
            self.tracker.absorb(asked, rebuild.prepare(asked, made), support_plane(asked.frame))

    def error(self, item, label: int, place: np.ndarray | None = None) -> np.ndarray:
        """(6,) of a pose from the truth."""
        truth = np.linalg.inv(self.camera) @ (self.places[label - 1] if place is None else place)
        return difference(item.object.camera_from_object, truth)


@pytest.mark.parametrize("toy", [BOX, EGG], ids=["box", "egg"])
def test_distances_of_a_shape(toy: Toy):
    mesh = toy.mesh()
    shape = make_shape(mesh.vertices, mesh.faces)
    index = (np.array(shape.distance.shape) * np.random.default_rng(0).random((500, 3))).astype(int)
    found = shape.distance[tuple(index.T)]
    nodes = shape.origin + index * shape.cell
    exact = trimesh.proximity.closest_point_naive(mesh, nodes)[1]
    inside = np.abs(nodes) < BOX.size / 2 if toy is BOX else (nodes / EGG.size * 2) ** 2
    exact = np.where(inside.all(axis=1) if toy is BOX else inside.sum(axis=1) < 1, -exact, exact)
    np.testing.assert_allclose(found, exact, atol=0.4 * shape.cell)
    near = np.abs(exact) < shape.cell
    np.testing.assert_allclose(found[near], exact[near], atol=1e-4)


def test_samples_are_spread_evenly_over_a_surface():
    ball = trimesh.creation.icosphere(4, 0.1)
    points, normals = surface_samples(ball.vertices, ball.faces, 400)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 0.1, atol=2e-4)
    np.testing.assert_allclose(normals, points / 0.1, atol=0.06)
    for axis in range(3):
        height = np.sort(points[:, axis]) / 0.1          # on a ball, uniform from -1 to 1 (Archimedes)
        np.testing.assert_allclose(height, np.linspace(-1, 1, 400), atol=0.12)
    np.testing.assert_array_equal(points, surface_samples(ball.vertices, ball.faces, 400)[0])


def test_the_inside_of_sheets_that_overlap_has_no_seams():
    left, right = (trimesh.creation.box([0.06, 0.05, 0.04]).apply_translation([x, 0.3, 0]) for x in (-0.02, 0.02))
    fold = trimesh.creation.box([0.01, 0.01, 0.01]).apply_translation([0, 0.3, 0.04])
    fold.invert()                                                         # bounds nothing: it winds the wrong way
    mesh = trimesh.util.concatenate([left, right, fold])
    origin, cell = np.array([-0.0617, 0.2617, -0.0311]), 0.0031           # off every face
    distance = distance_grid(np.ascontiguousarray(mesh.vertices), np.ascontiguousarray(mesh.faces), origin, cell,
                             np.array([40, 25, 27]))
    nodes = origin + cell * np.stack(np.indices(distance.shape), axis=-1)
    inside = (np.abs(nodes - [0, 0.3, 0]) < [0.05, 0.025, 0.02]).all(axis=-1)
    np.testing.assert_array_equal(distance < 0, inside)


def test_distances_near_a_thin_mesh_far_from_the_origin_with_triangles_of_no_area():
    disc = trimesh.creation.cylinder(0.04, 0.002, sections=48)
    disc.apply_transform(trimesh.transformations.rotation_matrix(0.4, [1, 2, 3], [0.01, 0, 0]))
    disc.apply_translation([1.7, -0.9, 2.4])
    sliver = np.array([[5, 5, 9], [5, 9, 9], [9, 9, 9]])                              # along an edge, and on a vertex
    faces = np.concatenate([sliver, disc.faces])
    cell = 0.0015
    origin = disc.bounds[0] - 2.3 * cell
    counts = np.ceil((np.ptp(disc.bounds, axis=0)) / cell).astype(int) + 5
    distance = distance_grid(np.ascontiguousarray(disc.vertices), faces, origin, cell, counts)
    index = np.random.default_rng(0).integers(counts, size=(4000, 3))
    nodes = origin + index * cell
    exact = trimesh.proximity.closest_point_naive(disc, nodes)[1]
    height = ((nodes[:, None] - disc.triangles_center) * disc.face_normals).sum(axis=-1)
    exact = np.where(height.max(axis=1) < 0, -exact, exact)                           # it is convex
    near = np.abs(exact) < 1.8 * cell
    assert near.sum() > 400
    np.testing.assert_allclose(distance[tuple(index.T)][near], exact[near], atol=2e-7)


def test_a_mesh_in_another_object_frame_stays_where_it_is():
    mesh = made_object(BOX_CORNERS * [0.1, 0.06, 0.04], BOX_SIDES, pose(0.1, -0.2, 0.7, 0.4))
    new_from_old = pose(0.03, 0.01, -0.02, 1.1)
    moved = moved_mesh(mesh, new_from_old)
    np.testing.assert_allclose(trimesh.transform_points(moved.vertices, moved.camera_from_object),
                               trimesh.transform_points(mesh.vertices, mesh.camera_from_object), atol=1e-7)
    np.testing.assert_allclose(moved.camera_from_object @ new_from_old, mesh.camera_from_object, atol=1e-12)
    np.testing.assert_allclose(moved.size, np.ptp(moved.vertices, axis=0), atol=1e-7)


def test_covariance_turns_with_the_axes():
    """Against samples: positions and small rotations drawn in the camera frame and turned one by one."""
    rng = np.random.default_rng(1)
    spread = rng.normal(size=(6, 6)) * 0.1
    covariance = spread @ spread.T
    target_from_camera = trimesh.transformations.euler_matrix(0.5, -0.7, 1.7)
    samples = rng.multivariate_normal(np.zeros(6), covariance, 200_000)
    rotation = target_from_camera[:3, :3]
    turned = np.hstack([samples[:, :3] @ rotation.T, samples[:, 3:] @ rotation.T])
    np.testing.assert_allclose(rotated(covariance, target_from_camera), np.cov(turned.T), atol=2e-3)


def test_registration_finds_a_shift_and_a_turn():
    mesh = BOX.mesh(0.001)
    shape = make_shape(mesh.vertices, mesh.faces)
    camera = camera_at(0.9)
    frame = picture([(BOX, PLACES[0])], camera, [1], rng=np.random.default_rng(1))
    points = read(frame).points[0]
    truth = np.linalg.inv(camera) @ PLACES[0]
    start = truth @ pose(0.012, -0.01, 0.008, 0.15)
    result = register(shape, points, start, NO_PRIOR)
    error = difference(result.camera_from_object, truth)
    assert np.linalg.norm(error[:3]) < 0.0015
    assert np.linalg.norm(error[3:]) < np.deg2rad(1.5)
    assert result.inliers > 0.95 and result.rms < 0.002


@pytest.mark.parametrize("in_world", [True, False], ids=["with the camera's pose", "without"])
def test_poses_follow_a_moving_camera_with_masks_missing_and_numbers_shuffled(in_world: bool):
    world = World(in_world)
    errors, rng = [], np.random.default_rng(3)
    for step in range(60):
        labels = rng.permutation([1, 2, 3]) * (rng.random(3) > 0.2)
        seen = world.look(step / 30, camera_at(0.3 + 0.6 * np.sin(step / 25)), tuple(labels))
        assert set(seen) == set(world.ids.values())
        assert len(world.tracker.tracks) == 3
        for label, identity in world.ids.items():
            assert seen[identity].presence is Presence.SEEN
            assert seen[identity].object.label in (0, labels[label - 1])
            errors.append(world.error(seen[identity], label))
    errors = np.array(errors)
    assert np.median(np.linalg.norm(errors[:, :3], axis=1)) < 0.002
    assert np.median(np.linalg.norm(errors[:, 3:], axis=1)) < np.deg2rad(1.5)
    assert rebuild.request(world.tracker) is None


def test_the_covariance_means_what_it_says():
    """Normalised error squared of the motion, 6 on average for an honest covariance, over meshes and camera paths."""
    squares = []
    for seed in range(6):
        world = World(seed=seed)
        for step in range(0, 30, 2):
            seen = world.look(step / 30, camera_at(0.3 + 0.04 * step))
            if step % 6 == 0:
                for label, identity in world.ids.items():
                    error = world.error(seen[identity], label)
                    belief = world.tracker.tracks[identity].belief
                    camera_from_world = np.kron(np.eye(2), np.linalg.inv(world.camera)[:3, :3])
                    covariance = camera_from_world @ belief.covariance @ camera_from_world.T
                    squares.append(error @ np.linalg.solve(covariance, error))
    assert 1.5 < np.mean(squares) < 12
    assert np.mean(np.array(squares) < 16.8) > 0.9          # 99 % of chi-squared with 6 degrees of freedom


def test_an_object_that_is_carried_is_followed():
    world = World()
    for step in range(45):
        moved = world.places[0] @ pose(0.004 * step, 0.002 * step, 0.002 * min(step, 20), 0.02 * step)
        seen = world.look(step / 30, camera_at(0.3), places=[moved, *world.places[1:]])
    item = seen[world.ids[1]]
    assert item.presence is Presence.SEEN
    error = world.error(item, 1, moved)
    assert np.linalg.norm(error[:3]) < 0.004 and np.linalg.norm(error[3:]) < np.deg2rad(3)
    for label in (2, 3):
        assert np.linalg.norm(world.error(seen[world.ids[label]], label)[:3]) < 0.003
    assert item.revision == 1


@pytest.mark.parametrize("height", [0.008, 0.02, 0.06])
def test_what_slides_across_the_view_is_followed_though_depth_shows_a_flat_face_alone(monkeypatch, height):
    """At 0.1 m/s, under a camera that looks down on it."""
    start = pose(-0.12, 0.0, height / 2, 0.4)
    monkeypatch.setattr("test_tracking.TOYS", [Toy("box", np.array([0.12, 0.08, height])), *TOYS[1:]])
    monkeypatch.setattr("test_tracking.PLACES", [start, *PLACES[1:]])
    world = World()
    for step in range(1, 20):
        moved = pose(0.07 * step / 30, 0.07 * step / 30, 0) @ start
        item = world.look(step / 30, camera_at(0.3, elevation=1.5), places=[moved, *PLACES[1:]])[world.ids[1]]
        error = world.error(item, 1, moved)
        assert np.linalg.norm(error[:3]) < 0.011
        assert error @ np.linalg.solve(item.object.pose_covariance, error) < 22.5    # once in a thousand times


@pytest.mark.parametrize("share", [0.4, 0.7])
def test_an_object_stays_where_it_is_when_its_mask_is_cut_off(share):
    """share: of its columns that the mask has, from the left."""
    world = World()
    for step in range(1, 12):
        frame = picture([*zip(TOYS, PLACES, strict=True)], camera_at(0.3, elevation=1.5), (1, 2, 3), step / 30)
        rows, columns = np.nonzero(frame.labels == 1)
        end = columns.min() + round(share * np.ptp(columns))
        labels = frame.labels.copy()
        labels[rows[columns > end], columns[columns > end]] = 0
        world.camera = camera_at(0.3, elevation=1.5)
        found = {item.id: item for item in world.tracker.update(replace(frame, labels=labels))}
        assert np.linalg.norm(world.error(found[world.ids[1]], 1)[:3]) < 0.003


@pytest.mark.parametrize("in_world", [True, False], ids=["with the camera's pose", "without"])
@pytest.mark.parametrize("height", [0.008, 0.06])
def test_a_mask_that_takes_in_the_table_does_not_draw_an_object_there(monkeypatch, height, in_world):
    """By 10 pixels, 3 cm, on one side."""
    start = pose(-0.12, 0.0, height / 2, 0.4)
    monkeypatch.setattr("test_tracking.TOYS", [Toy("box", np.array([0.12, 0.08, height])), *TOYS[1:]])
    monkeypatch.setattr("test_tracking.PLACES", [start, *PLACES[1:]])
    for axis, side in ((0, 1), (0, -1), (1, 1), (1, -1)):
        world = World(in_world)
        for step in range(1, 10):
            world.camera = camera_at(0.3)
            frame = picture([*zip(TOYS, PLACES, strict=True)], world.camera, (1, 2, 3), step / 30, in_world, world.rng)
            leaks = np.any([np.roll(frame.labels == 1, side * k, axis) for k in range(1, 11)], axis=0)
            frame = replace(frame, labels=np.where(leaks & (frame.labels == 0), 1, frame.labels))
            found = {item.id: item for item in world.tracker.update(frame)}
            assert np.linalg.norm(world.error(found[world.ids[1]], 1)[:3]) < 0.003


@pytest.mark.parametrize("height", [0.002, 0.006])
def test_noise_from_afar_does_not_lift_a_thin_object_off_the_table(monkeypatch, height):
    """At 1.5 m it is 2.7 mm, and readings of the object may as well be the table's."""
    monkeypatch.setattr("test_tracking.TOYS", [Toy("box", np.array([0.12, 0.08, height])), *TOYS[1:]])
    monkeypatch.setattr("test_tracking.PLACES", [pose(-0.12, 0.0, height / 2, 0.4), *PLACES[1:]])
    world, errors = World(), []
    for step in range(1, 13):
        found = world.look(step / 30, camera_at(0.3, 1.2, 1.5))
        errors.append(np.linalg.norm(world.error(found[world.ids[1]], 1)[:3]))
    assert max(errors) < 0.0035


@pytest.mark.parametrize("labels", [(1, 2, 1), (3, 2, 3), (1, 1, 1)])
def test_a_mask_that_shows_two_known_objects_spoils_neither_and_is_no_third(labels: tuple[int, ...]):
    """The detector takes two for one in some images, after the meshes are old enough to be made anew."""
    world = World()
    for step in range(40):
        world.look(0.1 * step, camera_at(0.3))
    areas = {label: [view.area for view in world.tracker.tracks[identity].views] for label, identity in
             world.ids.items()}
    for step in range(3):
        world.look(4.0 + 0.1 * step, camera_at(0.3 + 0.5 * step), labels)
        asked = rebuild.request(world.tracker)
        assert asked is None or labels[0] not in [instance.label for instance in asked.frame.instances]
        assert len(rebuild.request(world.tracker, {labels[0]}).frame.instances) == 1      # but for who wants it
    seen = world.look(4.3, camera_at(0.3))
    assert {item.presence for item in seen.values()} == {Presence.SEEN} and set(seen) == set(world.ids.values())
    for label in labels[::2]:
        assert [view.area for view in world.tracker.tracks[world.ids[label]].views] == areas[label]


@pytest.mark.parametrize("in_world", [True, False], ids=["with the camera's pose", "without"])
def test_what_the_detector_first_took_for_two_keeps_one_id(in_world: bool):
    """The box has two masks at first, of which two objects are made; then one."""
    world = World.__new__(World)
    world.tracker, world.in_world, world.camera = Tracker(), in_world, camera_at(0.3)
    world.places, world.toys, world.rng = [*PLACES, PLACES[0]], [*TOYS, BOX], np.random.default_rng(0)
    frame = picture([*zip(TOYS, PLACES, strict=True)], world.camera, (1, 2, 3), 0.0, in_world, world.rng)
    columns = np.indices(frame.labels.shape)[1]
    right = (frame.labels == 1) & (columns > np.median(columns[frame.labels == 1]))
    halves = replace(frame, labels=np.where(right, 4, frame.labels), instances=(*frame.instances, Instance(4)))
    world.tracker.update(halves)
    world.build()
    assert len(world.tracker.tracks) == 4
    oldest = next(iter(world.tracker.tracks))
    world.toys, world.places = [*TOYS], [*PLACES]
    shown = []
    for step in range(1, 45):
        seen = world.look(0.1 * step, camera_at(0.3 + 0.3 * np.sin(0.1 * step)))
        shown += [identity for identity, item in seen.items() if item.object.label == 1]
        assert np.linalg.norm(world.error(seen[oldest], 1)[:3]) < 0.005
    assert shown == [oldest] * 44
    assert len(seen) == len(world.tracker.tracks) == 3


def test_an_object_put_elsewhere_far_from_the_camera_is_found_again(monkeypatch):
    """At 2.2 m depth errs by 6 mm."""
    monkeypatch.setattr(tabletop_toys, "CAMERA", Intrinsics(480, 360, 700.0, 700.0, 239.5, 179.5))
    world = World.__new__(World)
    world.tracker, world.places, world.toys, world.in_world = Tracker(), [*PLACES], [*TOYS], True
    world.rng = np.random.default_rng(0)
    camera, far = camera_at(0.3, distance=2.2), pose(-0.05, -0.16, 0.03, 0.4 + np.pi / 2)
    world.look(0.0, camera)
    world.build()
    identities = {track.label: track.id for track in world.tracker.tracks.values()}
    seen = world.look(1.0, camera, (5, 6, 7), [far, *world.places[1:]])
    assert set(seen) == set(identities.values()) and not world.tracker.unknown
    assert np.linalg.norm(world.error(seen[identities[1]], 1, far)[:3]) < 0.005


def test_objects_keep_their_ids_over_an_image_with_a_wrong_pose_of_the_camera(monkeypatch):
    """With noise of a stereo camera farther away: 7 mm."""
    monkeypatch.setattr(tabletop_toys, "NOISE", 0.003)
    world = World.__new__(World)
    world.tracker, world.places, world.toys, world.in_world = Tracker(), [*PLACES], [*TOYS], True
    world.rng = np.random.default_rng(0)
    camera = camera_at(0.3, distance=1.5)
    world.look(0.0, camera)
    world.build()
    identities = set(world.tracker.tracks)
    for step in range(1, 12):
        told = camera @ pose(0.1 * (step == 6), 0, 0)
        frame = picture([*zip(TOYS, PLACES, strict=True)], camera, (1, 2, 3), step / 30, True, world.rng)
        seen = {item.id: item for item in world.tracker.update(replace(frame, world_from_camera=told))}
    assert set(seen) == identities and {item.presence for item in seen.values()} == {Presence.SEEN}


def test_a_hidden_object_is_told_apart_and_keeps_its_id():
    world = World()
    hidden = set()
    for step in range(100):
        seen = world.look(step / 30, camera_at(0.3), board=5 <= step < 95)
        hidden |= {identity for identity, item in seen.items() if item.presence is Presence.HIDDEN}
        for item in seen.values():
            if item.presence is Presence.HIDDEN:
                assert item.object.status is Status.HIDDEN and item.object.visible_fraction == 0
                assert item.seen_ns <= int((1 + 5 / 30) * 1e9)
    assert hidden and len(hidden) < 3
    assert {item.presence for item in seen.values()} == {Presence.SEEN}
    assert set(seen) == set(world.ids.values())


def test_an_object_that_comes_back_without_its_mask_is_not_forgotten():
    """Behind the board it can have no mask: only what is seen without one for long is no object."""
    world = World(config=TrackerConfig(unmasked=0.5))
    for step in range(1, 20):
        world.look(step * 0.1, camera_at(0.3), board=True)
    assert set(world.look(2.0, camera_at(0.3), (0, 0, 0))) == set(world.ids.values())


@pytest.mark.parametrize("class_id", ["", "box"])
def test_an_object_put_elsewhere_while_nobody_looked_is_found_again(class_id: str):
    """By a mask without a class, whether one is known or not."""
    world = World()
    world.look(0.1, camera_at(0.3))
    world.tracker.tracks[world.ids[1]].class_id = class_id
    far = pose(-0.05, -0.16, 0.03, 0.4 + np.pi / 2)
    seen = world.look(1.0, camera_at(0.3), (5, 6, 7), [far, *world.places[1:]])
    assert not world.tracker.unknown                  # it is no new object
    error = world.error(seen[world.ids[1]], 1, far)
    assert seen[world.ids[1]].presence is Presence.SEEN
    assert np.linalg.norm(error[:3]) < 0.003


def test_an_object_that_was_taken_away_is_gone_and_later_forgotten():
    world = World(config=TrackerConfig(remember=2.0))
    away = [pose(0, 0, -1.0), *world.places[1:]]
    assert world.ids[1] not in world.look(0.2, camera_at(0.3), places=away)
    assert world.ids[1] in world.look(0.4, camera_at(0.3))
    world.look(0.5, camera_at(0.3), places=away)
    for step in range(1, 25):
        world.look(0.5 + step * 0.1, camera_at(0.3), places=away)
    assert world.ids[1] not in world.tracker.tracks
    world.look(3.0, camera_at(0.3))
    world.build()
    assert world.ids[1] not in world.tracker.tracks and len(world.tracker.tracks) == 3


def test_what_the_detector_stops_finding_is_dropped():
    world = World(config=TrackerConfig(unmasked=0.5))
    for step in range(10):
        seen = world.look(step * 0.1, camera_at(0.3), (0, 2, 3))
    assert set(seen) == {world.ids[2], world.ids[3]}


def test_one_missed_mask_after_a_pause_drops_nothing():
    world = World(config=TrackerConfig(unmasked=0.5))
    for seconds in (5.0, 5.2):
        assert set(world.look(seconds, camera_at(0.3), (0, 2, 3))) == set(world.ids.values())
    assert world.ids[1] not in world.look(5.6, camera_at(0.3), (0, 2, 3))


def test_only_what_is_new_is_reconstructed_and_the_revision_rises_with_the_mesh_alone():
    world = World()
    world.toys, world.places = [*TOYS, Toy("box", np.array([0.05, 0.06, 0.04]))], [*PLACES, pose(-0.1, -0.15, 0.02)]
    seen = world.look(0.2, camera_at(0.3), (1, 2, 3, 4))
    assert {item.revision for item in seen.values()} == {1}
    asked = rebuild.request(world.tracker)
    assert [i.label for i in asked.frame.instances] == [4]
    world.build()
    assert len(world.tracker.tracks) == 4
    assert rebuild.request(world.tracker) is None


@pytest.mark.parametrize("at_once", [True, False])
def test_two_masks_of_one_image_are_two_objects_however_near(at_once: bool):
    """Two balls that nearly touch: each lies where the other would be looked for."""
    world, ball = World(), Toy("ellipsoid", np.full(3, 0.028))
    world.toys, world.places = [*TOYS, ball, ball], [*PLACES, pose(-0.1, -0.15, 0.014), pose(-0.071, -0.15, 0.014)]
    for step in range(6):
        world.look(0.1 * step + 0.1, camera_at(0.3), (1, 2, 3, 4, 5) if at_once or step else (1, 2, 3, 4, 0))
        world.build()
    assert len(world.tracker.tracks) == 5
    assert {track.label for track in world.tracker.tracks.values()} == {1, 2, 3, 4, 5}
    assert {track.revision for track in world.tracker.tracks.values()} == {1}
    assert rebuild.request(world.tracker) is None


def test_masks_that_give_no_object_are_tried_ever_less_often():
    world, asked_at = World(), []
    world.toys = [*TOYS, *[Toy("box", np.array([0.05, 0.06, 0.04]))] * 2]
    world.places = [*PLACES, pose(-0.1, -0.15, 0.02), pose(-0.1, 0.15, 0.02)]
    for step in range(80):
        world.look(0.5 * step + 0.5, camera_at(0.3), (1, 2, 3, 4, 5))
        asked = rebuild.request(world.tracker)
        assert (asked is None) == (world.tracker.waiting != ())
        if asked is not None:
            asked_at.append(0.5 * step + 0.5)
            world.tracker.absorb(asked, [])
    assert np.diff(asked_at).tolist() == [3, 6, 12, 12]
    # As soon as far more of it is in view, or something else is there, it is tried at once.
    world.toys[3] = Toy("box", np.array([0.09, 0.09, 0.07]))
    world.look(40.5, camera_at(0.3), (1, 2, 3, 4, 5))
    assert rebuild.request(world.tracker) is not None


def test_a_request_from_before_the_object_got_another_frame():
    """Between the request and its result, an older image that did not tell which object it shows gave it a mesh."""
    world = World()
    world.look(0.1, camera_at(0.3))
    asked = rebuild.request(world.tracker, (1,))
    camera_from_object = np.linalg.inv(world.camera) @ world.places[0]
    elsewhere = replace(asked, tracks={}, camera_from_object={}, shown={}, frame_numbers={})
    turned = reconstruction(Toy("box", BOX.size[[1, 0, 2]]), camera_from_object @ pose(0.01, 0, 0, np.pi / 2), 1)
    world.tracker.absorb(elsewhere, rebuild.prepare(elsewhere, [turned]))
    world.tracker.absorb(asked, rebuild.prepare(asked, [reconstruction(BOX, camera_from_object, 1)]))
    [item] = [item for item in world.tracker.objects(asked.frame) if item.id == world.ids[1]]
    assert item.revision == 3
    placed = item.object.vertices @ item.object.camera_from_object[:3, :3].T + item.object.camera_from_object[:3, 3]
    local = (placed - camera_from_object[:3, 3]) @ camera_from_object[:3, :3]
    np.testing.assert_allclose(np.abs(local).max(axis=0), BOX.size / 2, atol=0.004)


def test_a_box_without_a_class_is_the_object_that_is_known_there():
    world = World()
    track = world.tracker.tracks[world.ids[1]]
    track.class_id, track.mesh = "cup", replace(track.mesh, class_id="cup")
    world.look(0.1, camera_at(0.3))
    asked = replace(rebuild.request(world.tracker, (1,)), tracks={}, camera_from_object={}, shown={}, frame_numbers={})
    made = reconstruction(BOX, np.linalg.inv(world.camera) @ world.places[0], 1)
    assert world.tracker.absorb(asked, rebuild.prepare(asked, [made])) == {1: world.ids[1]}


def test_the_score_is_that_of_the_class():
    world, said = World(), []
    detections = [("cup", 0.4), ("bowl", 0.9), ("", 1.0), ("bowl", 0.8), ("bowl", 0.7), ("cup", 0.3)]
    for step, (class_id, score) in enumerate(detections):
        frame = picture([*zip(TOYS, PLACES, strict=True)], camera_at(0.3), (1, 2, 3), step / 30 + 0.1, True, world.rng)
        told = tuple(replace(instance, class_id=class_id, score=score) for instance in frame.instances)
        said.append({(item.object.class_id, item.object.score)
                     for item in world.tracker.update(replace(frame, instances=told))})
    assert said == [{("cup", 0.4)}, {("bowl", 0.9)}, {("bowl", 0.9)}, {("bowl", 0.8)}, {("bowl", 0.7)}, {("bowl", 0.7)}]


def test_nothing_is_asked_for_before_the_first_image():
    tracker = Tracker()
    assert rebuild.request(tracker) is None


@pytest.mark.parametrize("status", [Status.OK, Status.LOW_QUALITY])
def test_a_marked_mesh_is_made_anew_from_less_that_is_new_but_not_from_nothing(status):
    world = World()
    track = world.tracker.tracks[world.ids[1]]
    track.mesh = replace(track.mesh, status=status)
    world.look(10.0, camera_at(0.3))
    assert rebuild.request(world.tracker) is None
    seen_first = track.used_area
    track.used_area = world.tracker.areas[1] / 1.45          # metres squared: as if as much less had been in view
    more_in_view = rebuild.request(world.tracker)
    track.used_area = seen_first
    world.look(10.1, camera_at(0.3 + np.deg2rad(17)))
    turned = rebuild.request(world.tracker)
    for asked in (more_in_view, turned):
        assert (asked is None) if status is Status.OK else ([i.label for i in asked.frame.instances] == [1])


def test_what_fits_badly_is_made_anew_ever_less_often_if_that_does_not_mend_it():
    world, asked_at = World(), []
    for second in range(0, 110):
        world.look(float(second), camera_at(0.3))
        world.tracker.tracks[world.ids[1]].misfit = 0.003        # metres: as noise of the depth may make it
        if rebuild.request(world.tracker) is not None:
            asked_at.append(second)
            world.build()
    assert np.diff([0, *asked_at]).tolist() == [3, 6, 12, 24, 48]
    for seconds, misfit in ((200.0, 0.001), (203.0, 0.003)):     # mended by the next attempt, and spoiled later
        world.look(seconds, camera_at(0.3))
        world.tracker.tracks[world.ids[1]].misfit = misfit
        asked = rebuild.request(world.tracker, (1,) if seconds == 200.0 else None)
        assert [i.label for i in asked.frame.instances if i.label == 1] == [1]
        world.tracker.absorb(asked, rebuild.prepare(asked, [
            reconstruction(BOX, np.linalg.inv(world.camera) @ world.places[0], 1)]))


def test_a_new_mesh_keeps_the_id_and_the_frame_and_follows_the_motion_since():
    """The object moves between the image that it is rebuilt from and the moment when that is done."""
    world = World()
    world.look(0.1, camera_at(0.3))
    asked = rebuild.request(world.tracker, (1, 2, 3))
    # The new mesh comes in a frame of its own, turned by a quarter.
    turned = np.linalg.inv(world.camera) @ world.places[0] @ pose(0, 0, 0, np.pi / 2)
    made = reconstruction(Toy("box", BOX.size[[1, 0, 2]]), turned, 1)
    moved = world.places[0] @ pose(0.02, 0, 0)
    for step in range(4, 12):
        world.look(step / 30, camera_at(0.3), places=[moved, *world.places[1:]])
    world.tracker.absorb(asked, rebuild.prepare(asked, [made]))
    seen = world.look(0.5, camera_at(0.3), places=[moved, *world.places[1:]])
    item = seen[world.ids[1]]
    assert item.revision == 2
    np.testing.assert_allclose(item.object.size, BOX.size, atol=0.006)
    error = world.error(item, 1, moved)
    assert np.linalg.norm(error[:3]) < 0.004 and np.linalg.norm(error[3:]) < np.deg2rad(2)


@pytest.mark.parametrize(("share", "revision"), [(0.2, 1), (0.9, 2)])
def test_a_part_that_could_not_be_told_does_not_take_the_place_of_the_whole(share, revision):
    """An object that is known, but not which mask shows it; the mask shows a share of what its mesh was made from."""
    world = World()
    world.look(0.1, camera_at(0.3))
    asked = rebuild.request(world.tracker, (1, 2, 3))
    areas = {label: share * world.tracker.tracks[identity].used_area for label, identity in asked.tracks.items()}
    asked = replace(asked, tracks={}, camera_from_object={}, areas=areas)
    beside = np.linalg.inv(world.camera) @ world.places[0] @ pose(0.01, 0, 0)
    made = reconstruction(Toy("box", BOX.size * [0.5, 1, 1]), beside, 1)
    world.tracker.absorb(asked, rebuild.prepare(asked, [made]))
    assert set(world.tracker.tracks) == set(world.ids.values())
    item = world.look(0.2, camera_at(0.3))[world.ids[1]]
    assert item.revision == revision
    if revision == 1:
        assert np.linalg.norm(world.error(item, 1)[:3]) < 0.004


def test_a_part_that_was_rebuilt_in_vain_is_not_asked_for_again_at_once():
    world = World()
    world.look(0.1, camera_at(0.3))
    track = world.tracker.tracks[world.ids[1]]
    # Lost: taken to be under the table, of another colour; and a quarter of what was seen of it is in view.
    track.belief = replace(track.belief, scene_from_object=world.places[0] @ pose(0.01, 0, -0.05))
    track.mesh = replace(track.mesh, vertex_rgba=np.full_like(track.mesh.vertex_rgba, [0, 255, 0, 255]))
    track.used_area *= 4
    world.look(0.2, camera_at(0.3))
    asked = rebuild.request(world.tracker)
    assert [i.label for i in asked.frame.instances] == [1]
    beside = np.linalg.inv(world.camera) @ world.places[0]
    world.tracker.absorb(asked, rebuild.prepare(asked, [reconstruction(Toy("box", BOX.size * [0.5, 1, 1]), beside, 1)]))
    assert track.revision == 1
    world.look(0.7, camera_at(0.3))
    assert rebuild.request(world.tracker) is None
    for seconds in (1.7, 2.7, 3.3):
        world.look(seconds, camera_at(0.3))
    assert [i.label for i in rebuild.request(world.tracker).frame.instances] == [1]


def test_clearing_voids_a_reconstruction_under_way():
    world = World()
    world.look(0.1, camera_at(0.3))
    asked = rebuild.request(world.tracker, (1, 2, 3))
    prepared = rebuild.prepare(asked, [reconstruction(BOX, np.linalg.inv(world.camera) @ world.places[0], 1)])
    world.tracker.clear()
    world.tracker.absorb(asked, prepared)
    assert not world.tracker.tracks
    world.look(0.2, camera_at(0.3))
    world.build()
    assert not set(world.tracker.tracks) & set(world.ids.values())


def test_views_of_different_sides_are_kept_and_handed_over_where_the_object_is_now():
    world = World()
    for step in range(60):
        world.look(step / 30, camera_at(0.3 + 0.025 * step))
    views = world.tracker.tracks[world.ids[1]].views
    assert 3 <= len(views) <= 4
    assert all(view.frame.labels.shape[1] < 160 for view in views)       # cut out
    camera_from_object = np.linalg.inv(world.camera) @ world.places[0]
    newest = make_view(world.tracker.frame, 1, camera_from_object, 0.01)
    given = observations(views, newest)
    assert len(given) == len(views) - 1                                 # the newest is what the camera sees now
    for observation in given:
        rows, columns = np.nonzero((observation.frame.labels == observation.label) & (observation.frame.depth > 0))
        points = back_project(observation.frame.depth, observation.frame.intrinsics, rows, columns)
        to_object = np.linalg.inv(camera_from_object) @ observation.camera_from_observer
        points = points @ to_object[:3, :3].T + to_object[:3, 3]
        outside = np.abs(points) - BOX.size / 2
        assert np.percentile(np.abs(outside.max(axis=1)), 90) < 0.006


@pytest.mark.parametrize("wrong, is_told", [
    (pose(0, 0, 0), False), (pose(0.002, 0.001, 0, 0.02), False), (pose(0.03, 0, 0), True), (pose(0, 0.03, 0), True),
    (pose(0, 0, 0.025), True), (pose(0, 0, 0, 1.2), True), (pose(0, 0, 0, 1.6), True)])
@pytest.mark.parametrize("toy", [BOX, EGG], ids=["box", "egg"])
@pytest.mark.parametrize("azimuth", [1.2, 2.5, 3.6])
def test_views_contradict_each_other_if_the_object_was_not_where_it_was_thought_to_be(toy, azimuth, wrong, is_told):
    """wrong: object_from_object, by how much in the second view."""
    rng, place = np.random.default_rng(2), pose(0.03, -0.02, toy.size[2] / 2, 0.3)
    views = [make_view(picture([(toy, place), (CAN, pose(-0.1, 0.12, 0.055))], camera, [1, 2], rng=rng), 1,
                       np.linalg.inv(camera) @ place @ error, 0.01)
             for camera, error in ((camera_at(0.3), np.eye(4)), (camera_at(azimuth), wrong))]
    assert agree(*views) == agree(*views[::-1]) == (not is_told)


def test_a_view_in_which_the_object_was_at_a_wrong_place_is_not_fused_and_forgotten():
    world = World()
    for step in range(1, 110):
        world.look(step / 30, camera_at(0.3 + 0.025 * step))
    track = world.tracker.tracks[world.ids[1]]
    right = track.views
    assert len(right) == 4
    wrong = replace(right[1], object_from_camera=pose(0.04, 0, 0) @ right[1].object_from_camera)
    track.views = (right[0], wrong, *right[2:])
    asked = rebuild.request(world.tracker, {1})
    fused = [observation.frame for observation in asked.earlier[1]]
    assert len(fused) >= 2 and not any(frame is wrong.frame for frame in fused)
    world.build(asked)
    assert track.revision == 2
    assert len(track.views) >= 3 and not any(view.frame is wrong.frame for view in track.views)
    assert min(np.linalg.norm(used - right[1].direction) for used in track.used) > 0.2


def test_no_view_of_a_box_is_kept(monkeypatch):
    """Nor in place of a mask's, of the same side or another."""
    def boxed(*arguments):
        frame = tabletop_toys.picture(*arguments)
        return replace(frame, instances=tuple(replace(instance, is_box=True) for instance in frame.instances))

    def views(world):
        return [[id(view) for view in track.views] for track in world.tracker.tracks.values()]
    masks_first = World()
    before = views(masks_first)
    monkeypatch.setattr("test_tracking.picture", boxed)
    for world, kept in ((masks_first, before), (World(), [[], [], []])):
        for seconds, azimuth in ((0.1, 0.3), (0.2, 0.9)):
            world.look(seconds, camera_at(azimuth))
            world.build(rebuild.request(world.tracker, {1, 2, 3}))
        assert views(world) == kept
    assert [len(each) for each in before] == [1, 1, 1]


def test_of_one_side_the_clearer_view_is_kept():
    frame = picture([(BOX, PLACES[0])], camera_at(0.3), [1])

    def view(azimuth: float, area: float) -> View:
        return View(frame, 1, camera_at(azimuth), area)
    views = with_view((), view(0.0, 1.0))
    assert [v.area for v in with_view(views, view(0.1, 2.0))] == [2.0]
    assert [v.area for v in with_view(views, view(0.1, 0.5))] == [1.0]
    for azimuth in (1.0, 2.0, 3.0, 4.0, 5.0):
        views = with_view(views, view(azimuth, 1.0))
    assert len(views) == 4


def test_a_cleared_tracker_knows_no_support_plane():
    settled = []

    def solve(bodies, plane):
        settled.append(plane)
        return settle(bodies, plane)
    tracker = Tracker(resting=Resting(solve))
    frame = picture([(BOX, PLACES[0])], camera_at(0.3), (1,), 0.0, True, np.random.default_rng(0))
    for plane in (np.array([0.0, -0.6, -0.8, 0.4]), None):
        tracker.clear()
        tracker.update(frame)
        asked = rebuild.request(tracker)
        made = reconstruction(BOX, np.linalg.inv(camera_at(0.3)) @ PLACES[0], 1)
        tracker.absorb(asked, rebuild.prepare(asked, [made]), plane)
    assert len(settled) == 1


def test_without_depth_objects_are_known_by_their_place():
    tracker = Tracker()
    for step in range(2):
        frame = replace(picture([(BOX, PLACES[0])], camera_at(0.3), [1], step), depth=None)
        tracker.update(frame)
        asked = rebuild.request(tracker)
        made = reconstruction(BOX, np.linalg.inv(camera_at(0.3)) @ PLACES[0], 1)
        tracker.absorb(asked, rebuild.prepare(asked, [made]))
        [item] = tracker.objects(frame)
        assert item.id == "object_1" and item.presence is Presence.SEEN


def test_objects_are_put_at_rest_after_a_reconstruction_and_freed_when_they_move():
    """A solver that lowers everything by 2 mm; the support plane comes from the depth."""
    planes = []

    def lower(bodies, plane):
        planes.append(plane)
        return Settled(np.stack([pose(0, 0, -0.002) @ item.world_from_object for item in bodies]),
                       settle(bodies, plane).report)
    world = World(resting=Resting(lower))
    np.testing.assert_allclose(planes[-1], [0, 0, 1, 0], atol=0.004)
    item = world.look(0.1, camera_at(0.35))[world.ids[1]]
    assert world.error(item, 1, pose(0, 0, -0.002) @ world.places[0])[:3] == pytest.approx(np.zeros(3), abs=0.0015)
    moved = world.places[0]
    for step in range(1, 8):
        moved = world.places[0] @ pose(0.004 * step, 0, 0.003 * step)
        item = world.look(0.1 + step / 30, camera_at(0.35), places=[moved, *world.places[1:]])[world.ids[1]]
    assert world.error(item, 1, moved)[:3] == pytest.approx(np.zeros(3), abs=0.002)


def test_what_has_come_to_rest_while_its_mesh_was_made_is_put_at_rest():
    counts = []

    def count(bodies, plane):
        counts.append(len(bodies))
        return settle(bodies, plane)
    world = World(resting=Resting(count))
    for step in range(24):
        place = pose(-0.006 * min(step, 6), 0, 0) @ PLACES[2]
        world.look(0.1 + step / 30, camera_at(0.3), places=[*PLACES[:2], place])
        if step == 6:
            asked = rebuild.request(world.tracker, {3})
            made = reconstruction(CAN, np.linalg.inv(world.camera) @ place, 3)
            world.tracker.absorb(asked, rebuild.prepare(asked, [made]))
    world.tracker.absorb(asked, rebuild.prepare(asked, [made]))
    assert counts == [3, 2, 3]          # while it moved, and after


def test_what_could_not_be_put_at_rest_is_named_as_long_as_it_is_there():
    def refuse(bodies, plane):
        settled = settle(bodies, plane)
        return replace(settled, report=tuple(replace(body, outcome=Outcome.REFUSED) for body in settled.report))
    resting = Resting(refuse)
    world = World(resting=resting)
    assert world.tracker.not_put_at_rest == [*world.tracker.tracks]
    world.look(0.2, camera_at(0.3), places=[pose(0, 0, -1.0), *world.places[1:]])
    assert world.tracker.not_put_at_rest == [world.ids[2], world.ids[3]]
    world.tracker.clear()
    assert world.tracker.not_put_at_rest == []
    world.look(0.4, camera_at(0.3))
    world.build()
    assert len(world.tracker.not_put_at_rest) == 3
    resting.update([], 0, None)
    assert world.tracker.not_put_at_rest == [] == Tracker().not_put_at_rest


def test_a_hidden_object_stays_where_it_was_put_at_rest():
    """While others are put at rest anew."""
    def lower(bodies, plane):
        return Settled(np.stack([pose(0, 0, -0.004) @ item.world_from_object for item in bodies]),
                       settle(bodies, plane).report)
    world = World(resting=Resting(lower))
    before = world.look(5.0, camera_at(0.3), board=True)[world.ids[3]]
    assert before.presence is Presence.HIDDEN
    world.tracker.tracks[world.ids[1]].misfit = 0.005           # a reason to reconstruct it
    world.build()
    assert world.tracker.tracks[world.ids[1]].revision == 2
    after = world.look(5.1, camera_at(0.3), board=True)[world.ids[3]]
    np.testing.assert_allclose(after.object.camera_from_object, before.object.camera_from_object, atol=1e-9)


def test_the_class_is_what_the_detector_calls_it_mostly():
    """It is not known yet when the object is made, and wavers later."""
    world = World()
    names = ["", "mug", "mug", "mug", "bowl", "mug", "", *["bowl"] * 12]
    found = []
    for step, name in enumerate(names):
        frame = picture([*zip(world.toys, world.places, strict=True)], camera_at(0.3), (1, 2, 3), 0.1 + step / 30,
                        rng=world.rng)
        frame = replace(frame, instances=tuple(replace(i, class_id=name) for i in frame.instances))
        found.append({item.id: item.object.class_id for item in world.tracker.update(frame)}[world.ids[1]])
    assert found[:7] == ["", *["mug"] * 6]
    assert found[-1] == "bowl"


def test_what_one_of_two_cameras_shows_is_seen():
    """Something stands before half of each; then one toy is taken away."""
    world = World()
    found = []
    for step in range(8):
        places = PLACES if step < 4 else [PLACES[0], pose(0, 0, -1.0), PLACES[2]]
        camera, side = [("left", slice(130, None)), ("right", slice(None, 130))][step % 2]
        frame = picture([*zip(TOYS, places, strict=True)], camera_at(0.3), (1, 2, 3), 0.1 + step / 60, rng=world.rng)
        depth, labels = frame.depth.copy(), frame.labels.copy()
        depth[:, side], labels[:, side] = 0.2, 0
        instances = tuple(i for i in frame.instances if (labels == i.label).any())
        frame = replace(frame, depth=depth, labels=labels, instances=instances, frame_id=camera)
        found.append({item.id: item.presence for item in world.tracker.update(frame)})
    assert all(presence is Presence.SEEN for items in found for presence in items.values())
    assert [len(items) for items in found] == [3, 3, 3, 3, 3, 2, 2, 2]


@pytest.mark.parametrize("delay", [0.0, 0.01], ids=["at once", "in turn"])
def test_what_two_cameras_show_is_one_object_though_their_poses_differ(delay: float):
    """By as much as it is wide."""
    tracker, rng, camera = Tracker(), np.random.default_rng(0), camera_at(0.3)
    for step in range(4):
        for name, seconds, error in (("left", step / 30, 0.0), ("right", step / 30 + delay, 0.05)):
            frame = picture([(CAN, PLACES[2])], camera, (1,), seconds, rng=rng)
            tracker.update(replace(frame, frame_id=name, world_from_camera=camera @ pose(error, 0, 0)))
            if not tracker.tracks:
                asked = rebuild.request(tracker)
                made = reconstruction(CAN, np.linalg.inv(camera) @ PLACES[2], 1)
                tracker.absorb(asked, rebuild.prepare(asked, [made]))
            assert [*tracker.tracks] == ["object_1"] and not tracker.unknown


def test_what_is_carried_is_followed_though_the_images_of_another_camera_come_late():
    """By 0.13 s, at 0.2 m/s."""
    world = World()

    def show(camera: str, step: int) -> None:
        can = pose(-0.2 * step / 30, 0, 0) @ PLACES[2]
        frame = picture([*zip(TOYS, [*PLACES[:2], can], strict=True)], camera_at(0.3), (1, 2, 3), 0.1 + step / 30,
                        rng=world.rng)
        seen = {item.id: item for item in world.tracker.update(replace(frame, frame_id=camera))}
        assert set(seen) == set(world.ids.values()) and not world.tracker.unknown
        assert np.linalg.norm(world.error(seen[world.ids[3]], 3, can)[:3]) < 0.005
    for step in range(30):
        show("left", step)
        if step >= 4:
            show("right", step - 4)


def test_what_a_camera_alone_shows_is_asked_for_whatever_was_made_from_another_s_image_meanwhile():
    """Left shows the first toy, the other two are covered; right shows the first two."""
    tracker, rng = Tracker(), np.random.default_rng(0)
    asked = {}
    for camera, labels in (("left", (1,)), ("right", (1, 2))):
        frame = picture([*zip(TOYS, PLACES, strict=True)], camera_at(0.3), (1, 2, 3), rng=rng)
        seen = np.where(np.isin(frame.labels, labels), frame.labels, 0)
        depth = np.where((frame.labels > 0) & (seen == 0), np.float32(0.2), frame.depth)
        tracker.update(replace(frame, depth=depth, labels=seen, frame_id=camera,
                               instances=tuple(Instance(label) for label in labels)))
        asked[camera] = rebuild.request(tracker)
    made = reconstruction(BOX, np.linalg.inv(camera_at(0.3)) @ PLACES[0], 1)
    tracker.absorb(asked["left"], rebuild.prepare(asked["left"], [made]))
    assert [i.label for i in rebuild.still_wanted(tracker, asked["right"]).frame.instances] == [2]
    assert rebuild.still_wanted(tracker, asked["left"]) is None


def test_of_two_alike_each_in_another_camera_s_view_one_is_not_found_at_the_other_s_place():
    tracker, rng = Tracker(), np.random.default_rng(0)
    places = [pose(-0.12, 0, 0.055), pose(0.12, 0, 0.055)]
    for step in range(6):
        frame = picture([(CAN, place) for place in places], camera_at(0.3), (1, 2), step / 60, rng=rng)
        label = 1 + step % 2
        labels = np.where(frame.labels == label, label, 0).astype(np.int32)
        depth = np.where(frame.labels == 3 - label, np.float32(0.2), frame.depth)        # something stands before it
        tracker.update(replace(frame, depth=depth, labels=labels, instances=(frame.instances[label - 1],),
                               frame_id=("left", "right")[label - 1]))
        asked = rebuild.request(tracker)
        if step < 2:
            made = reconstruction(CAN, np.linalg.inv(camera_at(0.3)) @ places[label - 1], label)
            tracker.absorb(asked, rebuild.prepare(asked, [made]))
    found = {track.id: track.belief.scene_from_object[0, 3] for track in tracker.tracks.values()}
    assert found == {"object_1": pytest.approx(-0.12, abs=0.003), "object_2": pytest.approx(0.12, abs=0.003)}
