"""Triangle meshes in which sheets meet along an edge, made such that exactly two triangles run along every edge.

Edge collapse leaves such edges where walls are thin.  Vertices (N, 3), triangles (M, 3) vertex indices, counter-
clockwise seen from outside.
"""
from __future__ import annotations

import numpy as np

_INWARD = 0.02         # of the way to its triangles' other corners, by which a new vertex leaves the edge it stands for


def is_closed(triangles: np.ndarray) -> bool:
    """Whether exactly two of `triangles` run along every edge, in opposite directions."""
    ends = triangles.astype(np.int64)
    first, second = ends.ravel(), np.roll(ends, -1, axis=1).ravel()
    base = int(ends.max()) + 1
    forward, backward = np.sort(first * base + second), np.sort(second * base + first)
    return bool((forward == backward).all() and (np.diff(forward) > 0).all())


def sheets_apart(vertices: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mesh with an edge of its own for every two triangles, where more of them met along an edge.

    Edges along which not as many triangles run forwards as backwards stay as they are.  Pairs that lie on each other,
    back to back, are left out.  Of the rest, two that enclose material between them share an edge; all but one of these
    edges get a vertex in the middle, a little aside, so that readers that merge equal vertices do not undo it.
    """
    triangles = _without_pairs(triangles)
    used, triangles = np.unique(triangles, return_inverse=True)
    vertices, triangles = vertices[used], triangles.reshape(-1, 3)
    start, end = triangles.ravel(), np.roll(triangles, -1, axis=1).ravel()
    edges, count = np.unique(np.stack([start, end], axis=1)[start < end], axis=0, return_counts=True)
    for low, high in edges[count > 1]:
        vertices, triangles = _edge_apart(vertices, triangles, low, high)
    return vertices, triangles


def _without_pairs(triangles: np.ndarray) -> np.ndarray:
    """The triangles without pairs of the same three vertices in opposite order."""
    turned = triangles[np.arange(len(triangles))[:, None], (triangles.argmin(axis=1)[:, None] + np.arange(3)) % 3]
    sense = np.where(turned[:, 1] < turned[:, 2], 1, -1)
    kind = np.unique(np.sort(triangles, axis=1), axis=0, return_inverse=True)[1].ravel()
    surplus = np.bincount(kind, sense)
    order = np.lexsort((sense != np.sign(surplus)[kind], kind))          # of each kind, those in the majority first
    place = np.arange(len(order)) - np.searchsorted(kind[order], kind[order])
    return triangles[np.sort(order[place < np.abs(surplus)[kind[order]]])]


def _edge_apart(vertices: np.ndarray, triangles: np.ndarray, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """`sheets_apart` for the edge between two vertices."""
    start, end = triangles.ravel(), np.roll(triangles, -1, axis=1).ravel()
    forward = np.flatnonzero((start == low) & (end == high))        # 3 t + k starts at corner k of triangle t
    backward = np.flatnonzero((start == high) & (end == low))
    if len(forward) != len(backward):
        return vertices, triangles
    triangles = triangles.copy()
    added_vertices, added_triangles = [], []
    for pair in _enclosing(vertices, triangles, forward, backward)[1:]:
        rows, corners = pair // 3, pair % 3
        others = triangles[rows, (corners + 2) % 3]
        middle = (vertices[low] + vertices[high]) / 2
        new = len(vertices) + len(added_vertices)
        added_vertices.append(middle + _INWARD * (vertices[others].mean(axis=0) - middle))
        added_triangles += [(new, triangles[row, (corner + 1) % 3], other)
                            for row, corner, other in zip(rows, corners, others, strict=True)]
        triangles[rows, (corners + 1) % 3] = new
    return np.concatenate([vertices, added_vertices]), np.concatenate([triangles, added_triangles])


def _enclosing(vertices: np.ndarray, triangles: np.ndarray, forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """(k, 2) half-edges of one edge, in pairs of a backward and a forward one whose triangles enclose material.

    Around an edge, material begins at a triangle that runs along it backwards and ends at the next that runs forwards.
    Where triangles lie on each other, the least material decides.
    """
    low, high = triangles.ravel()[[forward[0], backward[0]]]
    along = vertices[high] - vertices[low]
    x = np.cross(along, np.eye(3)[np.abs(along).argmin()])
    y = np.cross(along, x) / max(float(np.linalg.norm(along)), 1e-12)

    def in_order(half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        towards = vertices[triangles[half // 3, (half + 2) % 3]] - vertices[low]
        angles = np.arctan2(towards @ y, towards @ x)
        order = np.argsort(angles)
        return half[order], angles[order]

    forward, stops = in_order(forward)
    backward, begins = in_order(backward)
    shifts = range(len(forward))
    material = [((np.roll(stops, -shift) - begins) % (2 * np.pi)).sum() for shift in shifts]
    return np.stack([backward, np.roll(forward, -shifts[int(np.argmin(material))])], axis=1)
