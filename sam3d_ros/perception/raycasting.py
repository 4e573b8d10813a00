"""Rays against meshes, by Open3D."""
from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import open3d as o3d

if TYPE_CHECKING:
    import trimesh


def ray_scene(meshes: Iterable[tuple[np.ndarray, np.ndarray]]) -> o3d.t.geometry.RaycastingScene:
    """Scene, for one thread, of meshes given as vertices (N, 3) and triangles (M, 3); geometry ids count from 0."""
    scene = o3d.t.geometry.RaycastingScene(nthreads=1)
    for vertices, triangles in meshes:
        scene.add_triangles(o3d.core.Tensor(np.ascontiguousarray(vertices, np.float32)),
                            o3d.core.Tensor(np.ascontiguousarray(triangles, np.uint32)))
    return scene


def raycasting_scene(*meshes: trimesh.Trimesh) -> o3d.t.geometry.RaycastingScene:
    """The same of trimesh's meshes."""
    return ray_scene((mesh.vertices, mesh.faces) for mesh in meshes)
