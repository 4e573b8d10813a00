"""Joint refinement of the poses of all objects in view, so that they rest as rigid bodies do: on the support, not
through it, not through each other, and not about to tip over.

No simulation: each object's pose is a Gaussian (the pose it was seen at, and its covariance), gravity pulls it down
with a force that can move a free body by just MAX_SIGMAS standard deviations, and contacts keep bodies out of each
other.  The poses sought minimise the energy of both under these constraints: an uncertain body gives way to a certain
one, and every body in the directions in which the depth left it uncertain.  Contacts are linearised at signed
distances of surface points, the quadratic programme in between is solved in its dual by projected Gauss-Seidel, with
Coulomb friction that resists sliding away from where the body was seen.  What would have to move farther than its
uncertainty allows stays where it was seen, and is reported.

One frame for everything, named "world" here; it may be the camera's. Metres and radians.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

import numba
import numpy as np
import trimesh
from scipy.spatial import ConvexHull, QhullError, cKDTree
from scipy.spatial.transform import Rotation

from ..perception.appearance import vertex_normals
from ..perception.objects import ReconstructedObject
from ..perception.uncertainty import INDEPENDENT_PATCHES
from .distance_grid import distance_grid
from .parallel import in_parallel

GRID = 24                    # cells of a distance grid along the longest side
SAMPLES = 512                # surface points for contacts between bodies
MAX_SIGMAS = 3.0             # of the pose covariance: what a body may move by
FRICTION = 0.5
TOUCH = 0.002                # metres: nearer than this two bodies are in contact
UPWARD = 0.3                 # least vertical part of the normal of a contact that carries
_LINEARISATIONS = 10
_SWEEPS = 30
_REACH = 0.02                # metres: contacts nearer than this are kept in view
_LEAST_SIGMA = (5e-4, 2e-3)  # metres, radians: no pose is surer than this
_LEAST_GRADIENT = 0.1         # of a signed distance, which has 1 but where its surfaces are equally near
_ROUNDING = 1e-6              # of sigmas
_CONVERGED = 1e-4            # metres and radians between two linearisations
_ROUNDABOUT = 6              # times the shortest way out of a neighbour: a longer way back is none
_THROUGH = 0.8               # of the object's thickness there: a longer way back leaves nothing of it
_SQUEEZED = 0.05             # of its height is left of what was below the support
_FOOT = 0.5                  # of the height: how far up the lower end is stretched
_SECTORS = 8                 # contacts of one body on the support at most; one in each direction around its middle


@dataclass(frozen=True)
class Solid:
    """What contacts need to know of a closed mesh, in its object frame; made by `solid_from_mesh`, once per mesh.

    corners: (C, 3) float64, metres, vertices of its convex hull; points: (P, 3) float64, metres, spread over its
    surface
    distance: (X, Y, Z) float32, signed distance in metres, negative inside, at `low` + index * `voxel`
    centre_of_mass: (3,) float64, metres, of uniform density
    """

    corners: np.ndarray
    points: np.ndarray
    distance: np.ndarray
    low: np.ndarray
    voxel: float
    centre_of_mass: np.ndarray


@dataclass(frozen=True)
class Body:
    """An object as it was seen.

    world_from_object: (4, 4) float64
    pose_covariance: (6, 6) float64, x, y, z (m) of the object's origin and rotation (rad) about the world's axes
    """

    solid: Solid
    world_from_object: np.ndarray
    pose_covariance: np.ndarray


class Outcome(Enum):
    """What became of a body."""

    MOVED = "moved"                 # or already at rest
    REFUSED = "refused"             # it would have to move more than MAX_SIGMAS: left where it was seen


@dataclass(frozen=True)
class BodyReport:
    """One body before and after.

    penetration_before, penetration_after: metres, how deep it is in the support or in another body
    gap_before, gap_after: metres, to what is nearest below it: the support or another body; 0 where they touch
    is_stable: its centre of mass is over the hull of its contacts with what carries it
    translation, rotation: metres and radians moved; sigmas: the same as Mahalanobis distance
    """

    outcome: Outcome
    penetration_before: float
    penetration_after: float
    gap_before: float
    gap_after: float
    is_stable: bool
    translation: float
    rotation: float
    sigmas: float


@dataclass(frozen=True)
class Settled:
    """poses: (B, 4, 4) float64, world_from_object of each body; report: one per body."""

    poses: np.ndarray
    report: tuple[BodyReport, ...]


def solid_from_mesh(vertices: np.ndarray, triangles: np.ndarray) -> Solid:
    """Prepare a closed mesh: (N, 3) metres, object frame; (M, 3) vertex indices, counter-clockwise from outside."""
    vertices, triangles = np.ascontiguousarray(vertices, np.float64), np.ascontiguousarray(triangles, np.int64)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    voxel = float((high - low).max()) / (GRID - 3)
    counts = np.ceil((high - low) / voxel).astype(int) + 3
    low = (low + high - (counts - 1) * voxel) / 2
    distance = distance_grid(vertices, triangles, low, voxel, counts)
    centre = trimesh.triangles.mass_properties(vertices[triangles], skip_inertia=True).center_mass
    try:
        corners = vertices[ConvexHull(vertices).vertices]
    except QhullError:                                   # flat
        corners = vertices
    return Solid(corners, _surface_points(vertices, triangles), distance, low, voxel, centre)


def body_from_object(item: ReconstructedObject) -> Body:
    """A reconstructed object as a body; the camera's frame takes the place of the world's."""
    return Body(solid_from_mesh(item.vertices, item.triangles), item.camera_from_object, rigid_covariance(item))


def rigid_covariance(item: ReconstructedObject) -> np.ndarray:
    """(6, 6) as Body.pose_covariance: how far the mesh can move as a whole, camera frame.

    Less than its pose covariance, which is that of the middle of its box and knows the far side as little as the near
    one: the sides that were seen hold the mesh where they were seen.  Every patch of the surface measures the motion
    along its normal (Censi 2007, "An accurate closed-form estimate of ICP's covariance", section IV).
    """
    rotation = item.camera_from_object[:3, :3]
    normals = vertex_normals(item.vertices, item.triangles)[0]
    jacobian = np.hstack([normals @ rotation.T, np.cross(item.vertices, normals) @ rotation.T])
    jacobian /= item.vertex_std[:, None]
    information = INDEPENDENT_PATCHES / len(jacobian) * jacobian.T @ jacobian
    return np.linalg.inv(information + np.linalg.inv(_floored(item.pose_covariance)))


def yielding(objects: Sequence[ReconstructedObject], plane: np.ndarray) -> list[ReconstructedObject]:
    """The objects without what they have inside each other and below the support, as far as their surfaces are unsure.

    plane: as for `settle`, camera frame. Undersides and far sides are not seen, and guessed too deep or too shallow: to
    move an object out of a neighbour for that would spoil the side that was seen.  So first the surfaces give way: a
    vertex inside another object recedes into its own, or is shifted out of the other where that would leave nothing, by
    its share of the way, the share being that of its variance in both.  Then what is below the support is raised to it,
    and a foot just above what carries it is drawn down; none by more than MAX_SIGMAS of its standard deviation.
    An object's origin moves to the middle of its new mesh.
    """
    if not objects:
        return []
    solids = in_parallel(lambda item: solid_from_mesh(item.vertices, item.triangles), objects)
    trees = [cKDTree(item.vertices) for item in objects]
    plane = np.asarray(plane, np.float64)
    gaps = _state(_packed(solids), np.stack([item.camera_from_object for item in objects]), plane).gap
    shifts = in_parallel(lambda index: _shifts(index, objects, solids, trees), range(len(objects)))
    return [_reshaped(item, *own, plane) for item, *own in zip(objects, shifts, gaps, strict=True)]


def _shifts(index: int, objects: Sequence[ReconstructedObject], solids: Sequence[Solid],
            trees: Sequence[cKDTree]) -> np.ndarray:
    """(N, 3) metres, object frame: how each vertex of one object is moved out of the others."""
    item = objects[index]
    shifts = np.zeros(item.vertices.shape)
    inward = -vertex_normals(item.vertices, item.triangles)[0]
    thickness = _thickness(item.vertices, inward, solids[index])
    for other, neighbour in enumerate(objects):
        if other == index:
            continue
        other_from_item = np.linalg.inv(neighbour.camera_from_object) @ item.camera_from_object
        points = item.vertices @ other_from_item[:3, :3].T + other_from_item[:3, 3]
        near = np.flatnonzero((np.abs(points) < neighbour.size / 2).all(axis=1))
        grid, points = _grid(solids[other]), points[near].astype(np.float64)
        depth, outward = _depths(*grid, points)
        way = _ways(*grid, points, inward[near] @ other_from_item[:3, :3].T)
        # Back into the object where that leaves something of it, else the shortest way out of the other.
        is_back = way < np.minimum(_ROUNDABOUT * depth, _THROUGH * thickness[near])
        direction = np.where(is_back[:, None], inward[near], outward @ other_from_item[:3, :3])
        way = np.where(is_back, way, depth)
        own = item.vertex_std[near].astype(np.float64)
        theirs = neighbour.vertex_std[trees[other].query(points)[1]]
        way = np.minimum(way * own ** 2 / (own ** 2 + theirs ** 2), MAX_SIGMAS * own)
        shifts[near] += way[:, None] * direction
    return shifts


def _grid(solid: Solid) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    return solid.distance.ravel(), np.array(solid.distance.shape), solid.low, solid.voxel


def _thickness(vertices: np.ndarray, inward: np.ndarray, solid: Solid) -> np.ndarray:
    """(N,) metres, the way through the solid from each vertex (N, 3) along its inward normal (N, 3)."""
    start = vertices + solid.voxel * inward
    return solid.voxel + _ways(*_grid(solid), start.astype(np.float64), inward.astype(np.float64))


def _reshaped(item: ReconstructedObject, shifts: np.ndarray, gap: float, plane: np.ndarray) -> ReconstructedObject:
    """The object with its vertices shifted (N, 3, object frame), then raised to the support, or its foot drawn down by
    the `gap` below it.
    """
    rotation, origin = item.camera_from_object[:3, :3], item.camera_from_object[:3, 3]
    up = plane[:3] @ rotation                                              # in the object frame
    vertices = item.vertices + shifts
    heights = vertices @ up + (plane[:3] @ origin + plane[3])
    # Squeezed rather than laid flat, so that what was above still is: folded meshes have no inside.
    lowest = min(heights.min(), 0)
    bend = -lowest * _SQUEEZED / (1 - _SQUEEZED)
    squeezed = np.where(heights < bend, _SQUEEZED * (heights - lowest), heights)
    raised = np.clip(squeezed - heights, 0, MAX_SIGMAS * item.vertex_std)
    foot = (heights.max() - heights.min()) * _FOOT
    drawn = np.minimum(gap, MAX_SIGMAS * item.vertex_std) * np.clip(1 - (heights - heights.min()) / foot, 0, 1)
    vertices = vertices + (raised - drawn)[:, None] * up
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    middle = (low + high) / 2
    pose = item.camera_from_object.copy()
    pose[:3, 3] = origin + rotation @ middle
    return replace(item, vertices=(vertices - middle).astype(np.float32), camera_from_object=pose, size=high - low)


def settle(bodies: Sequence[Body], plane: np.ndarray, max_sigmas: float = MAX_SIGMAS) -> Settled:
    """Poses at which the bodies rest on the support and on each other, as near to the given ones as that allows.

    plane: (4,) unit normal n, against gravity, and offset d: n . p + d is the height of p over the support, world
    frame.
    """
    if not bodies:
        return Settled(np.empty((0, 4, 4)), ())
    plane = np.asarray(plane, np.float64)
    solids = _packed([body.solid for body in bodies])
    seen = np.stack([body.world_from_object for body in bodies]).astype(np.float64)
    covariances = np.stack([_floored(body.pose_covariance) for body in bodies])
    before = _state(solids, seen, plane)
    refused = np.zeros(len(bodies), bool)
    moves = np.zeros((len(bodies), 6))
    while True:
        mobility = np.where(refused[:, None, None], 0, covariances)
        moves = _rest(solids, seen, mobility, plane, max_sigmas, np.where(refused[:, None], 0, moves))
        poses = _moved(seen, moves)
        after = _state(solids, poses, plane)
        sigmas = np.sqrt(np.einsum("bi,bi->b", moves, np.linalg.solve(covariances, moves[:, :, None])[:, :, 0]))
        # One at a time, the worst first: what is pushed too far by another may rest well when that one stays.
        worse = np.maximum(after.gap - TOUCH, 0) + np.maximum(after.penetration - before.penetration - TOUCH, 0)
        excess = np.where(refused, 0, np.maximum(sigmas - max_sigmas, 0) + worse / TOUCH)
        if excess.max() <= _ROUNDING:
            break
        refused[excess.argmax()] = True
    return Settled(poses, tuple(
        BodyReport(Outcome.REFUSED if refused[b] else Outcome.MOVED, float(before.penetration[b]),
                   float(after.penetration[b]), float(before.gap[b]), float(after.gap[b]), bool(after.stable[b]),
                   float(np.linalg.norm(moves[b, :3])), float(np.linalg.norm(moves[b, 3:])), float(sigmas[b]))
        for b in range(len(bodies))))


class _Solids(NamedTuple):
    """All solids in flat arrays, for compiled code.

    corners, points, distance: of all bodies, one after the other, those of body b from start[b] to start[b + 1]
    counts: (B, 3) cells of each grid; low: (B, 3); voxel: (B,); centre: (B, 3); radius: (B,) around `centre`
    """

    corners: np.ndarray
    corner_start: np.ndarray
    points: np.ndarray
    point_start: np.ndarray
    distance: np.ndarray
    distance_start: np.ndarray
    counts: np.ndarray
    low: np.ndarray
    voxel: np.ndarray
    centre: np.ndarray
    radius: np.ndarray


class _Contacts(NamedTuple):
    """Pairs of near points: body `a` is pushed along `normal`, body `b` (-1: the support) against it.

    a, b: (K,); point, normal: (K, 3) world; gap: (K,) metres, negative where they overlap
    """

    a: np.ndarray
    b: np.ndarray
    point: np.ndarray
    normal: np.ndarray
    gap: np.ndarray


class _State(NamedTuple):
    """Per body (B,): depth of penetration and gap below, metres; whether it rests safely."""

    penetration: np.ndarray
    gap: np.ndarray
    stable: np.ndarray


def _packed(solids: list[Solid]) -> _Solids:
    def start(arrays: list[np.ndarray]) -> np.ndarray:
        return np.cumsum([0] + [len(array) for array in arrays])

    corners, points = [solid.corners for solid in solids], [solid.points for solid in solids]
    distance = [solid.distance.ravel() for solid in solids]
    centre = np.stack([solid.centre_of_mass for solid in solids])
    radius = np.array([np.linalg.norm(c - m, axis=1).max() for c, m in zip(corners, centre, strict=True)])
    return _Solids(np.concatenate(corners), start(corners), np.concatenate(points), start(points),
                   np.concatenate(distance), start(distance), np.array([solid.distance.shape for solid in solids]),
                   np.stack([solid.low for solid in solids]), np.array([solid.voxel for solid in solids]), centre,
                   radius)


def _floored(covariance: np.ndarray) -> np.ndarray:
    return np.asarray(covariance, np.float64) + np.diag(np.repeat(np.square(_LEAST_SIGMA), 3))


def _moved(poses: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """(B, 4, 4) poses, each moved by (B, 6): shifted, and turned about its own origin."""
    moved = poses.copy()
    moved[:, :3, :3] = Rotation.from_rotvec(moves[:, 3:]).as_matrix() @ poses[:, :3, :3]
    moved[:, :3, 3] += moves[:, :3]
    return moved


def _rest(solids: _Solids, seen: np.ndarray, mobility: np.ndarray, plane: np.ndarray, max_sigmas: float,
          moves: np.ndarray) -> np.ndarray:
    """Moves (B, 6) from the poses `seen` (B, 4, 4).

    mobility: (B, 6, 6), the covariances, 0 where a body must stay; moves: (B, 6), where to begin.
    """
    arms = np.einsum("bij,bj->bi", seen[:, :3, :3], solids.centre)
    weight = max_sigmas / np.sqrt(np.maximum(np.einsum("i,bij,j->b", plane[:3], mobility[:, :3, :3], plane[:3]), 1e-12))
    pull = -np.concatenate([np.tile(plane[:3], (len(arms), 1)), np.cross(arms, plane[:3])], axis=1)
    free = np.einsum("bij,bj->bi", mobility, pull * weight[:, None])
    for _ in range(_LINEARISATIONS):
        poses = _moved(seen, moves)
        contacts = _contacts(solids, poses, plane)
        previous, moves = moves, free.copy()
        _project(contacts, poses[:, :3, 3].copy(), previous, mobility, moves)
        if np.abs(moves - previous).max() < _CONVERGED:
            break
    return moves


def _contacts(solids: _Solids, poses: np.ndarray, plane: np.ndarray) -> _Contacts:
    return _Contacts(*_find_contacts(solids, np.ascontiguousarray(poses[:, :3, :3]), poses[:, :3, 3].copy(), plane,
                                     _REACH))


def _state(solids: _Solids, poses: np.ndarray, plane: np.ndarray) -> _State:
    contacts = _contacts(solids, poses, plane)
    centres = np.einsum("bij,bj->bi", poses[:, :3, :3], solids.centre) + poses[:, :3, 3]
    axes = np.linalg.svd(plane[None, :3])[2][1:]
    penetration, gap, stable = np.zeros(len(poses)), np.empty(len(poses)), np.zeros(len(poses), bool)
    for body in range(len(poses)):
        first, second = contacts.a == body, contacts.b == body
        depth = -contacts.gap[first | second]
        penetration[body] = max(depth.max(initial=0), 0)
        upward = contacts.normal @ plane[:3] * np.where(first, 1, np.where(second, -1, 0))
        carries = upward > UPWARD
        gap[body] = max(contacts.gap[carries].min(initial=np.inf), 0)
        touching = (contacts.point[carries & (contacts.gap < TOUCH)] - centres[body]) @ axes.T
        stable[body] = _surrounds(touching)
    return _State(penetration, gap, stable)


def _surrounds(directions: np.ndarray) -> bool:
    """Whether the hull of (K, 2) points holds the origin: nowhere around it half a turn without one."""
    if len(directions) < 3:
        return False
    angles = np.sort(np.arctan2(directions[:, 1], directions[:, 0]))
    return bool(np.diff(angles, append=angles[0] + 2 * np.pi).max() <= np.pi)


def _surface_points(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """(SAMPLES, 3) points spread evenly over the surface by area."""
    corners = vertices[triangles]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    generator = np.random.default_rng(0)
    steps = (np.arange(SAMPLES) + generator.random(SAMPLES)) / SAMPLES * areas.sum()
    chosen = corners[np.searchsorted(np.cumsum(areas), steps).clip(max=len(corners) - 1)]
    first, second = generator.random((2, SAMPLES, 1))
    root = np.sqrt(first)
    return (1 - root) * chosen[:, 0] + root * (1 - second) * chosen[:, 1] + root * second * chosen[:, 2]


@numba.njit(cache=True, nogil=True)
def _look_up(distance, counts, low, voxel, x, y, z):  # pragma: no cover (compiled)
    """Signed distance at a point of the object frame and its gradient, trilinear; infinite outside the grid."""
    gx, gy, gz = (x - low[0]) / voxel, (y - low[1]) / voxel, (z - low[2]) / voxel
    if not (0 <= gx < counts[0] - 1 and 0 <= gy < counts[1] - 1 and 0 <= gz < counts[2] - 1):
        return np.inf, 0.0, 0.0, 0.0
    i, j, k = int(gx), int(gy), int(gz)
    u, v, w = gx - i, gy - j, gz - k
    row, sheet = counts[2], counts[1] * counts[2]
    at = i * sheet + j * row + k
    c000, c001, c010, c011 = distance[at], distance[at + 1], distance[at + row], distance[at + row + 1]
    at += sheet
    c100, c101, c110, c111 = distance[at], distance[at + 1], distance[at + row], distance[at + row + 1]
    c00, c01, c10, c11 = c000 + u * (c100 - c000), c001 + u * (c101 - c001), c010 + u * (c110 - c010), \
        c011 + u * (c111 - c011)
    c0, c1 = c00 + v * (c10 - c00), c01 + v * (c11 - c01)
    a = (1 - v) * ((1 - w) * (c100 - c000) + w * (c101 - c001)) + v * ((1 - w) * (c110 - c010) + w * (c111 - c011))
    b = (1 - w) * (c10 - c00) + w * (c11 - c01)
    return c0 + w * (c1 - c0), a / voxel, b / voxel, (c1 - c0) / voxel


@numba.njit(cache=True, nogil=True)
def _depths(distance, counts, low, voxel, points):  # pragma: no cover (compiled)
    """How deep each of (P, 3) points, object frame, is inside, at least 0, and the way out (P, 3), unit."""
    depth, outward = np.zeros(len(points)), np.zeros((len(points), 3))
    for index in range(len(points)):
        d, x, y, z = _look_up(distance, counts, low, voxel, points[index, 0], points[index, 1], points[index, 2])
        length = np.sqrt(x * x + y * y + z * z)
        if d < 0 and length > _LEAST_GRADIENT:
            depth[index] = -d
            outward[index, 0], outward[index, 1], outward[index, 2] = x / length, y / length, z / length
    return depth, outward


@numba.njit(cache=True, nogil=True)
def _ways(distance, counts, low, voxel, points, directions):  # pragma: no cover (compiled)
    """How far each of (P, 3) points, object frame, goes in its direction, (P, 3) unit, until it is outside; 0 if it is.
    """
    ways = np.zeros(len(points))
    longest = voxel * (counts[0] + counts[1] + counts[2])
    for index in range(len(points)):
        while ways[index] < longest:
            x, y, z = points[index] + ways[index] * directions[index]
            d = _look_up(distance, counts, low, voxel, x, y, z)[0]
            if d >= 0:
                break
            ways[index] += max(-d, voxel / 8)
    return ways


@numba.njit(cache=True, nogil=True)
def _find_contacts(solids, rotation, origin, plane, reach):  # pragma: no cover (compiled)
    """Fields of _Contacts: of each body on the support the lowest corner of every direction around its middle, and of
    each body in each other one the deepest point of every octant."""
    bodies = len(origin)
    limit = bodies * (_SECTORS + 1 + 8 * (bodies - 1))
    a, b = np.empty(limit, np.int64), np.empty(limit, np.int64)
    point, normal, gap = np.empty((limit, 3)), np.empty((limit, 3)), np.empty(limit)
    count = 0
    n = plane[:3]
    helper = np.array([1.0, 0.0, 0.0]) if abs(n[0]) < 0.8 else np.array([0.0, 1.0, 0.0])
    e = np.cross(n, helper)
    e /= np.sqrt(e @ e)
    f = np.cross(n, e)
    centres = np.empty((bodies, 3))
    for body in range(bodies):
        centres[body] = rotation[body] @ solids.centre[body] + origin[body]
        # The support's axes in the object frame: three products per corner.
        up, along, across = rotation[body].T @ n, rotation[body].T @ e, rotation[body].T @ f
        height = n @ origin[body] + plane[3]
        middle = solids.centre[body]
        best = np.full(_SECTORS, np.inf)
        lowest = np.zeros(_SECTORS, np.int64)
        for index in range(solids.corner_start[body], solids.corner_start[body + 1]):
            x, y, z = solids.corners[index]
            h = up[0] * x + up[1] * y + up[2] * z + height
            if h > best.max():
                continue
            x, y, z = x - middle[0], y - middle[1], z - middle[2]
            turn = np.arctan2(across[0] * x + across[1] * y + across[2] * z, along[0] * x + along[1] * y + along[2] * z)
            sector = int((turn / (2 * np.pi) + 0.5) * _SECTORS) % _SECTORS
            if h < best[sector]:
                best[sector] = h
                lowest[sector] = index
        for sector in range(_SECTORS):
            if best[sector] < best.min() + reach:
                a[count], b[count], gap[count] = body, -1, best[sector]
                point[count], normal[count] = rotation[body] @ solids.corners[lowest[sector]] + origin[body], n
                count += 1
    for body in range(bodies):
        for other in range(bodies):
            between = centres[other] - centres[body]
            if body == other or np.sqrt(between @ between) > solids.radius[body] + solids.radius[other] + reach:
                continue
            turn = rotation[other].T @ rotation[body]                 # other_from_body
            shift = rotation[other].T @ (origin[body] - origin[other])
            grid = solids.distance[solids.distance_start[other]:solids.distance_start[other + 1]]
            middle = solids.centre[body]
            best = np.full(8, reach)
            deepest = np.zeros(8, np.int64)
            outward = np.empty((8, 3))
            for index in range(solids.point_start[body], solids.point_start[body + 1]):
                x, y, z = solids.points[index]
                d, gx, gy, gz = _look_up(grid, solids.counts[other], solids.low[other], solids.voxel[other],
                                         turn[0, 0] * x + turn[0, 1] * y + turn[0, 2] * z + shift[0],
                                         turn[1, 0] * x + turn[1, 1] * y + turn[1, 2] * z + shift[1],
                                         turn[2, 0] * x + turn[2, 1] * y + turn[2, 2] * z + shift[2])
                octant = (x > middle[0]) * 4 + (y > middle[1]) * 2 + (z > middle[2])
                length = np.sqrt(gx * gx + gy * gy + gz * gz)
                if d < best[octant] and length > _LEAST_GRADIENT:
                    best[octant] = d
                    deepest[octant] = index
                    outward[octant, 0], outward[octant, 1], outward[octant, 2] = gx / length, gy / length, gz / length
            for octant in range(8):
                if best[octant] < reach:
                    a[count], b[count], gap[count] = body, other, best[octant]
                    point[count] = rotation[body] @ solids.points[deepest[octant]] + origin[body]
                    normal[count] = rotation[other] @ outward[octant]
                    count += 1
    return a[:count], b[:count], point[:count], normal[:count], gap[:count]


@numba.njit(cache=True, nogil=True)
def _project(contacts, origin, at, mobility, moves):  # pragma: no cover (compiled)
    """Change `moves` (B, 6), at first those of free bodies, by the least (in the metric of `mobility`) that keeps all
    gaps, which were measured at the moves `at`, from becoming negative.

    Projected Gauss-Seidel: three rows per contact, along its normal and two tangents.
    """
    count = len(contacts.a)
    jacobian, response = np.zeros((count, 3, 2, 6)), np.zeros((count, 3, 2, 6))
    compliance, force = np.zeros((count, 3)), np.zeros((count, 3))
    axes = np.empty((3, 3))
    for c in range(count):
        axes[0] = contacts.normal[c]
        helper = np.array([1.0, 0.0, 0.0]) if abs(axes[0, 0]) < 0.8 else np.array([0.0, 1.0, 0.0])
        axes[1] = np.cross(axes[0], helper)
        axes[1] /= np.sqrt(axes[1] @ axes[1])
        axes[2] = np.cross(axes[0], axes[1])
        for row in range(3):
            for side in range(2):
                body = contacts.a[c] if side == 0 else contacts.b[c]
                if body < 0:
                    continue
                sign = 1.0 if side == 0 else -1.0
                jacobian[c, row, side, :3] = sign * axes[row]
                jacobian[c, row, side, 3:] = sign * np.cross(contacts.point[c] - origin[body], axes[row])
                response[c, row, side] = mobility[body] @ jacobian[c, row, side]
                compliance[c, row] += jacobian[c, row, side] @ response[c, row, side]
    for _ in range(_SWEEPS):
        for c in range(count):
            if compliance[c, 0] < 1e-14:         # two bodies that must stay
                continue
            for row in range(3):
                slip = contacts.gap[c] if row == 0 else 0.0
                for side in range(2):
                    body = contacts.a[c] if side == 0 else contacts.b[c]
                    if body >= 0:
                        for k in range(6):
                            moved = moves[body, k] - (at[body, k] if row == 0 else 0.0)
                            slip += jacobian[c, row, side, k] * moved
                wanted = force[c, row] - slip / compliance[c, row]
                if row == 0:
                    wanted = max(wanted, 0.0)
                else:
                    wanted = min(max(wanted, -FRICTION * force[c, 0]), FRICTION * force[c, 0])
                change = wanted - force[c, row]
                if change != 0:
                    force[c, row] = wanted
                    for side in range(2):
                        body = contacts.a[c] if side == 0 else contacts.b[c]
                        if body >= 0:
                            for k in range(6):
                                moves[body, k] += change * response[c, row, side, k]
