"""A tabletop of household objects, settled by physics, seen by a colour and depth camera.

World frame: origin in the middle of the table top, +Z up, metres.  Objects are procedural (shapes.py), their poses come
from MuJoCo (contacts between convex hulls), pictures from the ray caster.  The same seed gives the same scene.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import mujoco
import numpy as np
import trimesh

from ..perception.frame import Intrinsics
from .raycaster import Body, Lamp, Raycaster, View, texture_paint
from .render import look_at, random_rotation
from .shapes import KINDS, Shape, random_shape

TABLE_SIZE = np.array([1.3, 0.95, 0.03])      # metres
TABLE_HEIGHT = 0.72                           # metres over the floor
MAX_OBJECTS = 12                              # what the table holds with room to stand
TIMESTEP = 0.002                              # seconds
SETTLE_TIME, QUIET_TIME = 6.0, 0.3            # seconds: given up after, and at rest for, before the scene is taken
QUIET_SPEED = (0.005, 0.1)                    # m/s and rad/s
DROP_HEIGHT, UPRIGHT_SHARE = 0.015, 0.75
SPACING = 0.85                                # least distance as dropped, over the sum of the radii
MAX_ATTEMPTS = 20
MIN_DISTANCE = 0.5                            # metres, camera to the middle of the objects
FRAMING_STEPS = 6                             # of a fixed-point iteration that gains a factor of 3 or more each
IMAGE_MARGIN = 0.08                           # of the image's width and height, kept free around the objects


@dataclass(frozen=True)
class PlacedObject:
    """An object of the scene; label: its value in the label image, from 1; world_from_object: (4, 4)."""

    label: int
    shape: Shape
    world_from_object: np.ndarray


def camera_intrinsics(width: int, height: int) -> Intrinsics:
    """A camera with 56 degrees of horizontal view, as common RGB-D cameras have at 4:3."""
    focal = 0.9375 * width
    return Intrinsics(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)


class Tabletop:
    """A settled scene.

    seed: decides objects, poses, table and viewpoint; count: number of objects, 1 to MAX_OBJECTS.
    objects: on the table; furniture: table and floor
    Raises RuntimeError if no drop came to rest on the table.
    """

    def __init__(self, seed: int, count: int):
        if not 1 <= count <= MAX_OBJECTS:
            raise ValueError(f"the table holds 1 to {MAX_OBJECTS} objects, not {count}")
        rng = np.random.default_rng(seed)
        shapes = [random_shape(rng, str(kind)) for kind in rng.choice(KINDS, count, replace=False)]
        placed = zip(shapes, settled_poses(rng, [shape.mesh for shape in shapes]), strict=True)
        self.objects = tuple(PlacedObject(label, shape, pose) for label, (shape, pose) in enumerate(placed, 1))
        self._azimuth = rng.uniform(0, 2 * np.pi)
        self._elevation = np.deg2rad(rng.uniform(36, 50))
        self.furniture = furniture(rng)

    @cached_property
    def raycaster(self) -> Raycaster:
        """Renders the objects on their table."""
        bodies = [Body(o.shape.mesh, texture_paint(o.shape.texture), o.world_from_object, o.label)
                  for o in self.objects]
        # over the camera's left shoulder
        position = 1.3 * _direction(self._azimuth - 1.3, 0.0) + [0, 0, 1.6]
        return Raycaster([*bodies, *self.furniture], Lamp(position))

    @cached_property
    def _points(self) -> np.ndarray:
        return np.concatenate([trimesh.transform_points(o.shape.mesh.vertices, o.world_from_object)
                               for o in self.objects])

    def camera_pose(self, intrinsics: Intrinsics, turn: float = 0.0) -> np.ndarray:
        """world_from_camera (4, 4), optical frame: looks at the objects from the scene's viewpoint, as near as it can.

        turn: radians by which the camera has moved around the objects, about +Z.
        """
        return framing_pose(self._points, self._azimuth + turn, self._elevation, intrinsics)

    def render(self, intrinsics: Intrinsics, world_from_camera: np.ndarray) -> View:
        """The noiseless picture."""
        return self.raycaster.render(intrinsics, world_from_camera)


def framing_pose(points: np.ndarray, azimuth: float, elevation: float, intrinsics: Intrinsics,
                 least_distance: float = MIN_DISTANCE) -> np.ndarray:
    """world_from_camera (4, 4), optical frame, of a camera that looks at points (N, 3) from as near as shows them all.

    azimuth, elevation: radians, direction from the points to the camera; least_distance: metres, not nearer than this
    """
    target = (points.min(axis=0) + points.max(axis=0)) / 2
    towards = _direction(azimuth, elevation)
    camera_axes = look_at(towards, np.zeros(3), 0.0)
    half = (0.5 - IMAGE_MARGIN) * np.array([intrinsics.width / intrinsics.fx, intrinsics.height / intrinsics.fy])
    for _ in range(FRAMING_STEPS):
        # The distance at which every point projects inside the margin: |x| <= half (z + distance).
        x, y, z = camera_axes @ (points - target).T
        distance = max(np.max(np.abs(x) / half[0] - z), np.max(np.abs(y) / half[1] - z), least_distance)
        # Look at the middle of what is seen, which perspective puts elsewhere than the middle of the points.
        seen = np.array([x, y]) / (z + distance)
        middle = (seen.min(axis=1) + seen.max(axis=1)) / 2 * distance
        target = target + middle @ camera_axes[:2]
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = camera_axes.T, target + distance * towards
    return pose


def _direction(azimuth: float, elevation: float) -> np.ndarray:
    """Unit vector (3,), angles in radians."""
    return np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])


class SensorNoise:
    """Errors of a colour and depth camera, cheap enough for 30 Hz: random fields drawn once, shifted for every frame.

    Depth: noise along the ray growing with the square of the depth and correlated over neighbours (stereo matching),
    readings lost at depth discontinuities, steps of 1 mm. Colour: white noise.
    level: 1 as a good RGB-D camera, 0 none.
    """

    def __init__(self, level: float, shape: tuple[int, int], seed: int):
        self._level = level
        self._rng = np.random.default_rng(seed)
        white = self._rng.normal(size=(shape[0] + 64, shape[1] + 64)).astype(np.float32)
        # 3 x 3 means of white noise, scaled back to variance 1
        self._smooth = 3 * _box_mean(white)
        self._grain = np.round(np.stack([white, np.roll(white, 31, 0), np.roll(white, 31, 1)], axis=-1)
                               * 2.5 * level).astype(np.int16)
        self._uniform = self._rng.random(white.shape, dtype=np.float32)

    def _window(self, field: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        row, column = self._rng.integers(64, size=2)
        return field[row:row + shape[0], column:column + shape[1]]

    def depth(self, depth: np.ndarray, edges: np.ndarray) -> np.ndarray:
        """depth (H, W) float32 metres, 0 = no reading; edges (H, W) bool. Returns what the camera reports."""
        if self._level == 0:
            return depth
        noisy = depth + (0.0012 * self._level) * depth * depth * self._window(self._smooth, depth.shape)
        noisy = np.round(noisy * 1000) * np.float32(0.001)
        noisy[edges & (self._window(self._uniform, depth.shape) < 0.6 * self._level)] = 0
        noisy[depth == 0] = 0
        return noisy

    def colour(self, colour: np.ndarray) -> np.ndarray:
        """colour (H, W, 3) uint8. Returns what the camera reports."""
        if self._level == 0:
            return colour
        return np.clip(colour + self._window(self._grain, colour.shape), 0, 255).astype(np.uint8)


def _box_mean(field: np.ndarray) -> np.ndarray:
    rows = field + np.roll(field, 1, 0) + np.roll(field, -1, 0)
    return (rows + np.roll(rows, 1, 1) + np.roll(rows, -1, 1)) / 9


# ------------------------------------------------------------------------------------------------------- physics

def settled_poses(rng: np.random.Generator, meshes: Sequence[trimesh.Trimesh],
                  spacing: float = SPACING, stacked: bool = False) -> list[np.ndarray]:
    """world_from_object (4, 4) of each mesh (metres, +Z up as it stands) after it was dropped and came to rest.

    spacing: least distance between two objects as they are dropped, over the sum of their radii seen from above
    stacked: where they overlap, seen from above, the smaller is dropped from over the larger one
    Raises RuntimeError if no drop came to rest on the table.
    """
    hulls = [mesh.convex_hull.vertices for mesh in meshes]
    model = _physics_model(hulls)
    for _ in range(MAX_ATTEMPTS):
        data = mujoco.MjData(model)
        data.qpos[:] = _drop_poses(rng, hulls, spacing, stacked).ravel()
        if _run_until_quiet(model, data):
            return [_pose(data.xpos[1 + i], data.xmat[1 + i]) for i in range(len(meshes))]
    raise RuntimeError(f"{len(meshes)} objects did not come to rest on the table in {MAX_ATTEMPTS} drops")


def _pose(position: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = matrix.reshape(3, 3), position
    return pose


def _physics_model(hulls: Sequence[np.ndarray]) -> mujoco.MjModel:
    """One free body per convex hull, given by its corners (N, 3). Rolling friction stops balls and cans."""
    assets = bodies = ""
    for i, corners in enumerate(hulls):
        hull = " ".join(f"{x:.6f}" for x in corners.ravel())
        assets += f'<mesh name="hull{i}" vertex="{hull}"/>'
        bodies += f'<body><freejoint/><geom type="mesh" mesh="hull{i}" density="500"/></body>'
    return mujoco.MjModel.from_xml_string(f"""
        <mujoco>
          <option timestep="{TIMESTEP}" integrator="implicitfast"/>
          <default><geom condim="6" friction="0.8 0.01 0.003"/></default>
          <asset>{assets}</asset>
          <worldbody>
            <geom type="box" size="{TABLE_SIZE[0] / 2} {TABLE_SIZE[1] / 2} 0.25" pos="0 0 -0.25"/>
            {bodies}
          </worldbody>
        </mujoco>""")


def _drop_poses(rng: np.random.Generator, hulls: Sequence[np.ndarray], spacing: float, stacked: bool) -> np.ndarray:
    """(N, 7) position and quaternion (w first): upright, on a side or anyhow, side by side just over the table, or
    over what is there already.
    """
    quaternions = np.array([_drop_quaternion(rng) for _ in hulls])
    turned = [trimesh.transform_points(corners, trimesh.transformations.quaternion_matrix(q))
              for corners, q in zip(hulls, quaternions, strict=True)]
    radii = [np.linalg.norm(points[:, :2], axis=1).max() for points in turned]
    poses = np.empty((len(hulls), 7))
    placed: list[int] = []
    reach = 0.08
    for index in np.argsort(radii)[::-1]:
        while True:
            spot = rng.uniform(-1, 1, 2) * reach * [1.3, 0.9]
            if all(np.linalg.norm(spot - poses[other, :2]) > spacing * (radii[index] + radii[other])
                   for other in placed):
                break
            reach *= 1.02      # no room: spread out
        below = [other for other in placed
                 if stacked and np.linalg.norm(spot - poses[other, :2]) < radii[index] + radii[other]]
        top = max((poses[other, 2] + turned[other][:, 2].max() for other in below), default=0.0)
        placed.append(index)
        poses[index] = [*spot, top + DROP_HEIGHT - turned[index][:, 2].min(), *quaternions[index]]
    return poses


def _drop_quaternion(rng: np.random.Generator) -> np.ndarray:
    """(4,) w first: upright turned about the vertical, or any rotation."""
    if rng.random() < UPRIGHT_SHARE:
        half = rng.uniform(0, np.pi)
        return np.array([np.cos(half), 0, 0, np.sin(half)])
    matrix = np.eye(4)
    matrix[:3, :3] = random_rotation(rng)
    return trimesh.transformations.quaternion_from_matrix(matrix)


def _run_until_quiet(model: mujoco.MjModel, data: mujoco.MjData) -> bool:
    """Step until everything has been at rest for a while; False if something fell off or never came to rest."""
    quiet = 0.0
    limit = np.tile(np.repeat(QUIET_SPEED, 3), model.nbody - 1)
    while data.time < SETTLE_TIME and quiet < QUIET_TIME:
        mujoco.mj_step(model, data)
        quiet = quiet + TIMESTEP if (np.abs(data.qvel) < limit).all() else 0.0
    return quiet >= QUIET_TIME and data.xipos[1:, 2].min() > 0      # centres of mass: nothing lies below the table


# ----------------------------------------------------------------------------------------------------- furniture

def furniture(rng: np.random.Generator) -> list[Body]:
    """Table (wood or cloth) and floor."""
    table = trimesh.creation.box(TABLE_SIZE)
    floor = trimesh.creation.box([8, 8, 0.1])
    surface = _wood(rng) if rng.random() < 0.7 else _cloth(rng)
    below = trimesh.transformations.translation_matrix
    return [Body(table, texture_paint(surface), below([0, 0, -TABLE_SIZE[2] / 2])),
            Body(floor, texture_paint(_tiles), below([0, 0, -TABLE_HEIGHT - 0.05]))]


def _wood(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """Planks along x with grain: (N, 3) points -> (N, 3) uint8."""
    tone = np.array([186, 146, 104]) * rng.uniform(0.75, 1.12)
    plank = rng.uniform(0.08, 0.16)
    phase = rng.uniform(0, 20)

    def paint(points: np.ndarray) -> np.ndarray:
        number = np.floor(points[:, 1] / plank + phase)
        offset = 5 * np.sin(number * 12.9)
        x, y = points[:, 0] + offset, points[:, 1]
        rings = y * 95 + 2.2 * np.sin(3.1 * x + offset) + 0.7 * np.sin(11 * x + 40 * y)
        fibre = np.sin(y * 900 + 6 * np.sin(9 * x)) * np.sin(x * 23 + offset)
        grain = 0.05 * np.sin(rings) + 0.02 * np.sin(2.3 * rings + 1) + 0.02 * fibre
        brightness = 1 + grain + 0.05 * np.sin(number * 78.2)
        seam = np.abs((points[:, 1] / plank + phase) % 1 - 0.5) > 0.49
        return np.clip(tone * (brightness * np.where(seam, 0.7, 1))[:, None], 0, 255).astype(np.uint8)
    return paint


def _cloth(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """Plain cloth with woven stripes: (N, 3) points -> (N, 3) uint8."""
    ground = rng.uniform(150, 225) * (1 + rng.uniform(-0.12, 0.12, 3))
    stripe = ground * rng.uniform(0.72, 0.9, 3)
    pitch = rng.uniform(0.06, 0.12)

    def paint(points: np.ndarray) -> np.ndarray:
        share = ((points[:, :2] / pitch % 1) < 0.22).mean(axis=1)[:, None]
        weave = 1 + 0.03 * np.sin(points[:, :1] * 1600) * np.sin(points[:, 1:2] * 1600)
        return np.clip((ground * (1 - share) + stripe * share) * weave, 0, 255).astype(np.uint8)
    return paint


def _tiles(points: np.ndarray) -> np.ndarray:
    """Grey floor tiles of 30 cm: (N, 3) points -> (N, 3) uint8."""
    joint = ((points[:, :2] / 0.3 % 1) < 0.02).any(axis=1)
    shade = 122 + 5 * np.sin(np.floor(points[:, 0] / 0.3) * 12.9 + np.floor(points[:, 1] / 0.3) * 78.2)
    return np.repeat(np.where(joint, 96, shade)[:, None], 3, axis=1).astype(np.uint8)
