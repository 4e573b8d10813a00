"""Fewer triangles, by quadric edge collapse (Garland and Heckbert 1997), in which a closed mesh stays closed."""
from __future__ import annotations

import numba
import numpy as np

_LEFT_PER_PASS = 0.6       # of the triangles, at least: the more passes, the nearer to the order of their costs
_FLAT = 1e-4               # share of a quadric's weight that pulls a new vertex to the middle of its edge
_LONG = 1e-3               # the same, that long edges cost: where all is flat, short ones go first
_MOST_TURNED = 0.3         # cosine of the angle by which a triangle may turn in one collapse
_STUCK = 0.98              # of the triangles left by a pass: hardly any edge is left that may go
_COST_BITS = 20            # of a float32 that the order does not heed: eight steps are left to each power of two

# Without a check for zero in every division.
_compiled = numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")


def decimated(vertices: np.ndarray, triangles: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (N, 3) float64 and triangles (M, 3) int32, vertex indices, of about the same surface with `count`
    triangles at most, as far as that can be had without tearing it or joining its sheets.

    A mesh in which exactly two triangles run along every edge stays one.  Where a mesh is open, its border stays.
    """
    points, faces = np.array(vertices, np.float64), np.array(triangles, np.int32)
    quadrics = _quadrics(points, faces)
    left = len(faces)
    while left > count:
        before, left = left, _collapse(points, quadrics, faces[:left], max(count, int(_LEFT_PER_PASS * left)))
        if left > _STUCK * before:
            break
    used = np.zeros(len(points), bool)
    used[faces[:left]] = True
    return points[used], (np.cumsum(used) - 1)[faces[:left]].astype(np.int32)


@_compiled
def _quadrics(points, faces):
    """(N, 10) per vertex, the sum of squared distances to the planes of its triangles, weighted by their areas: upper
    triangle of the matrix, vector, constant.
    """
    quadrics = np.zeros((len(points), 10))
    for t in range(len(faces)):
        p, q, r = points[faces[t, 0]], points[faces[t, 1]], points[faces[t, 2]]
        x, y, z = _cross(q[0] - p[0], q[1] - p[1], q[2] - p[2], r[0] - p[0], r[1] - p[1], r[2] - p[2])
        size = np.sqrt(x * x + y * y + z * z)
        if size == 0:
            continue
        x, y, z = x / size, y / size, z / size
        d = -(x * p[0] + y * p[1] + z * p[2])
        weight = size / 2
        for corner in range(3):
            quadric = quadrics[faces[t, corner]]
            quadric[0] += weight * x * x
            quadric[1] += weight * x * y
            quadric[2] += weight * x * z
            quadric[3] += weight * y * y
            quadric[4] += weight * y * z
            quadric[5] += weight * z * z
            quadric[6] += weight * x * d
            quadric[7] += weight * y * d
            quadric[8] += weight * z * d
            quadric[9] += weight * d * d
    return quadrics


@_compiled
def _collapse(points, quadrics, faces, target):
    """Collapse edges, the cheapest first and none twice at one vertex, until `target` triangles are left or all edges
    were tried.  Changes its arguments; returns how many of `faces` are left, which are then the first ones.
    """
    count = len(faces)
    starts, around = _triangles_around(faces, len(points))
    ends, costs, found = np.empty((3 * count, 2), np.int32), np.empty(3 * count, np.float32), 0
    for t in range(count):
        for corner in range(3):
            a, b = faces[t, corner], faces[t, (corner + 1) % 3]
            if a < b:
                ends[found, 0], ends[found, 1] = a, b
                costs[found] = _best(points, quadrics, a, b)[0]
                found += 1
    moved, mark = np.zeros(len(points), np.bool_), np.full(len(points), -1, np.int32)
    left = count
    for edge in _in_order(costs[:found]):
        if left <= target:
            break
        a, b = ends[edge]
        if moved[a] or moved[b] or not _may_go(faces, starts, around, mark, edge, a, b):
            continue
        _, x, y, z = _best(points, quadrics, a, b)
        if _turns(points, faces, starts, around, a, b, x, y, z) or _turns(points, faces, starts, around, b, a, x, y, z):
            continue
        for t in around[starts[b]:starts[b + 1]]:
            if faces[t, 0] >= 0:
                if faces[t, 0] == a or faces[t, 1] == a or faces[t, 2] == a:
                    faces[t, 0] = -1
                    left -= 1
                else:
                    for corner in range(3):
                        if faces[t, corner] == b:
                            faces[t, corner] = a
        points[a, 0], points[a, 1], points[a, 2] = x, y, z
        quadrics[a] += quadrics[b]
        moved[a] = moved[b] = True
    kept = 0
    for t in range(count):
        if faces[t, 0] >= 0:
            faces[kept] = faces[t]
            kept += 1
    return kept


@_compiled
def _triangles_around(faces, vertices):
    """starts (N + 1,) and numbers: those of the triangles around vertex v are numbers[starts[v]:starts[v + 1]]."""
    starts = np.zeros(vertices + 1, np.int32)
    for t in range(len(faces)):
        for corner in range(3):
            starts[faces[t, corner] + 1] += 1
    for v in range(vertices):
        starts[v + 1] += starts[v]
    numbers, free = np.empty(3 * len(faces), np.int32), starts[:-1].copy()
    for t in range(len(faces)):
        for corner in range(3):
            v = faces[t, corner]
            numbers[free[v]] = t
            free[v] += 1
    return starts, numbers


@_compiled
def _in_order(costs):
    """Indices of non-negative float32 costs, smallest first, by their exponent and first bits."""
    keys = costs.view(np.int32) >> _COST_BITS
    starts = np.zeros((1 << (32 - _COST_BITS)) + 1, np.int32)
    for key in keys:
        starts[key + 1] += 1
    for key in range(len(starts) - 1):
        starts[key + 1] += starts[key]
    order = np.empty(len(costs), np.int32)
    for index in range(len(costs)):
        order[starts[keys[index]]] = index
        starts[keys[index]] += 1
    return order


@_compiled
def _best(points, quadrics, a, b):
    """Cost of the edge between two vertices, and where its one vertex should be: cost, x, y, z."""
    p, q, s, t = points[a], points[b], quadrics[a], quadrics[b]
    mx, my, mz = (p[0] + q[0]) / 2, (p[1] + q[1]) / 2, (p[2] + q[2]) / 2
    xx, xy, xz, yy, yz, zz = s[0] + t[0], s[1] + t[1], s[2] + t[2], s[3] + t[3], s[4] + t[4], s[5] + t[5]
    bx, by, bz = s[6] + t[6], s[7] + t[7], s[8] + t[8]
    weight = xx + yy + zz
    pull = _FLAT * weight
    # (A + pull I) (x - m) = -(A m + b), by Cramer's rule
    gx, gy, gz = xx * mx + xy * my + xz * mz + bx, xy * mx + yy * my + yz * mz + by, xz * mx + yz * my + zz * mz + bz
    ax, ay, az = xx + pull, yy + pull, zz + pull
    c0, c1, c2 = ay * az - yz * yz, xz * yz - xy * az, xy * yz - xz * ay
    det = ax * c0 + xy * c1 + xz * c2
    dx = dy = dz = 0.0
    if det > 0:
        dx = -(c0 * gx + c1 * gy + c2 * gz) / det
        dy = -(c1 * gx + (ax * az - xz * xz) * gy + (xy * xz - ax * yz) * gz) / det
        dz = -(c2 * gx + (xy * xz - ax * yz) * gy + (ax * ay - xy * xy) * gz) / det
    x, y, z = mx + dx, my + dy, mz + dz
    # g is the gradient at m: what is left at x follows from it without the loss of digits far from the origin
    at_m = mx * (gx + bx) + my * (gy + by) + mz * (gz + bz) + s[9] + t[9]
    change = 2 * (gx * dx + gy * dy + gz * dz) + dx * (xx * dx + 2 * xy * dy + 2 * xz * dz) + dy * (
        yy * dy + 2 * yz * dz) + zz * dz * dz
    length = (p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2 + (p[2] - q[2]) ** 2
    return max(at_m + change, 0.0) + _LONG * weight * length, x, y, z


@_compiled
def _may_go(faces, starts, around, mark, edge, a, b):
    """Whether the surface stays what it is without the edge (the link condition, Dey et al. 1999), and is closed around
    both its ends.

    mark: (N,) int32, of whose entries none is 2 edge or 2 edge + 1.
    """
    triangles = neighbours = shared = 0
    for t in around[starts[a]:starts[a + 1]]:
        if faces[t, 0] < 0:
            continue
        triangles += 1
        shared += faces[t, 0] == b or faces[t, 1] == b or faces[t, 2] == b
        for corner in range(3):
            v = faces[t, corner]
            if v != a and mark[v] != 2 * edge:
                mark[v] = 2 * edge
                neighbours += 1
    if shared != 2 or triangles != neighbours:
        return False
    around_a, common, triangles, neighbours = triangles, 0, 0, 0
    for t in around[starts[b]:starts[b + 1]]:
        if faces[t, 0] < 0:
            continue
        triangles += 1
        for corner in range(3):
            v = faces[t, corner]
            if v == b:
                continue
            if mark[v] != 2 * edge + 1:
                neighbours += 1
                common += mark[v] == 2 * edge and v != a
                mark[v] = 2 * edge + 1
    return triangles == neighbours and common == 2 and around_a + triangles > 6      # a tetrahedron has three each


@_compiled
def _turns(points, faces, starts, around, a, b, x, y, z):
    """Whether a triangle at vertex a, but not b, would turn too far or vanish if a moved to (x, y, z)."""
    for t in around[starts[a]:starts[a + 1]]:
        p, q, r = faces[t]
        if p < 0 or p == b or q == b or r == b:
            continue
        while p != a:
            p, q, r = q, r, p
        ux, uy, uz = points[r, 0] - points[q, 0], points[r, 1] - points[q, 1], points[r, 2] - points[q, 2]
        px, py, pz = _cross(points[q, 0] - points[a, 0], points[q, 1] - points[a, 1], points[q, 2] - points[a, 2],
                            ux, uy, uz)
        sx, sy, sz = _cross(points[q, 0] - x, points[q, 1] - y, points[q, 2] - z, ux, uy, uz)
        dot = px * sx + py * sy + pz * sz
        if dot <= 0 or dot * dot < _MOST_TURNED ** 2 * (px * px + py * py + pz * pz) * (sx * sx + sy * sy + sz * sz):
            return True
    return False


@_compiled
def _cross(ux, uy, uz, vx, vy, vz):
    """Cross product u x v."""
    return uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
