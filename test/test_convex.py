"""Convex pieces of a mesh."""
from __future__ import annotations

import numpy as np
import pytest
import trimesh
from scipy.spatial import ConvexHull

from sam3d_ros.scene.convex import _hull_corners, convex_pieces


def volume(pieces: list[np.ndarray]) -> float:
    return sum(ConvexHull(piece).volume for piece in pieces)


def test_convex_pieces():
    ball = trimesh.creation.icosphere(3, 0.05)
    assert len(convex_pieces(ball.vertices, ball.faces)) == 1
    cup = trimesh.creation.annulus(0.037, 0.04, 0.1)
    pieces = convex_pieces(cup.vertices, cup.faces)
    assert 8 < len(pieces) <= 20
    assert volume(pieces) < 0.45 * cup.convex_hull.volume
    assert len(convex_pieces(cup.vertices, cup.faces, 1)) == 1
    assert len(convex_pieces(cup.vertices, cup.faces, 4)) <= 8


@pytest.mark.parametrize("points", [np.zeros((1, 3)), np.eye(3)[:2], np.random.default_rng(0).random((50, 2))
                                    @ np.array([[1, 1, 0], [0, 0, 1.0]])])
def test_what_is_flat_has_a_hull_with_a_volume(points):
    assert ConvexHull(_hull_corners(points)).volume > 0


def test_a_bent_solid_is_cut_by_coacd():
    pytest.importorskip("coacd")
    bracket = trimesh.boolean.union([trimesh.creation.box(bounds=[[0, 0, 0], [0.1, 0.03, 0.03]]),
                                     trimesh.creation.box(bounds=[[0, 0, 0], [0.03, 0.03, 0.1]])], engine="manifold")
    pieces = convex_pieces(bracket.vertices, bracket.faces)
    assert len(pieces) >= 2
    assert volume(pieces) == pytest.approx(bracket.volume, rel=0.1)
