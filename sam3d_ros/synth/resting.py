"""Stable poses: the orientations in which an object's convex hull stands on a plane."""
from __future__ import annotations

import numpy as np
import trimesh

_SAME_PLANE = 0.02     # distance between unit normals that count as one


def rotation_between(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least rotation (3, 3) that turns the unit vector `source` to the unit vector `target`."""
    cosine = float(source @ target)
    if cosine < -0.999999:
        helper = np.eye(3)[np.abs(source).argmin()]
        axis = np.cross(source, helper)
        axis /= np.linalg.norm(axis)
        return 2 * np.outer(axis, axis) - np.eye(3)
    cross = np.cross(source, target)
    skew = np.array([[0, -cross[2], cross[1]], [cross[2], 0, -cross[0]], [-cross[1], cross[0], 0]])
    return np.eye(3) + skew + skew @ skew / (1 + cosine)


def stable_rotations(mesh: trimesh.Trimesh, centre_of_mass: np.ndarray, most: int) -> np.ndarray:
    """Orientations world_from_object (K, 3, 3), K <= most, world +Z up, in which the mesh stands by itself.

    It stands on a face of its convex hull onto which its centre of mass, (3,), projects (Goldberg et al. 1999, section
    2).  The faces with the lowest centre of mass come first, since most falls end on them.
    """
    hull = mesh.convex_hull
    normals, corners = hull.face_normals, hull.triangles
    height = np.einsum("fk,fk->f", normals, corners[:, 0] - centre_of_mass)
    foot = centre_of_mass + height[:, None] * normals
    edges = np.roll(corners, -1, axis=1) - corners
    side = np.einsum("fck,fk->fc", np.cross(edges, foot[:, None] - corners), normals)
    standing = np.flatnonzero((side >= -1e-9).all(axis=1) & (hull.area_faces > 0))
    chosen: list[np.ndarray] = []
    for face in standing[np.argsort(height[standing])]:
        if all(np.linalg.norm(normals[face] - other) > _SAME_PLANE for other in chosen):
            chosen.append(normals[face])
        if len(chosen) == most:
            break
    return np.array([rotation_between(normal, np.array([0.0, 0.0, -1.0])) for normal in chosen]).reshape(-1, 3, 3)
