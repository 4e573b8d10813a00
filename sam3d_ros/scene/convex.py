"""Convex pieces of a mesh, as physics engines and motion planners want them.

What is nearly convex is its hull. Other solids are cut by CoACD (Wei et al. 2022) where it is installed (on x86_64),
else they are their hull, too. Thin-walled ones (cups, bowls, clamps), at which CoACD takes minutes, are cut into
patches of wall.
"""
from __future__ import annotations

import itertools

import numpy as np
import trimesh
from scipy.cluster.vq import kmeans2
from scipy.spatial import ConvexHull, QhullError

from ..perception.decimation import decimated

MAX_PIECES = 10
_NEARLY_CONVEX, _THIN_WALLED = 0.92, 0.4     # of the hull's volume
_PATCHES = 20                                # at most
_PATCH_POINTS = 3000
_FACES = 500                                 # that CoACD is given: its time grows fast with them
_CONCAVITY = 0.08                            # that CoACD leaves, about a share of the object's size
_SEARCH = {"mcts_iterations": 20, "mcts_nodes": 6, "mcts_max_depth": 1, "resolution": 500}
_MAX_CORNERS = 64
_THICKNESS = 1e-4                            # metres: what is flat gets this
_CUBE = np.array([*itertools.product((-1, 1), repeat=3)])


def convex_pieces(vertices: np.ndarray, triangles: np.ndarray, max_pieces: int = MAX_PIECES) -> list[np.ndarray]:
    """Corners of convex pieces that together stand for a closed mesh, each (K, 3) float64, frame of `vertices`.

    vertices: (N, 3) metres; triangles: (M, 3) vertex indices; max_pieces: 1 gives the hull, and patches of thin walls
    may be twice as many. The same mesh gives the same pieces.
    """
    mesh = trimesh.Trimesh(vertices, triangles, process=False)
    hull = _hull_corners(mesh.vertices)
    solidity = abs(mesh.volume) / max(ConvexHull(hull).volume, 1e-12)
    if max_pieces == 1 or solidity > _NEARLY_CONVEX:
        return [hull]
    if solidity < _THIN_WALLED:
        return _patches(mesh, min(_PATCHES, 2 * max_pieces))
    return _cut(mesh, max_pieces) or [hull]


def _cut(mesh: trimesh.Trimesh, max_pieces: int) -> list[np.ndarray]:
    """Pieces by CoACD; none where it is not installed."""
    try:
        import coacd
    except ImportError:
        return []
    coacd.set_log_level("error")
    points, faces = decimated(mesh.vertices, mesh.faces, _FACES)
    parts = coacd.run_coacd(coacd.Mesh(points.astype(np.float64), faces.astype(np.int32)), threshold=_CONCAVITY, seed=0,
                            max_convex_hull=max_pieces, preprocess_mode="off", decimate=True,
                            max_ch_vertex=_MAX_CORNERS, **_SEARCH)
    return [_hull_corners(np.asarray(part[0])) for part in parts]


def _patches(mesh: trimesh.Trimesh, count: int) -> list[np.ndarray]:
    """Hulls of `count` groups of near surface points at most; both sides of a wall fall into one group."""
    points = np.concatenate([mesh.vertices, trimesh.sample.sample_surface(mesh, _PATCH_POINTS, seed=0)[0]])
    group = kmeans2(points, count, minit="++", seed=0)[1]
    return [_hull_corners(points[group == number]) for number in np.unique(group)]


def _hull_corners(points: np.ndarray) -> np.ndarray:
    """Corners of the convex hull of (N, 3) points, each as a small cube where they are flat or few."""
    try:
        return points[ConvexHull(points).vertices]
    except QhullError:
        slab = (points[:, None] + _THICKNESS / 2 * _CUBE).reshape(-1, 3)
        return slab[ConvexHull(slab).vertices]
