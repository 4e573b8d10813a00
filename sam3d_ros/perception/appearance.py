"""Colour of a mesh from the images it was built from."""
from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.spatial import cKDTree

from .evidence import Observation
from .frame import Frame, nearest_pixels

_DEPTH_TOLERANCE = 0.01    # metres by which a seen vertex may lie behind the depth reading
_NEIGHBOURS = 8            # seen vertices that colour one that is not
_ANCHORS = 500             # seen vertices, about, among which these are looked for: the blend is smooth
_BLENDED = 0.05            # of the mesh's diagonal: as far from what is seen, its colours tell a third of one's own


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
    rows, columns, inside = nearest_pixels(vertices, frame.intrinsics)
    facing = np.einsum("ij,ij->i", normals, vertices) < 0
    seen = inside & facing & (frame.labels[rows, columns] == label)
    if frame.depth is not None:
        depth = frame.depth[rows, columns]
        seen &= (depth == 0) | (vertices[:, 2] < depth + _DEPTH_TOLERANCE)
    return seen, rows, columns


def vertex_colours(vertices: np.ndarray, normals: np.ndarray, views: Iterable[Observation]) -> np.ndarray:
    """Colours (N, 4) uint8 RGBA of vertices and outward normals (N, 3), present camera frame, metres.

    From the first of `views` that shows the vertex; where none does, a blend of the nearest seen vertices passes, with
    the distance from them, into the median colour of all that is seen.

    The network's own colour volume is not used: `sam3d bench shape --sections colour` found it farther from the truth
    on unseen sides than the mean colour.
    """
    seen, rgb = np.zeros(len(vertices), bool), np.full((len(vertices), 3), 128.0)
    for view in views:
        observer_from_camera = np.linalg.inv(view.camera_from_observer)
        rotation = observer_from_camera[:3, :3].T
        shown, rows, columns = seen_vertices(vertices @ rotation + observer_from_camera[:3, 3], normals @ rotation,
                                             view.frame, view.label)
        shown &= ~seen
        rgb[shown] = view.frame.colour[rows[shown], columns[shown]]
        seen |= shown
    if seen.any():
        anchors = np.flatnonzero(seen)[::max(1, int(seen.sum()) // _ANCHORS)]
        count = min(_NEIGHBOURS, len(anchors))
        found = cKDTree(vertices[anchors]).query(vertices[~seen], k=count)
        distance, nearest = (part.reshape(-1, count) for part in found)
        weight = 1 / (distance + 1e-4)
        blended = (rgb[anchors[nearest]] * weight[..., None]).sum(axis=1) / weight.sum(axis=1, keepdims=True)
        share = np.exp(-distance[:, :1] / (_BLENDED * np.linalg.norm(np.ptp(vertices, axis=0))))
        rgb[~seen] = share * blended + (1 - share) * np.median(rgb[seen], axis=0)
    return np.column_stack([np.round(rgb), np.full(len(vertices), 255)]).astype(np.uint8)
