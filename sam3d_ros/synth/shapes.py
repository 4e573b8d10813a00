"""Procedural household objects: closed triangle meshes with procedural textures.

Every builder draws plausible proportions from a random generator and returns a solid standing on its usual base: +Z up,
metres.  Solids are made of four primitives (loft of a profile, rounded box, swept tube, extruded outline) and of
Boolean unions of them, so that every mesh is closed and its triangles run counter-clockwise seen from outside.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import manifold3d
import numpy as np
import trimesh

MAX_FACES = 3000
MIN_EXTENT, MAX_EXTENT = 0.03, 0.30     # metres, of the largest side of the bounding box

# Wave vectors (3, 5), radians per metre, of a texture's brightness variation: wavelengths of 1 to 4 cm.
_MOTTLE_WAVES = np.array([[310.0, -170, 90, 40, 520], [120, 260, -140, 330, -210], [-230, 190, 120, -410, 300]])

Region = Callable[[np.ndarray], np.ndarray]      # (N, 3) points -> (N,) bool


@dataclass
class Texture:
    """Colour as a function of the position in the object frame: a base colour and layers painted over it, in order."""

    base: np.ndarray
    layers: list[tuple[Region, np.ndarray]] = field(default_factory=list)
    mottle: float = 0.0                                   # relative amplitude of a smooth brightness variation
    origin: np.ndarray = field(default_factory=lambda: np.zeros(3))   # of the layers' frame, in the object frame

    def paint(self, region: Region, colour: np.ndarray) -> None:
        """Cover a region (in the builder's frame) with a colour, (3,) float, 0 to 1."""
        self.layers.append((region, colour))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Colours of surface points. points: (N, 3) metres, object frame. Returns (N, 3) uint8, RGB."""
        local = points - self.origin
        colours = np.tile(self.base, (len(points), 1))
        for region, colour in self.layers:
            colours[region(local)] = colour
        if self.mottle:
            bent = local + 0.02 * np.sin(local[:, [1, 2, 0]] * 61)
            waves = np.sin(bent @ _MOTTLE_WAVES).sum(axis=1)
            colours *= 1 + self.mottle * waves[:, None] / 4
        return (np.clip(colours, 0, 1) * 255).astype(np.uint8)


@dataclass(frozen=True)
class Shape:
    """A household object.

    kind: one of KINDS
    mesh: closed, outward-oriented; metres, +Z up, bounding-box centre at the origin; at most MAX_FACES faces
    rgb: (N, 3) uint8, colours of the mesh's vertices
    texture: colour of any surface point; finer than what the vertices can carry
    """

    kind: str
    mesh: trimesh.Trimesh
    rgb: np.ndarray
    texture: Texture

    def refined(self, edge: float) -> tuple[trimesh.Trimesh, np.ndarray]:
        """The same surface, still closed, with a finer mesh, and its vertex colours (N, 3) uint8.

        Every edge is cut into pieces no longer than `edge` metres; diagonals between the cuts may be twice as long.
        """
        mesh = _mesh(_solid(self.mesh).refine_to_length(edge))
        return mesh, self.texture(mesh.vertices)


def random_shape(rng: np.random.Generator, kind: str | None = None) -> Shape:
    """Draw an object of a random (or the given) kind; the same generator state gives the same object."""
    kind = kind or KINDS[rng.integers(len(KINDS))]
    mesh, texture = _BUILDERS[kind](rng)
    centre = mesh.bounds.mean(axis=0)
    mesh.apply_translation(-centre)
    texture.origin = -centre
    return Shape(kind, mesh, texture(mesh.vertices), texture)


# ---------------------------------------------------------------------------------------------------- primitives

def _mesh(solid: manifold3d.Manifold) -> trimesh.Trimesh:
    data = solid.to_mesh()
    return trimesh.Trimesh(data.vert_properties[:, :3], data.tri_verts, process=False)


def _solid(mesh: trimesh.Trimesh) -> manifold3d.Manifold:
    vertices, triangles = np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.uint32)
    return manifold3d.Manifold(manifold3d.Mesh(vertices, triangles))


def _union(*parts: trimesh.Trimesh) -> trimesh.Trimesh:
    return _mesh(manifold3d.Manifold.batch_boolean([_solid(part) for part in parts], manifold3d.OpType.Add))


def _placed(mesh: trimesh.Trimesh, offset=(0.0, 0.0, 0.0), axis=(0.0, 0.0, 1.0), angle: float = 0.0) -> trimesh.Trimesh:
    """The mesh turned about an axis through the origin, then moved."""
    transform = trimesh.transformations.rotation_matrix(angle, axis)
    transform[:3, 3] = offset
    return mesh.apply_transform(transform)


def _outline(sections: int, squareness: float = 2.0, flatness: float = 1.0) -> np.ndarray:
    """Superellipse |x|^n + |y|^n = 1 with exponent n = squareness, y scaled by flatness; (sections, 2)."""
    angle = np.linspace(0, 2 * np.pi, sections, endpoint=False)
    ray = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    radius = (np.abs(ray) ** squareness).sum(axis=1) ** (-1 / squareness)
    return ray * radius[:, None] * [1, flatness]


def _resampled(polyline: np.ndarray, pieces: int) -> np.ndarray:
    """Long segments cut so that the polyline has about `pieces` segments; its corners stay."""
    lengths = np.linalg.norm(np.diff(polyline, axis=0), axis=1)
    counts = np.maximum(1, np.floor(lengths / lengths.sum() * pieces)).astype(int)
    cuts = [polyline[i] + (polyline[i + 1] - polyline[i]) * np.linspace(0, 1, n, endpoint=False)[:, None]
            for i, n in enumerate(counts)]
    return np.concatenate([*cuts, polyline[-1:]])


def _tube_faces(rings: int, sections: int) -> np.ndarray:
    """Triangles of stacked rings (rings * sections vertices) closed by two poles (the next two vertices)."""
    here = np.arange(sections)
    after = (here + 1) % sections
    low, high = np.arange(rings - 1)[:, None] * sections, np.arange(1, rings)[:, None] * sections
    side = np.concatenate([np.stack([low + here, low + after, high + after], axis=-1),
                           np.stack([low + here, high + after, high + here], axis=-1)]).reshape(-1, 3)
    first, last, top = rings * sections, rings * sections + 1, (rings - 1) * sections
    return np.concatenate([side, np.stack([np.full(sections, first), after, here], axis=1),
                           np.stack([np.full(sections, last), top + here, top + after], axis=1)])


def _loft(profile: np.ndarray, outline: np.ndarray | None = None, pieces: int = 32) -> trimesh.Trimesh:
    """Solid of revolution, or with an outline other than the circle, a tapered prism.

    profile: (K, 2) radius and height, from the axis below, along the outside (and back down the inside of a hollow
    object), to the axis above; first and last radius are 0.
    """
    outline = _outline(40) if outline is None else outline
    profile = _resampled(np.asarray(profile, float), pieces)
    rings = [np.column_stack([outline * r, np.full(len(outline), z)]) for r, z in profile[1:-1]]
    poles = [[0, 0, profile[0, 1]], [0, 0, profile[-1, 1]]]
    return trimesh.Trimesh(np.concatenate([*rings, poles]), _tube_faces(len(rings), len(outline)), process=False)


def _sweep(path: np.ndarray, radius: np.ndarray | float, section: np.ndarray | None = None) -> trimesh.Trimesh:
    """Tube along a path.

    path: (K, 3); radius: (K,) or one, metres; section: (S, 2) unit cross-section, counter-clockwise. Frames are carried
    along by parallel transport, so the tube does not twist.
    """
    section = _outline(16) if section is None else section
    radii = np.broadcast_to(radius, len(path))
    tangents = np.gradient(path, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    side = np.cross(tangents[0], np.eye(3)[np.argmin(np.abs(tangents[0]))])
    rings = []
    for point, tangent, r in zip(path, tangents, radii, strict=True):
        side = side - tangent * (side @ tangent)
        side /= np.linalg.norm(side)
        rings.append(point + r * (section[:, :1] * side + section[:, 1:] * np.cross(tangent, side)))
    vertices = np.concatenate([*rings, path[[0, -1]]])
    return trimesh.Trimesh(vertices, _tube_faces(len(path), len(section)), process=False)


def _box(size: np.ndarray, radius: float = 0.0, cells: int = 13) -> trimesh.Trimesh:
    """Box centred at the origin, edges rounded by `radius`, each side cut into about cells x cells squares."""
    half = np.asarray(size, float) / 2
    fillet = 3 if radius else 0
    steps = np.array([np.concatenate([np.linspace(-h, radius - h, fillet, endpoint=False),
                                      np.linspace(radius - h, h - radius, cells + 1 - 2 * fillet),
                                      np.linspace(h - radius, h, fillet + 1)[1:]]) for h in half])
    u, v = (grid.ravel() for grid in np.meshgrid(np.arange(cells), np.arange(cells), indexing="ij"))
    quads = []
    for axis in range(3):
        for end, corners in ((0, ((0, 0), (0, 1), (1, 1), (1, 0))), (cells, ((0, 0), (1, 0), (1, 1), (0, 1)))):
            quad = np.empty((len(u), 4, 3), int)
            for c, (du, dv) in enumerate(corners):
                quad[:, c, axis], quad[:, c, axis - 2], quad[:, c, axis - 1] = end, u + du, v + dv
            quads.append(quad)
    lattice, index = np.unique(np.concatenate(quads).reshape(-1, 3), axis=0, return_inverse=True)
    points = np.take_along_axis(steps.T, lattice, axis=0)
    if radius:
        core = np.clip(points, radius - half, half - radius)
        beyond = points - core
        points = core + beyond * (radius / np.linalg.norm(beyond, axis=1, keepdims=True))
    quad = index.reshape(-1, 4)
    return trimesh.Trimesh(points, np.concatenate([quad[:, [0, 1, 2]], quad[:, [0, 2, 3]]]), process=False)


def _extrude(outline: np.ndarray, depth: float, rounding: float = 0.0, edge: float | None = None) -> trimesh.Trimesh:
    """Prism over a counter-clockwise outline (K, 2) from z = -depth/2 to depth/2, its corners rounded."""
    shape = manifold3d.CrossSection([np.asarray(outline, float)])
    if rounding:
        shape = shape.offset(-rounding, manifold3d.JoinType.Miter)
        shape = shape.offset(rounding, manifold3d.JoinType.Round, 2.0, 24)
    prism = manifold3d.Manifold.extrude(shape, depth).translate((0, 0, -depth / 2))
    return _mesh(prism.refine_to_length(edge) if edge else prism)


def _arc(start: float, end: float, count: int) -> np.ndarray:
    """Points of the unit circle, (count, 2), from angle `start` to `end` (radians)."""
    angle = np.linspace(start, end, count)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _ball_profile(radius: float, height: float, count: int = 25) -> np.ndarray:
    """Profile of an ellipsoid of the given equatorial radius and full height, standing on z = 0."""
    profile = _arc(-np.pi / 2, np.pi / 2, count) * [radius, height / 2] + [0, height / 2]
    profile[[0, -1], 0] = 0
    return profile


def _bumpy(rng: np.random.Generator, mesh: trimesh.Trimesh, amplitude: float) -> trimesh.Trimesh:
    """The mesh with a smooth displacement of a few long waves, relative to its size: nature is never exact."""
    size = mesh.extents.max()
    waves = rng.normal(0, 3 / size, (3, 4))
    shift = np.sin(mesh.vertices @ waves + rng.uniform(0, 6, 4)) @ rng.normal(0, amplitude / 2, (4, 3))
    mesh.vertices += np.clip(shift, -2 * amplitude, 2 * amplitude) * size
    return mesh


# ------------------------------------------------------------------------------------------------------ textures

def _colour(rng: np.random.Generator, saturation=(0.3, 0.85), value=(0.3, 0.9), hue=(0.0, 1.0)) -> np.ndarray:
    """A random colour, (3,) float RGB in 0..1; hue (0 red, 1/3 green, 2/3 blue), saturation, value from the ranges."""
    hue, s, v = rng.uniform(*hue), rng.uniform(*saturation), rng.uniform(*value)
    ramp = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return v * (1 - s * (1 - ramp))


def _ripe(rng: np.random.Generator) -> np.ndarray:
    """Colour of a fruit: dark red through orange and yellow to green."""
    return _colour(rng, (0.6, 0.9), (0.5, 0.88), (-0.04, 0.30))


def _pale(rng: np.random.Generator) -> np.ndarray:
    return _colour(rng, (0.0, 0.15), (0.8, 0.97))


def _metal(rng: np.random.Generator) -> np.ndarray:
    return _colour(rng, (0.0, 0.08), (0.45, 0.75))


def _wood(rng: np.random.Generator) -> np.ndarray:
    return np.array([0.72, 0.52, 0.33]) * rng.uniform(0.7, 1.15)


def _above(height: float) -> Region:
    return lambda p: p[:, 2] > height


def _between(low: float, high: float) -> Region:
    return lambda p: (p[:, 2] > low) & (p[:, 2] < high)


def _sector(low: float, high: float, centre: float, width: float) -> Region:
    """Part of a band: azimuth within width/2 of centre (radians)."""
    def region(p: np.ndarray) -> np.ndarray:
        turn = (np.arctan2(p[:, 1], p[:, 0]) - centre + np.pi) % (2 * np.pi) - np.pi
        return (p[:, 2] > low) & (p[:, 2] < high) & (np.abs(turn) < width / 2)
    return region


def _print_label(rng: np.random.Generator, texture: Texture, low: float, high: float) -> None:
    """A printed label around the object between two heights: ground, border lines, two fronts with a title and text."""
    ground = _pale(rng) if rng.uniform() < 0.5 else _colour(rng)
    ink, accent = _colour(rng, value=(0.05, 0.3)), _colour(rng)
    height = high - low
    texture.paint(_between(low, high), ground)
    texture.paint(_between(low, low + 0.06 * height), accent)
    texture.paint(_between(high - 0.06 * height, high), accent)
    start = rng.uniform(0, 2 * np.pi)
    for front in (start, start + np.pi):
        top = low + rng.uniform(0.62, 0.72) * height
        texture.paint(_sector(top, top + 0.18 * height, front, rng.uniform(0.9, 1.5)), accent)
        for line in range(rng.integers(2, 5)):
            base = low + (0.48 - 0.11 * line) * height
            texture.paint(_sector(base, base + 0.045 * height, front, rng.uniform(0.5, 1.2)), ink)


def _stamp_lid(rng: np.random.Generator, texture: Texture, radius: float, height: float) -> None:
    """A tin's lid: stamped rings, which look darker or brighter than the sheet, and sometimes a ring pull."""
    def ring(middle: float, width: float, offset: float = 0.0) -> Region:
        return lambda p: ((p[:, 2] > height - 1e-4)
                          & (np.abs(np.hypot(p[:, 0] - offset, p[:, 1]) - middle) < width / 2))

    for middle in rng.uniform(0.5, 0.95, rng.integers(1, 4)):
        texture.paint(ring(middle * radius, rng.uniform(0.05, 0.1) * radius), _metal(rng) * rng.uniform(0.5, 1.2))
    if rng.uniform() < 0.5:
        texture.paint(ring(0.2 * radius, 0.12 * radius, rng.uniform(0.1, 0.4) * radius), _metal(rng))


def _print_faces(rng: np.random.Generator, texture: Texture, size: np.ndarray) -> None:
    """A carton's print: per pair of opposite sides a panel, a title bar, a round emblem and lines of text."""
    half = np.asarray(size) / 2
    ink, panel, accent = _colour(rng, value=(0.05, 0.4)), _pale(rng), _colour(rng)

    def rectangle(axis: int, low: tuple[float, float], high: tuple[float, float]) -> Region:
        others = [a for a in range(3) if a != axis]
        return lambda p: ((np.abs(p[:, axis]) > half[axis] * 0.98)
                          & (p[:, others] / half[others] > low).all(axis=1)
                          & (p[:, others] / half[others] < high).all(axis=1))

    def disc(axis: int, centre: np.ndarray, radius: float) -> Region:
        others = [a for a in range(3) if a != axis]
        middle, reach = centre * half[others], radius * half[others].min()
        return lambda p: ((np.abs(p[:, axis]) > half[axis] * 0.98)
                          & (np.linalg.norm(p[:, others] - middle, axis=1) < reach))

    for axis in range(2):
        low, high = rng.uniform(-0.9, -0.3), rng.uniform(0.5, 0.9)
        texture.paint(rectangle(axis, (-0.85, low), (0.85, high)), panel)
        texture.paint(rectangle(axis, (-0.7, high - 0.35), (0.7, high - 0.1)), accent)
        centre = np.array([rng.uniform(-0.4, 0.4), rng.uniform(-0.1, 0.2)])
        texture.paint(disc(axis, centre, rng.uniform(0.25, 0.45)), _colour(rng))
        for line in range(3):
            base = low + 0.08 + 0.12 * line
            texture.paint(rectangle(axis, (-0.7, base), (rng.uniform(0.1, 0.7), base + 0.05)), ink)
    texture.paint(lambda p: np.abs(p[:, 2]) > half[2] * 0.98, texture.base * rng.uniform(0.7, 1.0))


def _bands(rng: np.random.Generator, texture: Texture, low: float, high: float) -> None:
    """One to three painted rings at random heights."""
    for _ in range(rng.integers(1, 4)):
        base = rng.uniform(low, high)
        texture.paint(_between(base, base + rng.uniform(0.03, 0.15) * (high - low)), _colour(rng))


# ------------------------------------------------------------------------------------------------------ builders

Built = tuple[trimesh.Trimesh, Texture]


def _build_box(rng: np.random.Generator) -> Built:
    """Cereal, cracker, sugar, pudding and tea cartons."""
    width, slimness, height = rng.uniform(0.05, 0.20), rng.uniform(0.25, 0.8), rng.uniform(0.03, 0.27)
    size = np.array([width * slimness, width, height])
    texture = Texture(_colour(rng))
    _print_faces(rng, texture, size)
    return _box(size), texture


def _build_rounded_box(rng: np.random.Generator) -> Built:
    """Sponge, soap, tin, lunch box, toy brick."""
    size = np.sort(rng.uniform(0.03, 0.16, 3))[[1, 2, 0]]
    texture = Texture(_colour(rng), mottle=rng.uniform(0, 0.06))
    if rng.uniform() < 0.5:
        edge = rng.uniform(0.0, 0.3) * size[2]
        texture.paint(_above(edge), _colour(rng))
    return _box(size, rng.uniform(0.06, 0.4) * size.min()), texture


def _build_can(rng: np.random.Generator) -> Built:
    """Drink, soup, tuna and coffee cans: straight or necked, with a raised rim."""
    radius, height = rng.uniform(0.025, 0.055), rng.uniform(0.035, 0.17)
    neck, rim = radius * rng.uniform(0.86, 1.0), rng.uniform(0.001, 0.003)
    slope = (radius - neck) * 1.2 + 0.003
    profile = [(0, rim), (neck - 0.004, rim), (neck - 0.003, 0), (neck, 0), (radius, slope), (radius, height - slope),
               (neck, height), (neck - 0.003, height), (neck - 0.004, height - rim), (0, height - rim)]
    texture = Texture(_metal(rng))
    _print_label(rng, texture, slope, height - slope)
    _stamp_lid(rng, texture, neck, height - rim)
    return _loft(profile), texture


def _build_cylinder(rng: np.random.Generator) -> Built:
    """Candle, cosmetics jar, tube of chips, roll of tape: a plain cylinder with chamfered edges."""
    radius, height = rng.uniform(0.015, 0.06), rng.uniform(0.03, 0.25)
    chamfer = radius * rng.uniform(0.02, 0.2)
    profile = [(0, 0), (radius - chamfer, 0), (radius, chamfer), (radius, height - chamfer), (radius - chamfer, height),
               (0, height)]
    texture = Texture(_colour(rng))
    _bands(rng, texture, chamfer, height - chamfer)
    return _loft(profile), texture


def _bottle_profile(rng: np.random.Generator, radius: float, height: float) -> tuple[np.ndarray, float, float]:
    """Profile of a bottle without cap, top of its straight body, and radius of its neck."""
    neck = rng.uniform(0.010, 0.4 * radius + 0.004)
    shoulder = rng.uniform(0.45, 0.75) * height
    neck_base = shoulder + rng.uniform(0.4, 0.9) * (height - shoulder)
    waist = rng.uniform(0.85, 1.0) if rng.uniform() < 0.4 else 1.0
    blend = np.linspace(0, 1, 8)
    curve = np.column_stack([neck + (radius - neck) * (1 + np.cos(np.pi * blend ** rng.uniform(0.7, 1.4))) / 2,
                             shoulder + (neck_base - shoulder) * blend])
    body = [(0, 0), (0.88 * radius, 0), (radius, 0.06 * radius + 0.003), (waist * radius, 0.5 * shoulder)]
    return np.concatenate([body, curve, [(neck, height)]]), shoulder, neck


def _build_bottle(rng: np.random.Generator) -> Built:
    """Water, shampoo, detergent, mustard and bleach bottles with a cap; round, oval or squarish."""
    radius, height = rng.uniform(0.025, 0.05), rng.uniform(0.10, 0.25)
    profile, shoulder, neck = _bottle_profile(rng, radius, height)
    cap, cap_height = neck * rng.uniform(1.05, 1.4), rng.uniform(0.012, 0.035)
    top = height + 0.25 * cap_height
    cap_base = max(profile[-2, 1] + 0.001, top - cap_height)
    profile = np.concatenate([profile[:-1], [(neck, cap_base), (cap, cap_base + 0.001), (cap, top - 0.002),
                                             (cap - 0.002, top), (0, top)]])
    round_bottle = rng.uniform() < 0.5
    outline = None if round_bottle else _outline(40, rng.uniform(2, 4), rng.uniform(0.5, 1))
    texture = Texture(_colour(rng, value=(0.5, 0.95)))
    texture.paint(_above(cap_base), _colour(rng))
    _print_label(rng, texture, rng.uniform(0.08, 0.25) * shoulder, rng.uniform(0.7, 0.95) * shoulder)
    return _loft(profile, outline), texture


def _build_jar(rng: np.random.Generator) -> Built:
    """Jam, peanut-butter and spice jars: wide body, wide lid."""
    radius, height = rng.uniform(0.02, 0.05), rng.uniform(0.05, 0.15)
    lid, lid_height = radius * rng.uniform(0.8, 1.04), rng.uniform(0.01, 0.025)
    shoulder = height - lid_height - 0.012
    profile = [(0, 0), (0.9 * radius, 0), (radius, 0.1 * radius), (radius, shoulder),
               (0.78 * radius, height - lid_height), (lid, height - lid_height), (lid, height - 0.001),
               (lid - 0.001, height), (0, height)]
    texture = Texture(_colour(rng, value=(0.25, 0.8)))
    texture.paint(_above(height - lid_height - 1e-4), _colour(rng))
    _print_label(rng, texture, 0.15 * shoulder, 0.85 * shoulder)
    return _loft(profile), texture


def _build_spray_bottle(rng: np.random.Generator) -> Built:
    """Window cleaner: bottle, head with nozzle, trigger."""
    radius, height = rng.uniform(0.03, 0.045), rng.uniform(0.14, 0.20)
    profile, shoulder, neck = _bottle_profile(rng, radius, height)
    bottle = _loft(np.concatenate([profile, [(0, height)]]), _outline(32, 2, rng.uniform(0.6, 1)), pieces=24)
    length, thickness = rng.uniform(0.06, 0.09), max(1.7 * neck, 0.02)
    head = _placed(_box([length, thickness, rng.uniform(0.025, 0.035)], 0.006, cells=8),
                   (0.2 * length, 0, height + 0.008))
    nozzle = _placed(_loft([(0, 0), (0.009, 0), (0.007, 0.02), (0, 0.02)], _outline(16), 4),
                     (0.65 * length, 0, height + 0.012), (0, 1, 0), np.pi / 2)
    reach = rng.uniform(0.3, 0.5) * length
    path = np.array([[reach, 0, height + 0.005], [reach + 0.008, 0, height - 0.02], [reach, 0, height - 0.045]])
    trigger = _sweep(path, 0.006, _outline(12, 4, 1.4))
    texture = Texture(_colour(rng, value=(0.6, 0.95)))
    texture.paint(_above(height - 0.012), _pale(rng))
    texture.paint(lambda p: (p[:, 2] > height - 0.06) & (p[:, 0] > 0.7 * reach), _colour(rng))
    _print_label(rng, texture, 0.15 * shoulder, 0.85 * shoulder)
    return _union(bottle, head, nozzle, trigger), texture


@dataclass(frozen=True)
class _Cup:
    """A hollow body of revolution, open above; outer radii below and above, height, wall and bulge, metres."""

    bottom: float
    top: float
    height: float
    wall: float
    bulge: float = 0.0

    def radius(self, z: np.ndarray) -> np.ndarray:
        """Outer radius at height z."""
        t = z / self.height
        return self.bottom + (self.top - self.bottom) * t + self.bulge * np.sin(np.pi * t)

    def profile(self) -> np.ndarray:
        """Outer wall up, rim, inner wall down; for _loft."""
        z = np.linspace(0, self.height, 9)[1:-1]
        inner_z = np.linspace(self.height, 1.2 * self.wall, 8)
        inner = np.column_stack([self.radius(inner_z) - self.wall, inner_z])
        inner[0, 1] -= 0.3 * self.wall
        rim = [(self.top, self.height - 0.3 * self.wall), (self.top - 0.3 * self.wall, self.height),
               (self.top - 0.7 * self.wall, self.height)]
        return np.concatenate([[(0, 0), (self.bottom - 0.15 * self.wall, 0)], np.column_stack([self.radius(z), z]), rim,
                               inner, [(0, 1.2 * self.wall)]])

    def inside(self) -> Region:
        """The inner surface."""
        return lambda p: ((np.hypot(p[:, 0], p[:, 1]) < self.radius(p[:, 2]) - 0.6 * self.wall)
                          & (p[:, 2] > self.wall))

    def handle(self, rng: np.random.Generator, low: float, high: float, reach: float, radius: float) -> trimesh.Trimesh:
        """Bow in the xz plane between two heights, standing out by `reach`; its ends lie within the wall."""
        bow = _arc(-np.pi / 2, np.pi / 2, 17)
        squared = np.sign(bow) * np.abs(bow) ** rng.uniform(0.5, 1.0)
        t = (squared[:, 1] + 1) / 2
        ends = self.radius(np.array([low, high])) - 0.55 * self.wall
        path = np.column_stack([ends[0] + (ends[1] - ends[0]) * t + reach * squared[:, 0], np.zeros(17),
                                low + (high - low) * t])
        return _sweep(path, radius, _outline(12, 2, rng.uniform(1, 1.6)))


def _build_mug(rng: np.random.Generator) -> Built:
    """Hollow mug with a swept handle."""
    top, height, wall = rng.uniform(0.034, 0.048), rng.uniform(0.07, 0.115), rng.uniform(0.0035, 0.006)
    bottom = top * rng.uniform(0.8, 1.0)
    cup = _Cup(bottom, top, height, wall, rng.uniform(-0.002, 0.006))
    handle = cup.handle(rng, rng.uniform(0.15, 0.3) * height, rng.uniform(0.7, 0.85) * height,
                        rng.uniform(0.022, 0.036), rng.uniform(0.004, 0.006))
    texture = Texture(_colour(rng))
    if rng.uniform() < 0.6:
        _bands(rng, texture, 0.1 * height, 0.9 * height)
    texture.paint(cup.inside(), _pale(rng))
    return _union(_loft(cup.profile()), handle), texture


def _build_bowl(rng: np.random.Generator) -> Built:
    """Hollow bowl on a foot ring."""
    radius, wall = rng.uniform(0.05, 0.095), rng.uniform(0.003, 0.007)
    height, foot = radius * rng.uniform(0.55, 0.95), radius * rng.uniform(0.35, 0.55)
    start = np.arccos(foot / radius)
    arc = _arc(-start, 0, 12)
    outer = np.column_stack([radius * arc[:, 0], height * (1 + arc[:, 1] / np.sin(start))])
    inner = outer[::-1] * [(radius - wall) / radius, (height - 1.5 * wall) / height] + [0, 1.5 * wall]
    profile = np.concatenate([[(0, 0)], outer, [(radius - wall / 2, height + wall / 3)], inner, [(0, 1.5 * wall)]])
    texture = Texture(_colour(rng))
    _bands(rng, texture, 0.3 * height, height)
    inside = _pale(rng)
    texture.paint(lambda p: (np.hypot(p[:, 0], p[:, 1])
                             < np.interp(p[:, 2], outer[:, 1], outer[:, 0]) - 0.5 * wall), inside)
    texture.paint(lambda p: p[:, 2] < 1e-4, texture.base)
    return _loft(profile, _outline(36), 36), texture


def _build_cup(rng: np.random.Generator) -> Built:
    """Hollow tapered tumbler or paper cup."""
    top, height, wall = rng.uniform(0.03, 0.046), rng.uniform(0.06, 0.15), rng.uniform(0.003, 0.005)
    cup = _Cup(top * rng.uniform(0.6, 0.95), top, height, wall)
    texture = Texture(_colour(rng))
    _bands(rng, texture, 0, height)
    texture.paint(cup.inside(), _pale(rng))
    return _loft(cup.profile()), texture


def _build_plate(rng: np.random.Generator) -> Built:
    """Dinner plate or saucer with a raised rim."""
    radius, wall = rng.uniform(0.07, 0.135), rng.uniform(0.004, 0.006)
    flat, rise = radius * rng.uniform(0.55, 0.75), rng.uniform(0.012, 0.028)
    profile = [(0, 0), (flat, 0), (flat + 0.4 * (radius - flat), 0.45 * rise), (radius, rise), (radius, rise + wall),
               (flat + 0.4 * (radius - flat), 0.45 * rise + wall), (flat, wall), (0, wall)]
    texture = Texture(_pale(rng))
    ring = rng.uniform(0.75, 0.95)
    texture.paint(lambda p: np.abs(np.hypot(p[:, 0], p[:, 1]) / radius - ring) < 0.03, _colour(rng))
    return _loft(profile), texture


def _build_ball(rng: np.random.Generator) -> Built:
    """Tennis, golf, toy ball: a sphere with seams."""
    radius = rng.uniform(0.02, 0.06)
    texture = Texture(_colour(rng))
    axis, second = np.linalg.qr(rng.normal(size=(3, 3)))[0][:2]
    colour = _pale(rng)
    texture.paint(lambda p: np.abs((p - [0, 0, radius]) @ axis) < 0.10 * radius, colour)
    texture.paint(lambda p: (p - [0, 0, radius]) @ second > 0.75 * radius, colour)
    return _loft(_ball_profile(radius, 2 * radius, 31)), texture


def _build_ellipsoid(rng: np.random.Generator) -> Built:
    """Egg, lemon, potato, stone, bar of soap."""
    length = rng.uniform(0.05, 0.13)
    mesh = _loft(_ball_profile(length / 2, length * rng.uniform(0.4, 0.9), 29), _outline(40, 2, rng.uniform(0.5, 1)))
    return _bumpy(rng, mesh, rng.uniform(0, 0.03)), Texture(_colour(rng, hue=(0.0, 0.3)), mottle=rng.uniform(0.05, 0.2))


def _build_apple(rng: np.random.Generator) -> Built:
    """Apple, orange, tomato, peach: a ball with dimples at both poles and perhaps a stem."""
    radius, dimple, top = rng.uniform(0.03, 0.045), rng.uniform(0.1, 0.35), rng.uniform(0.02, 0.12)
    angle = np.linspace(-np.pi / 2, np.pi / 2, 29)
    lobe = radius * (1 - dimple * np.abs(np.sin(angle)) ** 6)
    profile = np.column_stack([lobe * np.cos(angle) * (1 + top * np.sin(angle)), lobe * np.sin(angle)])
    profile[[0, -1], 0] = 0
    mesh = _bumpy(rng, _loft(profile), 0.015)
    pole = profile[-1, 1]
    texture = Texture(_ripe(rng), mottle=rng.uniform(0.05, 0.15))
    if rng.uniform() < 0.6:
        lean = rng.uniform(-0.006, 0.006)
        path = np.array([[0, 0, pole - 0.008], [lean / 2, 0, pole + 0.005], [lean, 0, pole + 0.016]])
        stem = _sweep(path, 0.002, _outline(8))
        texture.paint(lambda p: (np.hypot(p[:, 0], p[:, 1]) < 0.009) & (p[:, 2] > pole + 0.003),
                      np.array([0.35, 0.24, 0.12]))
        mesh = _union(mesh, stem)
    return mesh, texture


def _build_pear(rng: np.random.Generator) -> Built:
    """Pear, avocado, aubergine: a thick lower and a thin upper lobe."""
    height, radius, neck = rng.uniform(0.08, 0.13), rng.uniform(0.028, 0.042), rng.uniform(0.35, 0.6)
    t = np.linspace(0, np.pi, 30)
    taper = 1 - (1 - neck) * (1 - np.cos(t)) / 2
    profile = np.column_stack([radius * np.sin(t) ** 0.75 * taper * 1.15, height * (1 - np.cos(t)) / 2])
    profile[[0, -1], 0] = 0
    texture = Texture(_ripe(rng), mottle=0.12)
    return _bumpy(rng, _loft(profile), 0.02), texture


def _build_banana(rng: np.random.Generator) -> Built:
    """Banana, cucumber, sausage: a bent tube with tapering ends, lying."""
    length, bend, radius = rng.uniform(0.12, 0.20), rng.uniform(0.2, 1.6), rng.uniform(0.015, 0.02)
    t = np.linspace(-1, 1, 33)
    path = np.column_stack([np.sin(t * bend / 2), np.cos(t * bend / 2), np.zeros(33)]) * (length / bend)
    radii = radius * np.clip(1 - np.abs(t) ** rng.uniform(3, 7), 0.02, None) ** 0.6 + 0.004 * (np.abs(t) < 0.999)
    facets = _outline(20) * (1 + 0.05 * np.cos(5 * np.linspace(0, 2 * np.pi, 20, endpoint=False)))[:, None]
    texture = Texture(_colour(rng, (0.65, 0.85), (0.75, 0.95), (0.11, 0.2)), mottle=0.08)
    for end in (path[0], path[-1]):
        texture.paint(lambda p, end=end: np.linalg.norm(p - end, axis=1) < 0.012, np.array([0.3, 0.25, 0.15]))
    return _sweep(path, radii, facets), texture


def _lying(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Turned from standing along +Z to lying along +X."""
    return _placed(mesh, axis=(0, 1, 0), angle=np.pi / 2)


def _build_screwdriver(rng: np.random.Generator) -> Built:
    """Screwdriver, chisel, brush: a ribbed grip and a shaft, lying along +X."""
    grip, shaft = rng.uniform(0.07, 0.11), rng.uniform(0.06, 0.14)
    radius, rod = rng.uniform(0.011, 0.017), rng.uniform(0.003, 0.005)
    waist = rng.uniform(0.6, 0.85)
    profile = [(0, 0), (0.7 * radius, 0), (radius, 0.1 * grip), (radius, 0.6 * grip), (waist * radius, 0.8 * grip),
               (radius * 0.95, 0.95 * grip), (0.6 * radius, grip), (rod, grip), (rod, grip + 0.9 * shaft),
               (0.5 * rod, grip + shaft), (0, grip + shaft)]
    texture = Texture(_colour(rng))
    texture.paint(lambda p: (p[:, 0] > 0.15 * grip) & (p[:, 0] < 0.35 * grip), _colour(rng))
    texture.paint(lambda p: p[:, 0] > grip + 1e-4, _metal(rng))
    return _lying(_loft(profile, _outline(30, 2 + rng.uniform(0, 1)))), texture


def _build_pen(rng: np.random.Generator) -> Built:
    """Marker, glue stick, lipstick, torch: a thin stepped cylinder, lying along +X."""
    length, radius = rng.uniform(0.08, 0.17), rng.uniform(0.007, 0.014)
    cap, step = rng.uniform(0.25, 0.5) * length, rng.uniform(0.8, 0.95) * radius
    profile = [(0, 0), (0.85 * step, 0), (step, 0.002), (step, length - cap), (radius, length - cap + 0.001),
               (radius, length - 0.004), (0.7 * radius, length), (0, length)]
    texture = Texture(_pale(rng))
    texture.paint(lambda p: p[:, 0] > length - cap, _colour(rng))
    texture.paint(lambda p: p[:, 0] < 0.1 * length, _colour(rng))
    return _lying(_loft(profile, _outline(24))), texture


def _build_hammer(rng: np.random.Generator) -> Built:
    """Hammer or mallet, lying flat: handle along +X, head along Y."""
    length, grip = rng.uniform(0.18, 0.27), rng.uniform(0.011, 0.016)
    width, radius = rng.uniform(0.07, 0.12), rng.uniform(0.012, 0.022)
    profile = [(0, 0), (0.8 * grip, 0), (grip, 0.01), (grip, 0.4 * length), (0.75 * grip, 0.55 * length),
               (0.75 * grip, length), (0, length)]
    handle = _lying(_loft(profile, _outline(20, 2, rng.uniform(0.7, 1)), 22))
    head_profile = [(0, 0), (radius, 0), (radius, 0.25 * width), (0.75 * radius, 0.35 * width),
                    (rng.uniform(0.75, 1.0) * radius, 0.6 * width), (rng.uniform(0.3, 0.9) * radius, width), (0, width)]
    head = _placed(_loft(head_profile, _outline(24, rng.uniform(2, 5)), 14),
                   (length - 0.6 * radius, -0.45 * width, 0), (1, 0, 0), -np.pi / 2)
    texture = Texture(_wood(rng) if rng.uniform() < 0.5 else _colour(rng), mottle=0.05)
    texture.paint(lambda p: p[:, 0] < 0.4 * length, _colour(rng))
    texture.paint(lambda p: p[:, 0] > length - 1.7 * radius, _metal(rng))
    return _union(handle, head), texture


def _build_clamp(rng: np.random.Generator) -> Built:
    """C-clamp lying flat: frame, threaded spindle and tommy bar."""
    reach, gap = rng.uniform(0.05, 0.09), rng.uniform(0.05, 0.10)
    bar, depth = rng.uniform(0.014, 0.02), rng.uniform(0.012, 0.02)
    width = 2 * bar + gap
    frame = _extrude([(0, 0), (reach, 0), (reach, bar), (bar, bar), (bar, bar + gap), (reach, bar + gap),
                      (reach, width), (0, width)], depth, 0.003, edge=0.014)
    screw, low, end = reach - 0.6 * bar, bar + rng.uniform(0.2, 0.6) * gap, width + rng.uniform(0.02, 0.05)
    profile = [(0, low), (0.009, low), (0.009, low + 0.006), (0.005, low + 0.006), (0.005, end), (0, end)]
    # standing along +Z, turned to lie along +Y
    spindle = _placed(_loft(profile, _outline(16), 14), (screw, 0, 0), (1, 0, 0), -np.pi / 2)
    middle = np.array([screw, end - 0.006, 0])
    tommy = _sweep(np.linspace(middle - [0.025, 0, 0], middle + [0.025, 0, 0], 4), 0.0035, _outline(12))
    texture = Texture(_colour(rng))
    metal = _metal(rng)
    texture.paint(lambda p: p[:, 1] > width + 1e-4, metal)
    texture.paint(lambda p: (p[:, 1] > bar + 1e-4) & (p[:, 1] < bar + gap) & (p[:, 0] > screw - 0.012), metal)
    return _union(frame, spindle, tommy), texture


def _build_drill(rng: np.random.Generator) -> Built:
    """Cordless drill or hair dryer standing on its base: barrel along +X, slanted grip, battery."""
    length, radius = rng.uniform(0.13, 0.19), rng.uniform(0.022, 0.032)
    drop, slant = rng.uniform(0.09, 0.13), rng.uniform(0.0, 0.25)
    profile = [(0, 0), (0.7 * radius, 0), (radius, 0.12 * length), (radius, 0.65 * length),
               (0.6 * radius, 0.72 * length), (0.5 * radius, 0.95 * length), (0.3 * radius, length), (0, length)]
    barrel = _lying(_loft(profile, _outline(28), 20))
    barrel.apply_translation((0, 0, drop))
    path = np.linspace([0.3 * length, 0, drop], [0.3 * length - slant * drop, 0, 0], 8)
    grip = _sweep(path, rng.uniform(0.013, 0.018), _outline(20, 3, 1.35))
    base = _placed(_box([rng.uniform(0.06, 0.09), rng.uniform(0.04, 0.06), rng.uniform(0.02, 0.035)], 0.005, cells=9),
                   (0.3 * length - slant * drop + 0.008, 0, 0))
    dark = _colour(rng, (0, 0.2), (0.1, 0.25))
    texture = Texture(_colour(rng))
    texture.paint(lambda p: p[:, 2] < 0.02, dark)
    texture.paint(lambda p: p[:, 0] > 0.69 * length, dark)
    texture.paint(_between(0.03, 0.5 * drop), dark)
    return _union(barrel, grip, base), texture


def _build_skillet(rng: np.random.Generator) -> Built:
    """Small pan: shallow hollow pan and a long handle."""
    radius, height, wall = rng.uniform(0.05, 0.08), rng.uniform(0.025, 0.05), rng.uniform(0.003, 0.005)
    pan = _loft(_Cup(0.8 * radius, radius, height, wall).profile(), _outline(36), 28)
    length, rise = rng.uniform(0.09, 0.13), rng.uniform(0, 0.02)
    # The handle starts inside the wall: half a wall behind the outer surface at its height.
    start = 0.96 * radius - 0.55 * wall
    t = np.linspace(0, 1, 10)
    path = np.column_stack([start + length * t, np.zeros(10), 0.8 * height + rise * t ** 2])
    handle = _sweep(path, (0.7 + 0.3 * t) * rng.uniform(0.007, 0.009), _outline(14, 3, 0.8))
    texture = Texture(_colour(rng, (0, 0.4), (0.1, 0.5)))
    texture.paint(lambda p: p[:, 0] > radius + 0.02, _colour(rng, value=(0.1, 0.8)))
    return _union(pan, handle), texture


def _build_pitcher(rng: np.random.Generator) -> Built:
    """Jug or measuring cup: hollow body and a large handle."""
    top, height, wall = rng.uniform(0.045, 0.06), rng.uniform(0.12, 0.20), rng.uniform(0.0035, 0.005)
    bottom = top * rng.uniform(0.8, 1.05)
    jug = _Cup(bottom, top, height, wall, rng.uniform(0, 0.008))
    handle = jug.handle(rng, 0.25 * height, 0.85 * height, rng.uniform(0.035, 0.05), rng.uniform(0.005, 0.007))
    texture = Texture(_colour(rng, value=(0.5, 0.95)))
    texture.paint(_above(rng.uniform(0.9, 0.95) * height), _colour(rng))
    return _union(_loft(jug.profile(), _outline(36), 34), handle), texture


def _build_tub(rng: np.random.Generator) -> Built:
    """Yoghurt, margarine and food tubs: a squarish or round taper with a lid."""
    top, height = rng.uniform(0.035, 0.075), rng.uniform(0.04, 0.11)
    bottom, lid = top * rng.uniform(0.7, 0.9), rng.uniform(0.004, 0.01)
    profile = [(0, 0), (bottom - 0.002, 0), (bottom, 0.003), (0.96 * top, height - lid), (top, height - lid),
               (top, height), (0, height)]
    texture = Texture(_pale(rng))
    _print_label(rng, texture, 0.15 * height, height - lid - 0.004)
    texture.paint(_above(height - lid - 1e-4), _colour(rng))
    return _loft(profile, _outline(40, rng.uniform(2, 7), rng.uniform(0.6, 1))), texture


def _build_wedge(rng: np.random.Generator) -> Built:
    """Door stop, slice of cheese, toy roof: a prism over a triangle or trapezium."""
    length, height, depth = rng.uniform(0.06, 0.15), rng.uniform(0.03, 0.08), rng.uniform(0.03, 0.09)
    crest = rng.uniform(0.02, 0.5) * length
    outline = [(0, 0), (length, 0), (length, 0.15 * height), (crest, height), (0, height)]
    mesh = _placed(_extrude(outline, depth, rng.uniform(0, 0.003), edge=0.014), axis=(1, 0, 0), angle=np.pi / 2)
    texture = Texture(_colour(rng))
    texture.paint(_between(0.3 * height, 0.45 * height), _colour(rng))
    return mesh, texture


def _build_l_solid(rng: np.random.Generator) -> Built:
    """Bracket, bookend, phone stand: a thick L standing on its long leg."""
    length, height = rng.uniform(0.06, 0.15), rng.uniform(0.05, 0.15)
    bar, depth = rng.uniform(0.015, 0.35 * min(length, height)), rng.uniform(0.03, 0.08)
    outline = [(0, 0), (length, 0), (length, bar), (bar, bar), (bar, height), (0, height)]
    mesh = _placed(_extrude(outline, depth, 0.002, edge=0.014), axis=(1, 0, 0), angle=np.pi / 2)
    texture = Texture(_colour(rng))
    texture.paint(lambda p: p[:, 0] > 0.6 * length, _colour(rng))
    return mesh, texture


def _build_t_solid(rng: np.random.Generator) -> Built:
    """Pipe fitting, toy block: a thick T, upside down."""
    length, height = rng.uniform(0.07, 0.15), rng.uniform(0.06, 0.14)
    bar, depth = rng.uniform(0.015, 0.045), rng.uniform(0.03, 0.06)
    left = (length - bar) * rng.uniform(0.3, 0.5)
    outline = [(0, 0), (length, 0), (length, bar), (left + bar, bar), (left + bar, height), (left, height), (left, bar),
               (0, bar)]
    mesh = _placed(_extrude(outline, depth, 0.002, edge=0.014), axis=(1, 0, 0), angle=np.pi / 2)
    texture = Texture(_colour(rng))
    texture.paint(_above(bar + 0.4 * (height - bar)), _colour(rng))
    return mesh, texture


def _build_spoon(rng: np.random.Generator) -> Built:
    """Wooden spoon, ladle, spatula, hairbrush: a dished oval head and a handle, lying along +X."""
    length, radius = rng.uniform(0.12, 0.2), rng.uniform(0.0045, 0.008)
    head, thickness = rng.uniform(0.022, 0.036), rng.uniform(0.012, 0.022)
    oval = _outline(32, 2, rng.uniform(0.6, 0.9))
    bowl = _solid(_loft(_ball_profile(head, thickness, 17), oval))
    dent = _solid(_loft(_ball_profile(0.9 * head, 1.2 * thickness, 15), oval))
    dent = dent.translate((0, 0, rng.uniform(0.4, 0.6) * thickness))
    t = np.linspace(0, 1, 14)
    path = np.column_stack([0.93 * head + t * length, np.zeros(14), thickness * (0.25 + 0.5 * t)])
    handle = _sweep(path, radius * (0.75 + 0.25 * t), _outline(14))
    texture = Texture(_wood(rng) if rng.uniform() < 0.6 else _colour(rng), mottle=0.08)
    texture.paint(lambda p: p[:, 0] > head + 0.8 * length, _colour(rng))
    # The dent also cuts what the handle would leave inside the bowl.
    return _mesh((bowl + _solid(handle)) - dent), texture


def _build_ring(rng: np.random.Generator) -> Built:
    """Toy ring, roll of tape, bagel: a torus, round or square in section, lying flat."""
    tube = rng.uniform(0.007, 0.018)
    radius = tube * rng.uniform(1.6, 3.5)
    ring = manifold3d.CrossSection([_outline(24, rng.uniform(2, 6), rng.uniform(0.7, 1.6)) * tube + [radius, 0]])
    texture = Texture(_colour(rng))
    texture.paint(_sector(-1, 1, rng.uniform(0, 6), rng.uniform(0.5, 3)), _colour(rng))
    return _mesh(manifold3d.Manifold.revolve(ring, 48)), texture


_BUILDERS: dict[str, Callable[[np.random.Generator], Built]] = {
    "box": _build_box, "rounded_box": _build_rounded_box, "can": _build_can, "cylinder": _build_cylinder,
    "bottle": _build_bottle, "jar": _build_jar, "spray_bottle": _build_spray_bottle, "mug": _build_mug,
    "bowl": _build_bowl, "cup": _build_cup, "plate": _build_plate, "ball": _build_ball,
    "ellipsoid": _build_ellipsoid, "apple": _build_apple, "pear": _build_pear, "banana": _build_banana,
    "screwdriver": _build_screwdriver, "pen": _build_pen, "hammer": _build_hammer, "clamp": _build_clamp,
    "drill": _build_drill, "skillet": _build_skillet, "pitcher": _build_pitcher, "tub": _build_tub,
    "wedge": _build_wedge, "l_solid": _build_l_solid, "t_solid": _build_t_solid, "spoon": _build_spoon,
    "ring": _build_ring,
}
KINDS = tuple(_BUILDERS)
