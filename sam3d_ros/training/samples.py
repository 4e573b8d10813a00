"""Training samples: rendered, spoiled like real input, and stored small; evidence and targets are made on the fly."""
from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numba
import numpy as np

from ..perception.cube import RESOLUTION, fit_cube, inlier_points
from ..perception.evidence import CHANNELS, camera_point, fill_evidence
from ..perception.frame import back_project
from ..synth.render import CROP, View, render_view
from ..synth.sdf import HALF_WIDTH
from ..synth.sensor import corrupted_depth, corrupted_mask
from .meshes import MeshStore

DEPTH_UNIT = 1e-4   # metres per stored step
_MIN_POINTS = 50
_CLEAN_SHARE = 0.1  # of the samples keep a perfect mask and white noise only


@dataclass(frozen=True)
class Samples:
    """N samples as arrays; cameras and cubes as in perception.cube.

    depth: (N, 96, 96) uint16 in 0.1 mm; mask: (N, 1152) uint8, packed bits; camera: (N, 4) float32 fx, fy, cx, cy
    rotation: (N, 3, 3), centre: (N, 3), edge: (N,) float32: the cube
    target_from_camera: (N, 3, 4) float32; scale: (N,) float32, metres per unit of the target's frame; mesh: (N,) int32
    """

    depth: np.ndarray
    mask: np.ndarray
    camera: np.ndarray
    rotation: np.ndarray
    centre: np.ndarray
    edge: np.ndarray
    target_from_camera: np.ndarray
    scale: np.ndarray
    mesh: np.ndarray

    def __len__(self) -> int:
        return len(self.edge)

    def save(self, path: Path) -> None:
        """Write to .npz; appears under its name only when complete."""
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **{f.name: getattr(self, f.name) for f in fields(self)})
        partial.rename(path)

    @classmethod
    def load(cls, path: Path) -> Samples:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as z:
            return cls(**{f.name: z[f.name] for f in fields(cls)})

    def take(self, index: np.ndarray) -> Samples:
        """The samples at `index`, (K,) integers."""
        return Samples(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def _record(view: View, mesh: int, rng: np.random.Generator, spoil: bool) -> tuple | None:
    """One row of Samples, or None if too little of the object is left to see."""
    depth, mask = view.depth, view.mask
    if spoil and rng.random() > _CLEAN_SHARE:
        depth, mask = corrupted_depth(depth, rng), corrupted_mask(mask, rng)
    stored = np.clip(np.round(depth / DEPTH_UNIT), 0, 65535).astype(np.uint16)
    rows, columns = np.nonzero(mask & (stored > 0) & (stored < 65535))
    if len(rows) < _MIN_POINTS:
        return None
    points = back_project(stored * np.float32(DEPTH_UNIT), view.intrinsics, rows, columns)
    cube = fit_cube(points[inlier_points(points)])
    k = view.intrinsics
    return (stored, np.packbits(mask), [k.fx, k.fy, k.cx, k.cy], cube.virtual_from_camera, cube.centre, cube.edge,
            view.target_from_camera[:3], view.scale, mesh)


def make_samples(store: MeshStore, count: int, seed: int, spoil: bool = True) -> Samples:
    """`count` random samples of the store's meshes; the same seed gives the same samples."""
    rng = np.random.default_rng(seed)
    rows = []
    while len(rows) < count:
        mesh = int(rng.integers(len(store.meshes)))
        view = render_view(store.meshes[mesh], store.meshes, rng)
        row = view and _record(view, mesh, rng, spoil)
        if row:
            rows.append(row)
    columns = [np.array(c) for c in zip(*rows, strict=True)]
    types = [np.uint16, np.uint8] + [np.float32] * 6 + [np.int32]
    return Samples(*(c.astype(t) for c, t in zip(columns, types, strict=True)))


@numba.njit(parallel=True, fastmath=True, cache=True)
def _fill_targets(sdf, mesh, target_from_camera, scale, rotation, centre, edge, out):  # pragma: no cover (compiled)
    count, n, grid = out.shape[0], out.shape[2], sdf.shape[1]
    for job in numba.prange(count * n):
        b, i = job // n, job % n
        t = target_from_camera[b]
        volume = sdf[mesh[b]]
        per_voxel = scale[b] * n / edge[b]
        x = ((i + 0.5) / n - 0.5) * edge[b] + centre[b, 0]
        for j in range(n):
            y = ((j + 0.5) / n - 0.5) * edge[b] + centre[b, 1]
            for k in range(n):
                z = ((k + 0.5) / n - 0.5) * edge[b] + centre[b, 2]
                cx, cy, cz = camera_point(rotation[b], x, y, z)
                gx = (t[0, 0] * cx + t[0, 1] * cy + t[0, 2] * cz + t[0, 3]) / HALF_WIDTH
                gy = (t[1, 0] * cx + t[1, 1] * cy + t[1, 2] * cz + t[1, 3]) / HALF_WIDTH
                gz = (t[2, 0] * cx + t[2, 1] * cy + t[2, 2] * cz + t[2, 3]) / HALF_WIDTH
                value = np.float32(0.2)  # beyond the grid: far outside
                if abs(gx) <= 1 and abs(gy) <= 1 and abs(gz) <= 1:
                    ax, ay, az = (gx + 1) * 0.5 * (grid - 1), (gy + 1) * 0.5 * (grid - 1), (gz + 1) * 0.5 * (grid - 1)
                    ix, iy, iz = min(int(ax), grid - 2), min(int(ay), grid - 2), min(int(az), grid - 2)
                    fx, fy, fz = ax - ix, ay - iy, az - iz
                    c00 = volume[ix, iy, iz] * (1 - fz) + volume[ix, iy, iz + 1] * fz
                    c01 = volume[ix, iy + 1, iz] * (1 - fz) + volume[ix, iy + 1, iz + 1] * fz
                    c10 = volume[ix + 1, iy, iz] * (1 - fz) + volume[ix + 1, iy, iz + 1] * fz
                    c11 = volume[ix + 1, iy + 1, iz] * (1 - fz) + volume[ix + 1, iy + 1, iz + 1] * fz
                    value = np.float32((c00 * (1 - fy) + c01 * fy) * (1 - fx) + (c10 * (1 - fy) + c11 * fy) * fx)
                out[b, 0, i, j, k] = value * per_voxel


def make_batch(samples: Samples, sdf: np.ndarray,
               rng: np.random.Generator | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Evidence (B, 3, 64, 64, 64) float32 and true signed distance (B, 1, 64, 64, 64) float32, in voxels, of samples.

    sdf: (M, 64, 64, 64) float32 grids of the mesh store.  With `rng`, the cubes are jittered (centre by 3 % of the
    edge, edge by -5 to +15 %) and half the samples mirrored.
    """
    count = len(samples)
    centre, edge = samples.centre.astype(np.float64), samples.edge.astype(np.float64)
    if rng is not None:
        centre = centre + rng.normal(size=(count, 3)) * 0.03 * edge[:, None]
        edge = edge * rng.uniform(0.95, 1.15, count)
    mask = np.unpackbits(samples.mask, axis=1).reshape(count, CROP, CROP)
    evidence = np.empty((count, CHANNELS) + (RESOLUTION,) * 3, np.float32)
    distance = np.empty((count, 1) + (RESOLUTION,) * 3, np.float32)
    fill_evidence(samples.depth * np.float32(DEPTH_UNIT), mask, samples.camera.astype(np.float64), np.arange(count),
                  np.ones(count, np.int32), samples.rotation.astype(np.float64), centre, edge, evidence)
    _fill_targets(sdf, samples.mesh, samples.target_from_camera.astype(np.float64), samples.scale.astype(np.float64),
                  samples.rotation.astype(np.float64), centre, edge, distance)
    if rng is not None:
        mirrored = rng.random(count) < 0.5
        evidence[mirrored] = evidence[mirrored, :, ::-1]
        distance[mirrored] = distance[mirrored, :, ::-1]
    return evidence, distance
