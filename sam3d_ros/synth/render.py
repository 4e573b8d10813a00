"""Rendered training scenes: one object on a table among others, seen by colour and depth cameras."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..perception.cube import cross
from ..perception.frame import Intrinsics
from .rasteriser import blended, first_hits

IMAGE = (144, 448)     # pixels, least and largest edge of the square image around the object
MIN_VISIBLE_PIXELS = 80
_MIN_VISIBLE = 0.03    # of the disc of the target's bounding sphere in the image
_DISTANCE = (0.25, 1.5)        # metres, camera to object
_SIZE = (0.04, 0.28)           # metres, largest extent of the target
_MOST_NEIGHBOURS = 7
_LIFTED_SHARE = 0.12           # of targets that lie on other things, or are held, rather than on the table
_CLEAR_SHARE = 0.75            # of images with room around the target; of the others, the border may cut it
_GAP = 0.02                    # metres to a neighbour, on average
_TABLE_SHARE = 0.92
_WALL_SHARE = 0.25

Colouring = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(positions in the object's normalised frame (N, 3), colours of the mesh there (N, 3) 0..1) -> colours (N, 3) 0..1."""


@dataclass(frozen=True)
class Thing:
    """A normalised mesh (largest extent 1): vertices (V, 3), faces (F, 3), rgb (V, 3) uint8, resting (K, 3, 3)
    world_from_object, and how it is painted."""

    vertices: np.ndarray
    faces: np.ndarray
    rgb: np.ndarray
    resting: np.ndarray
    colouring: Colouring


@dataclass(frozen=True)
class View:
    """A rendered picture of the target.

    colour: (H, W, 3) uint8; depth: (H, W) float32, metres, 0 = nothing hit; mask: (H, W) bool, the target's visible
    pixels; facing: (H, W) float32, cosine between surface normal and ray; camera_from_world: (4, 4) float64
    """

    colour: np.ndarray
    depth: np.ndarray
    mask: np.ndarray
    facing: np.ndarray
    intrinsics: Intrinsics
    camera_from_world: np.ndarray


@dataclass(frozen=True)
class RenderedScene:
    """Views of one target.

    world_from_target: (4, 4) float64, normalised target frame -> world (metres, +Z up, table at z = 0); not rigid
    scale: metres per unit of the target's frame; has_table: whether there is a table under the target
    """

    views: list[View]
    world_from_target: np.ndarray
    scale: float
    has_table: bool


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """Uniform random rotation matrix (3, 3) from a normalised Gaussian quaternion (Shoemake 1992)."""
    w, x, y, z = (q := rng.normal(size=4)) / np.linalg.norm(q)
    return np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                     [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                     [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])


def _about_z(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def look_at(eye: np.ndarray, target: np.ndarray, roll: float) -> np.ndarray:
    """camera_from_world rotation (3, 3) of an optical frame at `eye` that looks at `target`, world +Z up.

    roll: radians about the optical axis.
    """
    z = (target - eye) / np.linalg.norm(target - eye)
    x = cross(z, np.array([0.0, 0.0, 1.0]))
    x /= np.linalg.norm(x) + 1e-9
    return _about_z(roll) @ np.array([x, cross(z, x), z])


def random_colouring(rng: np.random.Generator, textured: bool) -> Colouring:
    """The mesh's own colours, changed in hue and brightness (mostly where it has a texture), or a random pattern."""
    if rng.random() < (0.7 if textured else 0.15):
        mix = np.eye(3) if rng.random() < 0.5 else np.eye(3)[rng.permutation(3)]
        gain, bias = rng.uniform(0.7, 1.2, 3), rng.uniform(-0.05, 0.1, 3)
        return lambda points, rgb: np.clip(rgb @ mix * gain + bias, 0, 1)
    palette = np.clip(rng.uniform(0.05, 0.95, 3) + rng.normal(size=(4, 3)) * rng.choice([0.1, 0.35]), 0.02, 0.98)
    kind = rng.choice(["plain", "bands", "patches", "mottled"], p=[0.3, 0.3, 0.2, 0.2])
    if kind == "plain":
        return lambda points, rgb: np.broadcast_to(palette[0], points.shape)
    if kind == "bands":
        axis = np.eye(3)[rng.integers(3)] if rng.random() < 0.8 else random_rotation(rng)[0]
        cuts = np.sort(rng.uniform(-0.5, 0.5, 3))
        return lambda points, rgb: palette[np.searchsorted(cuts, points @ axis)]
    waves = random_rotation(rng) * rng.uniform(4, 18)
    phase = rng.uniform(0, 2 * np.pi, 3)
    if kind == "patches":
        return lambda points, rgb: palette[np.minimum((np.sin(points @ waves + phase) > 0.2).sum(axis=1), 3)]
    return lambda points, rgb: np.clip(palette[0] + (palette[1] - palette[0]) * 0.5 *
                                       (1 + _mean(np.sin(points @ waves + phase))), 0, 1)


def _mean(triples: np.ndarray) -> np.ndarray:
    """(N, 3) -> (N, 1); NumPy's own takes ten times as long along so short an axis."""
    return ((triples[:, 0] + triples[:, 1] + triples[:, 2]) / 3)[:, None]


def _resting_pose(thing: Thing, rng: np.random.Generator) -> np.ndarray:
    """Upright, stable on another side, or anyhow, turned about the vertical: rotation (3, 3)."""
    kind = rng.random()
    if kind < 0.4:
        base = np.eye(3)
    elif kind < 0.85:
        base = thing.resting[min(int(rng.exponential(1.5)), len(thing.resting) - 1)]
    else:
        base = random_rotation(rng)
    return _about_z(rng.uniform(0, 2 * np.pi)) @ base


class _Scene:
    """Meshes in the world with colours; the target is mesh 0."""

    def __init__(self) -> None:
        self._vertices: list[np.ndarray] = []
        self._faces: list[np.ndarray] = []
        self._paint: list[Callable] = []

    def add(self, vertices: np.ndarray, faces: np.ndarray, paint: Callable) -> None:
        """paint: (faces (N,), barycentric weights (N, 3)) -> (N, 3) colours 0..1."""
        self._vertices.append(vertices)
        self._faces.append(faces)
        self._paint.append(paint)

    def add_thing(self, thing: Thing, linear: np.ndarray, shift: np.ndarray) -> None:
        """A thing at world = linear @ normalised + shift."""
        colours = thing.rgb.astype(np.float32) / 255

        def paint(faces: np.ndarray, weights: np.ndarray) -> np.ndarray:
            local, rgb = (blended(values, thing.faces, faces, weights) for values in (thing.vertices, colours))
            return thing.colouring(local, rgb)

        self.add(thing.vertices @ linear.T + shift, thing.faces, paint)

    def add_rectangle(self, corners: np.ndarray, rng: np.random.Generator) -> None:
        """A wall or a table, (4, 3), plain or with a pattern."""
        first = np.clip(rng.uniform(0.1, 0.95) + rng.normal(size=3) * 0.08, 0, 1)
        second = np.clip(first + rng.normal(size=3) * rng.choice([0.02, 0.15]), 0, 1)
        waves = rng.normal(size=(3, 3)) * rng.uniform(5, 80)
        halves = np.array([[0, 1, 2], [0, 2, 3]])

        def paint(faces: np.ndarray, weights: np.ndarray) -> np.ndarray:
            points = blended(corners, halves, faces, weights)
            share = 0.5 + 0.5 * _mean(np.sin(points @ waves))
            return first + (second - first) * share

        self.add(corners, halves, paint)

    def render(self, intrinsics: Intrinsics, camera_from_world: np.ndarray, rng: np.random.Generator,
               light: np.ndarray, ambient: float) -> View:
        """Lambert shading from one direction, `light` (3,) in the world, without shadows."""
        turn, shift = camera_from_world[:3, :3], camera_from_world[:3, 3]
        depth, body, face, weights, facing, lit = first_hits(
            [vertices @ turn.T + shift for vertices in self._vertices], self._faces, intrinsics, turn @ light)
        colour = np.full((depth.size, 3), rng.uniform(0.1, 0.9), np.float32)
        shade = ambient + (1 - ambient) * 1.3 * lit.reshape(-1, 1)
        face, weights = face.ravel(), weights.reshape(-1, 3)
        for index, paint in enumerate(self._paint):
            mine = np.flatnonzero(body == index)
            if len(mine):
                colour[mine] = paint(face[mine], weights[mine]) * shade[mine]
        colour = colour.reshape(*depth.shape, 3)
        image = rng.normal(size=colour.shape)      # of grain, in which the rest is computed: it is large
        image *= rng.uniform(0.002, 0.03)
        image += colour
        image *= rng.uniform(0.85, 1.15, 3) * rng.uniform(0.8, 1.15)
        np.clip(image, 0, 1, out=image)
        image *= 255
        return View(image.astype(np.uint8), depth, body == 0, facing, intrinsics, camera_from_world)


def _surroundings(scene: _Scene, others: Callable[[], Thing], rng: np.random.Generator, own: np.ndarray, azimuth: float,
                  has_table: bool) -> None:
    """Neighbours beside the target (one in three towards the camera, where it may hide part of it), table and wall.

    own: (V, 2) metres, the target's vertices from above: a plane divides it from each neighbour, as close as touching
    """
    for _ in range(min(int(rng.exponential(2.2)), _MOST_NEIGHBOURS)):
        thing = others()
        linear = rng.uniform(0.05, 0.24) * _resting_pose(thing, rng)
        vertices = thing.vertices @ linear.T
        angle = azimuth + rng.normal() * 0.5 if rng.random() < 0.33 else rng.uniform(0, 2 * np.pi)
        towards = np.array([np.cos(angle), np.sin(angle)])
        distance = (own @ towards).max() - (vertices[:, :2] @ towards).min() + rng.exponential(_GAP)
        shift = np.append(distance * towards, -vertices[:, 2].min())
        scene.add_thing(thing, linear, shift)
    if has_table:
        scene.add_rectangle(np.array([[-3, -3, 0], [3, -3, 0], [3, 3, 0], [-3, 3, 0.0]]), rng)
    if rng.random() < _WALL_SHARE:
        away = -np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
        side = np.array([-away[1], away[0], 0])
        middle = away * (np.linalg.norm(own, axis=1).max() + rng.uniform(0.03, 0.6))
        up = np.array([0, 0, 1.5])
        scene.add_rectangle(np.array([middle - 2 * side, middle + 2 * side, middle + 2 * side + up,
                                      middle - 2 * side + up]), rng)


def _camera(rng: np.random.Generator, centre: np.ndarray, radius: float, azimuth: float,
            image: int) -> tuple[Intrinsics, np.ndarray]:
    """Intrinsics and camera_from_world (4, 4) of a camera that looks about at the target; image: pixels, its edge."""
    elevation = np.deg2rad(rng.uniform(15, 88))
    distance = rng.uniform(*_DISTANCE) + 0.3 * radius
    towards = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    eye = centre + distance * towards
    roll = rng.normal() * 0.15 if rng.random() < 0.7 else rng.uniform(-np.pi, np.pi)
    pose = np.eye(4)
    pose[:3, :3] = look_at(eye, centre + rng.normal(size=3) * 0.1 * radius, roll)
    pose[:3, 3] = -pose[:3, :3] @ eye
    size = 1 / rng.uniform(3.6, 6.4)       # radius of the sphere around the target, in images
    focal = size * image * distance / radius
    # Where the image ends must tell nothing of where the target does.
    room = max(0.5 - 1.6 * size, 0) if rng.random() < _CLEAR_SHARE else 0.5 - 0.5 * size
    column, row = (image - 1) / 2 + rng.uniform(-room, room, 2) * image
    return Intrinsics(image, image, focal, focal, column, row), pose


def _carrier(thing: Thing, rng: np.random.Generator, height: float,
             width: float) -> tuple[Thing, np.ndarray, np.ndarray]:
    """A thing that reaches from the table to `height`, about as wide as what lies on it: arguments of add_thing."""
    turn = _resting_pose(thing, rng)
    wide = width * rng.uniform(1, 3)
    linear = np.diag([wide, wide, height / np.ptp(thing.vertices @ turn.T, axis=0)[2]]) @ turn
    return thing, linear, np.array([0, 0, -(thing.vertices @ linear.T)[:, 2].min()])


def _shows(view: View, centre: np.ndarray, radius: float) -> bool:
    """Whether a view shows enough of the target, in a sphere about centre (3,) in the world."""
    depth = view.camera_from_world[2] @ np.append(centre, 1)
    disc = np.pi * (view.intrinsics.fx * radius / depth) ** 2
    return bool(view.mask.sum() >= max(MIN_VISIBLE_PIXELS, _MIN_VISIBLE * disc))


def render_scene(target: Thing, others: Callable[[], Thing], rng: np.random.Generator, views: int = 1,
                 size: float | None = None, stretch: bool = True) -> RenderedScene | None:
    """A random scene of `target` among `others`, seen from `views` cameras around it.

    size: largest extent in metres, None draws 4 to 28 cm; stretch: squeeze the axes by up to 30 % each.
    Returns None if too little of the target is seen in the first view; further ones that show too little are left out.
    """
    squeeze = np.diag(rng.uniform(0.7, 1.0, 3)) if stretch else np.eye(3)
    scale = rng.uniform(*_SIZE) if size is None else size
    linear = scale * _resting_pose(target, rng) @ squeeze
    vertices = target.vertices @ linear.T
    lift = rng.uniform(0.01, 0.15) if rng.random() < _LIFTED_SHARE else 0.0
    shift = np.array([0, 0, lift - vertices[:, 2].min()])
    vertices = vertices + shift
    centre = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    radius = float(np.linalg.norm(vertices - centre, axis=1).max())
    azimuth = rng.uniform(0, 2 * np.pi)
    has_table = rng.random() < _TABLE_SHARE

    scene = _Scene()
    scene.add_thing(target, linear, shift)
    _surroundings(scene, others, rng, vertices[:, :2], azimuth, has_table)
    if lift and rng.random() < 0.5:
        scene.add_thing(*_carrier(others(), rng, lift, np.ptp(vertices[:, :2], axis=0).max()))
    light = random_rotation(rng)[0]
    light[2] = abs(light[2]) + 0.3
    light /= np.linalg.norm(light)
    ambient = rng.uniform(0.3, 0.8)
    image = round(np.exp(rng.uniform(*np.log(IMAGE))))      # objects are as wide as near and far cameras show them
    pictures = []
    for index in range(views):
        turn = 0.0 if index == 0 else rng.uniform(np.pi / 8, np.pi) * rng.choice([-1, 1])
        pictures.append(scene.render(*_camera(rng, centre, radius, azimuth + turn, image), rng, light, ambient))
    shown = [_shows(picture, centre, radius) for picture in pictures]
    if not shown[0]:
        return None
    pictures = [picture for picture, is_shown in zip(pictures, shown, strict=True) if is_shown]
    world_from_target = np.eye(4)
    world_from_target[:3, :3], world_from_target[:3, 3] = linear, shift
    return RenderedScene(pictures, world_from_target, scale, has_table)
