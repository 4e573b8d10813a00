"""Iso-surface of a volume: marching cubes (Lorensen and Cline 1987).

It is closed because ambiguous faces are decided alike for the cubes on both sides: the inside is joined across them, so
that thin walls have no holes.

Written here because the libraries' functions keep all other threads waiting.

Within a cube, corner 4 x + 2 y + z stands at (x, y, z), 0 or 1.  Edge 4 axis + 2 u + v runs along an axis at the place
(u, v) on the two axes left, in their order.  Face 2 axis + side.
"""
from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numba
import numpy as np

_AXIS_OF_STEP = {4: 0, 2: 1, 1: 2}     # from one corner's number to the next


def zero_surface(volume: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (N, 3) float64, voxels, and triangles (M, 3) int32 of the surface around what is negative.

    volume: (a, b, c) float32, positive at its borders and nowhere 0.  Triangles are counter-clockwise seen from
    outside, and exactly two of them run along every edge.
    """
    return _march(np.ascontiguousarray(volume, np.float32), _triangles_of_corners())


@numba.njit(nogil=True, cache=True)
def _march(volume, triangles_of):
    """`zero_surface` by the table of `_triangles_of_corners`."""
    a, b, c = volume.shape
    vertex_on = np.full((a, b, c, 3), -1, np.int32)       # of the edge from a voxel along each axis
    vertices, found = np.empty((4096, 3)), 0
    corners, count = np.empty(3 * 8192, np.int32), 0
    for i in range(a - 1):
        for j in range(b - 1):
            far = _four_inside(volume, i, j, 0)
            for k in range(c - 1):
                near, far = far, _four_inside(volume, i, j, k + 1)
                inside = near | far << 1
                if inside == 0 or inside == 255:
                    continue
                if found + 12 > len(vertices):
                    vertices = np.concatenate((vertices, np.empty_like(vertices)))
                row = triangles_of[inside]
                if count + len(row) > len(corners):
                    corners = np.concatenate((corners, np.empty_like(corners)))
                for edge in row:
                    if edge < 0:
                        break
                    axis, p, q = edge >> 2, edge >> 1 & 1, edge & 1
                    x = i if axis == 0 else i + p
                    y = j if axis == 1 else j + (p if axis == 0 else q)
                    z = k if axis == 2 else k + q
                    if vertex_on[x, y, z, axis] < 0:
                        here, there = volume[x, y, z], volume[x + (axis == 0), y + (axis == 1), z + (axis == 2)]
                        vertices[found, 0], vertices[found, 1], vertices[found, 2] = x, y, z
                        vertices[found, axis] += here / (here - there)
                        vertex_on[x, y, z, axis] = found
                        found += 1
                    corners[count] = vertex_on[x, y, z, axis]
                    count += 1
    return vertices[:found].copy(), corners[:count].copy().reshape(-1, 3)


@numba.njit(nogil=True, cache=True)
def _four_inside(volume, i, j, k):
    """Which of four voxels, two by two on the first axes from (i, j, k) on, are inside: bits 0, 2, 4 and 6."""
    return ((volume[i, j, k] < 0) | (volume[i, j + 1, k] < 0) << 2
            | (volume[i + 1, j, k] < 0) << 4 | (volume[i + 1, j + 1, k] < 0) << 6)


@cache
def _triangles_of_corners() -> np.ndarray:
    """Per set of corners inside (bits), the edges of the cube that its triangles connect, three by three, then -1."""
    rows = [[edge for loop in _loops(inside) for edge in _triangulated(loop)] for inside in range(256)]
    table = np.full((256, max(map(len, rows)) + 1), -1)
    for row, edges in zip(table, rows, strict=True):
        row[:len(edges)] = edges
    return table


def _loops(inside: int) -> Iterator[list[int]]:
    """The edges that each piece of surface in a cube crosses, around it."""
    following = {}
    for face in range(6):
        ring = _corners_around(face)
        sides = zip(ring, ring[1:] + ring[:1], strict=True)
        crossed = [(_edge(corner, after), inside >> corner & 1) for corner, after in sides
                   if (inside >> corner ^ inside >> after) & 1]
        # Around a face the crossed edges lead out of and into the inside in turn; the surface cuts off what is outside.
        for index, (edge, leaves) in enumerate(crossed):
            if leaves:
                following[crossed[(index + 1) % len(crossed)][0]] = edge
    while following:
        edge, loop = next(iter(following)), []
        while edge in following:
            loop.append(edge)
            edge = following.pop(edge)
        yield loop


def _corners_around(face: int) -> list[int]:
    """The four corners of a face, counter-clockwise seen from outside of the cube."""
    axis, side = divmod(face, 2)
    u, v = (4 >> other for other in range(3) if other != axis)
    ring = [0, u, u + v, v] if (axis == 1) != side else [0, v, u + v, u]
    return [side * (4 >> axis) + corner for corner in ring]


def _edge(corner: int, other: int) -> int:
    axis = _AXIS_OF_STEP[corner ^ other]
    u, v = (corner >> (2 - left) & 1 for left in range(3) if left != axis)
    return 4 * axis + 2 * u + v


def _triangulated(loop: list[int]) -> list[int]:
    """Corners of the triangles that fill a loop.  No side of theirs but the loop's own lies in a face of the cube: the
    cube beyond might have the same.  Empty if that cannot be, which is the case for parts of loops only.
    """
    if len(loop) == 3:
        return loop
    for apex in range(1, len(loop) - 1):
        parts = [part for part in (loop[:apex + 1], loop[apex:]) if len(part) > 2]
        filled = [[] if _faces_at(part[0]) & _faces_at(part[-1]) else _triangulated(part) for part in parts]
        if all(filled):
            return [loop[0], loop[apex], loop[-1], *sum(filled, [])]
    return []


def _faces_at(edge: int) -> set[int]:
    axis, place = divmod(edge, 4)
    u, v = (left for left in range(3) if left != axis)
    return {2 * u + (place >> 1), 2 * v + (place & 1)}
