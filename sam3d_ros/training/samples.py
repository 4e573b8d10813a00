"""Training samples: rendered scenes, spoiled like real input, as crops and truth; made on the fly."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from threadpoolctl import threadpool_limits
from torch.utils.data import IterableDataset

from ..perception.cube import NO_POINTS, Cube, fit_cube, fit_cube_to_mask, rotation_towards
from ..perception.evidence import Observation, filled, first_view, further_view, observed_points, support_row
from ..perception.frame import Frame, lengths, pixel_directions
from ..synth.render import RenderedScene, Thing, View, random_colouring, render_scene
from ..synth.sensor import corrupted_depth, corrupted_mask, pasted_occluder, unseen_surfaces
from .meshes import MeshStore

_LABEL = 1
_MIN_POINTS = 50
_MOST_VIEWS = 4
LIDDED = ("can", "jar", "tub")          # procedural shapes
WIDENED, WIDEST = 0.2, 1.7


@dataclass(frozen=True)
class Curriculum:
    """What part of the samples is spoiled or reduced, each a share from 0 to 1.

    spoiled: errors of depth and mask; pasted: a foreground pasted over the target; several: two to four views;
    no_depth: colour and mask only; support: the support plane is known; up: else, up is known; tins: targets drawn from
    those procedural shapes alone that have lids, which often give no depth
    """

    spoiled: float = 0.9
    pasted: float = 0.2
    several: float = 0.25
    no_depth: float = 0.12
    support: float = 0.7
    up: float = 0.5
    tins: float = 0.0


@dataclass(frozen=True)
class Example:
    """A scene as the cameras report it, and the truth.

    frames: one per view, the target's mask as label 1; camera_from_observer: per view, (4, 4), that view -> first view
    camera_from_target: (4, 4) float64, normalised target frame -> first camera (metres), not rigid
    near: metres, depth at which the target's visible surface begins; has_depth: False leaves colour and mask
    up: (3,) or None; plane: (4,) or None, first camera frame; true_up, true_axis: (3,), first camera frame
    axis_weight: 0 for a round footprint, 1 for a line; mesh: index in the store; point_rgb: (2048, 3) uint8
    """

    frames: list[Frame]
    camera_from_observer: list[np.ndarray]
    camera_from_target: np.ndarray
    bounds_centre: np.ndarray
    near: float
    has_depth: bool
    up: np.ndarray | None
    plane: np.ndarray | None
    true_up: np.ndarray
    true_axis: np.ndarray
    axis_weight: float
    mesh: int
    point_rgb: np.ndarray

    @cached_property
    def cube(self) -> Cube:
        """The cube that the pipeline would fit, once for all samples."""
        frame = self.frames[0]
        up = _known(self.up)
        if self.has_depth:
            points = [observed_points(Observation(seen, _LABEL, pose), _MIN_POINTS, seen.labels.size) for seen, pose in
                      zip(self.frames, self.camera_from_observer, strict=True)]
            return fit_cube(points[0], further=np.concatenate([NO_POINTS, *points[1:]]), **up)
        cube = fit_cube_to_mask(*np.nonzero(frame.labels == _LABEL), frame.intrinsics, **up)
        return Cube(cube.virtual_from_camera, cube.distance * self.near, cube.edge * self.near)


def _known(up: np.ndarray | None) -> dict[str, np.ndarray]:
    """Argument `up` of functions that have a default for it."""
    return {} if up is None else {"up": up}


def _thing(store: MeshStore, index: int, rng: np.random.Generator) -> Thing:
    vertices, faces, rgb = store.mesh(index)
    return Thing(vertices, faces, rgb, store.resting[index, :store.resting_count[index]],
                 random_colouring(rng, bool(store.textured[index])))


def _reported(view: View, rng: np.random.Generator, shares: Curriculum) -> Frame:
    """What a camera and a detector make of a rendered view."""
    depth, mask, colour = view.depth, view.mask, view.colour
    if rng.random() < shares.pasted and mask.any():
        depth, mask, colour = pasted_occluder(depth, mask, colour, rng)
    if rng.random() < shares.spoiled:
        unseen = unseen_surfaces(depth, view.facing, _steepness(view), colour, mask, rng)
        depth = corrupted_depth(unseen, rng)
        mask = corrupted_mask(mask, rng)
    return Frame(colour, depth, mask.astype(np.int32) * _LABEL, view.intrinsics)


def _steepness(view: View) -> np.ndarray:
    """(H, W) cosine between each pixel's ray and the vertical, 0 to 1."""
    rays = pixel_directions(view.intrinsics, *np.indices(view.depth.shape))
    return np.abs(rays @ view.camera_from_world[:3, 2]) / lengths(rays)


def _small_motion(rng: np.random.Generator, centre: np.ndarray) -> np.ndarray:
    """Error of a tracked object's motion: 1 mm and half a degree about its centre, (3,) (1 sigma)."""
    motion = np.eye(4)
    motion[:3, :3] = _tilt(rng, np.deg2rad(0.5))
    motion[:3, 3] = centre - motion[:3, :3] @ centre + rng.normal(size=3) * 0.001
    return motion


def _tilt(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Rotation (3, 3) by small random angles, radians."""
    a, b, c = rng.normal(size=3) * sigma
    rotation, _ = np.linalg.qr(np.array([[1, -c, b], [c, 1, -a], [-b, a, 1]]))
    return rotation * np.sign(np.diag(rotation))


def _horizontal_axis(vertices: np.ndarray) -> tuple[np.ndarray, float]:
    """Longer horizontal axis (3,) of world vertices (V, 3), and how much longer it is, 0 to 1."""
    flat = vertices[:, :2] - vertices[:, :2].mean(axis=0)
    values, axes = np.linalg.eigh(flat.T @ flat)
    return np.r_[axes[:, 1], 0.0], float(1 - values[0] / max(values[1], 1e-12))


def make_example(store: MeshStore, mesh: int, rng: np.random.Generator, views: int, shares: Curriculum,
                 size: float | None = None, stretch: bool = True) -> Example | None:
    """A random example of one mesh of the store; None if too little of it is seen."""
    thing = _thing(store, mesh, rng)
    scene = render_scene(thing, lambda: _thing(store, int(rng.integers(len(store))), rng), rng, views, size, stretch)
    if scene is None:
        return None
    frames = [_reported(view, rng, shares) for view in scene.views]
    has_depth = rng.random() >= shares.no_depth
    seen = (frames[0].labels == _LABEL) & ((frames[0].depth > 0) | (not has_depth))
    if seen.sum() < _MIN_POINTS:
        return None
    camera = scene.views[0].camera_from_world
    vertices = thing.vertices @ scene.world_from_target[:3, :3].T + scene.world_from_target[:3, 3]
    axis, axis_weight = _horizontal_axis(vertices)
    colour = thing.colouring(store.points[mesh], store.point_rgb[mesh] / np.float32(255))
    middle = camera[:3, :3] @ (vertices.min(axis=0) + vertices.max(axis=0)) / 2 + camera[:3, 3]
    up, plane = _known_support(scene, middle, rng, shares, has_depth)
    return Example(
        frames=frames,
        camera_from_observer=[np.eye(4)] + [_small_motion(rng, middle) @ camera @ np.linalg.inv(v.camera_from_world)
                                            for v in scene.views[1:]],
        camera_from_target=camera @ scene.world_from_target,
        bounds_centre=middle,
        near=float(np.percentile(scene.views[0].depth[scene.views[0].mask], 1)),
        has_depth=has_depth, up=up, plane=plane, true_up=camera[:3, 2], true_axis=camera[:3, :3] @ axis,
        axis_weight=axis_weight, mesh=mesh, point_rgb=np.clip(colour * 255, 0, 255).astype(np.uint8))


def _known_support(scene: RenderedScene, centre: np.ndarray, rng: np.random.Generator, shares: Curriculum,
                   has_depth: bool) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Up and the support plane as far as they are known, first camera frame.

    With the errors of a fit to the table around the object, whose centre is (3,): 0.7 degrees and 1.5 mm (1 sigma).
    """
    camera_from_world = scene.views[0].camera_from_world
    true = camera_from_world[:3, 2]
    normal = _tilt(rng, np.deg2rad(0.7)) @ true
    if scene.has_table and has_depth and rng.random() < shares.support:
        foot = centre - true * (true @ (centre - camera_from_world[:3, 3]))     # below the object, on the table
        return normal, np.r_[normal, -normal @ foot + rng.normal() * 0.0015]
    return (normal, None) if rng.random() < shares.up else (None, None)


def _jittered(cube: Cube, up: np.ndarray | None, rng: np.random.Generator) -> Cube:
    """`cube` moved by 3 % and scaled by -5 to +15 %; up: (3,), camera frame, None if unknown.

    A share of WIDENED is up to WIDEST times as large, with the object anywhere in it: what is seen does not always tell
    how far an object reaches.
    """
    widening = rng.uniform(1.15, WIDEST) if rng.random() < WIDENED else rng.uniform(0.95, 1.15)
    room = max(widening - 1.15, 0) / 2 * cube.edge
    centre = cube.centre + rng.normal(size=3) * 0.03 * cube.edge + rng.uniform(-room, room, 3)
    return Cube(rotation_towards(centre, **_known(up)), float(np.linalg.norm(centre)), cube.edge * widening)


def make_sample(example: Example, views: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
    """Inputs and truth of one example; with `rng` the cube is jittered and half the samples mirrored.

    crops (V, 6, 96, 96), views (V, 11), support (5,) float32; mesh () int64, target_from_cube (3, 4) float32, cube
    (edges) -> normalised target frame, and point_rgb (2048, 3) uint8, of which targets.Targets makes the volumes;
    layout (11,) float32: up (3), horizontal axis (3) and its weight, centre (3), ln edge
    """
    cube = example.cube if rng is None else _jittered(example.cube, example.up, rng)
    first = example.frames[0]
    if not example.has_depth:
        first = Frame(first.colour, None, first.labels, first.intrinsics)
    pairs = [first_view(first, _LABEL, cube)]
    for frame, pose in zip(example.frames[1:], example.camera_from_observer[1:], strict=True):
        seen = Frame(frame.colour, frame.depth if example.has_depth else None, frame.labels, frame.intrinsics)
        pair = further_view(Observation(seen, _LABEL, pose), cube)
        if pair is not None:
            pairs.append(pair)
    crops, rows = filled(pairs, views)
    sample = {"crops": crops, "views": rows, "support": support_row(cube, example.up, example.plane)}
    sample |= _truth(example, cube)
    return _mirrored(sample) if rng is not None and rng.random() < 0.5 else sample


def _truth(example: Example, cube: Cube) -> dict[str, np.ndarray]:
    """What targets.Targets makes the volumes of, and the layout."""
    camera_from_cube = np.eye(4)
    camera_from_cube[:3, :3] = cube.virtual_from_camera.T * cube.edge
    camera_from_cube[:3, 3] = cube.centre
    target_from_cube = np.linalg.inv(example.camera_from_target) @ camera_from_cube
    turn = cube.virtual_from_camera
    centre = cube.from_camera(example.bounds_centre[None])[0]
    layout = np.concatenate([turn @ example.true_up, turn @ example.true_axis, [example.axis_weight], centre,
                             [np.log(cube.edge)]]).astype(np.float32)
    return {"mesh": np.int64(example.mesh), "target_from_cube": target_from_cube[:3].astype(np.float32),
            "point_rgb": example.point_rgb, "layout": layout}


def _mirrored(sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The sample reflected in the plane x = 0 of the cube."""
    flip = np.array([-1, 1, 1], np.float32)
    views = sample["views"].copy()
    views[:, :9] = (views[:, :9].reshape(-1, 3, 3) * flip[:, None] * flip).reshape(-1, 9)
    support, layout, target_from_cube = (sample[name].copy() for name in ("support", "layout", "target_from_cube"))
    support[0] *= -1
    layout[[0, 3, 7]] *= -1
    target_from_cube[:, 0] *= -1
    return sample | {"crops": sample["crops"][..., ::-1], "views": views, "support": support, "layout": layout,
                     "target_from_cube": target_from_cube}


def stacked(samples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Samples of the same number of views as one batch."""
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


class Stream(IterableDataset):
    """Endless batches, rendered as they are asked for; every scene serves `reuse` times with other jitter.

    Of scenes with several views, which take longer, half as many are rendered, but enough for a batch; each serves
    twice as often.

    seed: numbers; each worker adds one of its own, so that no two render the same.
    """

    def __init__(self, store_folder, batch: int, reuse: int, shares: Curriculum, seed: Sequence[int]):
        self._folder, self._batch, self._reuse, self._shares, self._seed = store_folder, batch, reuse, shares, seed

    def __iter__(self) -> Iterator[dict]:
        import torch
        from torch.utils.data import get_worker_info

        worker = get_worker_info()
        if worker:
            threadpool_limits(1)        # NumPy's linear algebra; torch itself holds workers to one core
        rng = np.random.default_rng([*self._seed, worker.id if worker else 0])
        store = MeshStore.load(self._folder)
        while True:
            several = rng.random() < self._shares.several
            views = int(rng.integers(2, _MOST_VIEWS + 1)) if several else 1
            more = 2 if several else 1
            count = max(self._batch, self._batch * self._reuse // more)
            examples = list(self._examples(store, rng, views, count))
            order = np.concatenate([rng.permutation(len(examples)) for _ in range(self._reuse * more)])
            for start in range(0, len(order) - self._batch + 1, self._batch):
                chosen = [examples[i] for i in order[start:start + self._batch]]
                batch = stacked([make_sample(example, views, rng) for example in chosen])
                yield {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}

    def _examples(self, store: MeshStore, rng: np.random.Generator, views: int, count: int) -> Iterator[Example]:
        found = 0
        tins = np.flatnonzero(np.isin(store.name, LIDDED))
        while found < count:
            is_tin = len(tins) and rng.random() < self._shares.tins
            mesh = int(rng.choice(tins)) if is_tin else int(rng.integers(len(store)))
            example = make_example(store, mesh, rng, views, self._shares)
            if example is not None:
                found += 1
                yield example


def fixed_samples(store: MeshStore, count: int, seed: int, shares: Curriculum, views: int = 1) -> dict[str, np.ndarray]:
    """The same `count` samples for every call, stacked, of all meshes in turn at their own size, without jitter; of a
    large store, of meshes spread over it.

    views: of an example at most; one has one, the next two, and so on
    """
    rng = np.random.default_rng(seed)
    samples: list[dict[str, np.ndarray]] = []
    index, step = 0, max(1, len(store) // count)
    while len(samples) < count:
        mesh = index * step % len(store)
        index += 1
        size = float(store.size[mesh])
        example = make_example(store, mesh, rng, 1 + index % views, shares, size if np.isfinite(size) else None,
                               stretch=False)
        if example is not None:
            samples.append(make_sample(example, views, None))
    return stacked(samples)
