"""A mesh prepared for tracking: a signed-distance grid for registration, and surface samples to look for in images."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .distance_grid import distance_grid
from .sampling import surface_samples

_GRID_CELLS = 56           # along the longest side, margins and all
_GRID_MARGIN = 0.03        # metres around the mesh; farther points have no part in a registration
_SAMPLES = 400             # points of the surface, which are looked for in an image


@dataclass(frozen=True)
class Shape:
    """Object frame, metres.

    distance: (X, Y, Z) float32, signed distance at the grid's nodes, negative inside; origin: (3,) of node 0, 0, 0;
    cell: between nodes; samples, normals: (S, 3) float64 points spread evenly over the surface, and outward normals;
    low, high: (3,) of the mesh's bounding box; diagonal: its length
    """

    distance: np.ndarray
    origin: np.ndarray
    cell: float
    samples: np.ndarray
    normals: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def diagonal(self) -> float:
        """Of the bounding box, metres."""
        return float(np.linalg.norm(self.high - self.low))


def make_shape(vertices: np.ndarray, triangles: np.ndarray) -> Shape:
    """Shape of a closed mesh: (N, 3) vertices, metres, object frame; (M, 3) triangles, counter-clockwise from outside.

    Takes 10 to 30 ms on one core, without holding Python's lock for most of it.
    """
    vertices = np.ascontiguousarray(vertices, np.float64)
    triangles = np.ascontiguousarray(triangles, np.int64)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    cell = (float((high - low).max()) + 2 * _GRID_MARGIN) / _GRID_CELLS
    origin = low - _GRID_MARGIN
    counts = np.ceil((high - low + 2 * _GRID_MARGIN) / cell).astype(int) + 1
    distance = distance_grid(vertices, triangles, origin, cell, counts)
    samples, normals = surface_samples(vertices, triangles, _SAMPLES)
    return Shape(distance, origin, cell, samples, normals, low, high)
