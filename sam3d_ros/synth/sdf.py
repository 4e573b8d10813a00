"""Signed-distance grids of training meshes."""
from __future__ import annotations

import igl
import numpy as np
import open3d as o3d
import trimesh

from ..perception.raycasting import raycasting_scene

GRID = 64
_CLEARLY = 0.25            # distance of a winding number from 1/2 beyond which it is clear
_NEAR = 0.02               # largest extents; nearer to the surface any winding number may occur
_DOUBTFUL_SHARE = 0.05     # of the inside, that may be neither inside nor outside
_THINNEST_WALL = 0.03      # largest extents, 1.5 cells of the grid
HALF_WIDTH = 0.62  # of the mesh's largest extent: the grid reaches a little beyond the mesh


def normalised(mesh: trimesh.Trimesh) -> tuple[trimesh.Trimesh, float]:
    """The mesh with its bounding box centred at the origin and largest extent 1, and the extent that it had."""
    extent = float(mesh.extents.max())
    return trimesh.Trimesh((mesh.vertices - mesh.bounds.mean(axis=0)) / extent, mesh.faces, process=False), extent


def signed_distance_grid(mesh: trimesh.Trimesh) -> np.ndarray | None:
    """Signed distance (negative inside) of a normalised mesh on a 64^3 grid, or None if it has no clear inside.

    Returns (64, 64, 64) float32, axes x, y, z from -0.62 to 0.62, in units of the largest extent.  What is inside is
    decided by the generalised winding number (Jacobson et al. 2013, section 3; Barill et al. 2018), so small holes,
    overlapping parts and a mesh turned inside out do no harm; a mesh of which many points away from its surface are
    neither inside nor outside is refused.  Walls too thin for the grid are swollen to 1.5 of its cells: broken up by
    sampling, they would teach nothing.
    """
    t = np.linspace(-HALF_WIDTH, HALF_WIDTH, GRID, dtype=np.float32)
    points = np.stack(np.meshgrid(t, t, t, indexing="ij"), axis=-1).reshape(-1, 3)
    scene = raycasting_scene(mesh)
    closest = scene.compute_closest_points(o3d.core.Tensor(points))
    distance = np.linalg.norm(points - closest["points"].numpy(), axis=1)
    winding = igl.fast_winding_number(np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64),
                                      points.astype(np.float64))
    outwards = 1.0 if winding.sum() > 0 else -1.0
    inside = outwards * winding > 0.5
    doubtful = (np.abs(outwards * winding - 0.5) < _CLEARLY) & (distance > _NEAR)
    if doubtful.sum() > _DOUBTFUL_SHARE * max(1, inside.sum()):
        return None
    thickness = _wall_thickness(mesh, scene, outwards)[closest["primitive_ids"].numpy()]
    swelling = np.maximum(0, (_THINNEST_WALL - thickness) / 2)
    return (np.where(inside, -distance, distance) - swelling).reshape(GRID, GRID, GRID)


def _wall_thickness(mesh: trimesh.Trimesh, scene: o3d.t.geometry.RaycastingScene, outwards: float) -> np.ndarray:
    """(F,) distance from each face's middle, through the solid, to the other side; infinite where nothing is hit."""
    inwards = -outwards * mesh.face_normals
    rays = np.concatenate([mesh.triangles_center + 1e-4 * inwards, inwards], axis=1).astype(np.float32)
    return scene.cast_rays(o3d.core.Tensor(rays))["t_hit"].numpy()
