"""The store of training meshes: geometry, signed-distance grids, colours and resting poses, as plain .npy files."""
from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, fields
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import trimesh
from scipy.spatial import cKDTree
from tqdm import tqdm

from ..synth.resting import stable_rotations
from ..synth.sdf import GRID, HALF_WIDTH, normalised, signed_distance_grid
from ..terminal import UserError
from .workers import interrupt_left_to_parent

# Simple parametric shapes, many and alike: every fourth is enough.
_SIMPLE_SOURCES = ("pybullet_random", "dm_rgb")
# Words that tell an object of a set that the model is judged on: none of these may be trained on.
_HELD_OUT = {"ycb", "ycbv", "linemod", "lmo", "hope"}
_FILL_RANGE = (0.002, 0.9)  # share of the grid inside the mesh; outside this range the grid is not to be trusted
_MAX_FACES = 20_000
_NOTE = "made_of.txt"        # in the folder of a store
_COLOUR_EDGE = 0.05         # largest extents; edges of a procedural shape's mesh, fine enough for its texture
SDF_UNIT = 1 / 16384        # largest extents per step of a stored distance
POINTS = 2048               # surface points per mesh that carry colour
COLOUR_GRID = 32
RESTING = 8                 # orientations per mesh at most


@dataclass(frozen=True)
class MeshStore:
    """M normalised meshes (largest extent 1, box centred at the origin), all in flat arrays that can be memory-mapped.

    sdf: (M, 64, 64, 64) int16 in steps of SDF_UNIT, over -0.62 to 0.62; size: (M,) metres, NaN if not metric;
    vertices: (sum V, 3) float32; vertex_rgb: (sum V, 3) uint8; faces: (sum F, 3) int32; ends: (M, 2) int64, last vertex
    and face of each mesh; points: (M, 2048, 3) float32 on the surface; point_rgb: (M, 2048, 3) uint8;
    nearest: (M, 32, 32, 32) uint16, point nearest to each cell of the grid; resting: (M, 8, 3, 3) float32
    world_from_object, the first resting_count (M,); textured: (M,) bool; name: (M,) str
    """

    sdf: np.ndarray
    size: np.ndarray
    vertices: np.ndarray
    vertex_rgb: np.ndarray
    faces: np.ndarray
    ends: np.ndarray
    points: np.ndarray
    point_rgb: np.ndarray
    nearest: np.ndarray
    resting: np.ndarray
    resting_count: np.ndarray
    textured: np.ndarray
    name: np.ndarray

    def __len__(self) -> int:
        return len(self.size)

    def mesh(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Vertices (V, 3), faces (F, 3) and vertex colours (V, 3) uint8 of one mesh."""
        first = self.ends[index - 1] if index else (0, 0)
        last = self.ends[index]
        return (self.vertices[first[0]:last[0]], self.faces[first[1]:last[1]], self.vertex_rgb[first[0]:last[0]])

    def save(self, folder: Path) -> None:
        """Write one .npy per array; the folder appears under its name only when complete."""
        partial = folder.with_name(folder.name + ".partial")
        partial.mkdir(parents=True, exist_ok=True)
        for field in fields(self):
            np.save(partial / f"{field.name}.npy", getattr(self, field.name), allow_pickle=False)
        partial.rename(folder)

    @classmethod
    def load(cls, folder: Path) -> MeshStore:
        """Memory-map what `save` wrote."""
        # As plain arrays: every slice of a np.memmap, and all that is computed of one, is a np.memmap, made in Python.
        return cls(**{field.name: np.asarray(np.load(folder / f"{field.name}.npy", mmap_mode="r", allow_pickle=False))
                      for field in fields(cls)})


def _coloured(path: Path) -> tuple[trimesh.Trimesh, np.ndarray]:
    """A mesh file and its vertex colours (V, 3) uint8."""
    mesh = trimesh.load(path, force="mesh")
    visual = mesh.visual.to_color() if mesh.visual.kind == "texture" else mesh.visual
    rgba = np.asarray(getattr(visual, "vertex_colors", None))
    if rgba.shape[:1] != (len(mesh.vertices),):      # a material without a picture, or colours of faces
        rgba = np.tile(np.uint8([160, 160, 160, 255]), (len(mesh.vertices), 1))
    return mesh, rgba[:, :3].astype(np.uint8)


def _entry(mesh: trimesh.Trimesh, rgb: np.ndarray, metric: bool, name: str, seed: int) -> dict | None:
    """Fields of one mesh; None if it has no clear inside or is degenerate."""
    if not 8 <= len(mesh.faces) <= _MAX_FACES or not np.isfinite(mesh.vertices).all() or mesh.extents.max() <= 0:
        return None
    mesh, size = normalised(mesh)
    sdf = signed_distance_grid(mesh)
    if sdf is None or not _FILL_RANGE[0] < (sdf < 0).mean() < _FILL_RANGE[1]:
        return None
    points, face = trimesh.sample.sample_surface(mesh, POINTS, seed=seed)
    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[face], points)
    point_rgb = np.einsum("nc,nck->nk", weights, rgb[mesh.faces[face]].astype(float))
    ticks = (np.arange(COLOUR_GRID) + 0.5) / COLOUR_GRID * 2 * HALF_WIDTH - HALF_WIDTH
    cells = np.stack(np.meshgrid(ticks, ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 3)
    inside = np.argwhere(sdf < 0)
    centre_of_mass = inside.mean(axis=0) / (GRID - 1) * 2 * HALF_WIDTH - HALF_WIDTH
    stable = stable_rotations(mesh, centre_of_mass, RESTING)
    if not len(stable):
        stable = np.eye(3)[None]
    resting = np.zeros((RESTING, 3, 3), np.float32)
    resting[:len(stable)] = stable
    return dict(sdf=np.clip(np.round(sdf / SDF_UNIT), -32767, 32767).astype(np.int16), size=size if metric else np.nan,
                vertices=mesh.vertices.astype(np.float32), vertex_rgb=rgb, faces=mesh.faces.astype(np.int32),
                points=points.astype(np.float32), point_rgb=np.clip(point_rgb, 0, 255).astype(np.uint8),
                nearest=cKDTree(points).query(cells)[1].astype(np.uint16).reshape((COLOUR_GRID,) * 3),
                resting=resting, resting_count=len(stable), textured=bool(rgb.std(axis=0).max() > 3), name=name)


def _file_entry(job: tuple[Path, bool, str, int]) -> dict | None:
    path, metric, name, seed = job
    try:
        mesh, rgb = _coloured(path)
    except Exception as error:          # a file that is no mesh fails in as many ways as there are formats
        raise UserError(f"{path} is no mesh ({type(error).__name__})") from None
    return _entry(mesh, rgb, metric, name, seed)


def _procedural_entry(seed: int) -> dict | None:
    from ..synth.shapes import random_shape

    shape = random_shape(np.random.default_rng(seed))
    mesh, rgb = shape.refined(_COLOUR_EDGE * shape.mesh.extents.max())
    return _entry(mesh, rgb, True, shape.kind, seed)


def build_store(data: Path, split: str, procedural: int, seed: int, workers: int = 1) -> MeshStore:
    """Meshes with a clear inside of `split` ("train" or "dev") below data/meshes, and `procedural` shapes of ours.

    Raises UserError for a broken manifest or mesh, for one that would have the model trained on what it is judged on,
    and without any mesh; OSError.
    """
    rows = read_manifest(data)
    if split == "train":
        refuse_held_out(rows)
    rows = [r for i, r in enumerate(rows) if r["split"] == split and (r["source"] not in _SIMPLE_SOURCES or i % 4 == 0)]
    jobs = [(data / r["file"], r["metric"], r["name"], seed + i) for i, r in enumerate(rows)]
    with interrupt_left_to_parent():
        pool = get_context("spawn").Pool(max(workers, 1))
    with pool:
        found = list(tqdm(pool.imap(_file_entry, jobs, chunksize=4), total=len(jobs), desc=f"meshes ({split})"))
        seeds = range(1_000_000 * (seed + 1), 1_000_000 * (seed + 1) + procedural)
        found += list(tqdm(pool.imap(_procedural_entry, seeds, chunksize=4), total=procedural, desc="procedural"))
    entries = [entry for entry in found if entry is not None]
    if not entries:
        raise UserError(f"{data} holds no mesh with a clear inside of the {split} split")
    flat = {"vertices", "vertex_rgb", "faces"}
    names = [field.name for field in fields(MeshStore) if field.name != "ends"]
    columns = {name: [entry[name] for entry in entries] for name in names}
    ends = np.cumsum([[len(entry["vertices"]), len(entry["faces"])] for entry in entries], axis=0)
    return MeshStore(ends=ends, **{name: np.concatenate(column) if name in flat else np.array(column)
                                   for name, column in columns.items()})


def read_manifest(data: Path) -> list[dict]:
    """Rows of data/meshes/manifest.jsonl.  Raises UserError for a line that is none, and for files that are missing."""
    path = data / "meshes" / "manifest.jsonl"
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            rows.append({name: row[name] for name in ("file", "name", "source", "split", "metric")})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}, line {number}: {type(error).__name__}: {error}") from None
    missing = [row["file"] for row in rows if not (data / row["file"]).is_file()]
    if missing:
        raise UserError(f"{path}: {len(missing)} of {len(rows)} meshes are missing, {data / missing[0]} for one")
    return rows


def refuse_held_out(rows: list[dict]) -> None:
    """Raise UserError if a mesh of the train split is of a set that the model is judged on, or of the dev split too."""
    judged_on = {row["file"] for row in rows if row["split"] != "train"}
    for row in rows:
        words = set(re.split("[^a-z]+", f"{row['source']} {row['file']} {row['name']}".lower()))
        if row["split"] == "train" and (row["file"] in judged_on or words & _HELD_OUT):
            raise UserError(f"{row['file']} must not be trained on: the model is judged on objects of YCB, LINEMOD and "
                            "HOPE, and on all that are not of the train split")


def load_or_build(folder: Path, data: Path, split: str, procedural: int, workers: int = 1) -> MeshStore:
    """The store in `folder`, built there first if it is absent.

    Raises what `build_store` does, and UserError for a store of another manifest or number of procedural shapes.
    """
    note, made_of = folder / _NOTE, _made_of(data, split, procedural)
    if not folder.exists():
        build_store(data, split, procedural, seed=0, workers=workers).save(folder)
        note.write_text(made_of)
    elif note.exists() and note.read_text() != made_of:
        raise UserError(f"{folder} was made of other meshes than --data and the config say now: delete it, or choose "
                        "another --run")
    return MeshStore.load(folder)


def _made_of(data: Path, split: str, procedural: int) -> str:
    """What a store is made of, as text to compare.  Raises OSError."""
    manifest = hashlib.sha256((data / "meshes" / "manifest.jsonl").read_bytes()).hexdigest()
    return f"{manifest} {split} {procedural}\n"
