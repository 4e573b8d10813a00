"""The simulated camera of `sam3d bench track`: it swings around a table, with the true motion of the objects.

Masks are dropped at random and their numbers shuffled in every image; one object is carried to another place and back,
one is covered for some seconds.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from ..perception.frame import Frame, Instance
from ..synth.raycaster import Body, Lamp, Raycaster, View, texture_paint
from ..synth.tabletop import PlacedObject, SensorNoise, Tabletop, camera_intrinsics

WIDTH, HEIGHT = 640, 480
LAMP = Lamp(samples=0)             # shadows would not move with the carried object
RATE = 30.0                       # images per second
FIRST_STAMP_NS = 1_000_000_000    # a stamp of 0 would count as missing
SWING = np.deg2rad(30.0)          # of the camera, either side
SWING_PERIOD = 8.0                # seconds, to and fro
SWING_SHOTS = 120                 # pictures of one way, one for each image
CARRY = (0.30, 0.55)              # shares of the run's time
CARRY_SHIFT, CARRY_LIFT, CARRY_TURN = 0.10, 0.12, 1.2     # metres, metres, radians
COVER_AT, COVER_SECONDS = 0.72, 3.0    # share of the run's time, seconds
COVER_DISTANCE = 0.30             # metres from the camera
LEAST_PIXELS = 100                # of an object in view, for the image to show it and the detector to have a mask of it


@dataclass(frozen=True)
class Disturbance:
    """drop: share of the masks that are missing; world: whether the camera's pose is given (TF)."""

    drop: float = 0.2
    world: bool = True


@dataclass(frozen=True)
class Moment:
    """A frame with the truth: label -> (4, 4) camera_from_object; true label -> the number of its mask in the frame;
    true labels of all objects that the frame shows, with a mask or without."""

    frame: Frame
    camera_from_object: dict[int, np.ndarray]
    numbers: dict[int, int]
    shown: tuple[int, ...]


class Stage:
    """A tabletop seen by a swinging camera; moments are made when asked for.

    carried, covered: labels of the objects that are carried and covered
    """

    def __init__(self, seed: int, objects: int, seconds: float):
        self.seed, self.seconds = seed, seconds
        self._scene = Tabletop(seed, objects)
        self._camera = camera_intrinsics(WIDTH, HEIGHT)
        by_size = sorted(self._scene.objects, key=lambda o: float(np.linalg.norm(o.shape.mesh.extents)))
        self.carried, self.covered = by_size[len(by_size) // 2].label, by_size[-1].label
        self.rewind()
        bodies = [_body(o) for o in self._scene.objects if o.label != self.carried]
        self._rest = Raycaster([*bodies, *self._scene.furniture], LAMP)
        self._shots = [self._shot(turn) for turn in
                       tqdm(np.linspace(-SWING, SWING, SWING_SHOTS), "rendering", disable=None)]
        body = next(o for o in self._scene.objects if o.label == self.carried)
        self._carried_pose = body.world_from_object
        self._carried_radius = float(np.linalg.norm(body.shape.mesh.vertices, axis=1).max())
        self._at_rest: dict[int, tuple[View, np.ndarray]] = {}
        self._carried = Raycaster([_body(body)], LAMP)

    @property
    def objects(self) -> tuple[PlacedObject, ...]:
        """Of the scene, at rest."""
        return self._scene.objects

    def rewind(self) -> None:
        """Begin anew, with the same noise."""
        self._noise = SensorNoise(1.0, (HEIGHT, WIDTH), self.seed)
        self._rng = np.random.default_rng(self.seed)

    def moment(self, seconds: float, disturbance: Disturbance) -> Moment:
        """What the camera and the detector give at a time; to be asked for in the order of time."""
        phase = np.arcsin(np.sin(2 * np.pi * seconds / SWING_PERIOD)) / (np.pi / 2)
        index = int(round((phase + 1) / 2 * (SWING_SHOTS - 1)))
        world_from_camera, view = self._shots[index]
        true = {o.label: o.world_from_object for o in self._scene.objects}
        true[self.carried] = self._carry(seconds)
        covered = 0 <= seconds - COVER_AT * self.seconds < COVER_SECONDS
        if covered or not np.array_equal(true[self.carried], self._carried_pose):
            view = self._with_carried(view, world_from_camera, true[self.carried])
            view = _covered(view, self.covered) if covered else view
            edges = view.depth_edges()
        else:
            if index not in self._at_rest:
                whole = self._with_carried(view, world_from_camera, self._carried_pose)
                self._at_rest[index] = whole, whole.depth_edges()
            view, edges = self._at_rest[index]
        shown = tuple(o.label for o in self._scene.objects if (view.labels == o.label).sum() >= LEAST_PIXELS)
        frame, numbers = self._sensed(view, edges, world_from_camera, shown, disturbance)
        camera_from_world = np.linalg.inv(world_from_camera)
        return Moment(replace(frame, stamp_ns=FIRST_STAMP_NS + int(seconds * 1e9)),
                      {label: camera_from_world @ pose for label, pose in true.items()}, numbers, shown)

    def _shot(self, turn: float) -> tuple[np.ndarray, View]:
        pose = self._scene.camera_pose(self._camera, turn)
        return pose, self._rest.render(self._camera, pose)

    def _carry(self, seconds: float) -> np.ndarray:
        """world_from_object of the carried object: lifted, moved, turned and put down, later carried back."""
        share = (seconds / self.seconds - CARRY[0]) / (CARRY[1] - CARRY[0])
        part = float(np.clip(min(share, 1 - share) * 3, 0, 1))
        smooth = part * part * (3 - 2 * part)
        turn = CARRY_TURN * smooth
        pose = self._carried_pose.copy()
        rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
        pose[:3, :3] = rotation @ pose[:3, :3]
        pose[:3, 3] += smooth * np.array([CARRY_SHIFT, -CARRY_SHIFT, CARRY_LIFT])
        return pose

    def _with_carried(self, view: View, world_from_camera: np.ndarray, world_from_object: np.ndarray) -> View:
        """The carried object drawn into a view of the rest: it is rendered by a camera moved the other way."""
        back = self._carried_pose @ np.linalg.inv(world_from_object)
        k = self._camera
        x, y, z = (np.linalg.inv(world_from_camera) @ world_from_object)[:3, 3]
        reach = 1.1 * self._carried_radius / (z - self._carried_radius) * k.fx
        top, left = (int(max(0, c - reach)) for c in (y / z * k.fy + k.cy, x / z * k.fx + k.cx))
        bottom, right = int(min(k.height, top + 2 * reach)), int(min(k.width, left + 2 * reach))
        if bottom <= top or right <= left:
            return view
        part = replace(k, width=right - left, height=bottom - top, cx=k.cx - left, cy=k.cy - top)
        own = self._carried.render(part, back @ world_from_camera)
        window = (slice(top, bottom), slice(left, right))
        whole = View(view.colour.copy(), view.depth.copy(), view.labels.copy())
        front = (own.depth > 0) & ((view.depth[window] == 0) | (own.depth < view.depth[window]))
        for layer, drawn in ((whole.colour, own.colour), (whole.depth, own.depth), (whole.labels, own.labels)):
            layer[window][front] = drawn[front]
        return whole

    def _sensed(self, view: View, edges: np.ndarray, world_from_camera: np.ndarray, shown: tuple[int, ...],
                disturbance: Disturbance) -> tuple[Frame, dict[int, int]]:
        """A view with the camera's noise and the detector's masks, and `Moment.numbers`; edges: `View.depth_edges`;
        shown: as in Moment."""
        kept = [label for label in shown if self._rng.random() >= disturbance.drop]
        numbers = dict(zip(kept, (int(n) for n in self._rng.permutation(len(kept)) + 1), strict=True))
        lookup = np.zeros(256, np.int32)
        for label, number in numbers.items():
            lookup[label] = number
        instances = tuple(Instance(number, detector_id=str(self._rng.integers(100)))
                          for number in sorted(numbers.values()))
        depth = self._noise.depth(view.depth, edges)
        return Frame(self._noise.colour(view.colour), depth, lookup[view.labels], self._camera, instances,
                     world_from_camera if disturbance.world else None), numbers


def _body(placed: PlacedObject) -> Body:
    return Body(placed.shape.mesh, texture_paint(placed.shape.texture), placed.world_from_object, placed.label)


def _covered(view: View, label: int) -> View:
    """The view with a board held before an object."""
    rows, columns = np.nonzero(view.labels == label)
    if not len(rows):
        return view
    board = (slice(max(0, rows.min() - 15), rows.max() + 15), slice(max(0, columns.min() - 15), columns.max() + 15))
    colour, depth, labels = view.colour.copy(), view.depth.copy(), view.labels.copy()
    colour[board], depth[board], labels[board] = (90, 60, 40), COVER_DISTANCE, 0
    return View(colour, depth, labels)
