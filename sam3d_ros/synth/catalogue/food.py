"""Fruit, vegetables and what is shaped like them."""
from __future__ import annotations

import numpy as np

from ..solids import ball_profile, bumpy, loft, superellipse, sweep, union
from ..textures import Texture, random_colour, ripe_colour
from . import Built


def build_ellipsoid(rng: np.random.Generator) -> Built:
    """Egg, lemon, potato, stone, bar of soap."""
    length = rng.uniform(0.05, 0.13)
    mesh = loft(ball_profile(length / 2, length * rng.uniform(0.4, 0.9), 29), superellipse(40, 2, rng.uniform(0.5, 1)))
    mesh = bumpy(rng, mesh, rng.uniform(0, 0.03))
    return mesh, Texture(random_colour(rng, hue=(0.0, 0.3)), mottle=rng.uniform(0.05, 0.2))


def build_apple(rng: np.random.Generator) -> Built:
    """Apple, orange, tomato, peach: a ball with dimples at both poles and perhaps a stem."""
    radius, dimple, top = rng.uniform(0.03, 0.045), rng.uniform(0.1, 0.35), rng.uniform(0.02, 0.12)
    angle = np.linspace(-np.pi / 2, np.pi / 2, 29)
    lobe = radius * (1 - dimple * np.abs(np.sin(angle)) ** 6)
    profile = np.column_stack([lobe * np.cos(angle) * (1 + top * np.sin(angle)), lobe * np.sin(angle)])
    profile[[0, -1], 0] = 0
    mesh = bumpy(rng, loft(profile), 0.015)
    pole = profile[-1, 1]
    texture = Texture(ripe_colour(rng), mottle=rng.uniform(0.05, 0.15))
    if rng.uniform() < 0.6:
        lean = rng.uniform(-0.006, 0.006)
        path = np.array([[0, 0, pole - 0.008], [lean / 2, 0, pole + 0.005], [lean, 0, pole + 0.016]])
        stem = sweep(path, 0.002, superellipse(8))
        texture.paint(lambda p: (np.hypot(p[:, 0], p[:, 1]) < 0.009) & (p[:, 2] > pole + 0.003),
                      np.array([0.35, 0.24, 0.12]))
        mesh = union(mesh, stem)
    return mesh, texture


def build_pear(rng: np.random.Generator) -> Built:
    """Pear, avocado, aubergine: a thick lower and a thin upper lobe."""
    height, radius, neck = rng.uniform(0.08, 0.13), rng.uniform(0.028, 0.042), rng.uniform(0.35, 0.6)
    t = np.linspace(0, np.pi, 30)
    taper = 1 - (1 - neck) * (1 - np.cos(t)) / 2
    profile = np.column_stack([radius * np.sin(t) ** 0.75 * taper * 1.15, height * (1 - np.cos(t)) / 2])
    profile[[0, -1], 0] = 0
    texture = Texture(ripe_colour(rng), mottle=0.12)
    return bumpy(rng, loft(profile), 0.02), texture


def build_banana(rng: np.random.Generator) -> Built:
    """Banana, cucumber, sausage: a bent tube with tapering ends, lying."""
    length, bend, radius = rng.uniform(0.12, 0.20), rng.uniform(0.2, 1.6), rng.uniform(0.015, 0.02)
    t = np.linspace(-1, 1, 33)
    path = np.column_stack([np.sin(t * bend / 2), np.cos(t * bend / 2), np.zeros(33)]) * (length / bend)
    radii = radius * np.clip(1 - np.abs(t) ** rng.uniform(3, 7), 0.02, None) ** 0.6 + 0.004 * (np.abs(t) < 0.999)
    facets = superellipse(20) * (1 + 0.05 * np.cos(5 * np.linspace(0, 2 * np.pi, 20, endpoint=False)))[:, None]
    texture = Texture(random_colour(rng, (0.65, 0.85), (0.75, 0.95), (0.11, 0.2)), mottle=0.08)
    for end in (path[0], path[-1]):
        texture.paint(lambda p, end=end: np.linalg.norm(p - end, axis=1) < 0.012, np.array([0.3, 0.25, 0.15]))
    return sweep(path, radii, facets), texture
