"""Signed-distance grids of training meshes."""
from __future__ import annotations

import numpy as np
import open3d as o3d
import trimesh

GRID = 64
HALF_WIDTH = 0.62  # of the mesh's largest extent: the grid reaches a little beyond the mesh


def normalised(mesh: trimesh.Trimesh) -> tuple[trimesh.Trimesh, float]:
    """The mesh with its bounding box centred at the origin and largest extent 1, and the extent that it had."""
    extent = float(mesh.extents.max())
    return trimesh.Trimesh((mesh.vertices - mesh.bounds.mean(axis=0)) / extent, mesh.faces, process=False), extent


def closed_parts(mesh: trimesh.Trimesh) -> list[trimesh.Trimesh] | None:
    """The mesh as closed solids, or None if any part stays open when holes of a face or two are filled.

    Many models are several closed solids pushed into each other: closed as parts, although not one closed surface.
    """
    merged = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    merged.merge_vertices(merge_tex=True, merge_norm=True)
    merged.update_faces(merged.nondegenerate_faces())
    merged.update_faces(merged.unique_faces())
    parts = list(merged.split(only_watertight=False))
    return parts if parts and all(p.is_watertight for p in parts) else None


def raycasting_scene(*meshes: trimesh.Trimesh) -> o3d.t.geometry.RaycastingScene:
    """Open3D ray-casting scene (one thread) with one geometry id per mesh, in order."""
    scene = o3d.t.geometry.RaycastingScene(nthreads=1)
    for mesh in meshes:
        scene.add_triangles(o3d.core.Tensor(np.ascontiguousarray(mesh.vertices, np.float32)),
                            o3d.core.Tensor(np.ascontiguousarray(mesh.faces, np.uint32)))
    return scene


def signed_distance_grid(parts: list[trimesh.Trimesh]) -> np.ndarray:
    """Signed distance (negative inside) of the union of closed `parts`, normalised together, on a 64^3 grid.

    Returns (64, 64, 64) float16, axes x, y, z from -0.62 to 0.62, in units of the largest extent.
    """
    t = np.linspace(-HALF_WIDTH, HALF_WIDTH, GRID, dtype=np.float32)
    points = np.stack(np.meshgrid(t, t, t, indexing="ij"), axis=-1).reshape(-1, 3)
    distance = raycasting_scene(*parts).compute_distance(o3d.core.Tensor(points)).numpy()
    for part in parts:
        # Inside a part only its own surface counts: where parts overlap, the walls between them are no surface.
        scene = raycasting_scene(part)
        candidate = np.flatnonzero(((points > part.bounds[0]) & (points < part.bounds[1])).all(axis=1))
        query = o3d.core.Tensor(points[candidate])
        inside = candidate[scene.compute_occupancy(query, nsamples=3).numpy() > 0.5]
        depth = scene.compute_distance(o3d.core.Tensor(points[inside])).numpy()
        distance[inside] = np.minimum(np.where(distance[inside] < 0, distance[inside], 0), -depth)
    return distance.reshape(GRID, GRID, GRID).astype(np.float16)
