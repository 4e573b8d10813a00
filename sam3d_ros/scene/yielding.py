"""Lets uncertain surfaces yield to each other and to the support, before whole bodies are moved.

The side that a camera sees is certain; far side and underside are guesses, and two guesses may overlap.
Camera frame, metres.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import repeat

import numba
import numpy as np
import trimesh
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ..perception.appearance import vertex_normals
from ..perception.objects import ReconstructedObject
from ..perception.plane import range_factor
from .contacts import depths, ways
from .parallel import in_parallel
from .physics import MAX_SIGMAS, REACH, TOUCH, gaps_below
from .solid import Solid, solid_from_mesh

_ROUNDABOUT = 6              # times the shortest way out of a neighbour: no longer way back into the object counts
_THROUGH = 0.8               # of the object's thickness there: a longer way back would leave nothing of it
_DEEPEST = 64                # vertices of a neighbour that make a dent, at most twice as many
_SQUEEZED = 0.05             # of its height is left of what was below the support
_LOWER = 0.01                # metres below the support, at 1 m: what surely reaches so far down stands on another level
_LEAST_LOWER = 0.05          # share of its vertices that are
_FOOT = 0.5                  # of the height: how far up the lower end is stretched
_JUST_ABOVE = 2 * MAX_SIGMAS  # of the foot: what is farther above what carries it is held, or hangs
_FAR = 0.005                 # metres: a shift by more asks for a second round
_SEPARATIONS = 8             # directions on the support along which objects are told to stand apart


def yielding(objects: Sequence[ReconstructedObject], plane: np.ndarray) -> list[ReconstructedObject]:
    """The objects with their overlaps with each other and with the support removed, where their surfaces are uncertain.

    plane: (4,) as for `settle`, camera frame

    Hidden sides are guessed too deep or too shallow. Moving a whole object out of a neighbour for that would displace
    its visible side, which is right, so the surfaces yield first. A vertex inside another object recedes into its own
    object or, if that would leave nothing of it, is shifted out of the other one; each surface takes a share
    of the overlap in proportion to its variance, and a face that the other has come through is dented. Then what is
    below the support is raised to it, unless it was seen to reach far down, and a foot just above the support is drawn
    down. If objects were far inside each other, all this is done twice. No vertex moves by more than MAX_SIGMAS of its
    standard deviation. An object's origin moves to the middle of its new mesh.
    """
    if not objects:
        return []
    plane = np.asarray(plane, np.float64)
    reshaped, farthest = _give_way(objects, plane)
    if farthest > _FAR:         # so far inside that the first directions out were rough
        reshaped, _ = _give_way(reshaped, plane)
    return [_bounded(*pair) for pair in zip(objects, reshaped, strict=True)]


def _give_way(objects: Sequence[ReconstructedObject], plane: np.ndarray) -> tuple[list[ReconstructedObject], float]:
    """The objects after one round, and how far the farthest vertex was shifted for a neighbour, metres."""
    points = [trimesh.transform_points(item.vertices, item.camera_from_object) for item in objects]
    gaps = np.array([max((own @ plane[:3]).min() + plane[3], 0) for own in points])
    shifts = [np.zeros(item.vertices.shape) for item in objects]
    for group in _groups(points, plane):
        near = [objects[index] for index in group]
        solids = in_parallel(lambda item: solid_from_mesh(item.vertices, item.triangles), near)
        trees = [cKDTree(item.vertices) for item in near]
        gaps[group] = gaps_below(solids, np.stack([item.camera_from_object for item in near]), plane)
        found = in_parallel(_shifts, range(len(near)), repeat(near), repeat(solids), repeat(trees))
        for index, shift in zip(group, found, strict=True):
            shifts[index] = shift
    farthest = max(float(np.linalg.norm(shift, axis=1).max()) for shift in shifts)
    return [_reshaped(item, *own, plane) for item, *own in zip(objects, shifts, gaps, strict=True)], farthest


def _groups(points: Sequence[np.ndarray], plane: np.ndarray) -> list[np.ndarray]:
    """Indices of objects of which each is beside, above or below another of its group: none can meet one outside of it.
    An object that stands alone is in none.

    points: of each object's surface, (N, 3), in the frame of the plane, (4,)
    """
    first, second = np.linalg.svd(plane[None, :3])[2][1:]
    angles = np.arange(_SEPARATIONS) * np.pi / _SEPARATIONS
    along = np.outer(first, np.cos(angles)) + np.outer(second, np.sin(angles))      # (3, D), on the support
    low, high = (np.stack([of(own @ along, axis=0) for own in points]) for of in (np.min, np.max))
    apart = ((low[:, None] > high + REACH) | (high[:, None] + REACH < low)).any(axis=2)
    count, group_of = connected_components(~apart, directed=False)
    groups = [np.flatnonzero(group_of == group) for group in range(count)]
    return [group for group in groups if len(group) > 1]


def _shifts(index: int, objects: Sequence[ReconstructedObject], solids: Sequence[Solid],
            trees: Sequence[cKDTree]) -> np.ndarray:
    """(N, 3) metres, object frame: how each vertex of one object is moved out of the others, and from before them."""
    item = objects[index]
    shifts = np.zeros(item.vertices.shape)
    inward = -vertex_normals(item.vertices, item.triangles)[0].astype(np.float64)
    thickness = _thickness(item.vertices, inward, solids[index])
    for other, neighbour in enumerate(objects):
        if other != index:
            other_from_item = np.linalg.inv(neighbour.camera_from_object) @ item.camera_from_object
            receded = _receded(item, inward, thickness, neighbour, solids[other], trees[other], other_from_item)
            way, direction = _dent(item, inward, solids[index], trees[index], neighbour, other_from_item)
            further = np.maximum(way - (receded * direction).sum(axis=1), 0)
            shifts += receded + further[:, None] * direction
    return shifts


def _receded(item: ReconstructedObject, inward: np.ndarray, thickness: np.ndarray, neighbour: ReconstructedObject,
             solid: Solid, tree: cKDTree, other_from_item: np.ndarray) -> np.ndarray:
    """(N, 3) metres, object frame: the share of the way that its own vertices take out of a neighbour.

    inward: (N, 3) unit normals; thickness: (N,) metres; solid, tree: the neighbour's
    """
    shifts = np.zeros(item.vertices.shape)
    points = trimesh.transform_points(item.vertices, other_from_item)
    near = np.flatnonzero((np.abs(points) < neighbour.size / 2).all(axis=1))
    points = points[near]
    depth, outward = depths(*_grid(solid), points)
    way = ways(*_grid(solid), points, inward[near] @ other_from_item[:3, :3].T)
    # Back into the object where that leaves something of it, else the shortest way out of the other.
    is_back = way < np.minimum(_ROUNDABOUT * depth, _THROUGH * thickness[near])
    direction = np.where(is_back[:, None], inward[near], outward @ other_from_item[:3, :3])
    own, theirs = item.vertex_std[near].astype(np.float64), neighbour.vertex_std[tree.query(points)[1]]
    shifts[near] = _share(np.where(is_back, way, depth), own, theirs)[:, None] * direction
    return shifts


def _dent(item: ReconstructedObject, inward: np.ndarray, solid: Solid, tree: cKDTree, neighbour: ReconstructedObject,
          other_from_item: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Way (N,), metres, and direction (N, 3) in which its surface gives way before a neighbour that is deep inside.

    None of its own vertices need be in a thin neighbour.  The surface point nearest to a vertex of the neighbour takes
    its share of that vertex's way out, and takes along what is as unsure and faces the same way, as far around as the
    dent is deep.  inward: (N, 3) unit normals; solid, tree: the object's own
    """
    points = trimesh.transform_points(neighbour.vertices, np.linalg.inv(other_from_item))
    near = np.flatnonzero((np.abs(points) < item.size / 2).all(axis=1))
    depth, outward = depths(*_grid(solid), points[near])
    deep = np.flatnonzero(depth > TOUCH)
    deep = deep[np.argsort(-depth[deep])][::max(1, len(deep) // _DEEPEST)]
    points, depth, outward = points[near][deep], depth[deep], outward[deep]
    reached = points + depth[:, None] * outward
    own = item.vertex_std[tree.query(reached)[1]].astype(np.float64) if len(deep) else np.empty(0)
    asked = _share(depth, own, neighbour.vertex_std[near][deep])
    return _largest_dent(item.vertices, inward, item.vertex_std, reached, -outward, depth, own, asked)


def _share(way: np.ndarray, own: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """A surface's part of a shift, split by the variances of both sides, and at most MAX_SIGMAS of its own."""
    return np.minimum(way * own ** 2 / (own ** 2 + theirs ** 2), MAX_SIGMAS * own)


def _grid(solid: Solid) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """The distance grid of a solid as compiled code takes it: values (C,), counts (3,), origin (3,) and voxel."""
    return solid.distance.ravel(), np.array(solid.distance.shape), solid.low, solid.voxel


def _thickness(vertices: np.ndarray, inward: np.ndarray, solid: Solid) -> np.ndarray:
    """(N,) metres, the way through the solid from each vertex (N, 3) along its inward normal (N, 3)."""
    return solid.voxel + ways(*_grid(solid), vertices + solid.voxel * inward, inward)


def _reshaped(item: ReconstructedObject, shifts: np.ndarray, gap: float, plane: np.ndarray) -> ReconstructedObject:
    """The object with its vertices shifted (N, 3, object frame), then raised to the support, or its foot drawn down by
    the `gap` below it.
    """
    up = plane[:3] @ item.camera_from_object[:3, :3]                       # in the object frame
    vertices = item.vertices + shifts
    heights = vertices @ up + (plane[:3] @ item.camera_from_object[:3, 3] + plane[3])
    # Squeezed rather than laid flat, so that what was above still is: folded meshes have no inside.
    lowest = min(heights.min(), 0)
    bend = -lowest * _SQUEEZED / (1 - _SQUEEZED)
    squeezed = np.where(heights < bend, _SQUEEZED * (heights - lowest), heights)
    raised = np.clip(squeezed - heights, 0, MAX_SIGMAS * item.vertex_std)
    lower = heights + MAX_SIGMAS * item.vertex_std < -_LOWER * range_factor(item.camera_from_object[2, 3])
    if lower.mean() > _LEAST_LOWER:     # seen down there, it stands on another level: a lower shelf, the floor
        raised = np.zeros_like(raised)
    foot = (heights.max() - heights.min()) * _FOOT
    share = np.clip(1 - (heights - heights.min()) / foot, 0, 1)
    is_held = gap > _JUST_ABOVE * item.vertex_std[share > 0].max()
    drawn = np.minimum(0.0 if is_held else gap, MAX_SIGMAS * item.vertex_std) * share
    return _centred(item, vertices + (raised - drawn)[:, None] * up)


def _bounded(item: ReconstructedObject, reshaped: ReconstructedObject) -> ReconstructedObject:
    """The reshaped object with no vertex farther than MAX_SIGMAS from where `item` has it."""
    origin = (reshaped.camera_from_object[:3, 3] - item.camera_from_object[:3, 3]) @ item.camera_from_object[:3, :3]
    way = reshaped.vertices + origin - item.vertices
    share = np.minimum(1, MAX_SIGMAS * item.vertex_std / np.maximum(np.linalg.norm(way, axis=1), 1e-9))
    return _centred(item, item.vertices + share[:, None] * way)


def _centred(item: ReconstructedObject, vertices: np.ndarray) -> ReconstructedObject:
    """The object with other vertices, (N, 3) in its frame, whose origin then moves to their middle."""
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    middle = (low + high) / 2
    pose = item.camera_from_object.copy()
    pose[:3, 3] += pose[:3, :3] @ middle
    return replace(item, vertices=(vertices - middle).astype(np.float32), camera_from_object=pose, size=high - low)


@numba.njit(cache=True, nogil=True)
def _largest_dent(vertices, inward, std, reached, directions, width, reached_std, ways):  # pragma: no cover (compiled)
    """Of each of (N, 3) vertices the largest way (N,) that a dent asks of it, and the direction (N, 3).

    Dent k is at reached[k], (K, 3), a Gaussian of sigma width[k] and depth ways[k] along directions[k], (K, 3) unit.
    """
    way, direction = np.zeros(len(vertices)), np.zeros((len(vertices), 3))
    for index in range(len(vertices)):
        for k in range(len(ways)):
            faces = inward[index, 0] * directions[k, 0] + inward[index, 1] * directions[k, 1] \
                + inward[index, 2] * directions[k, 2]
            if faces <= 0 or ways[k] <= way[index]:
                continue
            square = 0.0
            for m in range(3):
                square += (vertices[index, m] - reached[k, m]) ** 2
            asked = ways[k] * faces * min(1.0, std[index] / reached_std[k]) * np.exp(-square / (2 * width[k] ** 2))
            if asked > way[index]:
                way[index] = asked
                direction[index] = directions[k]
    return way, direction
