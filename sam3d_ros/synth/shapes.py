"""Random household objects: closed triangle meshes with procedural textures."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import trimesh

from .catalogue import Built, blocks, dishes, food, packaging, tools
from .solids import mesh_of, solid_of
from .textures import Texture

MAX_FACES = 3000
MIN_EXTENT, MAX_EXTENT = 0.03, 0.30     # metres, of the largest side of the bounding box

# The order decides which kind a seed gives.
_BUILDERS: dict[str, Callable[[np.random.Generator], Built]] = {
    "box": packaging.build_box, "rounded_box": blocks.build_rounded_box, "can": packaging.build_can,
    "cylinder": blocks.build_cylinder, "bottle": packaging.build_bottle, "jar": packaging.build_jar,
    "spray_bottle": packaging.build_spray_bottle, "mug": dishes.build_mug, "bowl": dishes.build_bowl,
    "cup": dishes.build_cup, "plate": dishes.build_plate, "ball": blocks.build_ball,
    "ellipsoid": food.build_ellipsoid, "apple": food.build_apple, "pear": food.build_pear, "banana": food.build_banana,
    "screwdriver": tools.build_screwdriver, "pen": tools.build_pen, "hammer": tools.build_hammer,
    "clamp": tools.build_clamp, "drill": tools.build_drill, "skillet": dishes.build_skillet,
    "pitcher": dishes.build_pitcher, "tub": packaging.build_tub, "wedge": blocks.build_wedge,
    "l_solid": blocks.build_l_solid, "t_solid": blocks.build_t_solid, "spoon": dishes.build_spoon,
    "ring": blocks.build_ring,
}
KINDS = tuple(_BUILDERS)


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
        mesh = mesh_of(solid_of(self.mesh).refine_to_length(edge))
        return mesh, self.texture(mesh.vertices)


def random_shape(rng: np.random.Generator, kind: str | None = None) -> Shape:
    """Draw an object of a random (or the given) kind; the same generator state gives the same object."""
    kind = kind or KINDS[rng.integers(len(KINDS))]
    mesh, texture = _BUILDERS[kind](rng)
    centre = mesh.bounds.mean(axis=0)
    mesh.apply_translation(-centre)
    texture.origin = -centre
    return Shape(kind, mesh, texture(mesh.vertices), texture)
