"""Extends floating surfaces down to the support or object that carries them, if their lower end was hidden.

Where a neighbour hides the foot of an object, the network ends the shape near its last visible point.  But an object
must stand on something: the shape is extended down, through space that no camera saw to be free, until it meets the
support or another object.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import open3d as o3d

from .frame import Frame, nearest_pixels
from .objects import Mesh
from .raycasting import ray_scene
from .surface import Surface

_STANDS = 0.004        # metres over the support: a surface that ends nearer to it than this stands on it
_FOOT = 0.02           # metres: this much of the lower end, or half of a flat object, is drawn down or stretched
_MOST_GROWTH = 4.0     # times its own height, by which a surface may grow: a sliver high above the support may not
_STEP = 0.004          # metres between the heights that are looked at on the way down
_SAMPLES = 200         # vertices of the lower end that are looked at
_MARGIN = 0.01         # metres: space so far before a depth reading is free, and so far behind one it is hidden
_MOST_OPEN = 0.15      # share of the way down that the camera may see to be free
_LEAST_HIDDEN = 0.25   # share of the way down that other instances must hide
_IN_CONTACT = 0.05     # share of the lower end: if so much of it is inside another mesh, it rests there


def standing(surfaces: Sequence[Surface], labels: Sequence[int], frame: Frame, plane: np.ndarray,
             others: Iterable[Mesh] = ()) -> list[Surface]:
    """The surfaces, those that float drawn down to the support or to another surface.

    labels: of each surface's mask in frame.labels; frame: with depth; plane: (4,) unit normal, up, and offset, camera
    frame; others: known meshes beside these.  A surface stays as it is unless other instances hide some of what it
    would gain; if the camera sees past that, or something before it that is no instance; and if it would have to grow
    by more than four times its own height.  The standard deviation of what moves grows by a third of the way.
    """
    heights = [surface.vertices @ plane[:3] + plane[3] for surface in surfaces]
    meshes = [(surface.vertices, surface.triangles) for surface in surfaces]
    found = []
    for index, (surface, height) in enumerate(zip(surfaces, heights, strict=True)):
        low, high = float(height.min()), float(height.max())
        if _STANDS < low <= _MOST_GROWTH * (high - low):
            foot = min(_FOOT, (high - low) / 2)
            lower = surface.vertices[height < low + foot]
            lower = lower[::max(1, len(lower) // _SAMPLES)]
            neighbours = chain(meshes[:index], meshes[index + 1:], others)
            way = _way_down(lower, low, plane, labels[index], frame, neighbours)
            moved = way * np.clip(2 * (low + foot - height) / foot, 0, 1)
            surface = replace(surface, vertices=surface.vertices - moved[:, None] * plane[:3],
                              vertex_std=np.hypot(surface.vertex_std, moved / 3).astype(np.float32))
        found.append(surface)
    return found


def _way_down(lower: np.ndarray, height: float, plane: np.ndarray, label: int, frame: Frame,
              neighbours: Iterable[Mesh]) -> float:
    """Metres that points (P, 3) of the lower end, the lowest at `height`, can sink until they rest; 0 if they cannot.
    """
    steps = np.append(np.arange(_STEP, height, _STEP), height)
    points = lower[None] - steps[:, None, None] * plane[:3]
    above = points @ plane[:3] + plane[3] > 0
    is_open, is_hidden = (mask.reshape(above.shape) & above for mask in _seen(points.reshape(-1, 3), label, frame))
    scenes = [ray_scene([mesh]) for mesh in neighbours if _overlap(mesh[0], points)]
    rest = len(steps)
    for index in range(len(steps)):
        query = o3d.core.Tensor(points[index].astype(np.float32))
        if any(scene.compute_occupancy(query).numpy().mean() > _IN_CONTACT for scene in scenes):
            rest = index
            break
    passed = above[:rest].sum()
    if passed == 0 or is_open[:rest].sum() > _MOST_OPEN * passed or is_hidden[:rest].sum() < _LEAST_HIDDEN * passed:
        return 0.0
    return float(steps[rest - 1])


def _seen(points: np.ndarray, label: int, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Of points (P, 3), (P,) bool each: which are surely not the object's, as the camera sees past them or sees before
    them something that is no instance; and which another instance hides."""
    rows, columns, inside = nearest_pixels(points, frame.intrinsics)
    depth, owner = frame.depth[rows, columns], frame.labels[rows, columns]
    is_covered = inside & (depth > 0) & (depth < points[:, 2] - _MARGIN)
    is_free = inside & (depth > points[:, 2] + _MARGIN)
    return is_free | (is_covered & (owner == 0)), is_covered & (owner != 0) & (owner != label)


def _overlap(vertices: np.ndarray, points: np.ndarray) -> bool:
    """Whether the bounding boxes of vertices (N, 3) and points (..., 3) overlap."""
    flat = points.reshape(-1, 3)
    return bool(((vertices.min(axis=0) < flat.max(axis=0)) & (vertices.max(axis=0) > flat.min(axis=0))).all())
