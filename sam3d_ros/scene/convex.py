"""Convex pieces of a mesh, as physics engines and motion planners want them.

By CoACD (Wei et al. 2022) where it is installed, else the convex hull alone: a mug then cannot be reached into.
"""
from __future__ import annotations

import numpy as np
from scipy.spatial import ConvexHull, QhullError

MAX_PIECES = 10
# Concavity that is left as it is, in CoACD's measure: about the share of the object's size by which a hull may stand
# off its surface.  Its search is cut short: three to ten times faster than with its defaults, for 5 to 10 % more volume.
_CONCAVITY = 0.1
_SEARCH = {"mcts_iterations": 60, "mcts_nodes": 10, "mcts_max_depth": 2, "resolution": 1000,
           "preprocess_resolution": 30, "max_ch_vertex": 64}


def convex_pieces(vertices: np.ndarray, triangles: np.ndarray, max_pieces: int = MAX_PIECES) -> list[np.ndarray]:
    """Corners of convex pieces that together fill a closed mesh, each (K, 3) float64, metres, frame of `vertices`.

    vertices: (N, 3) metres; triangles: (M, 3) vertex indices. Deterministic. A single piece: the convex hull.
    """
    vertices = np.asarray(vertices, np.float64)
    hull = _hull_corners(vertices)
    if max_pieces == 1:
        return [hull]
    try:
        import coacd
    except ImportError:
        return [hull]
    coacd.set_log_level("error")
    mesh = coacd.Mesh(vertices, np.asarray(triangles, np.int32))
    parts = coacd.run_coacd(mesh, threshold=_CONCAVITY, max_convex_hull=max_pieces, seed=0, **_SEARCH)
    return [_hull_corners(part[0]) for part in parts] or [hull]


def _hull_corners(points: np.ndarray) -> np.ndarray:
    try:
        return points[ConvexHull(points).vertices]
    except QhullError:         # flat: an engine needs some thickness
        return np.concatenate([points - _THICKNESS / 2, points + _THICKNESS / 2])


_THICKNESS = 1e-4              # metres
