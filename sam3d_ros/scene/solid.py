"""A closed mesh prepared for contacts: points of its surface, and its signed distance on a grid."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from .distance_grid import distance_grid
from .sampling import surface_samples

GRID = 24                    # cells of a distance grid along the longest side
_SAMPLES = 512                # surface points for contacts between bodies


@dataclass(frozen=True)
class Solid:
    """What contacts need to know of a closed mesh, in its object frame; made by `solid_from_mesh`, once per mesh.

    corners: (C, 3) float64, metres, vertices of its convex hull; points: (P, 3) float64, metres, spread over its
    surface
    distance: (X, Y, Z) float32, signed distance in metres, negative inside, at `low` + index * `voxel`
    centre_of_mass: (3,) float64, metres, of uniform density
    """

    corners: np.ndarray
    points: np.ndarray
    distance: np.ndarray
    low: np.ndarray
    voxel: float
    centre_of_mass: np.ndarray


def solid_from_mesh(vertices: np.ndarray, triangles: np.ndarray) -> Solid:
    """Prepare a closed mesh: (N, 3) metres, object frame; (M, 3) vertex indices, counter-clockwise from outside."""
    vertices, triangles = np.ascontiguousarray(vertices, np.float64), np.ascontiguousarray(triangles, np.int64)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    voxel = float((high - low).max()) / (GRID - 3)
    counts = np.ceil((high - low) / voxel).astype(int) + 3
    low = (low + high - (counts - 1) * voxel) / 2
    distance = distance_grid(vertices, triangles, low, voxel, counts)
    centre = _centre_of_mass(vertices[triangles])
    try:
        corners = vertices[ConvexHull(vertices).vertices]
    except QhullError:                                   # flat
        corners = vertices
    return Solid(corners, surface_samples(vertices, triangles, _SAMPLES)[0], distance, low, voxel, centre)


def _centre_of_mass(corners: np.ndarray) -> np.ndarray:
    """(3,) of a closed mesh of uniform density, whose triangles have the corners (M, 3, 3): mean of the tetrahedra
    from one point to each triangle, weighted by their signed volumes; of a flat one, the mean of the corners."""
    origin = corners[0, 0]
    a, b, c = (corners - origin).transpose(1, 0, 2)
    volumes = np.einsum("ij,ij->i", a, np.cross(b, c))
    if volumes.sum() == 0:
        return corners.mean(axis=(0, 1))
    return origin + volumes @ (a + b + c) / (4 * volumes.sum())
