"""Colour of a mesh from the image it was built from."""
from __future__ import annotations

import numpy as np

from .frame import Frame

_DEPTH_TOLERANCE = 0.01    # metres by which a seen vertex may lie behind the depth reading


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outward normals (N, 3), unit length, and areas (N,), a third of the triangles around, of a mesh's vertices."""
    corners = vertices[triangles]
    facing = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) / 2
    normals = np.stack([np.bincount(triangles.ravel(), np.repeat(facing[:, axis], 3), len(vertices))
                        for axis in range(3)], axis=1)
    areas = np.bincount(triangles.ravel(), np.repeat(np.linalg.norm(facing, axis=1) / 3, 3), len(vertices))
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12), areas


def seen_vertices(vertices: np.ndarray, normals: np.ndarray, frame: Frame,
                  label: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which vertices (N, 3), metres, camera frame, the image shows as part of the instance `label`.

    Returns (N,) bool, and rows and columns (N,) of the pixels.  A vertex is seen if it faces the camera, projects into
    the instance's mask and does not lie behind the depth reading there (where there is one).
    """
    k = frame.intrinsics
    z = np.maximum(vertices[:, 2], 1e-6)
    columns = np.floor(vertices[:, 0] / z * k.fx + k.cx + 0.5).astype(int)
    rows = np.floor(vertices[:, 1] / z * k.fy + k.cy + 0.5).astype(int)
    inside = (columns >= 0) & (columns < k.width) & (rows >= 0) & (rows < k.height)
    rows, columns = np.clip(rows, 0, k.height - 1), np.clip(columns, 0, k.width - 1)
    facing = np.einsum("ij,ij->i", normals, vertices) < 0
    seen = inside & facing & (frame.labels[rows, columns] == label)
    if frame.depth is not None:
        depth = frame.depth[rows, columns]
        seen &= (depth == 0) | (vertices[:, 2] < depth + _DEPTH_TOLERANCE)
    return seen, rows, columns


def vertex_colours(guessed: np.ndarray, seen: np.ndarray, rows: np.ndarray, columns: np.ndarray,
                   frame: Frame) -> np.ndarray:
    """Colours (N, 4) uint8 RGBA: from the image where `seen`, elsewhere as guessed.

    guessed: (N, 3) RGB, 0 to 1, the network's colour of every vertex.  Where both are known, they tell how the light of
    this image differs from what the network takes for the object's own colour; the guess is shifted by that.
    """
    rgba = np.full((len(guessed), 4), 255, np.uint8)
    colours = frame.colour[rows[seen], columns[seen]]
    shift = (colours / 255 - guessed[seen]).mean(axis=0) if seen.any() else 0.0
    rgba[:, :3] = np.round(255 * np.clip(guessed + shift, 0, 1))
    rgba[seen, :3] = colours
    return rgba
