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
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numba
import numpy as np
from scipy.spatial.transform import Rotation

from ..perception.appearance import vertex_normals
from ..perception.objects import ReconstructedObject
from ..perception.uncertainty import INDEPENDENT_PATCHES
from .contacts import find_contacts, measure_contacts
from .solid import Solid, solid_from_mesh

MAX_SIGMAS = 3.0             # of the pose covariance: what a body may move by
TOUCH = 0.002                # metres: nearer than this two bodies are in contact
REACH = 0.02                 # metres: contacts nearer than this are kept in view
_FRICTION = 0.5              # Coulomb's coefficient, about that of wood, cardboard and plastics on each other
_UPWARD = 0.3                # least vertical part of the normal of a contact that carries
_TURN = 0.15                 # radians: what stands safely has its centre of mass higher when turned so far to any side
_SIDES = 16                  # to which it is turned
_LINEARISATIONS = 8
_SWEEPS = 60                 # of Gauss-Seidel over all contacts
_LEAST_SIGMA = (5e-4, 2e-3)  # metres, radians: no pose is surer than this
_ROUNDING = 1e-6             # of sigmas
_CONVERGED = 1e-4            # metres and radians between two linearisations
_FIXED = 1e-14               # square metres, compliance of a contact: both its bodies must stay


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
    is_stable: its centre of mass is over the hull of its contacts with what carries it; on the support alone, it also
    does not stand on a round underside that lets it tip over
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
    before = _state(_contacts(solids, seen, plane), len(bodies), plane)
    refused = np.zeros(len(bodies), bool)
    moves = np.zeros((len(bodies), 6))
    while True:
        mobility = np.where(refused[:, None, None], 0, covariances)
        moves = _rest(solids, seen, mobility, plane, max_sigmas, np.where(refused[:, None], 0, moves))
        poses = _moved(seen, moves)
        contacts = _contacts(solids, poses, plane)
        after = _state(contacts, len(bodies), plane)
        sigmas = np.sqrt(np.einsum("bi,bi->b", moves, np.linalg.solve(covariances, moves[:, :, None])[:, :, 0]))
        # One at a time, the worst first: what is pushed too far by another may rest well when that one stays.
        worse = np.maximum(after.gap - TOUCH, 0) + np.maximum(after.penetration - before.penetration - TOUCH, 0)
        excess = np.where(refused, 0, np.maximum(sigmas - max_sigmas, 0) + worse / TOUCH)
        if excess.max() <= _ROUNDING:
            break
        refused[excess.argmax()] = True
    stable = _stable(contacts, solids, poses, plane)
    return Settled(poses, tuple(
        BodyReport(Outcome.REFUSED if refused[b] else Outcome.MOVED, float(before.penetration[b]),
                   float(after.penetration[b]), float(before.gap[b]), float(after.gap[b]), stable[b],
                   float(np.linalg.norm(moves[b, :3])), float(np.linalg.norm(moves[b, 3:])), float(sigmas[b]))
        for b in range(len(bodies))))


def gaps_below(solids: Sequence[Solid], poses: np.ndarray, plane: np.ndarray) -> np.ndarray:
    """(B,) metres from each solid to what is nearest below it, the support or another; 0 where they touch, infinite if
    nothing is near.  poses: (B, 4, 4) world_from_object; plane: as for `settle`.
    """
    return _state(_contacts(_packed(solids), poses, plane), len(solids), plane).gap


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

    a, b: (K,); index: (K,) of a corner of `a` on the support, of a point of `a` on another body
    point, normal: (K, 3) world; gap: (K,) metres, negative where they overlap
    """

    a: np.ndarray
    b: np.ndarray
    index: np.ndarray
    point: np.ndarray
    normal: np.ndarray
    gap: np.ndarray


class _State(NamedTuple):
    """Per body (B,): depth of penetration and gap below, metres."""

    penetration: np.ndarray
    gap: np.ndarray


def _packed(solids: Sequence[Solid]) -> _Solids:
    """All solids, one after the other."""
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
    """(6, 6) or (B, 6, 6) covariance that is nowhere surer than _LEAST_SIGMA."""
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
    contacts = None
    for _ in range(_LINEARISATIONS):
        poses = _moved(seen, moves)
        # With those found before, else two that are deepest in turn would take turns for ever.
        contacts = _contacts(solids, poses, plane, contacts)
        previous, moves = moves, free.copy()
        _project(contacts, poses[:, :3, 3].copy(), previous, mobility, moves)
        if np.abs(moves - previous).max() < _CONVERGED:
            break
    return moves


def _contacts(solids: _Solids, poses: np.ndarray, plane: np.ndarray, held: _Contacts | None = None) -> _Contacts:
    """Contacts at some poses; those `held` from other poses are among them, as they are now."""
    rotation, origin = np.ascontiguousarray(poses[:, :3, :3]), poses[:, :3, 3].copy()
    which = np.stack(find_contacts(solids, rotation, origin, plane, REACH), axis=1)
    if held is not None:
        which = np.concatenate([which, np.stack(held[:3], axis=1)])
        most = max(len(solids.corners), len(solids.points))
        number = np.ravel_multi_index((which + [0, 1, 0]).T, (len(poses), len(poses) + 1, most))
        which = which[np.unique(number, return_index=True)[1]]
    measured = measure_contacts(solids, rotation, origin, plane, which)
    near = np.isfinite(measured[2])
    return _Contacts(*which[near].T.copy(), *(part[near] for part in measured))


def _state(contacts: _Contacts, count: int, plane: np.ndarray) -> _State:
    """How `count` bodies with these contacts rest on the support (4,) and on each other."""
    penetration, gap = np.zeros(count), np.empty(count)
    for body in range(count):
        depth = -contacts.gap[(contacts.a == body) | (contacts.b == body)]
        penetration[body] = max(depth.max(initial=0), 0)
        gap[body] = max(contacts.gap[_carries(contacts, body, plane)].min(initial=np.inf), 0)
    return _State(penetration, gap)


def _carries(contacts: _Contacts, body: int, plane: np.ndarray) -> np.ndarray:
    """(K,) bool: which contacts carry a body."""
    upward = contacts.normal @ plane[:3] * np.where(contacts.a == body, 1, np.where(contacts.b == body, -1, 0))
    return upward > _UPWARD


def _stable(contacts: _Contacts, solids: _Solids, poses: np.ndarray, plane: np.ndarray) -> list[bool]:
    """Whether each body rests safely at its pose (B, 4, 4), where it has these contacts: BodyReport.is_stable."""
    axes = np.linalg.svd(plane[None, :3])[2][1:]
    stable = []
    for body, pose in enumerate(poses):
        touches = _carries(contacts, body, plane) & (contacts.gap < TOUCH)
        centre = pose[:3, :3] @ solids.centre[body] + pose[:3, 3]
        stable.append(_surrounds((contacts.point[touches] - centre) @ axes.T))
        if stable[-1] and (contacts.b[touches] < 0).all():
            corners = solids.corners[solids.corner_start[body]:solids.corner_start[body + 1]] - solids.centre[body]
            stable[-1] = _stands(corners, plane[:3] @ pose[:3, :3], axes @ pose[:3, :3])
    return stable


def _stands(corners: np.ndarray, up: np.ndarray, axes: np.ndarray) -> bool:
    """Whether the centre of mass of a body on a plane is higher over that when the body is turned by _TURN to any side.

    corners: (C, 3) of its hull, from its centre of mass, object frame; up, axes: unit vectors (3,) across and (2, 3) in
    the plane, object frame
    """
    angles = np.arange(_SIDES) * 2 * np.pi / _SIDES
    sides = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ axes
    down = np.concatenate([[-up], np.sin(_TURN) * sides - np.cos(_TURN) * up])       # of the body as it is, and turned
    heights = (corners @ down.T).max(axis=0)
    return bool(heights[1:].min() > heights[0])


def _surrounds(directions: np.ndarray) -> bool:
    """Whether the hull of (K, 2) points holds the origin: nowhere around it half a turn without one."""
    if len(directions) < 3:
        return False
    angles = np.sort(np.arctan2(directions[:, 1], directions[:, 0]))
    return bool(np.diff(angles, append=angles[0] + 2 * np.pi).max() <= np.pi)


@numba.njit(cache=True, nogil=True)
def _project(contacts, origin, at, mobility, moves):  # pragma: no cover (compiled)
    """Change `moves` (B, 6), at first those of free bodies, by the least (in the metric of `mobility`) that keeps all
    gaps, which were measured at the moves `at`, from becoming negative.  Projected Gauss-Seidel.
    """
    jacobian, response, compliance = _rows(contacts, origin, mobility)
    force = np.zeros(compliance.shape)
    for _ in range(_SWEEPS):
        for c in range(len(force)):
            if compliance[c, 0] < _FIXED:
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
                    wanted = min(max(wanted, -_FRICTION * force[c, 0]), _FRICTION * force[c, 0])
                change = wanted - force[c, row]
                if change != 0:
                    force[c, row] = wanted
                    for side in range(2):
                        body = contacts.a[c] if side == 0 else contacts.b[c]
                        if body >= 0:
                            for k in range(6):
                                moves[body, k] += change * response[c, row, side, k]


@numba.njit(cache=True, nogil=True)
def _rows(contacts, origin, mobility):  # pragma: no cover (compiled)
    """Three rows for each of K contacts, along its normal and two tangents, for both its bodies.

    Returns jacobian (K, 3, 2, 6), how the bodies' moves shift the contact along the row; response (K, 3, 2, 6), how a
    force along the row moves the bodies; and compliance (K, 3), how far it shifts the contact.
    """
    count = len(contacts.a)
    jacobian, response = np.zeros((count, 3, 2, 6)), np.zeros((count, 3, 2, 6))
    compliance = np.zeros((count, 3))
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
    return jacobian, response, compliance
