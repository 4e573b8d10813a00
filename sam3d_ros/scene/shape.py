"""A mesh made ready for tracking: a signed-distance grid to register depth to, and samples to look for in an image."""
from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from ..perception.appearance import vertex_normals

GRID_CELLS = 56           # along the longest side, margins and all
GRID_MARGIN = 0.03        # metres around the mesh; farther points have no part in a registration
SAMPLES = 400
_BAND = 1.8               # cells from a triangle within which distances are exact


@dataclass(frozen=True)
class Shape:
    """Object frame, metres.

    distance: (X, Y, Z) float32, signed distance at the grid's nodes, negative inside; origin: (3,) of node 0, 0, 0;
    cell: between nodes; samples, normals: (S, 3) float64 points spread evenly over the surface, and outward normals;
    low, high: (3,) of the mesh's bounding box; diagonal: its length
    """

    distance: np.ndarray
    origin: np.ndarray
    cell: float
    samples: np.ndarray
    normals: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def diagonal(self) -> float:
        """Of the bounding box, metres."""
        return float(np.linalg.norm(self.high - self.low))


def make_shape(vertices: np.ndarray, triangles: np.ndarray) -> Shape:
    """Shape of a closed mesh: (N, 3) vertices, metres, object frame; (M, 3) triangles, counter-clockwise from outside.

    Takes 20 to 40 ms on one core, without holding Python's lock for most of it.
    """
    vertices = np.ascontiguousarray(vertices, np.float64)
    triangles = np.ascontiguousarray(triangles, np.int64)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    cell = (float((high - low).max()) + 2 * GRID_MARGIN) / GRID_CELLS
    origin = low - GRID_MARGIN
    counts = np.ceil((high - low + 2 * GRID_MARGIN) / cell).astype(int) + 1
    normals, _ = vertex_normals(vertices, triangles)
    distance = np.empty(tuple(counts), np.float32)
    _fill_distance(vertices, triangles, normals, origin, cell, distance)
    samples, sample_normals = _surface_samples(vertices, triangles)
    return Shape(distance, origin, cell, samples, sample_normals, low, high)


def _surface_samples(vertices: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SAMPLES points (S, 3) at equal steps of area along the list of triangles, and the triangles' normals."""
    corners = vertices[triangles]
    facing = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(facing, axis=1)
    generator = np.random.default_rng(0)
    until = np.cumsum(area)
    chosen = np.searchsorted(until, (np.arange(SAMPLES) + generator.random(SAMPLES)) / SAMPLES * until[-1])
    chosen = np.minimum(chosen, len(triangles) - 1)
    first = np.sqrt(generator.random(SAMPLES))
    second = generator.random(SAMPLES)
    weights = np.stack([1 - first, first * (1 - second), first * second], axis=1)
    return np.einsum("sck,sc->sk", corners[chosen], weights), facing[chosen] / np.maximum(area[chosen], 1e-20)[:, None]


@numba.njit(cache=True, nogil=True, fastmath=True)
def _closest_on_triangle(p, a, b, c):  # pragma: no cover (compiled)
    """Barycentric weights of the point of triangle a, b, c that is nearest to p (Ericson, Real-Time Collision
    Detection, section 5.1.5)."""
    abx, aby, abz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    acx, acy, acz = c[0] - a[0], c[1] - a[1], c[2] - a[2]
    apx, apy, apz = p[0] - a[0], p[1] - a[1], p[2] - a[2]
    d1 = abx * apx + aby * apy + abz * apz
    d2 = acx * apx + acy * apy + acz * apz
    if d1 <= 0 and d2 <= 0:
        return 1.0, 0.0, 0.0
    bpx, bpy, bpz = p[0] - b[0], p[1] - b[1], p[2] - b[2]
    d3 = abx * bpx + aby * bpy + abz * bpz
    d4 = acx * bpx + acy * bpy + acz * bpz
    if d3 >= 0 and d4 <= d3:
        return 0.0, 1.0, 0.0
    vc = d1 * d4 - d3 * d2
    if vc <= 0 and d1 >= 0 and d3 <= 0:
        v = d1 / (d1 - d3)
        return 1 - v, v, 0.0
    cpx, cpy, cpz = p[0] - c[0], p[1] - c[1], p[2] - c[2]
    d5 = abx * cpx + aby * cpy + abz * cpz
    d6 = acx * cpx + acy * cpy + acz * cpz
    if d6 >= 0 and d5 <= d6:
        return 0.0, 0.0, 1.0
    vb = d5 * d2 - d1 * d6
    if vb <= 0 and d2 >= 0 and d6 <= 0:
        w = d2 / (d2 - d6)
        return 1 - w, 0.0, w
    va = d3 * d6 - d5 * d4
    if va <= 0 and d4 - d3 >= 0 and d5 - d6 >= 0:
        w = (d4 - d3) / ((d4 - d3) + (d5 - d6))
        return 0.0, 1 - w, w
    total = va + vb + vc
    if total <= 0:  # no area
        return 1.0, 0.0, 0.0
    return va / total, vb / total, vc / total


@numba.njit(cache=True, nogil=True)
def _fill_distance(vertices, triangles, normals, origin, cell, distance):  # pragma: no cover (compiled)
    """Signed distances at all nodes: exact near the surface, elsewhere to the nearest surface point that a neighbour
    knows of (vector distance transform by sweeps)."""
    nx, ny, nz = distance.shape
    closest = np.empty((nx, ny, nz, 3), np.float32)
    sign = np.ones((nx, ny, nz), np.int8)
    distance[:] = 1e9
    band = _BAND * cell
    p = np.empty(3)
    low = np.empty(3, np.int64)
    high = np.empty(3, np.int64)
    for t in range(len(triangles)):
        i0, i1, i2 = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        a, b, c = vertices[i0], vertices[i1], vertices[i2]
        for k in range(3):
            low[k] = max(0, int(np.ceil((min(a[k], b[k], c[k]) - band - origin[k]) / cell)))
            high[k] = min(distance.shape[k] - 1, int(np.floor((max(a[k], b[k], c[k]) + band - origin[k]) / cell)))
        for i in range(low[0], high[0] + 1):
            p[0] = origin[0] + i * cell
            for j in range(low[1], high[1] + 1):
                p[1] = origin[1] + j * cell
                for k in range(low[2], high[2] + 1):
                    p[2] = origin[2] + k * cell
                    u, v, w = _closest_on_triangle(p, a, b, c)
                    qx = u * a[0] + v * b[0] + w * c[0]
                    qy = u * a[1] + v * b[1] + w * c[1]
                    qz = u * a[2] + v * b[2] + w * c[2]
                    d = np.sqrt((p[0] - qx) ** 2 + (p[1] - qy) ** 2 + (p[2] - qz) ** 2)
                    if d < distance[i, j, k]:
                        distance[i, j, k] = d
                        closest[i, j, k, 0], closest[i, j, k, 1], closest[i, j, k, 2] = qx, qy, qz
                        side = 0.0
                        for m in range(3):
                            q = qx if m == 0 else (qy if m == 1 else qz)
                            n = u * normals[i0, m] + v * normals[i1, m] + w * normals[i2, m]
                            side += (p[m] - q) * n
                        sign[i, j, k] = -1 if side < 0 else 1
    # Once in each of the 8 directions: a second round changes nothing within 3 cm by as much as a millimetre.
    for sweep in range(8):
        sx, sy, sz = 1 - 2 * (sweep & 1), 1 - (sweep & 2), 1 - (sweep & 4) // 2
        for ii in range(nx):
            i = ii if sx > 0 else nx - 1 - ii
            for jj in range(ny):
                j = jj if sy > 0 else ny - 1 - jj
                for kk in range(nz):
                    k = kk if sz > 0 else nz - 1 - kk
                    for axis in range(3):
                        a0, a1, a2 = i - (sx if axis == 0 else 0), j - (sy if axis == 1 else 0), \
                            k - (sz if axis == 2 else 0)
                        if a0 < 0 or a0 >= nx or a1 < 0 or a1 >= ny or a2 < 0 or a2 >= nz:
                            continue
                        if distance[a0, a1, a2] > 1e8:
                            continue
                        x = origin[0] + i * cell - closest[a0, a1, a2, 0]
                        y = origin[1] + j * cell - closest[a0, a1, a2, 1]
                        z = origin[2] + k * cell - closest[a0, a1, a2, 2]
                        square = x * x + y * y + z * z
                        # A tie but for rounding must not carry the sign from the surface's other side.
                        limit = distance[i, j, k] - 0.001 * cell
                        if limit > 0 and square < limit * limit:
                            distance[i, j, k] = np.sqrt(square)
                            sign[i, j, k] = sign[a0, a1, a2]
                            for m in range(3):
                                closest[i, j, k, m] = closest[a0, a1, a2, m]
    for i in range(nx):
        for j in range(ny):
            for k in range(nz):
                distance[i, j, k] *= sign[i, j, k]
