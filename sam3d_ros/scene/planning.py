"""Meshes for motion planners: few faces, because a planner checks them many times a second."""
from __future__ import annotations

import numpy as np

from ..perception.decimation import decimated

_MOST_FACES = 2000


def planning_mesh(vertices: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A mesh of at most 2000 faces: (N, 3) vertices, metres, and (M, 3) triangles, of the same surface.

    Not split into convex pieces: MoveIt's collision checkers (FCL, Bullet) take meshes, and a decomposition takes
    seconds for each object, where the decimation takes milliseconds.
    """
    return decimated(vertices, triangles, _MOST_FACES)
