"""Alignment of one surface to another, for those figures that ask for it; the metric ones never align."""
from __future__ import annotations

import numpy as np
import open3d as o3d
import trimesh

POINTS = 2000               # drawn from each surface
ITERATIONS = 30
PAIR_DISTANCE = 0.1         # pairs farther apart than this share of the target's diagonal are left out


def icp(source: trimesh.Trimesh, target: trimesh.Trimesh, seed: int = 0) -> np.ndarray:
    """Rigid target_from_source (4, 4) from where the meshes stand: iterative closest point (Besl & McKay 1992).

    Between points, not to planes: a ball then keeps its rotation, which planes would leave free.
    """
    # different seeds: equal meshes must not get equal points
    source_cloud, target_cloud = (o3d.geometry.PointCloud(o3d.utility.Vector3dVector(
        trimesh.sample.sample_surface(mesh, POINTS, seed=s)[0])) for mesh, s in ((source, seed + 1), (target, seed)))
    distance = PAIR_DISTANCE * float(np.linalg.norm(target.extents))
    found = o3d.pipelines.registration.registration_icp(
        source_cloud, target_cloud, distance, np.eye(4),
        o3d.pipelines.registration.TransformationEstimationPointToPoint(),
        o3d.pipelines.registration.ICPConvergenceCriteria(max_iteration=ITERATIONS))
    return np.asarray(found.transformation)


def similarity(source: trimesh.Trimesh, target: trimesh.Trimesh, seed: int = 0) -> np.ndarray:
    """target_from_source (4, 4) with a uniform scale: the surfaces' centroids and radii are made equal, then ICP."""
    centres, radii = zip(*(_centroid_and_radius(mesh, seed) for mesh in (source, target)), strict=True)
    scale = radii[1] / radii[0]
    start = np.diag([scale, scale, scale, 1.0])
    start[:3, 3] = centres[1] - scale * centres[0]
    return icp(source.copy().apply_transform(start), target, seed) @ start


def rotation_angle_deg(transform: np.ndarray) -> float:
    """Angle, degrees, of the rotation in a rigid (4, 4) transform."""
    return float(np.rad2deg(np.arccos(np.clip((np.trace(transform[:3, :3]) - 1) / 2, -1, 1))))


def _centroid_and_radius(mesh: trimesh.Trimesh, seed: int) -> tuple[np.ndarray, float]:
    """Centroid (3,) of the surface and its root mean square distance from it."""
    points = trimesh.sample.sample_surface(mesh, POINTS, seed=seed)[0]
    centre = points.mean(axis=0)
    return centre, float(np.sqrt(((points - centre) ** 2).sum(axis=1).mean()))
