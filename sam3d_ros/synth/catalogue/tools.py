"""Tools and pens."""
from __future__ import annotations

import numpy as np

from ..solids import extrude, loft, lying, placed, rounded_box, superellipse, sweep, union
from ..textures import Texture, between, metal_colour, pale_colour, random_colour, wood_colour
from . import Built


def build_screwdriver(rng: np.random.Generator) -> Built:
    """Screwdriver, chisel, brush: a ribbed grip and a shaft, lying along +X."""
    grip, shaft = rng.uniform(0.07, 0.11), rng.uniform(0.06, 0.14)
    radius, rod = rng.uniform(0.011, 0.017), rng.uniform(0.003, 0.005)
    waist = rng.uniform(0.6, 0.85)
    profile = [(0, 0), (0.7 * radius, 0), (radius, 0.1 * grip), (radius, 0.6 * grip), (waist * radius, 0.8 * grip),
               (radius * 0.95, 0.95 * grip), (0.6 * radius, grip), (rod, grip), (rod, grip + 0.9 * shaft),
               (0.5 * rod, grip + shaft), (0, grip + shaft)]
    texture = Texture(random_colour(rng))
    texture.paint(lambda p: (p[:, 0] > 0.15 * grip) & (p[:, 0] < 0.35 * grip), random_colour(rng))
    texture.paint(lambda p: p[:, 0] > grip + 1e-4, metal_colour(rng))
    return lying(loft(profile, superellipse(30, 2 + rng.uniform(0, 1)))), texture


def build_pen(rng: np.random.Generator) -> Built:
    """Marker, glue stick, lipstick, torch: a thin stepped cylinder, lying along +X."""
    length, radius = rng.uniform(0.08, 0.17), rng.uniform(0.007, 0.014)
    cap, step = rng.uniform(0.25, 0.5) * length, rng.uniform(0.8, 0.95) * radius
    profile = [(0, 0), (0.85 * step, 0), (step, 0.002), (step, length - cap), (radius, length - cap + 0.001),
               (radius, length - 0.004), (0.7 * radius, length), (0, length)]
    texture = Texture(pale_colour(rng))
    texture.paint(lambda p: p[:, 0] > length - cap, random_colour(rng))
    texture.paint(lambda p: p[:, 0] < 0.1 * length, random_colour(rng))
    return lying(loft(profile, superellipse(24))), texture


def build_hammer(rng: np.random.Generator) -> Built:
    """Hammer or mallet, lying flat: handle along +X, head along Y."""
    length, grip = rng.uniform(0.18, 0.27), rng.uniform(0.011, 0.016)
    width, radius = rng.uniform(0.07, 0.12), rng.uniform(0.012, 0.022)
    profile = [(0, 0), (0.8 * grip, 0), (grip, 0.01), (grip, 0.4 * length), (0.75 * grip, 0.55 * length),
               (0.75 * grip, length), (0, length)]
    handle = lying(loft(profile, superellipse(20, 2, rng.uniform(0.7, 1)), 22))
    head_profile = [(0, 0), (radius, 0), (radius, 0.25 * width), (0.75 * radius, 0.35 * width),
                    (rng.uniform(0.75, 1.0) * radius, 0.6 * width), (rng.uniform(0.3, 0.9) * radius, width), (0, width)]
    head = placed(loft(head_profile, superellipse(24, rng.uniform(2, 5)), 14),
                  (length - 0.6 * radius, -0.45 * width, 0), (1, 0, 0), -np.pi / 2)
    texture = Texture(wood_colour(rng) if rng.uniform() < 0.5 else random_colour(rng), mottle=0.05)
    texture.paint(lambda p: p[:, 0] < 0.4 * length, random_colour(rng))
    texture.paint(lambda p: p[:, 0] > length - 1.7 * radius, metal_colour(rng))
    return union(handle, head), texture


def build_clamp(rng: np.random.Generator) -> Built:
    """C-clamp lying flat: frame, threaded spindle and tommy bar."""
    reach, gap = rng.uniform(0.05, 0.09), rng.uniform(0.05, 0.10)
    bar, depth = rng.uniform(0.014, 0.02), rng.uniform(0.012, 0.02)
    width = 2 * bar + gap
    frame = extrude([(0, 0), (reach, 0), (reach, bar), (bar, bar), (bar, bar + gap), (reach, bar + gap),
                     (reach, width), (0, width)], depth, 0.003, edge=0.014)
    screw, low, end = reach - 0.6 * bar, bar + rng.uniform(0.2, 0.6) * gap, width + rng.uniform(0.02, 0.05)
    profile = [(0, low), (0.009, low), (0.009, low + 0.006), (0.005, low + 0.006), (0.005, end), (0, end)]
    # standing along +Z, turned to lie along +Y
    spindle = placed(loft(profile, superellipse(16), 14), (screw, 0, 0), (1, 0, 0), -np.pi / 2)
    middle = np.array([screw, end - 0.006, 0])
    tommy = sweep(np.linspace(middle - [0.025, 0, 0], middle + [0.025, 0, 0], 4), 0.0035, superellipse(12))
    texture = Texture(random_colour(rng))
    metal = metal_colour(rng)
    texture.paint(lambda p: p[:, 1] > width + 1e-4, metal)
    texture.paint(lambda p: (p[:, 1] > bar + 1e-4) & (p[:, 1] < bar + gap) & (p[:, 0] > screw - 0.012), metal)
    return union(frame, spindle, tommy), texture


def build_drill(rng: np.random.Generator) -> Built:
    """Cordless drill or hair dryer standing on its base: barrel along +X, slanted grip, battery."""
    length, radius = rng.uniform(0.13, 0.19), rng.uniform(0.022, 0.032)
    drop, slant = rng.uniform(0.09, 0.13), rng.uniform(0.0, 0.25)
    profile = [(0, 0), (0.7 * radius, 0), (radius, 0.12 * length), (radius, 0.65 * length),
               (0.6 * radius, 0.72 * length), (0.5 * radius, 0.95 * length), (0.3 * radius, length), (0, length)]
    barrel = lying(loft(profile, superellipse(28), 20))
    barrel.apply_translation((0, 0, drop))
    path = np.linspace([0.3 * length, 0, drop], [0.3 * length - slant * drop, 0, 0], 8)
    grip = sweep(path, rng.uniform(0.013, 0.018), superellipse(20, 3, 1.35))
    base_size = [rng.uniform(0.06, 0.09), rng.uniform(0.04, 0.06), rng.uniform(0.02, 0.035)]
    base = placed(rounded_box(base_size, 0.005, cells=9), (0.3 * length - slant * drop + 0.008, 0, 0))
    dark = random_colour(rng, (0, 0.2), (0.1, 0.25))
    texture = Texture(random_colour(rng))
    texture.paint(lambda p: p[:, 2] < 0.02, dark)
    texture.paint(lambda p: p[:, 0] > 0.69 * length, dark)
    texture.paint(between(0.03, 0.5 * drop), dark)
    return union(barrel, grip, base), texture
