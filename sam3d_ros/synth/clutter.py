"""Cluttered scenes of given meshes, after the protocol of VGN (Breyer et al. 2020) and GIGA (Jiang et al. 2021):
packed, objects standing upright side by side, or a pile, objects dropped into a bin that is then lifted off.

World frame: origin in the middle of the workspace on the table top, +Z up, metres. Poses come from MuJoCo, which
collides the meshes' convex pieces.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np
import trimesh
from scipy.spatial import ConvexHull

from .render import random_rotation

WORKSPACE = 0.3              # metres, edge of the square in which objects are put
TIMESTEP = 0.002             # seconds
DENSITY = 250.0              # kg/m^3, of the convex pieces
HULL_CORNERS = 64            # of a convex piece in the simulation
_BIN = 0.11                  # metres from the bin's middle to its walls
_DROP = 0.12                 # metres between objects that fall one after the other
_BIN_TIME = 1.5              # seconds in the bin
_MIN_TIME, _MAX_TIME = 0.2, 4.0   # seconds, of settling
_QUIET = 0.02                # m/s or rad/s
_SPACE = 0.006               # metres between packed objects
_TRIES = 300


@dataclass(frozen=True)
class Model:
    """An object.

    mesh: metres, bounding-box centre at the origin, +Z up where it stands; rgb: (N, 3) uint8, vertex colours
    pieces: convex pieces, each (K, 3) float64 corners, metres
    """

    name: str
    mesh: trimesh.Trimesh
    rgb: np.ndarray
    pieces: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Placed:
    """A model in the world; world_from_object: (4, 4) float64."""

    model: Model
    world_from_object: np.ndarray


def packed_scene(models: Sequence[Model], rng: np.random.Generator) -> list[Placed]:
    """The models upright, turned about the vertical, side by side; those for which there is no room are left out."""
    placed: list[Placed] = []
    outlines: list[np.ndarray] = []
    for model in models:
        for _ in range(_TRIES):
            pose = trimesh.transformations.rotation_matrix(rng.uniform(0, 2 * np.pi), [0, 0, 1])
            corners = trimesh.transform_points(model.mesh.vertices, pose)
            reach = WORKSPACE / 2 - np.abs(corners[:, :2]).max(axis=0)
            if reach.min() < 0:
                continue
            pose[:3, 3] = [*rng.uniform(-reach, reach), -corners[:, 2].min() + 0.001]
            outline = trimesh.transform_points(model.mesh.vertices, pose)[:, :2]
            outline = outline[ConvexHull(outline).vertices]
            if all(_apart(outline, other) for other in outlines):
                placed.append(Placed(model, pose))
                outlines.append(outline)
                break
    return settled(placed)


def pile_scene(models: Sequence[Model], rng: np.random.Generator) -> list[Placed]:
    """The models dropped into a bin one upon the other; what rolls out of the workspace afterwards is left out."""
    dropped = []
    for number, model in enumerate(models):
        pose = np.eye(4)
        pose[:3, :3] = random_rotation(rng)
        pose[:3, 3] = [*rng.uniform(-0.03, 0.03, 2), 0.1 + _DROP * number]
        dropped.append(Placed(model, pose))
    walls = "".join(f'<geom type="box" size="{a} {b} 0.5" pos="{x} {y} 0.5"/>' for a, b, x, y in (
        (0.02, 0.2, _BIN + 0.02, 0), (0.02, 0.2, -_BIN - 0.02, 0), (0.2, 0.02, 0, _BIN + 0.02),
        (0.2, 0.02, 0, -_BIN - 0.02)))
    world = mujoco.MjModel.from_xml_string(world_xml(dropped, walls))
    data = mujoco.MjData(world)
    while data.time < _BIN_TIME:
        mujoco.mj_step(world, data)
    return settled(read_poses(dropped, data))


def settled(placed: Sequence[Placed]) -> list[Placed]:
    """The objects where they come to rest; without those that end outside the workspace."""
    if not placed:
        return []
    world = mujoco.MjModel.from_xml_string(world_xml(placed))
    data = mujoco.MjData(world)
    while data.time < _MIN_TIME or (data.time < _MAX_TIME and np.abs(data.qvel).max() > _QUIET):
        mujoco.mj_step(world, data)
    return [item for item in read_poses(placed, data)
            if np.abs(item.world_from_object[:2, 3]).max() < 0.75 * WORKSPACE and item.world_from_object[2, 3] > 0]


def read_poses(placed: Sequence[Placed], data: mujoco.MjData) -> list[Placed]:
    """The objects of `world_xml(placed)` at their present poses."""
    found = []
    for number, item in enumerate(placed):
        body = data.body(f"object{number}")
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = body.xmat.reshape(3, 3), body.xpos
        found.append(Placed(item.model, pose))
    return found


def world_xml(placed: Sequence[Placed], fixed: str = "", bodies: str = "", sections: str = "") -> str:
    """MuJoCo world: a table and the objects as free bodies object0, object1, ...

    fixed: more geoms of the world; bodies: more bodies; sections: more sections of the file
    """
    assets = objects = ""
    for number, item in enumerate(placed):
        geoms = ""
        for index, corners in enumerate(item.model.pieces):
            name = f"object{number}_{index}"
            vertices = " ".join(f"{x:.6f}" for x in corners.ravel())
            assets += f'<mesh name="{name}" maxhullvert="{HULL_CORNERS}" vertex="{vertices}"/>'
            geoms += f'<geom type="mesh" mesh="{name}" density="{DENSITY}"/>'
        position = " ".join(f"{x:.7f}" for x in item.world_from_object[:3, 3])
        turn = " ".join(f"{x:.9f}" for x in trimesh.transformations.quaternion_from_matrix(item.world_from_object))
        objects += f'<body name="object{number}" pos="{position}" quat="{turn}"><freejoint/>{geoms}</body>'
    return f"""
        <mujoco>
          <option timestep="{TIMESTEP}" integrator="implicitfast" cone="elliptic" impratio="10"/>
          <default><geom condim="6" friction="0.8 0.01 0.002"/></default>
          <asset>{assets}</asset>
          <worldbody>
            <geom name="table" type="box" size="0.6 0.6 0.1" pos="0 0 -0.1"/>
            {fixed}{objects}{bodies}
          </worldbody>
          {sections}
        </mujoco>"""


def _apart(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two convex outlines, (N, 2) corners, keep _SPACE between them along a side of either."""
    for outline in (first, second):
        sides = np.roll(outline, -1, axis=0) - outline
        normals = np.stack([-sides[:, 1], sides[:, 0]], axis=1) / np.linalg.norm(sides, axis=1, keepdims=True)
        a, b = first @ normals.T, second @ normals.T
        if np.maximum(a.min(axis=0) - b.max(axis=0), b.min(axis=0) - a.max(axis=0)).max() > _SPACE:
            return True
    return False
