"""Points all over the surface of a mesh."""
from __future__ import annotations

import numpy as np


def surface_samples(vertices: np.ndarray, triangles: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` points spread evenly over a surface, (count, 3) in the frame of `vertices`, and its normals there.

    vertices: (N, 3) float64; triangles: (M, 3) vertex indices, counter-clockwise seen from outside; normals: (count, 3)
    unit vectors, outward, zero where a triangle has no area.  One point in each of `count` equal steps of area along
    the list of triangles, anywhere in its triangle (Osada et al. 2002, "Shape distributions", equation 1).  The same
    mesh gives the same points.
    """
    corners = vertices[triangles]
    facing = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(facing, axis=1)
    generator = np.random.default_rng(0)
    until = np.cumsum(area)
    steps = (np.arange(count) + generator.random(count)) / count * until[-1]
    chosen = np.minimum(np.searchsorted(until, steps), len(triangles) - 1)
    root, second = np.sqrt(generator.random(count)), generator.random(count)
    weights = np.stack([1 - root, root * (1 - second), root * second], axis=1)
    points = np.einsum("sck,sc->sk", corners[chosen], weights)
    return points, facing[chosen] / np.maximum(area[chosen], 1e-20)[:, None]
