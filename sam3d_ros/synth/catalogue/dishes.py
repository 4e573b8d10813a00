"""Dishes and what goes with them: mugs, bowls, cups, plates, pans, jugs, spoons."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh

from ..solids import ball_profile, loft, mesh_of, solid_of, superellipse, sweep, union, unit_arc
from ..textures import Region, Texture, above, paint_bands, pale_colour, random_colour, wood_colour
from . import Built


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
        """Outer wall up, rim, inner wall down; for loft."""
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
        bow = unit_arc(-np.pi / 2, np.pi / 2, 17)
        squared = np.sign(bow) * np.abs(bow) ** rng.uniform(0.5, 1.0)
        t = (squared[:, 1] + 1) / 2
        ends = self.radius(np.array([low, high])) - 0.55 * self.wall
        path = np.column_stack([ends[0] + (ends[1] - ends[0]) * t + reach * squared[:, 0], np.zeros(17),
                                low + (high - low) * t])
        return sweep(path, radius, superellipse(12, 2, rng.uniform(1, 1.6)))


def build_mug(rng: np.random.Generator) -> Built:
    """Hollow mug with a swept handle."""
    top, height, wall = rng.uniform(0.034, 0.048), rng.uniform(0.07, 0.115), rng.uniform(0.0035, 0.006)
    bottom = top * rng.uniform(0.8, 1.0)
    cup = _Cup(bottom, top, height, wall, rng.uniform(-0.002, 0.006))
    handle = cup.handle(rng, rng.uniform(0.15, 0.3) * height, rng.uniform(0.7, 0.85) * height,
                        rng.uniform(0.022, 0.036), rng.uniform(0.004, 0.006))
    texture = Texture(random_colour(rng))
    if rng.uniform() < 0.6:
        paint_bands(rng, texture, 0.1 * height, 0.9 * height)
    texture.paint(cup.inside(), pale_colour(rng))
    return union(loft(cup.profile()), handle), texture


def build_bowl(rng: np.random.Generator) -> Built:
    """Hollow bowl on a foot ring."""
    radius, wall = rng.uniform(0.05, 0.095), rng.uniform(0.003, 0.007)
    height, foot = radius * rng.uniform(0.55, 0.95), radius * rng.uniform(0.35, 0.55)
    start = np.arccos(foot / radius)
    arc = unit_arc(-start, 0, 12)
    outer = np.column_stack([radius * arc[:, 0], height * (1 + arc[:, 1] / np.sin(start))])
    inner = outer[::-1] * [(radius - wall) / radius, (height - 1.5 * wall) / height] + [0, 1.5 * wall]
    profile = np.concatenate([[(0, 0)], outer, [(radius - wall / 2, height + wall / 3)], inner, [(0, 1.5 * wall)]])
    texture = Texture(random_colour(rng))
    paint_bands(rng, texture, 0.3 * height, height)
    inside = pale_colour(rng)
    texture.paint(lambda p: (np.hypot(p[:, 0], p[:, 1])
                             < np.interp(p[:, 2], outer[:, 1], outer[:, 0]) - 0.5 * wall), inside)
    texture.paint(lambda p: p[:, 2] < 1e-4, texture.base)
    return loft(profile, superellipse(36), 36), texture


def build_cup(rng: np.random.Generator) -> Built:
    """Hollow tapered tumbler or paper cup."""
    top, height, wall = rng.uniform(0.03, 0.046), rng.uniform(0.06, 0.15), rng.uniform(0.003, 0.005)
    cup = _Cup(top * rng.uniform(0.6, 0.95), top, height, wall)
    texture = Texture(random_colour(rng))
    paint_bands(rng, texture, 0, height)
    texture.paint(cup.inside(), pale_colour(rng))
    return loft(cup.profile()), texture


def build_plate(rng: np.random.Generator) -> Built:
    """Dinner plate or saucer with a raised rim."""
    radius, wall = rng.uniform(0.07, 0.135), rng.uniform(0.004, 0.006)
    flat, rise = radius * rng.uniform(0.55, 0.75), rng.uniform(0.012, 0.028)
    profile = [(0, 0), (flat, 0), (flat + 0.4 * (radius - flat), 0.45 * rise), (radius, rise), (radius, rise + wall),
               (flat + 0.4 * (radius - flat), 0.45 * rise + wall), (flat, wall), (0, wall)]
    texture = Texture(pale_colour(rng))
    ring = rng.uniform(0.75, 0.95)
    texture.paint(lambda p: np.abs(np.hypot(p[:, 0], p[:, 1]) / radius - ring) < 0.03, random_colour(rng))
    return loft(profile), texture


def build_skillet(rng: np.random.Generator) -> Built:
    """Small pan: shallow hollow pan and a long handle."""
    radius, height, wall = rng.uniform(0.05, 0.08), rng.uniform(0.025, 0.05), rng.uniform(0.003, 0.005)
    pan = loft(_Cup(0.8 * radius, radius, height, wall).profile(), superellipse(36), 28)
    length, rise = rng.uniform(0.09, 0.13), rng.uniform(0, 0.02)
    # The handle starts inside the wall: half a wall behind the outer surface at its height.
    start = 0.96 * radius - 0.55 * wall
    t = np.linspace(0, 1, 10)
    path = np.column_stack([start + length * t, np.zeros(10), 0.8 * height + rise * t ** 2])
    handle = sweep(path, (0.7 + 0.3 * t) * rng.uniform(0.007, 0.009), superellipse(14, 3, 0.8))
    texture = Texture(random_colour(rng, (0, 0.4), (0.1, 0.5)))
    texture.paint(lambda p: p[:, 0] > radius + 0.02, random_colour(rng, value=(0.1, 0.8)))
    return union(pan, handle), texture


def build_pitcher(rng: np.random.Generator) -> Built:
    """Jug or measuring cup: hollow body and a large handle."""
    top, height, wall = rng.uniform(0.045, 0.06), rng.uniform(0.12, 0.20), rng.uniform(0.0035, 0.005)
    bottom = top * rng.uniform(0.8, 1.05)
    jug = _Cup(bottom, top, height, wall, rng.uniform(0, 0.008))
    handle = jug.handle(rng, 0.25 * height, 0.85 * height, rng.uniform(0.035, 0.05), rng.uniform(0.005, 0.007))
    texture = Texture(random_colour(rng, value=(0.5, 0.95)))
    texture.paint(above(rng.uniform(0.9, 0.95) * height), random_colour(rng))
    return union(loft(jug.profile(), superellipse(36), 34), handle), texture


def build_spoon(rng: np.random.Generator) -> Built:
    """Wooden spoon, ladle, spatula, hairbrush: a dished oval head and a handle, lying along +X."""
    length, radius = rng.uniform(0.12, 0.2), rng.uniform(0.0045, 0.008)
    head, thickness = rng.uniform(0.022, 0.036), rng.uniform(0.012, 0.022)
    oval = superellipse(32, 2, rng.uniform(0.6, 0.9))
    bowl = solid_of(loft(ball_profile(head, thickness, 17), oval))
    dent = solid_of(loft(ball_profile(0.9 * head, 1.2 * thickness, 15), oval))
    dent = dent.translate((0, 0, rng.uniform(0.4, 0.6) * thickness))
    t = np.linspace(0, 1, 14)
    path = np.column_stack([0.93 * head + t * length, np.zeros(14), thickness * (0.25 + 0.5 * t)])
    handle = sweep(path, radius * (0.75 + 0.25 * t), superellipse(14))
    texture = Texture(wood_colour(rng) if rng.uniform() < 0.6 else random_colour(rng), mottle=0.08)
    texture.paint(lambda p: p[:, 0] > head + 0.8 * length, random_colour(rng))
    # The dent also cuts what the handle would leave inside the bowl.
    return mesh_of((bowl + solid_of(handle)) - dent), texture
