"""Signed distance to a closed mesh on a regular grid, for contacts and for registration."""
from __future__ import annotations

import numba
import numpy as np

_BAND = 1.8               # cells from a triangle within which distances are exact
_NOWHERE = 1e9            # metres, as a coordinate; square metres, as a distance
_AT_ONCE = 8              # nodes that are measured to a triangle at once


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


@numba.njit(cache=True, nogil=True)
def _fill_squares(vertices, triangles, origin, cell, squares):  # pragma: no cover (compiled)
    """Squared distances at all nodes: exact near the surface, elsewhere to the nearest surface point that a neighbour
    knows of (vector distance transform by sweeps).  Coordinates are relative to `origin` in here."""
    nx, ny, nz = squares.shape
    closest = np.full((nx, ny, 3, nz), _NOWHERE, np.float32)
    squares[:] = _NOWHERE
    step, band = np.float32(cell), _BAND * cell
    corners, found = np.empty((3, 3)), np.empty(4 * _AT_ONCE, np.float32)
    low, high = np.empty(3, np.int64), np.empty(3, np.int64)
    for t in range(len(triangles)):
        for axis in range(3):
            for corner in range(3):
                corners[corner, axis] = vertices[triangles[t, corner], axis] - origin[axis]
            low[axis], high[axis] = _span(corners[0, axis], corners[1, axis], corners[2, axis], band, 0.0, cell,
                                          squares.shape[axis])
        normal = _normal(corners[0], corners[1], corners[2])
        plane = np.float32(normal[0]), np.float32(normal[1]), np.float32(normal[2]), np.float32(normal[3])
        edges = (_edge(corners[0], corners[1], normal), _edge(corners[1], corners[2], normal),
                 _edge(corners[2], corners[0], normal))
        for i in range(low[0], high[0] + 1):
            for j in range(low[1], high[1] + 1):
                for first in range(low[2], high[2] + 1, _AT_ONCE):
                    _measure(edges, plane, np.float32(i) * step, np.float32(j) * step, np.float32(first) * step, step,
                             found)
                    for k in range(min(_AT_ONCE, high[2] + 1 - first)):
                        if found[k] < squares[i, j, first + k]:
                            squares[i, j, first + k] = found[k]
                            for axis in range(3):
                                closest[i, j, axis, first + k] = found[(axis + 1) * _AT_ONCE + k]
    # Once in each of the 8 directions, which are 4 where a row is gone along both ways: a second round changes nothing
    # within 3 cm by as much as a millimetre.
    for sweep in range(4):
        step_x, step_y = 1 - 2 * (sweep & 1), 1 - (sweep & 2)
        for ii in range(nx):
            i = ii if step_x > 0 else nx - 1 - ii
            x = np.float32(i) * step
            for jj in range(ny):
                j = jj if step_y > 0 else ny - 1 - jj
                y = np.float32(j) * step
                if ii > 0:
                    _adopt(squares[i, j], closest[i, j], closest[i - step_x, j], x, y, step)
                if jj > 0:
                    _adopt(squares[i, j], closest[i, j], closest[i, j - step_y], x, y, step)
                _spread(squares[i, j], closest[i, j], x, y, step)


@numba.njit(cache=True, nogil=True)
def _edge(a, b, normal):  # pragma: no cover (compiled)
    """What `_measure` needs of the edge from a to b, (3,) float64, of a triangle with a unit normal, in 11 float32: a,
    the way to b, 1 / its square; a unit vector in the plane from the edge inwards, and minus its product with a.
    Nothing is inside an edge of a triangle of no area, whose normal is zero."""
    x, y, z = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    square = x * x + y * y + z * z
    share = 1 / square if square > 0 else 0.0
    u, v, w = normal[1] * z - normal[2] * y, normal[2] * x - normal[0] * z, normal[0] * y - normal[1] * x
    offset = -(u * a[0] + v * a[1] + w * a[2]) if normal[0] != 0 or normal[1] != 0 or normal[2] != 0 else -1.0
    return (np.float32(a[0]), np.float32(a[1]), np.float32(a[2]), np.float32(x), np.float32(y), np.float32(z),
            np.float32(share), np.float32(u), np.float32(v), np.float32(w), np.float32(offset))


@numba.njit(cache=True, nogil=True)
def _normal(a, b, c):  # pragma: no cover (compiled)
    """Unit normal of a triangle, zero if it has no area, and minus its product with a: 4 float64."""
    ux, uy, uz, vx, vy, vz = b[0] - a[0], b[1] - a[1], b[2] - a[2], c[0] - a[0], c[1] - a[1], c[2] - a[2]
    x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    area = np.sqrt(x * x + y * y + z * z)
    scale = 1 / area if area > 0 else 0.0
    return scale * x, scale * y, scale * z, -scale * (x * a[0] + y * a[1] + z * a[2])


@numba.njit(cache=True, nogil=True, fastmath=True, inline="always")
def _measure(edges, plane, x, y, low, step, found):  # pragma: no cover (compiled)
    """Squared distances of the nodes of a row at x, y, from z = `low` on, to a triangle, and x, y and z of its points
    nearest to them: `found`, (4 * _AT_ONCE,) float32.  edges: three as from `_edge`; plane: as from `_normal`, float32.

    The nearest point is that below the node, if this is inside all three edges, or else one of an edge.  No branches,
    all in float32 and in one array: processors do all nodes at once.
    """
    nx, ny, nz, offset = plane
    for k in range(_AT_ONCE):
        z = low + np.float32(k) * step
        height = nx * x + ny * y + nz * z + offset
        best = _nearer(_on_edge(edges[0], x, y, z), _on_edge(edges[1], x, y, z))
        best = _nearer(best, _on_edge(edges[2], x, y, z))
        inside = min(_inwards(edges[0], x, y, z), _inwards(edges[1], x, y, z), _inwards(edges[2], x, y, z))
        within = inside >= np.float32(0)
        found[k] = height * height if within else best[0]
        found[_AT_ONCE + k] = x - (height * nx if within else best[1])
        found[2 * _AT_ONCE + k] = y - (height * ny if within else best[2])
        found[3 * _AT_ONCE + k] = z - (height * nz if within else best[3])


@numba.njit(cache=True, nogil=True, fastmath=True, inline="always")
def _inwards(edge, x, y, z):  # pragma: no cover (compiled)
    """Distance by which a point is inside of an edge."""
    return edge[7] * x + edge[8] * y + edge[9] * z + edge[10]


@numba.njit(cache=True, nogil=True, fastmath=True, inline="always")
def _on_edge(edge, x, y, z):  # pragma: no cover (compiled)
    """Squared distance of a point to an edge, and the way from the edge's nearest point to it: 4 values."""
    px, py, pz = x - edge[0], y - edge[1], z - edge[2]
    share = min(max((px * edge[3] + py * edge[4] + pz * edge[5]) * edge[6], np.float32(0)), np.float32(1))
    dx, dy, dz = px - share * edge[3], py - share * edge[4], pz - share * edge[5]
    return dx * dx + dy * dy + dz * dz, dx, dy, dz


@numba.njit(cache=True, nogil=True, fastmath=True, inline="always")
def _nearer(first, second):  # pragma: no cover (compiled)
    """That of two results of `_on_edge` which is nearer."""
    nearer = first[0] <= second[0]
    return (first[0] if nearer else second[0], first[1] if nearer else second[1], first[2] if nearer else second[2],
            first[3] if nearer else second[3])


# The next two work on a row of nodes along z, at x, y: their squared distances (Z,) and surface points (3, Z), all
# float32, so that processors do many nodes at once.

@numba.njit(cache=True, nogil=True, fastmath=True, inline="always")
def _adopt(squares, closest, other, x, y, step):  # pragma: no cover (compiled)
    """Let the nodes have the surface points of the row beside them, (3, Z), where these are nearer than their own."""
    for k in range(len(squares)):
        dx, dy, dz = x - other[0, k], y - other[1, k], np.float32(k) * step - other[2, k]
        square = dx * dx + dy * dy + dz * dz
        nearer = square < squares[k]
        squares[k] = square if nearer else squares[k]
        for axis in range(3):
            closest[axis, k] = other[axis, k] if nearer else closest[axis, k]


@numba.njit(cache=True, nogil=True, fastmath=True, inline="always")
def _spread(squares, closest, x, y, step):  # pragma: no cover (compiled)
    """Let every node have the surface point of one before it in the row, or behind, if that is nearer than its own."""
    for way in (1, -1):
        k = 0 if way > 0 else len(squares) - 1
        qx, qy, qz = closest[0, k], closest[1, k], closest[2, k]
        for _ in range(len(squares) - 1):
            k += way
            dx, dy, dz = x - qx, y - qy, np.float32(k) * step - qz
            square = dx * dx + dy * dy + dz * dz
            if square < squares[k]:
                squares[k] = square
                closest[0, k], closest[1, k], closest[2, k] = qx, qy, qz
            else:
                qx, qy, qz = closest[0, k], closest[1, k], closest[2, k]
