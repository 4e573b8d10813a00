"""Procedural colours: random ones of usual materials, and what is printed and painted on packages and dishes."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

# Wave vectors (3, 5), radians per metre, of a texture's brightness variation: wavelengths of 1 to 4 cm.
_MOTTLE_WAVES = np.array([[310.0, -170, 90, 40, 520], [120, 260, -140, 330, -210], [-230, 190, 120, -410, 300]])

Region = Callable[[np.ndarray], np.ndarray]      # (N, 3) points -> (N,) bool


@dataclass
class Texture:
    """Colour as a function of the position in the object frame: a base colour, and layers painted over it in order."""

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


def random_colour(rng: np.random.Generator, saturation=(0.3, 0.85), value=(0.3, 0.9), hue=(0.0, 1.0)) -> np.ndarray:
    """A random colour, (3,) float RGB in 0..1; hue (0 red, 1/3 green, 2/3 blue), saturation, value from the ranges."""
    hue, s, v = rng.uniform(*hue), rng.uniform(*saturation), rng.uniform(*value)
    ramp = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return v * (1 - s * (1 - ramp))


def ripe_colour(rng: np.random.Generator) -> np.ndarray:
    """Colour of a fruit: dark red through orange and yellow to green."""
    return random_colour(rng, (0.6, 0.9), (0.5, 0.88), (-0.04, 0.30))


def pale_colour(rng: np.random.Generator) -> np.ndarray:
    """Colour of paper, porcelain or white plastic."""
    return random_colour(rng, (0.0, 0.15), (0.8, 0.97))


def metal_colour(rng: np.random.Generator) -> np.ndarray:
    """A grey, as of tin or steel."""
    return random_colour(rng, (0.0, 0.08), (0.45, 0.75))


def wood_colour(rng: np.random.Generator) -> np.ndarray:
    """A light or dark brown."""
    return np.array([0.72, 0.52, 0.33]) * rng.uniform(0.7, 1.15)


def above(height: float) -> Region:
    """What is higher than that, metres."""
    return lambda p: p[:, 2] > height


def between(low: float, high: float) -> Region:
    """A band between two heights, metres."""
    return lambda p: (p[:, 2] > low) & (p[:, 2] < high)


def sector(low: float, high: float, centre: float, width: float) -> Region:
    """Part of a band between two heights (metres): azimuth within width / 2 of centre (radians)."""
    def region(p: np.ndarray) -> np.ndarray:
        turn = (np.arctan2(p[:, 1], p[:, 0]) - centre + np.pi) % (2 * np.pi) - np.pi
        return (p[:, 2] > low) & (p[:, 2] < high) & (np.abs(turn) < width / 2)
    return region


def paint_label(rng: np.random.Generator, texture: Texture, low: float, high: float) -> None:
    """Print a label around the object between two heights, metres: ground, borders, two fronts with title and text."""
    ground = pale_colour(rng) if rng.uniform() < 0.5 else random_colour(rng)
    ink, accent = random_colour(rng, value=(0.05, 0.3)), random_colour(rng)
    height = high - low
    texture.paint(between(low, high), ground)
    texture.paint(between(low, low + 0.06 * height), accent)
    texture.paint(between(high - 0.06 * height, high), accent)
    start = rng.uniform(0, 2 * np.pi)
    for front in (start, start + np.pi):
        top = low + rng.uniform(0.62, 0.72) * height
        texture.paint(sector(top, top + 0.18 * height, front, rng.uniform(0.9, 1.5)), accent)
        for line in range(rng.integers(2, 5)):
            base = low + (0.48 - 0.11 * line) * height
            texture.paint(sector(base, base + 0.045 * height, front, rng.uniform(0.5, 1.2)), ink)


def paint_lid(rng: np.random.Generator, texture: Texture, radius: float, height: float) -> None:
    """Paint a tin's lid at a height: stamped rings, darker or brighter than the sheet, and sometimes a ring pull."""
    def ring(middle: float, width: float, offset: float = 0.0) -> Region:
        return lambda p: ((p[:, 2] > height - 1e-4)
                          & (np.abs(np.hypot(p[:, 0] - offset, p[:, 1]) - middle) < width / 2))

    for middle in rng.uniform(0.5, 0.95, rng.integers(1, 4)):
        texture.paint(ring(middle * radius, rng.uniform(0.05, 0.1) * radius), metal_colour(rng) * rng.uniform(0.5, 1.2))
    if rng.uniform() < 0.5:
        texture.paint(ring(0.2 * radius, 0.12 * radius, rng.uniform(0.1, 0.4) * radius), metal_colour(rng))


def paint_faces(rng: np.random.Generator, texture: Texture, size: np.ndarray) -> None:
    """Print a carton of that size (3,), metres: per pair of sides a panel, a title, an emblem and lines of text."""
    half = np.asarray(size) / 2
    ink, panel, accent = random_colour(rng, value=(0.05, 0.4)), pale_colour(rng), random_colour(rng)

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
        texture.paint(disc(axis, centre, rng.uniform(0.25, 0.45)), random_colour(rng))
        for line in range(3):
            base = low + 0.08 + 0.12 * line
            texture.paint(rectangle(axis, (-0.7, base), (rng.uniform(0.1, 0.7), base + 0.05)), ink)
    texture.paint(lambda p: np.abs(p[:, 2]) > half[2] * 0.98, texture.base * rng.uniform(0.7, 1.0))


def paint_bands(rng: np.random.Generator, texture: Texture, low: float, high: float) -> None:
    """Paint one to three rings between two heights, metres."""
    for _ in range(rng.integers(1, 4)):
        base = rng.uniform(low, high)
        texture.paint(between(base, base + rng.uniform(0.03, 0.15) * (high - low)), random_colour(rng))
