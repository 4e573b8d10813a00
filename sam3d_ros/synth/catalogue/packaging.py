"""Cartons, cans, bottles, jars and tubs."""
from __future__ import annotations

import numpy as np

from ..solids import loft, placed, rounded_box, superellipse, sweep, union
from ..textures import Texture, above, metal_colour, paint_faces, paint_label, paint_lid, pale_colour, random_colour
from . import Built


def build_box(rng: np.random.Generator) -> Built:
    """Cereal, cracker, sugar, pudding and tea cartons."""
    width, slimness, height = rng.uniform(0.05, 0.20), rng.uniform(0.25, 0.8), rng.uniform(0.03, 0.27)
    size = np.array([width * slimness, width, height])
    texture = Texture(random_colour(rng))
    paint_faces(rng, texture, size)
    return rounded_box(size), texture


def build_can(rng: np.random.Generator) -> Built:
    """Drink, soup, tuna and coffee cans: straight or necked, with a raised rim."""
    radius, height = rng.uniform(0.025, 0.055), rng.uniform(0.035, 0.17)
    neck, rim = radius * rng.uniform(0.86, 1.0), rng.uniform(0.001, 0.003)
    slope = (radius - neck) * 1.2 + 0.003
    profile = [(0, rim), (neck - 0.004, rim), (neck - 0.003, 0), (neck, 0), (radius, slope), (radius, height - slope),
               (neck, height), (neck - 0.003, height), (neck - 0.004, height - rim), (0, height - rim)]
    texture = Texture(metal_colour(rng))
    paint_label(rng, texture, slope, height - slope)
    paint_lid(rng, texture, neck, height - rim)
    return loft(profile), texture


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


def build_bottle(rng: np.random.Generator) -> Built:
    """Water, shampoo, detergent, mustard and bleach bottles with a cap; round, oval or squarish."""
    radius, height = rng.uniform(0.025, 0.05), rng.uniform(0.10, 0.25)
    profile, shoulder, neck = _bottle_profile(rng, radius, height)
    cap, cap_height = neck * rng.uniform(1.05, 1.4), rng.uniform(0.012, 0.035)
    top = height + 0.25 * cap_height
    cap_base = max(profile[-2, 1] + 0.001, top - cap_height)
    profile = np.concatenate([profile[:-1], [(neck, cap_base), (cap, cap_base + 0.001), (cap, top - 0.002),
                                             (cap - 0.002, top), (0, top)]])
    round_bottle = rng.uniform() < 0.5
    outline = None if round_bottle else superellipse(40, rng.uniform(2, 4), rng.uniform(0.5, 1))
    texture = Texture(random_colour(rng, value=(0.5, 0.95)))
    texture.paint(above(cap_base), random_colour(rng))
    paint_label(rng, texture, rng.uniform(0.08, 0.25) * shoulder, rng.uniform(0.7, 0.95) * shoulder)
    return loft(profile, outline), texture


def build_jar(rng: np.random.Generator) -> Built:
    """Jam, peanut-butter and spice jars: wide body, wide lid."""
    radius, height = rng.uniform(0.02, 0.05), rng.uniform(0.05, 0.15)
    lid, lid_height = radius * rng.uniform(0.8, 1.04), rng.uniform(0.01, 0.025)
    shoulder = height - lid_height - 0.012
    profile = [(0, 0), (0.9 * radius, 0), (radius, 0.1 * radius), (radius, shoulder),
               (0.78 * radius, height - lid_height), (lid, height - lid_height), (lid, height - 0.001),
               (lid - 0.001, height), (0, height)]
    texture = Texture(random_colour(rng, value=(0.25, 0.8)))
    texture.paint(above(height - lid_height - 1e-4), random_colour(rng))
    paint_label(rng, texture, 0.15 * shoulder, 0.85 * shoulder)
    return loft(profile), texture


def build_spray_bottle(rng: np.random.Generator) -> Built:
    """Window cleaner: bottle, head with nozzle, trigger."""
    radius, height = rng.uniform(0.03, 0.045), rng.uniform(0.14, 0.20)
    profile, shoulder, neck = _bottle_profile(rng, radius, height)
    bottle = loft(np.concatenate([profile, [(0, height)]]), superellipse(32, 2, rng.uniform(0.6, 1)), pieces=24)
    length, thickness = rng.uniform(0.06, 0.09), max(1.7 * neck, 0.02)
    head = placed(rounded_box([length, thickness, rng.uniform(0.025, 0.035)], 0.006, cells=8),
                  (0.2 * length, 0, height + 0.008))
    nozzle = placed(loft([(0, 0), (0.009, 0), (0.007, 0.02), (0, 0.02)], superellipse(16), 4),
                    (0.65 * length, 0, height + 0.012), (0, 1, 0), np.pi / 2)
    reach = rng.uniform(0.3, 0.5) * length
    path = np.array([[reach, 0, height + 0.005], [reach + 0.008, 0, height - 0.02], [reach, 0, height - 0.045]])
    trigger = sweep(path, 0.006, superellipse(12, 4, 1.4))
    texture = Texture(random_colour(rng, value=(0.6, 0.95)))
    texture.paint(above(height - 0.012), pale_colour(rng))
    texture.paint(lambda p: (p[:, 2] > height - 0.06) & (p[:, 0] > 0.7 * reach), random_colour(rng))
    paint_label(rng, texture, 0.15 * shoulder, 0.85 * shoulder)
    return union(bottle, head, nozzle, trigger), texture


def build_tub(rng: np.random.Generator) -> Built:
    """Yoghurt, margarine and food tubs: a squarish or round taper with a lid."""
    top, height = rng.uniform(0.035, 0.075), rng.uniform(0.04, 0.11)
    bottom, lid = top * rng.uniform(0.7, 0.9), rng.uniform(0.004, 0.01)
    profile = [(0, 0), (bottom - 0.002, 0), (bottom, 0.003), (0.96 * top, height - lid), (top, height - lid),
               (top, height), (0, height)]
    texture = Texture(pale_colour(rng))
    paint_label(rng, texture, 0.15 * height, height - lid - 0.004)
    texture.paint(above(height - lid - 1e-4), random_colour(rng))
    return loft(profile, superellipse(40, rng.uniform(2, 7), rng.uniform(0.6, 1))), texture
