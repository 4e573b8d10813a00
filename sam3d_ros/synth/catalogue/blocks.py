"""Plain solids, as toys, soaps, brackets and fittings are."""
from __future__ import annotations

import manifold3d
import numpy as np

from ..solids import ball_profile, extrude, loft, mesh_of, placed, rounded_box, superellipse
from ..textures import Texture, above, between, paint_bands, pale_colour, random_colour, sector
from . import Built


def build_rounded_box(rng: np.random.Generator) -> Built:
    """Sponge, soap, tin, lunch box, toy brick."""
    size = np.sort(rng.uniform(0.03, 0.16, 3))[[1, 2, 0]]
    texture = Texture(random_colour(rng), mottle=rng.uniform(0, 0.06))
    if rng.uniform() < 0.5:
        edge = rng.uniform(0.0, 0.3) * size[2]
        texture.paint(above(edge), random_colour(rng))
    return rounded_box(size, rng.uniform(0.06, 0.4) * size.min()), texture


def build_cylinder(rng: np.random.Generator) -> Built:
    """Candle, cosmetics jar, tube of chips, roll of tape: a plain cylinder with chamfered edges."""
    radius, height = rng.uniform(0.015, 0.06), rng.uniform(0.03, 0.25)
    chamfer = radius * rng.uniform(0.02, 0.2)
    profile = [(0, 0), (radius - chamfer, 0), (radius, chamfer), (radius, height - chamfer), (radius - chamfer, height),
               (0, height)]
    texture = Texture(random_colour(rng))
    paint_bands(rng, texture, chamfer, height - chamfer)
    return loft(profile), texture


def build_ball(rng: np.random.Generator) -> Built:
    """Tennis, golf, toy ball: a sphere with seams."""
    radius = rng.uniform(0.02, 0.06)
    texture = Texture(random_colour(rng))
    axis, second = np.linalg.qr(rng.normal(size=(3, 3)))[0][:2]
    colour = pale_colour(rng)
    texture.paint(lambda p: np.abs((p - [0, 0, radius]) @ axis) < 0.10 * radius, colour)
    texture.paint(lambda p: (p - [0, 0, radius]) @ second > 0.75 * radius, colour)
    return loft(ball_profile(radius, 2 * radius, 31)), texture


def build_wedge(rng: np.random.Generator) -> Built:
    """Door stop, slice of cheese, toy roof: a prism over a triangle or trapezium."""
    length, height, depth = rng.uniform(0.06, 0.15), rng.uniform(0.03, 0.08), rng.uniform(0.03, 0.09)
    crest = rng.uniform(0.02, 0.5) * length
    outline = [(0, 0), (length, 0), (length, 0.15 * height), (crest, height), (0, height)]
    mesh = placed(extrude(outline, depth, rng.uniform(0, 0.003), edge=0.014), axis=(1, 0, 0), angle=np.pi / 2)
    texture = Texture(random_colour(rng))
    texture.paint(between(0.3 * height, 0.45 * height), random_colour(rng))
    return mesh, texture


def build_l_solid(rng: np.random.Generator) -> Built:
    """Bracket, bookend, phone stand: a thick L standing on its long leg."""
    length, height = rng.uniform(0.06, 0.15), rng.uniform(0.05, 0.15)
    bar, depth = rng.uniform(0.015, 0.35 * min(length, height)), rng.uniform(0.03, 0.08)
    outline = [(0, 0), (length, 0), (length, bar), (bar, bar), (bar, height), (0, height)]
    mesh = placed(extrude(outline, depth, 0.002, edge=0.014), axis=(1, 0, 0), angle=np.pi / 2)
    texture = Texture(random_colour(rng))
    texture.paint(lambda p: p[:, 0] > 0.6 * length, random_colour(rng))
    return mesh, texture


def build_t_solid(rng: np.random.Generator) -> Built:
    """Pipe fitting, toy block: a thick T, upside down."""
    length, height = rng.uniform(0.07, 0.15), rng.uniform(0.06, 0.14)
    bar, depth = rng.uniform(0.015, 0.045), rng.uniform(0.03, 0.06)
    left = (length - bar) * rng.uniform(0.3, 0.5)
    outline = [(0, 0), (length, 0), (length, bar), (left + bar, bar), (left + bar, height), (left, height), (left, bar),
               (0, bar)]
    mesh = placed(extrude(outline, depth, 0.002, edge=0.014), axis=(1, 0, 0), angle=np.pi / 2)
    texture = Texture(random_colour(rng))
    texture.paint(above(bar + 0.4 * (height - bar)), random_colour(rng))
    return mesh, texture


def build_ring(rng: np.random.Generator) -> Built:
    """Toy ring, roll of tape, bagel: a torus, round or square in section, lying flat."""
    tube = rng.uniform(0.007, 0.018)
    radius = tube * rng.uniform(1.6, 3.5)
    ring = manifold3d.CrossSection([superellipse(24, rng.uniform(2, 6), rng.uniform(0.7, 1.6)) * tube + [radius, 0]])
    texture = Texture(random_colour(rng))
    texture.paint(sector(-1, 1, rng.uniform(0, 6), rng.uniform(0.5, 3)), random_colour(rng))
    return mesh_of(manifold3d.Manifold.revolve(ring, 48)), texture
