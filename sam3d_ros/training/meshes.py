"""The store of training meshes with their signed-distance grids, one .npz without pickle."""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
from tqdm import tqdm

from ..synth.sdf import closed_parts, normalised, signed_distance_grid

# Simple parametric shapes, many and alike: every fourth is enough.
_SIMPLE_SOURCES = ("pybullet_random", "dm_rgb")
_FILL_RANGE = (0.002, 0.9)  # share of the grid inside the mesh; outside this range the grid is not to be trusted
_MAX_PARTS = 12
_MAX_FACES = 20_000


@dataclass(frozen=True)
class MeshStore:
    """Normalised meshes (largest extent 1, box centred at the origin).

    sdf: (M, 64, 64, 64) float16; size: (M,) metres, NaN where the mesh is not metric
    """

    meshes: list[trimesh.Trimesh]
    sdf: np.ndarray
    size: np.ndarray
    name: list[str]

    def save(self, path: Path) -> None:
        """Write all meshes and grids to one .npz file."""
        np.savez(path, sdf=self.sdf, size=self.size, name=np.array(self.name),
                 vertices=np.concatenate([m.vertices for m in self.meshes]).astype(np.float32),
                 faces=np.concatenate([m.faces for m in self.meshes]).astype(np.int32),
                 counts=np.array([[len(m.vertices), len(m.faces)] for m in self.meshes]))

    @classmethod
    def load(cls, path: Path) -> MeshStore:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as z:
            ends = np.cumsum(z["counts"], axis=0)[:-1]
            vertices, faces = np.split(z["vertices"], ends[:, 0]), np.split(z["faces"], ends[:, 1])
            meshes = [trimesh.Trimesh(v, f, process=False) for v, f in zip(vertices, faces, strict=True)]
            return cls(meshes, z["sdf"], z["size"], z["name"].tolist())


def _entry(mesh: trimesh.Trimesh) -> tuple[trimesh.Trimesh, float, np.ndarray] | None:
    """Normalised mesh, its largest extent and its grid; None if it is not closed or degenerate."""
    if len(mesh.faces) < 8 or len(mesh.faces) > _MAX_FACES or mesh.extents is None or mesh.extents.max() <= 0:
        return None
    mesh, size = normalised(mesh)
    parts = closed_parts(mesh)
    if parts is None or len(parts) > _MAX_PARTS:
        return None
    sdf = signed_distance_grid(parts)
    inside = float((sdf < 0).mean())
    return (mesh, size, sdf) if _FILL_RANGE[0] < inside < _FILL_RANGE[1] else None


def build_store(data: Path, split: str, procedural: int, seed: int) -> MeshStore:
    """Closed meshes of `split` ("train" or "dev") below data/meshes, and `procedural` shapes of our own."""
    rows = [json.loads(line) for line in (data / "meshes" / "manifest.jsonl").read_text().splitlines()]
    rows = [r for i, r in enumerate(rows) if r["split"] == split and (r["source"] not in _SIMPLE_SOURCES or i % 4 == 0)]
    found = []
    for row in tqdm(rows, desc=f"meshes ({split})", unit="mesh"):
        entry = _entry(trimesh.load(data / row["file"], force="mesh"))
        if entry:
            found.append((*entry, row["metric"], row["name"]))
    rng = np.random.default_rng(seed)
    if procedural:
        from ..synth.shapes import random_shape

        for _ in tqdm(range(procedural), desc="procedural shapes", unit="mesh"):
            shape = random_shape(rng)
            entry = _entry(shape.mesh)
            if entry:
                found.append((*entry, True, shape.kind))
    return MeshStore([f[0] for f in found], np.stack([f[2] for f in found]),
                     np.array([f[1] if f[3] else np.nan for f in found]), [f[4] for f in found])
