"""Antipodal grasps on meshes for a parallel gripper, ranked, free of collisions.

Pairs of opposite surface points whose normals lie in the friction cones around the line between them (Nguyen 1988),
found by casting rays through the mesh from points sampled on it; the hand turned around that line in equal steps; the
hand on its straight way in tested against surface points of all meshes and against the support.  What the camera did
not see is a guess: its standard deviation lowers a grasp's rank, where fingers touch it and where the hand comes near.

One frame for everything, named "world" here. Metres.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, islice

import numba
import numpy as np
import open3d as o3d
import trimesh

from ..perception.raycasting import ray_scene
from .gripper import FRANKA, ParallelGripper

FRICTION = 0.5               # of the friction cones; a little less than rubber on most surfaces
RAYS = 400                   # through each target
TURNS = 16                   # hand poses around the line between the contacts
# Metres from the fingertips back to the contacts, and what that leaves of the score.
DEPTHS = {0.002: 0.7, 0.010: 0.9, 0.022: 1.0}
# The least of these depths is only for contacts lower than this over the support, metres: an object that low has no
# room for more, and elsewhere the fingertips alone would pinch ridges and edges.
_LOW = 0.02
FINGER_CLEARANCE = 0.012     # metres that a finger opens wider than the object on its side
RETREAT = 0.08               # metres of straight way in
SUPPORT_CLEARANCE = 0.004    # metres between hand and support
OBSTACLE_SPACING = 0.003     # metres between surface points that stand for a mesh; less than half of any finger's side
SURE = 0.004                 # metres: standard deviation of the surface at which a grasp loses 40 % of its score
_NEAR = 0.5                  # of the score is left if the hand comes nearer to a surface than its standard deviation
_MOST_MARGIN = 0.01          # metres: a larger standard deviation counts as this
_LEAST_SCORE = 0.05          # grasps below it mostly slip: better none, and another view
_MAX_TILT = np.deg2rad(80)   # of the approach from straight down
_LEAST_WIDTH = 0.003         # metres between contacts
_SAME = 1e-4                 # metres between two surfaces met on one line that are one
_LEAST_LEVEL = 0.2           # sine of the angle between the closing axis and the vertical
_NONE, _CLOSE, _TOUCHING = range(3)     # contact of a hand with what is around it
_CONE_SPREAD = 0.15          # radians: rays leave the surface normal by about this


@dataclass(frozen=True)
class SceneMesh:
    """A mesh in the world.

    vertices: (N, 3) metres, world frame; triangles: (M, 3), counter-clockwise seen from outside
    vertex_std: (N,) metres, 1 sigma of the surface, or None where it is known exactly
    is_doubtful: it may be cut short, or of another shape: the last to be grasped
    """

    vertices: np.ndarray
    triangles: np.ndarray
    vertex_std: np.ndarray | None = None
    is_doubtful: bool = False


@dataclass(frozen=True)
class Grasp:
    """A grasp of one of the meshes.

    target: index of the mesh; world_from_grasp: (4, 4) float64, see gripper.py; opening: of the fingers on the way
    in, metres
    width: between the contacts, metres; score: 0 to 1, higher is better
    """

    target: int
    world_from_grasp: np.ndarray
    opening: float
    width: float
    score: float


@dataclass(frozen=True)
class _Pairs:
    """Contacts (K, 3) on both sides, unit axis (K, 3) from the first to the second, width (K,), score (K,) 0 to 1."""

    first: np.ndarray
    second: np.ndarray
    axis: np.ndarray
    width: np.ndarray
    score: np.ndarray


@dataclass(frozen=True)
class _Hands:
    """Candidates: rotation (K, 3, 3) and origin (K, 3), world from grasp; width, score: (K,); target: (K,) int."""

    rotation: np.ndarray
    origin: np.ndarray
    width: np.ndarray
    score: np.ndarray
    target: np.ndarray

    def grasp(self, index: int, gripper: ParallelGripper) -> Grasp:
        """A candidate as a grasp."""
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = self.rotation[index], self.origin[index]
        width = float(self.width[index])
        return Grasp(int(self.target[index]), pose, min(gripper.max_opening, width + 2 * FINGER_CLEARANCE), width,
                     float(self.score[index]))


def plan_grasps(meshes: Sequence[SceneMesh], plane: np.ndarray, gripper: ParallelGripper = FRANKA,
                targets: Sequence[int] | None = None, count: int = 20, seed: int = 0) -> list[Grasp]:
    """The best `count` grasps of the targets that touch nothing on their way in, the best first, but those of doubtful
    meshes after all others.  Grasps that would hardly hold are not among them.

    plane: (4,) unit normal, against gravity, and offset: n . p + d is the height of p over the support
    targets: indices of meshes; None: all. The same seed gives the same grasps.
    """
    plane = np.asarray(plane, np.float64)
    generator = np.random.default_rng(seed)
    candidates = [_hands(_antipodal_pairs(meshes[target], gripper, generator), target, plane)
                  for target in (range(len(meshes)) if targets is None else targets)]
    if not candidates:
        return []
    hands = _Hands(*(np.concatenate([getattr(some, field.name) for some in candidates]) for field in fields(_Hands)))
    obstacles, margins = map(np.concatenate, zip(*(_surface(mesh, generator) for mesh in meshes), strict=True))
    is_doubtful = np.array([mesh.is_doubtful for mesh in meshes])[hands.target]
    ranked = np.argsort(-hands.score, kind="stable")
    free = (_free(hands, ranked[is_doubtful[ranked] == doubtful], obstacles, margins, plane, gripper)
            for doubtful in (False, True))
    return list(islice(chain.from_iterable(free), count))


def _free(hands: _Hands, ranked: np.ndarray, obstacles: np.ndarray, margins: np.ndarray, plane: np.ndarray,
          gripper: ParallelGripper) -> Iterator[Grasp]:
    """Those of the candidates `ranked`, indices from the best, that touch nothing, the best first.

    One that comes nearer to an obstacle (P, 3) than its margin (P,) has a lower score.
    """
    near: deque[Grasp] = deque()
    for index in ranked:
        grasp = hands.grasp(index, gripper)
        while near and near[0].score >= grasp.score:
            yield near.popleft()
        contact = _contact(grasp, obstacles, margins, plane, gripper)
        if contact == _NONE:
            yield grasp
        elif contact == _CLOSE:
            near.append(replace(grasp, score=_NEAR * grasp.score))
    yield from near


def _surface(mesh: SceneMesh, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points (P, 3) of the surface, about OBSTACLE_SPACING apart, and the distance (P,) to keep from each, metres: one
    standard deviation.
    """
    body = trimesh.Trimesh(mesh.vertices, mesh.triangles, process=False)
    count = int(np.clip(2 * body.area / OBSTACLE_SPACING ** 2, 200, 40_000))
    points, faces = trimesh.sample.sample_surface(body, count, seed=generator)
    return points, np.minimum(_face_std(mesh)[faces], _MOST_MARGIN)


def _face_std(mesh: SceneMesh) -> np.ndarray:
    """(M,) standard deviation of the triangles, metres: 0 where the mesh is known exactly."""
    if mesh.vertex_std is None:
        return np.zeros(len(mesh.triangles))
    return mesh.vertex_std[mesh.triangles.astype(np.int64)].mean(axis=1, dtype=np.float64)


def _antipodal_pairs(mesh: SceneMesh, gripper: ParallelGripper, generator: np.random.Generator) -> _Pairs:
    body = trimesh.Trimesh(mesh.vertices, mesh.triangles, process=False)
    points, faces = trimesh.sample.sample_surface(body, RAYS, seed=generator)
    normals = body.face_normals[faces]
    inward = -normals + _CONE_SPREAD * generator.normal(size=normals.shape)
    inward /= np.linalg.norm(inward, axis=1, keepdims=True)
    scene = ray_scene([(mesh.vertices, mesh.triangles)])
    widest = gripper.max_opening - FINGER_CLEARANCE
    # The near wall behind the point, and the far side of the whole object, which is met from outside.
    near, near_faces = _cast(scene, points + 1e-4 * inward, inward)
    far, far_faces = _cast(scene, points + widest * inward, -inward)
    near, far = near + 1e-4, widest - far
    far[np.abs(far - near) < _SAME] = np.inf     # a solid's two are one, and would give every grasp twice
    widths = np.concatenate([near, far])
    ends = np.concatenate([near_faces, far_faces])
    points, faces, inward = np.tile(points, (2, 1)), np.tile(faces, 2), np.tile(inward, (2, 1))
    proper = np.isfinite(widths) & (widths > _LEAST_WIDTH) & (widths < widest) & (ends >= 0)
    points, faces, inward, widths, ends = (array[proper] for array in (points, faces, inward, widths, ends))
    cosines = np.minimum(-(body.face_normals[faces] * inward).sum(axis=1),
                         (body.face_normals[ends] * inward).sum(axis=1))
    least = 1 / np.sqrt(1 + FRICTION ** 2)
    score = np.clip((cosines - least) / (1 - least), 0, 1)
    std = _face_std(mesh)
    score = score * np.exp(-(std[faces] ** 2 + std[ends] ** 2) / (4 * SURE ** 2))
    # Off-centre grasps turn the object in the hand.
    second = points + widths[:, None] * inward
    middle = body.center_mass if body.is_volume else body.centroid
    lever = np.linalg.norm((points + second) / 2 - middle, axis=1) / np.linalg.norm(body.extents)
    score = score * np.exp(-2 * lever)
    good = score > 0
    return _Pairs(points[good], second[good], inward[good], widths[good], score[good])


def _cast(scene: o3d.t.geometry.RaycastingScene, origins: np.ndarray,
          directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances (K,), infinite without a hit, and triangles hit (K,), -1 without."""
    hits = scene.cast_rays(o3d.core.Tensor(np.concatenate([origins, directions], axis=1).astype(np.float32)))
    distance, face = hits["t_hit"].numpy(), hits["primitive_ids"].numpy().astype(np.int64)
    return distance.astype(np.float64), np.where(np.isfinite(distance), face, -1)


def _hands(pairs: _Pairs, target: int, plane: np.ndarray) -> _Hands:
    """The hand at each pair of contacts, in all turns that come from above and at all depths."""
    down = -plane[:3]
    level = np.cross(pairs.axis, down)
    length = np.linalg.norm(level, axis=1)
    turnable = length > _LEAST_LEVEL             # else it would close up and down, lying on the support
    first, second, axis = pairs.first[turnable], pairs.second[turnable], pairs.axis[turnable]
    level = level[turnable] / length[turnable, None]
    steep = np.cross(level, axis)                # as much downwards as the axis allows
    turns = np.arange(TURNS)[:, None, None] * 2 * np.pi / TURNS
    approach = np.cos(turns) * steep + np.sin(turns) * level                              # (T, K, 3)
    axis = np.broadcast_to(axis, approach.shape)
    rotation = np.stack([np.cross(axis, approach), axis, approach], axis=-1)
    tilt = np.arccos(np.clip(approach @ down, -1, 1))
    by_depth = np.array([*DEPTHS.values()])[:, None, None]
    # From above is safer: there is less in the way that was not seen.
    score = pairs.score[turnable] * (1 - 0.4 * tilt / _MAX_TILT) * by_depth                 # (D, T, K)
    origin = np.stack([(first + second) / 2 + depth * approach for depth in DEPTHS])      # (D, T, K, 3)
    is_low = ((first + second) / 2) @ plane[:3] + plane[3] < _LOW
    good = np.stack([(tilt <= _MAX_TILT) & (is_low | (depth > min(DEPTHS))) for depth in DEPTHS])
    good &= score >= _LEAST_SCORE

    def flat(array: np.ndarray, dimensions: int = 0) -> np.ndarray:
        return np.broadcast_to(array, origin.shape[:3] + array.shape[array.ndim - dimensions:])[good]

    return _Hands(flat(rotation, 2), origin[good], flat(pairs.width[turnable]), score[good],
                  np.full(int(good.sum()), target))


def _contact(grasp: Grasp, obstacles: np.ndarray, margins: np.ndarray, plane: np.ndarray,
             gripper: ParallelGripper) -> int:
    """_TOUCHING if the hand at a grasp, or on its way there, touches an obstacle (P, 3) or the support, _CLOSE if it
    comes nearer to an obstacle than its margin (P,), else _NONE.
    """
    pose, boxes = grasp.world_from_grasp, gripper.boxes(grasp.opening, RETREAT)
    heights = boxes * (pose[:3, :3].T @ plane[:3])                      # of the corners, axis by axis
    lowest = heights.min(axis=1).sum(axis=1) + plane[:3] @ pose[:3, 3] + plane[3]
    if lowest.min() < SUPPORT_CLEARANCE:
        return _TOUCHING
    return _contact_of_boxes(obstacles, margins, np.ascontiguousarray(pose[:3, :3]), pose[:3, 3].copy(), boxes)


@numba.njit(cache=True)
def _contact_of_boxes(points, margins, rotation, origin, boxes):  # pragma: no cover (compiled)
    """_TOUCHING if any of (P, 3) points lies in one of (K, 2, 3) boxes of the frame world_from_frame = rotation,
    origin; _CLOSE if one would, were they larger by its margin (P,) on all sides; else _NONE.
    """
    contact = _NONE
    for index in range(len(points)):
        x, y, z = points[index, 0] - origin[0], points[index, 1] - origin[1], points[index, 2] - origin[2]
        a = rotation[0, 0] * x + rotation[1, 0] * y + rotation[2, 0] * z
        b = rotation[0, 1] * x + rotation[1, 1] * y + rotation[2, 1] * z
        c = rotation[0, 2] * x + rotation[1, 2] * y + rotation[2, 2] * z
        for k in range(len(boxes)):
            low, high = boxes[k]
            outside = max(low[0] - a, a - high[0], low[1] - b, b - high[1], low[2] - c, c - high[2])
            if outside <= 0:
                return _TOUCHING
            if outside <= margins[index]:
                contact = _CLOSE
    return contact
