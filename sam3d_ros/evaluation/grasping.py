"""Closed loop in simulation: see a cluttered table from one side, rebuild, plan, grasp in MuJoCo, and look again.

The protocol of VGN (Breyer et al. 2020) and GIGA (Jiang et al. 2021): five objects, packed or in a pile, one view from
the side before each grasp, what is lifted is taken away, and a round ends when the table is empty, no grasp is found,
or two grasps in a row have failed.  There the planner takes whatever is easiest.  A robot is more often told what to
fetch, so that a second order of play asks for each object in turn, hidden ones too: one grasp each, and only the object
that was asked for counts.  All methods see the same scenes and use the same planner with the same seeds.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import trimesh

from sam3d_ros.evaluation import baselines
from sam3d_ros.evaluation.grasp_trial import Observer, attempt
from sam3d_ros.grasping.antipodal import SceneMesh, plan_grasps
from sam3d_ros.grasping.gripper import FRANKA
from sam3d_ros.perception.faults import Fault
from sam3d_ros.perception.frame import Frame, Instance, Intrinsics
from sam3d_ros.perception.objects import Status
from sam3d_ros.perception.pipeline import Pipeline
from sam3d_ros.scene.physics import body_from_object, settle
from sam3d_ros.scene.yielding import yielding
from sam3d_ros.synth.clutter import WORKSPACE, Model, Placed, packed_scene, pile_scene
from sam3d_ros.synth.raycaster import Body, Lamp, Raycaster, texture_paint, vertex_paint
from sam3d_ros.synth.render import look_at
from sam3d_ros.synth.tabletop import SensorNoise

OBJECTS = 5
FAILURES = 2                                       # in a row, that end a round
SCENES = {"packed": packed_scene, "pile": pile_scene}
CAMERA = Intrinsics(640, 480, 540.0, 540.0, 319.5, 239.5)
DISTANCE, ELEVATION = 2 * WORKSPACE, np.pi / 6     # of the camera from the workspace's middle, over its plane
PLANE = np.array([0.0, 0.0, 1.0, 0.0])             # the table in the world: a robot knows where its table is
_TABLE_EDGE = 1.2
_TABLE_COLOUR = (150, 138, 122)


@dataclass(frozen=True)
class View:
    """What a method is given: the frame, rendered when asked for; only the upper bound may look at `placed`, whose
    labels count from 1.
    """

    placed: Sequence[Placed]
    seed: int

    @cached_property
    def frame(self) -> Frame:
        """The side view."""
        return observe(self.placed, self.seed)


# Meshes per label in the world frame.
Method = Callable[[View], Mapping[int, SceneMesh]]


@dataclass(frozen=True)
class Round:
    """One round; all numbers of objects or grasps. is_aborted: it ended because no grasp was found."""

    objects: int
    attempts: int
    successes: int
    is_aborted: bool


def rebuilt(pipeline: Pipeline) -> Method:
    """The product's meshes, at rest as scene/physics.py has it.  Raises Fault where the pipeline does."""

    def meshes(view: View) -> dict[int, SceneMesh]:
        seen = pipeline.run(view.frame).objects
        world_from_camera = view.frame.world_from_camera
        plane = np.append(PLANE[:3] @ world_from_camera[:3, :3], PLANE[:3] @ world_from_camera[:3, 3] + PLANE[3])
        objects = yielding(seen, plane)
        poses = settle([body_from_object(item) for item in objects], plane).poses
        return {item.label: SceneMesh(trimesh.transform_points(item.vertices, world_from_camera @ pose),
                                      item.triangles, item.vertex_std, item.status is Status.LOW_QUALITY)
                for item, pose in zip(objects, poses, strict=True)}

    return meshes


def extruded(view: View) -> dict[int, SceneMesh]:
    """Hulls of the visible points, extruded to the table."""
    try:
        hulls = baselines.extruded_hulls(view.frame)
    except Fault:
        return {}
    return {label: SceneMesh(trimesh.transform_points(hull.vertices, view.frame.world_from_camera), hull.faces)
            for label, hull in hulls.items()}


def true_meshes(view: View) -> dict[int, SceneMesh]:
    """The objects themselves, where they are: the upper bound."""
    return {label: SceneMesh(trimesh.transform_points(item.model.mesh.vertices, item.world_from_object),
                             item.model.mesh.faces) for label, item in enumerate(view.placed, 1)}


def scene(kind: str, models: Sequence[Model], seed: int) -> list[Placed]:
    """Scene number `seed`, of OBJECTS different models drawn from `models`."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(models), OBJECTS, replace=False)
    return SCENES[kind]([models[index] for index in chosen], rng)


def camera_pose() -> np.ndarray:
    """world_from_camera (4, 4) of the side view, optical frame."""
    towards = np.array([0, -np.cos(ELEVATION), np.sin(ELEVATION)])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = look_at(towards, np.zeros(3), 0.0).T, DISTANCE * towards
    return pose


def observe(placed: Sequence[Placed], seed: int) -> Frame:
    """The side view as an RGB-D camera with true instance masks gives it; label n is placed[n - 1]."""
    world_from_camera = camera_pose()
    view = Raycaster(_bodies(placed), Lamp(samples=0)).render(CAMERA, world_from_camera)
    noise = SensorNoise(1.0, view.depth.shape, seed)
    labels = view.labels.astype(np.int32)
    instances = tuple(Instance(int(label), placed[label - 1].model.name) for label in np.unique(labels) if label)
    return Frame(noise.colour(view.colour), noise.depth(view.depth, view.depth_edges()), labels, CAMERA, instances,
                 world_from_camera)


def play(placed: Sequence[Placed], method: Method, seed: int, observer: Observer | None = None) -> Round:
    """One round in which the planner chooses what to grasp."""
    remaining = list(placed)
    attempts = successes = failures = 0
    while remaining and failures < FAILURES:
        number = 100 * seed + attempts
        meshes = method(View(remaining, number))
        grasps = plan_grasps(list(meshes.values()), PLANE, FRANKA, count=1, seed=number)
        if not grasps:
            return Round(len(placed), attempts, successes, is_aborted=True)
        trial = attempt(remaining, grasps[0], FRANKA, observer)
        attempts += 1
        successes += trial.held is not None
        failures = 0 if trial.held is not None else failures + 1
        remaining = trial.remaining
    return Round(len(placed), attempts, successes, is_aborted=False)


def play_in_turn(placed: Sequence[Placed], method: Method, seed: int, observer: Observer | None = None) -> Round:
    """One round in which each object is asked for once, in random order; no grasp found counts as failure.

    What falls off the table, or is lifted in another's stead, is not asked for any more and counts as failure.
    """
    remaining = list(placed)
    successes = 0
    for turn, wanted in enumerate(np.random.default_rng(seed).permutation(len(placed))):
        label = next((n for n, item in enumerate(remaining, 1) if item.model is placed[wanted].model), None)
        if label is None:
            continue
        number = 100 * seed + turn
        meshes = method(View(remaining, number))
        if label not in meshes:
            continue
        grasps = plan_grasps(list(meshes.values()), PLANE, FRANKA, [list(meshes).index(label)], count=1, seed=number)
        if grasps:
            trial = attempt(remaining, grasps[0], FRANKA, observer)
            successes += trial.held == label - 1
            remaining = trial.remaining
    return Round(len(placed), len(placed), successes, is_aborted=False)


ORDERS = {"any": play, "in turn": play_in_turn}


def report(rounds: Sequence[Round]) -> dict[str, Any]:
    """Rates over all rounds: successful grasps of those attempted, and objects cleared of those on the table."""
    attempts, successes = sum(r.attempts for r in rounds), sum(r.successes for r in rounds)
    objects = sum(r.objects for r in rounds)
    return {"rounds": len(rounds), "objects": objects, "attempts": attempts, "successes": successes,
            "aborted": sum(r.is_aborted for r in rounds),
            "success_rate": successes / attempts if attempts else None,
            "success_rate_95": wilson_interval(successes, attempts) if attempts else None,
            "declutter_rate": successes / objects if objects else None,
            "each": [asdict(r) for r in rounds]}


def wilson_interval(successes: int, attempts: int, z: float = 1.96) -> tuple[float, float]:
    """Confidence interval of a share (Wilson 1927), 95 % by default."""
    share, weight = successes / attempts, z * z / attempts
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / attempts + weight / (4 * attempts)) / (1 + weight)
    return middle - half, middle + half


def table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Text of scenes and order -> methods -> report."""
    lines = [f"{'scenes, order':18}{'meshes':16}{'rounds':>8}{'grasps':>8}"
             f"{'success %':>11}{'95 %':>12}{'cleared %':>11}"]
    for kind, methods in results.items():
        for name, figures in methods.items():
            low, high = figures["success_rate_95"] or (math.nan, math.nan)
            interval = f"{100 * low:.0f} to {100 * high:.0f}"
            success, cleared = (100 * (figures[rate] or 0) for rate in ("success_rate", "declutter_rate"))
            lines.append(f"{kind:18}{name:16}{figures['rounds']:8}{figures['attempts']:8}{success:11.1f}{interval:>12}"
                         f"{cleared:11.1f}")
    return "\n".join(lines)


class PictureStrip:
    """Observer that draws the stages of the trials of a round, small pictures side by side, one row per trial."""

    STAGES = 4                                     # that `attempt` calls an observer at
    SHOWN = (1, 3)                                 # around the object, and lifted
    CAMERA = Intrinsics(240, 200, 250.0, 250.0, 119.5, 99.5)

    def __init__(self) -> None:
        self._calls = 0
        self.pictures: list[np.ndarray] = []

    def __call__(self, placed: list[Placed], world_from_hand: np.ndarray, opening: float) -> None:
        if self._calls % self.STAGES in self.SHOWN:
            pose = camera_pose()
            pose[:3, 3] += [0, 0, 0.06]
            hand = [Body(trimesh.creation.box(bounds=box), texture_paint(_plain((70, 78, 90))), world_from_hand)
                    for box in FRANKA.boxes(opening)]
            view = Raycaster([*_bodies(placed), *hand]).render(self.CAMERA, pose)
            self.pictures.append(view.colour)
        self._calls += 1

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8: a column per trial, around the object above, lifted below."""
        rows = [np.concatenate(self.pictures[row::2], axis=1) for row in range(2)]
        return np.concatenate(rows)


def _bodies(placed: Sequence[Placed]) -> list[Body]:
    table_top = trimesh.creation.box([_TABLE_EDGE, _TABLE_EDGE, 0.02])
    below = trimesh.transformations.translation_matrix([0, 0, -0.01])
    return [*(Body(item.model.mesh, vertex_paint(item.model.rgb), item.world_from_object, label)
              for label, item in enumerate(placed, 1)), Body(table_top, texture_paint(_plain(_TABLE_COLOUR)), below)]


def _plain(colour: tuple[int, int, int]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda points: np.tile(np.array(colour, np.uint8), (len(points), 1))
