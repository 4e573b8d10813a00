"""Evidence: what the camera says about every voxel of an object's cube."""
from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np

from .cube import RESOLUTION, Cube
from .frame import Intrinsics

# OpenMP before TBB: the TBB that other libraries bring along is often too old for Numba, which then warns at length.
numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]

CHANNELS = 3
TRUNCATION = 3 / 32  # of the cube's edge


@numba.njit(fastmath=True, inline="always")
def camera_point(rotation, x, y, z):  # pragma: no cover (compiled)
    """Camera coordinates of the point x, y, z of the virtual frame; rotation: (3, 3) virtual_from_camera."""
    return (rotation[0, 0] * x + rotation[1, 0] * y + rotation[2, 0] * z,
            rotation[0, 1] * x + rotation[1, 1] * y + rotation[2, 1] * z,
            rotation[0, 2] * x + rotation[1, 2] * y + rotation[2, 2] * z)


@numba.njit(parallel=True, fastmath=True, cache=True)
def fill_evidence(depth, labels, camera, image, own, rotation, centre, edge, out):  # pragma: no cover (compiled)
    """Evidence of B objects seen in I images; see `evidence` for units and channels.

    depth: (I, H, W) float32; labels: (I, H, W) integer; camera: (I, 4) fx, fy, cx, cy; per object: image: (B,) index,
    own: (B,) label, rotation: (B, 3, 3) virtual_from_camera, centre: (B, 3), edge: (B,); out: (B, 3, n, n, n) float32.
    """
    count, height, width = out.shape[0], depth.shape[1], depth.shape[2]
    n = out.shape[2]
    for job in numba.prange(count * n):
        b, i = job // n, job % n
        m = image[b]
        fx, fy, px, py = camera[m, 0], camera[m, 1], camera[m, 2], camera[m, 3]
        scale = 1.0 / (TRUNCATION * edge[b])
        x = ((i + 0.5) / n - 0.5) * edge[b] + centre[b, 0]
        for j in range(n):
            y = ((j + 0.5) / n - 0.5) * edge[b] + centre[b, 1]
            for k in range(n):
                z = ((k + 0.5) / n - 0.5) * edge[b] + centre[b, 2]
                cx, cy, cz = camera_point(rotation[b], x, y, z)
                distance = np.float32(0.0)
                inside = np.float32(0.0)
                valid = np.float32(0.0)
                if cz > 0.01:
                    u = int(np.floor(cx / cz * fx + px + 0.5))
                    v = int(np.floor(cy / cz * fy + py + 0.5))
                    if 0 <= u < width and 0 <= v < height:
                        if labels[m, v, u] == own[b]:
                            inside = np.float32(1.0)
                        seen = depth[m, v, u]
                        if seen > 0:
                            valid = np.float32(1.0)
                            distance = np.float32(min(1.0, max(-1.0, (seen - cz) * scale)))
                out[b, 0, i, j, k] = distance
                out[b, 1, i, j, k] = inside
                out[b, 2, i, j, k] = valid


def evidence(depth: np.ndarray, labels: np.ndarray, intrinsics: Intrinsics, cubes: Sequence[Cube],
             own_labels: Sequence[int]) -> np.ndarray:
    """Evidence volumes of several objects of one image.

    depth: (H, W) float32, metres, 0 = no reading; labels: (H, W) int32 instance masks;
    cubes and own_labels: one of each per object.

    Returns (B, 3, 64, 64, 64) float32, volume axes x, y, z of the cube's virtual camera.  Channels: signed distance
    along the camera's axis to the observed depth, positive in front of it, truncated at 3/32 of the cube's edge and
    scaled to -1..1 (0 without a reading); 1 where the voxel projects into the object's mask; 1 where it projects onto a
    depth reading.  All pixels count, not only the object's own: neighbours and the table carve free space.
    """
    out = np.empty((len(cubes), CHANNELS) + (RESOLUTION,) * 3, np.float32)
    camera = np.array([[intrinsics.fx, intrinsics.fy, intrinsics.cx, intrinsics.cy]])
    fill_evidence(np.ascontiguousarray(depth, np.float32)[None], np.ascontiguousarray(labels, np.int32)[None], camera,
                  np.zeros(len(cubes), np.int64), np.asarray(own_labels, np.int32),
                  np.stack([c.virtual_from_camera for c in cubes]), np.stack([c.centre for c in cubes]),
                  np.array([c.edge for c in cubes]), out)
    return out
