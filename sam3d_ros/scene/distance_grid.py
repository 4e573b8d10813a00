"""Signed distance to a closed mesh on a regular grid, for contacts and for registration."""
from __future__ import annotations

import numba
import numpy as np

_BAND = 1.8               # cells from a triangle within which distances are exact
_NOWHERE = 1e9            # metres, as a coordinate; square metres, as a distance


def distance_grid(vertices: np.ndarray, triangles: np.ndarray, origin: np.ndarray, cell: float,
                  counts: np.ndarray) -> np.ndarray:
    """(X, Y, Z) float32, metres, negative inside, at the nodes `origin` + index * `cell`; (X, Y, Z) are the `counts`.

    vertices: (N, 3) float64, metres; triangles: (M, 3) int64, counter-clockwise seen from outside.  Exact within 1.8
    cells of the mesh, farther away too large by a fraction of a cell.  Inside is what the mesh winds around, so that
    folds and overlaps of a mesh that was bent have none of their own.  Runs without Python's lock for nearly all of it.
    """
    squares = np.empty(tuple(counts), np.float32)
    _fill_squares(vertices, triangles, origin, cell, squares)
    votes = np.zeros(squares.shape, np.int8)
    for axis in range(3):
        _vote(vertices, triangles, origin, cell, axis, votes)
    distance = np.sqrt(squares)
    return np.where(votes >= 2, -distance, distance)


@numba.njit(cache=True, nogil=True)
def _span(a, b, c, margin, origin, cell, count):  # pragma: no cover (compiled)
    """First and last of a grid's nodes along one axis between three coordinates, and as far as `margin` beside them."""
    return (max(0, int(np.ceil((min(a, b, c) - margin - origin) / cell))),
            min(count - 1, int(np.floor((max(a, b, c) + margin - origin) / cell))))


@numba.njit(cache=True, nogil=True)
def _vote(vertices, triangles, origin, cell, axis, votes):  # pragma: no cover (compiled)
    """Add 1 at the nodes that the mesh winds around, as the grid's lines along one axis tell: it is entered once more
    than left on the way there.  A line that meets an edge can be wrong, hence three axes."""
    u, v = (axis + 1) % 3, (axis + 2) % 3
    entered = np.zeros(votes.shape, np.int16)
    node = np.empty(3, np.int64)
    shift = 1e-5 * cell                                   # vertices lie on round numbers more often than by chance
    for t in range(len(triangles)):
        a, b, c = vertices[triangles[t, 0]], vertices[triangles[t, 1]], vertices[triangles[t, 2]]
        area = (b[u] - a[u]) * (c[v] - a[v]) - (b[v] - a[v]) * (c[u] - a[u])
        if area == 0:
            continue
        first_u, last_u = _span(a[u], b[u], c[u], 0.0, origin[u] + shift, cell, votes.shape[u])
        first_v, last_v = _span(a[v], b[v], c[v], 0.0, origin[v] + shift, cell, votes.shape[v])
        for i in range(first_u, last_u + 1):
            x = origin[u] + i * cell + shift
            for j in range(first_v, last_v + 1):
                y = origin[v] + j * cell + shift
                at_a = ((b[u] - x) * (c[v] - y) - (b[v] - y) * (c[u] - x)) / area
                at_b = ((c[u] - x) * (a[v] - y) - (c[v] - y) * (a[u] - x)) / area
                at_c = 1 - at_a - at_b
                if at_a < 0 or at_b < 0 or at_c < 0:
                    continue
                crossing = at_a * a[axis] + at_b * b[axis] + at_c * c[axis]
                node[u], node[v] = i, j
                node[axis] = max(0, int(np.ceil((crossing - origin[axis]) / cell)))
                if node[axis] < votes.shape[axis]:
                    entered[node[0], node[1], node[2]] += 1 if area < 0 else -1
    for i in range(votes.shape[u]):
        for j in range(votes.shape[v]):
            node[u], node[v] = i, j
            winding = 0
            for k in range(votes.shape[axis]):
                node[axis] = k
                winding += entered[node[0], node[1], node[2]]
                if winding > 0:
                    votes[node[0], node[1], node[2]] += 1


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
def _fill_squares(vertices, triangles, origin, cell, squares):  # pragma: no cover (compiled)
    """Squared distances at all nodes: exact near the surface, elsewhere to the nearest surface point that a neighbour
    knows of (vector distance transform by sweeps)."""
    nx, ny, nz = squares.shape
    closest = np.full((nx, ny, 3, nz), _NOWHERE, np.float32)
    squares[:] = _NOWHERE
    band = _BAND * cell
    p = np.empty(3)
    low = np.empty(3, np.int64)
    high = np.empty(3, np.int64)
    for t in range(len(triangles)):
        a, b, c = vertices[triangles[t, 0]], vertices[triangles[t, 1]], vertices[triangles[t, 2]]
        for k in range(3):
            low[k], high[k] = _span(a[k], b[k], c[k], band, origin[k], cell, squares.shape[k])
        for i in range(low[0], high[0] + 1):
            p[0] = origin[0] + i * cell
            beside_x = max(min(a[0], b[0], c[0]) - p[0], p[0] - max(a[0], b[0], c[0]), 0.0)
            for j in range(low[1], high[1] + 1):
                p[1] = origin[1] + j * cell
                beside_y = max(min(a[1], b[1], c[1]) - p[1], p[1] - max(a[1], b[1], c[1]), 0.0)
                for k in range(low[2], high[2] + 1):
                    p[2] = origin[2] + k * cell
                    beside_z = max(min(a[2], b[2], c[2]) - p[2], p[2] - max(a[2], b[2], c[2]), 0.0)
                    # Most triangles are farther than one that was here before: their bounding box tells.
                    if beside_x ** 2 + beside_y ** 2 + beside_z ** 2 >= min(squares[i, j, k], band * band):
                        continue
                    u, v, w = _closest_on_triangle(p, a, b, c)
                    qx = u * a[0] + v * b[0] + w * c[0]
                    qy = u * a[1] + v * b[1] + w * c[1]
                    qz = u * a[2] + v * b[2] + w * c[2]
                    square = (p[0] - qx) ** 2 + (p[1] - qy) ** 2 + (p[2] - qz) ** 2
                    if square < squares[i, j, k]:
                        squares[i, j, k] = square
                        closest[i, j, 0, k], closest[i, j, 1, k], closest[i, j, 2, k] = qx, qy, qz
    # Once in each of the 8 directions, which are 4 where a row is gone along both ways: a second round changes nothing
    # within 3 cm by as much as a millimetre.
    for sweep in range(4):
        step_x, step_y = 1 - 2 * (sweep & 1), 1 - (sweep & 2)
        for ii in range(nx):
            i = ii if step_x > 0 else nx - 1 - ii
            x = np.float32(origin[0] + i * cell)
            for jj in range(ny):
                j = jj if step_y > 0 else ny - 1 - jj
                y = np.float32(origin[1] + j * cell)
                if ii > 0:
                    _adopt(squares[i, j], closest[i, j], closest[i - step_x, j], x, y, np.float32(origin[2]),
                           np.float32(cell))
                if jj > 0:
                    _adopt(squares[i, j], closest[i, j], closest[i, j - step_y], x, y, np.float32(origin[2]),
                           np.float32(cell))
                _spread(squares[i, j], closest[i, j], x, y, np.float32(origin[2]), np.float32(cell))


# The next two work on a row of nodes along z, at x, y: their squared distances (Z,) and surface points (3, Z), all
# float32, so that processors do many nodes at once.

@numba.njit(cache=True, nogil=True, fastmath=True, inline="always")
def _adopt(squares, closest, other, x, y, origin_z, cell):  # pragma: no cover (compiled)
    """Let the nodes have the surface points of the row beside them, (3, Z), where these are nearer than their own."""
    for k in range(len(squares)):
        dx, dy, dz = x - other[0, k], y - other[1, k], origin_z + np.float32(k) * cell - other[2, k]
        square = dx * dx + dy * dy + dz * dz
        nearer = square < squares[k]
        squares[k] = square if nearer else squares[k]
        for axis in range(3):
            closest[axis, k] = other[axis, k] if nearer else closest[axis, k]


@numba.njit(cache=True, nogil=True, fastmath=True, inline="always")
def _spread(squares, closest, x, y, origin_z, cell):  # pragma: no cover (compiled)
    """Let every node have the surface point of one before it in the row, or behind, if that is nearer than its own."""
    for way in (1, -1):
        k = 0 if way > 0 else len(squares) - 1
        qx, qy, qz = closest[0, k], closest[1, k], closest[2, k]
        for _ in range(len(squares) - 1):
            k += way
            dx, dy, dz = x - qx, y - qy, origin_z + np.float32(k) * cell - qz
            square = dx * dx + dy * dy + dz * dz
            if square < squares[k]:
                squares[k] = square
                closest[0, k], closest[1, k], closest[2, k] = qx, qy, qz
            else:
                qx, qy, qz = closest[0, k], closest[1, k], closest[2, k]
