"""Objects followed into images whose masks have not come yet: a camera at 30 Hz, a detector at 6 Hz that lags."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tabletop_toys import Toy, camera_at, picture, pose
from test_tracking import PLACES, TOYS, World

from sam3d_ros.perception.frame import Frame, Instance
from sam3d_ros.scene.ahead import Ahead
from sam3d_ros.scene.track import Presence, TrackedObject
from sam3d_ros.scene.tracker import TrackerConfig

RATE, EVERY = 30, 5
LAG = 0.15                # seconds
TOWARDS = np.array([0.6, 0.5, 0.62])


class Lagging(World):
    """A world in which the masks of every fifth image come 150 ms late.

    places: where the toys are at a moment (seconds); camera: world_from_camera then; spoil: changes an image
    """

    def __init__(self, places: Callable[[float], list[np.ndarray]] = lambda moment: PLACES,
                 camera: Callable[[float], np.ndarray] = lambda moment: camera_at(0.3),
                 spoil: Callable[[Frame], Frame] = lambda frame: frame, **arguments: Any):
        super().__init__(**arguments)
        self.ahead = Ahead(self.tracker)
        self.places_at, self.camera_at, self.spoil = places, camera, spoil
        self.due: list[Frame] = []

    def run(self, start: float, end: float, masks: bool = True) -> Iterator[tuple[float, dict[str, TrackedObject]]]:
        """For each image its moment, and what was followed into it; masks: whether they come."""
        for step in range(round(start * RATE) + 1, round(end * RATE) + 1):
            moment = step / RATE
            self.places, self.camera = self.places_at(moment), self.camera_at(moment)
            frame = self.spoil(picture([*zip(self.toys, self.places, strict=True)], self.camera, (1, 2, 3), moment,
                                       self.in_world, self.rng))
            if step % EVERY == 0 and masks:
                self.due.append(frame)
            if self.due and frame.stamp_ns >= self.due[0].stamp_ns + LAG * 1e9:
                self.tracker.update(self.due.pop(0))
            blank = replace(frame, labels=np.zeros_like(frame.labels), instances=())
            yield moment, {item.id: item for item in self.ahead.update(blank)}


def carried(speed: float) -> Callable[[float], list[np.ndarray]]:
    """The first toy is picked up and carried from 0.3 s on, at `speed` m/s, turning by 0.5 rad/s."""
    def places(moment: float) -> list[np.ndarray]:
        seconds = max(0.0, moment - 0.3)
        moved = PLACES[0] @ pose(0, 0, 0, 0.5 * seconds)
        moved[:3, 3] += speed * seconds * TOWARDS / np.linalg.norm(TOWARDS)
        return [moved, *PLACES[1:]]
    return places


def without_the_first_toy(frame: Frame) -> Frame:
    """Of another camera, from which something hides that."""
    hidden = frame.labels == 1
    return replace(frame, frame_id="other", depth=np.where(hidden, 0.2, frame.depth).astype(np.float32),
                   labels=np.where(hidden, 0, frame.labels), instances=frame.instances[1:])


def swinging(moment: float) -> np.ndarray:
    return camera_at(0.3 + 0.4 * np.sin(moment))


@pytest.mark.parametrize("in_world", [True, False], ids=["with the camera's pose", "without"])
def test_a_carried_object_is_followed_ahead_of_its_masks(in_world: bool):
    world = Lagging(carried(0.2), swinging, in_world=in_world)
    errors = []
    for _, seen in world.run(0.0, 1.4):
        assert {item.id: item.presence for item in seen.values()} == dict.fromkeys(world.ids.values(), Presence.SEEN)
        errors.append(world.error(seen[world.ids[1]], 1))
    errors = np.linalg.norm(np.reshape(errors, (-1, 2, 3)), axis=2) * [1e3, np.rad2deg(1)]
    assert (errors.max(axis=0) < [3.0, 2.0]).all()          # millimetres, degrees
    assert {*world.tracker.tracks} == {*world.ids.values()}


def test_the_tracker_is_not_touched_by_what_is_ahead_of_it():
    def state() -> list[Any]:
        tracker = world.tracker
        tracks = [value for track in tracker.tracks.values() for value in vars(track).values()]
        return [*vars(tracker).values(), *tracks, *tracker.scene_from_camera(tracker.frame).flat,
                *tracker._newest_ns.items()]
    world = Lagging(carried(0.2))
    for _ in world.run(0.0, 0.5):
        pass
    before = state()
    for _ in world.run(0.5, 0.7, masks=False):
        now = state()
        if world.due:
            before = now            # the masks of 0.5 s come in between
            world.due.clear()
    assert all(one is other or one == other for one, other in zip(before, now, strict=True))


def test_an_object_that_is_taken_away_is_not_seen_ahead_of_the_masks():
    world = Lagging(lambda moment: [pose(0, 0, -1.0), *PLACES[1:]] if moment > 0.5 else PLACES)
    for moment, seen in world.run(0.0, 1.0):
        presence = seen[world.ids[1]].presence if world.ids[1] in seen else Presence.GONE
        assert (presence is Presence.SEEN) == (moment <= 0.5)
        assert all(seen[world.ids[label]].presence is Presence.SEEN for label in (2, 3))


def test_a_flat_object_is_seen_ahead_of_the_masks_until_it_is_taken_away(monkeypatch):
    """8 mm high, under a camera that looks down on it: the table behind it is as near as its underside."""
    flat = pose(-0.12, 0.0, 0.004, 0.4)
    monkeypatch.setattr("test_tracking.TOYS", [Toy("box", np.array([0.12, 0.08, 0.008])), *TOYS[1:]])
    monkeypatch.setattr("test_tracking.PLACES", [flat, *PLACES[1:]])
    world = Lagging(lambda moment: [pose(0, 0, -1.0) if moment > 0.5 else flat, *PLACES[1:]],
                    lambda moment: camera_at(0.3, elevation=1.45))
    for masks, start, end in ((True, 0.0, 0.5), (False, 0.5, 1.2)):
        for moment, seen in world.run(start, end, masks):
            assert (world.ids[1] in seen) == (moment <= 0.5)
            if moment <= 0.5:
                assert seen[world.ids[1]].presence is Presence.SEEN
                assert np.linalg.norm(world.error(seen[world.ids[1]], 1)[:3]) < 0.003


def test_what_moves_too_far_between_two_images_is_found_as_soon_as_its_masks_come():
    """Put down 6 cm away just after 0.5 s, an image with masks; the next is at 0.6667 s."""
    world = Lagging(lambda moment: [pose(-0.12, -0.06, 0.03, 0.4) if moment > 0.5 else PLACES[0], *PLACES[1:]])
    for moment, seen in world.run(0.0, 1.1):
        is_lost = 0.5 < moment < 0.5 + EVERY / RATE + LAG
        assert (world.ids[1] in seen and seen[world.ids[1]].presence is Presence.SEEN) == (not is_lost)
        if not is_lost:
            assert np.linalg.norm(world.error(seen[world.ids[1]], 1)[:3]) < 0.003
    assert len(world.tracker.tracks) == 3


def test_an_object_that_is_covered_for_the_most_part_is_seen_as_with_its_mask():
    def cover(frame: Frame) -> Frame:
        columns = np.nonzero((frame.labels == 1).any(axis=0))[0]
        depth, labels = frame.depth.copy(), frame.labels.copy()
        hidden = slice(columns[0] - 5, columns[0] + round(0.7 * len(columns)))
        depth[:, hidden], labels[:, hidden] = 0.3, 0
        return replace(frame, depth=depth, labels=labels)
    world = Lagging(spoil=cover)
    for moment, seen in world.run(0.0, 0.8):
        if moment > 0.4:
            assert world.tracker.tracks[world.ids[1]].presence is Presence.SEEN
            assert seen[world.ids[1]].presence is Presence.SEEN
            assert np.linalg.norm(world.error(seen[world.ids[1]], 1)[:3]) < 0.003


def test_objects_are_followed_on_when_masks_stop():
    world = Lagging(carried(0.1), config=TrackerConfig(unmasked=0.5))
    for _ in world.run(0.0, 0.4):
        pass
    for _, seen in world.run(0.4, 1.4, masks=False):
        assert {item.presence for item in seen.values()} == {Presence.SEEN} and len(seen) == 3
        assert np.linalg.norm(world.error(seen[world.ids[1]], 1)[:3]) < 0.003


def test_what_one_camera_shows_ahead_of_its_masks_stays_there_in_the_image_of_another_that_has_them():
    world = Lagging(carried(0.2))
    assert not world.ahead.leads
    for moment, _ in world.run(0.0, 0.8):
        frame = without_the_first_toy(picture([*zip(world.toys, world.places, strict=True)], world.camera, (1, 2, 3),
                                              moment))
        world.tracker.update(frame)
        assert world.ahead.leads
        seen = {item.id: item for item in world.ahead.objects(frame)}
        assert seen[world.ids[1]].presence is Presence.SEEN
        assert np.linalg.norm(world.error(seen[world.ids[1]], 1)[:3]) < 0.003


def test_what_another_camera_looks_through_is_gone_though_it_is_hidden_from_the_one_that_leads():
    """Something stands before the first toy in both; when it leaves the other's view, the toy is not there any more."""
    covered = picture([*zip(TOYS, PLACES, strict=True)], camera_at(0.3), (1, 2, 3)).labels == 1

    def cover(frame: Frame) -> Frame:
        return replace(frame, depth=np.where(covered, 0.2, frame.depth).astype(np.float32),
                       labels=np.where(covered, 0, frame.labels), instances=tuple(Instance(label) for label in (2, 3)))
    world = Lagging(lambda moment: [pose(0, 0, -1.0) if moment > 0.5 else PLACES[0], *PLACES[1:]], spoil=cover)
    for moment, _ in world.run(0.0, 0.8):
        frame = picture([*zip(TOYS, world.places, strict=True)], world.camera, (1, 2, 3), moment)
        frame = replace(frame if moment > 0.5 else cover(frame), frame_id="other")
        world.tracker.update(frame)
        assert world.ahead.leads
        presences = {item.id: item.presence for item in world.ahead.objects(frame)}
        assert presences.get(world.ids[1]) is (None if moment > 0.5 else Presence.HIDDEN)


def test_a_camera_that_has_stopped_does_not_lead():
    """What only that showed is hidden, while another camera's images with masks go on."""
    world = Lagging()
    for _ in world.run(0.0, 0.5):
        pass
    frame = without_the_first_toy(picture([*zip(TOYS, PLACES, strict=True)], world.camera, (1, 2, 3), 2.0))
    world.tracker.update(frame)
    assert not world.ahead.leads
    presences = {item.id: item.presence for item in world.ahead.objects(frame)}
    assert presences == {world.ids[1]: Presence.HIDDEN, world.ids[2]: Presence.SEEN, world.ids[3]: Presence.SEEN}


def test_a_cleared_scene_has_nothing_ahead():
    world = Lagging()
    for _ in world.run(0.0, 0.2):
        pass
    world.tracker.clear()
    assert all(not seen for _, seen in world.run(0.2, 0.3))
