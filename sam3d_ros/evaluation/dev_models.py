"""The objects of the development split of the third-party meshes, as models for simulated scenes."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import trimesh
from scipy.spatial import ConvexHull

from sam3d_ros.scene.convex import convex_pieces
from sam3d_ros.synth.clutter import Model

# What a hand that opens by 8 cm can take from above, and what fits in the workspace; metres.
MAX_WIDTH, MIN_HEIGHT, MAX_EXTENT = 0.072, 0.025, 0.22


def graspable_models(data: Path) -> list[Model]:
    """Models of the dev split of `data`/meshes that a gripper of 8 cm can take where they stand, by name.

    Raises FileNotFoundError without the manifest.
    """
    rows = [json.loads(line) for line in (data / "meshes" / "manifest.jsonl").read_text().splitlines()]
    meshes = {row["name"]: _welded(data / row["file"]) for row in rows if row["split"] == "dev"}
    return [Model(name, mesh, rgb, tuple(convex_pieces(mesh.vertices, mesh.faces)))
            for name, (mesh, rgb) in sorted(meshes.items()) if _is_graspable(mesh)]


def _welded(path: Path) -> tuple[trimesh.Trimesh, np.ndarray]:
    """Mesh without seams of the texture, centred at its bounding box, and its vertex colours (N, 3) uint8."""
    textured = trimesh.load(path, force="mesh")
    colours = np.asarray(textured.visual.to_color().vertex_colors)[:, :3]
    vertices, first, index = np.unique(textured.vertices, axis=0, return_index=True, return_inverse=True)
    mesh = trimesh.Trimesh(vertices - textured.bounds.mean(axis=0), index.reshape(-1)[textured.faces], process=False)
    return mesh, colours[first].astype(np.uint8)


def _is_graspable(mesh: trimesh.Trimesh) -> bool:
    return bool(mesh.extents[2] > MIN_HEIGHT and mesh.extents.max() < MAX_EXTENT and _width(mesh) < MAX_WIDTH)


def _width(mesh: trimesh.Trimesh) -> float:
    """Least width of the outline seen from above, metres; the side of a convex outline lies along it."""
    outline = mesh.vertices[:, :2]
    outline = outline[ConvexHull(outline).vertices]
    sides = np.roll(outline, -1, axis=0) - outline
    normals = np.stack([-sides[:, 1], sides[:, 0]]) / np.linalg.norm(sides, axis=1)
    return float(np.ptp(outline @ normals, axis=0).min())
