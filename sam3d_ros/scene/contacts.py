"""Compiled code on the distance grids of solids: how deep points are inside, and where solids touch.

All of it in one file: Numba keeps what it compiled until the file with the function changes, whatever that calls.
"""
from __future__ import annotations

import numba
import numpy as np

_LEAST_GRADIENT = 0.1       # of a signed distance, which has 1 but where its surfaces are equally near
_SECTORS = 8                 # contacts of one body on the support at most, one in each direction around its middle
_OCTANTS = 8                 # of a body in another at most, one in each octant around its middle


@numba.njit(cache=True, nogil=True)
def _look_up(distance, counts, low, voxel, x, y, z):  # pragma: no cover (compiled)
    """Signed distance at a point of the object frame and its gradient, trilinear; infinite outside the grid."""
    gx, gy, gz = (x - low[0]) / voxel, (y - low[1]) / voxel, (z - low[2]) / voxel
    if not (0 <= gx < counts[0] - 1 and 0 <= gy < counts[1] - 1 and 0 <= gz < counts[2] - 1):
        return np.inf, 0.0, 0.0, 0.0
    i, j, k = int(gx), int(gy), int(gz)
    u, v, w = gx - i, gy - j, gz - k
    row, sheet = counts[2], counts[1] * counts[2]
    at = i * sheet + j * row + k
    c000, c001, c010, c011 = distance[at], distance[at + 1], distance[at + row], distance[at + row + 1]
    at += sheet
    c100, c101, c110, c111 = distance[at], distance[at + 1], distance[at + row], distance[at + row + 1]
    c00, c01, c10, c11 = c000 + u * (c100 - c000), c001 + u * (c101 - c001), c010 + u * (c110 - c010), \
        c011 + u * (c111 - c011)
    c0, c1 = c00 + v * (c10 - c00), c01 + v * (c11 - c01)
    a = (1 - v) * ((1 - w) * (c100 - c000) + w * (c101 - c001)) + v * ((1 - w) * (c110 - c010) + w * (c111 - c011))
    b = (1 - w) * (c10 - c00) + w * (c11 - c01)
    return c0 + w * (c1 - c0), a / voxel, b / voxel, (c1 - c0) / voxel


@numba.njit(cache=True, nogil=True)
def _nearest_node(distance, counts, low, voxel, x, y, z):  # pragma: no cover (compiled)
    """Signed distance at the node nearest to a point of the object frame, less than a voxel from that at the point;
    infinite outside the grid."""
    i, j, k = int((x - low[0]) / voxel + 0.5), int((y - low[1]) / voxel + 0.5), int((z - low[2]) / voxel + 0.5)
    if not (0 <= i < counts[0] and 0 <= j < counts[1] and 0 <= k < counts[2]):
        return np.inf
    return distance[i * counts[1] * counts[2] + j * counts[2] + k]


@numba.njit(cache=True, nogil=True)
def find_contacts(solids, rotation, origin, plane, reach):  # pragma: no cover (compiled)
    """(K,) a, b and index of _Contacts: of each body on the support the lowest corner of every direction around its
    middle, and of each body in each other one the deepest point of every octant."""
    bodies = len(origin)
    limit = bodies * (_SECTORS + 1 + _OCTANTS * (bodies - 1))
    a, b, where = np.empty(limit, np.int64), np.empty(limit, np.int64), np.empty(limit, np.int64)
    count = 0
    helper = np.array([1.0, 0.0, 0.0]) if abs(plane[0]) < 0.8 else np.array([0.0, 1.0, 0.0])
    along = np.cross(plane[:3], helper)
    along /= np.sqrt(along @ along)
    for body in range(bodies):
        height, lowest = _lowest_corners(solids, body, rotation[body], origin[body], plane, along)
        for sector in range(_SECTORS):
            if height[sector] < height.min() + reach:
                a[count], b[count], where[count] = body, -1, lowest[sector]
                count += 1
    for body in range(bodies):
        for other in range(bodies):
            if body == other:
                continue
            turn = rotation[other].T @ rotation[body]                 # other_from_body
            shift = rotation[other].T @ (origin[body] - origin[other])
            if _is_apart(solids, body, other, turn, shift):
                continue
            distance, deepest = _deepest_points(solids, body, other, turn, shift, reach)
            for octant in range(_OCTANTS):
                if distance[octant] < reach:
                    a[count], b[count], where[count] = body, other, deepest[octant]
                    count += 1
    return a[:count], b[:count], where[:count]


@numba.njit(cache=True, nogil=True)
def _lowest_corners(solids, body, rotation, origin, plane, along):  # pragma: no cover (compiled)
    """Least height (_SECTORS,) over the support of a body's corners in each direction around its middle, and which
    corner that is; along: (3,) unit vector in the support."""
    # The support's axes in the object frame: three products per corner.
    up, along, across = rotation.T @ plane[:3], rotation.T @ along, rotation.T @ np.cross(plane[:3], along)
    height = plane[:3] @ origin + plane[3]
    middle = solids.centre[body]
    best = np.full(_SECTORS, np.inf)
    lowest = np.zeros(_SECTORS, np.int64)
    for index in range(solids.corner_start[body], solids.corner_start[body + 1]):
        x, y, z = solids.corners[index]
        h = up[0] * x + up[1] * y + up[2] * z + height
        if h > best.max():
            continue
        x, y, z = x - middle[0], y - middle[1], z - middle[2]
        first, second = along[0] * x + along[1] * y + along[2] * z, across[0] * x + across[1] * y + across[2] * z
        sector = (first > 0) * 4 + (second > 0) * 2 + (abs(first) > abs(second))       # of 45 degrees
        if h < best[sector]:
            best[sector] = h
            lowest[sector] = index
    return best, lowest


@numba.njit(cache=True, nogil=True)
def _is_apart(solids, body, other, turn, shift):  # pragma: no cover (compiled)
    """Whether no point of a body can be in another's grid, which is at turn (3, 3) and shift (3,), other_from_body."""
    low, middle = solids.low[other], solids.centre[body]
    apart = 0.0                      # squared, of the middle of the one from the grid of the other
    for k in range(3):
        at = turn[k, 0] * middle[0] + turn[k, 1] * middle[1] + turn[k, 2] * middle[2] + shift[k] - low[k]
        apart += max(-at, at - (solids.counts[other, k] - 1) * solids.voxel[other], 0.0) ** 2
    return apart > solids.radius[body] ** 2


@numba.njit(cache=True, nogil=True)
def _deepest_points(solids, body, other, turn, shift, reach):  # pragma: no cover (compiled)
    """Signed distance (_OCTANTS,) to another solid of the point of each octant of a body that is deepest in it, and
    which point that is; `reach` where none is as near.  turn, shift: as for `_is_apart`."""
    counts, low, voxel = solids.counts[other], solids.low[other], solids.voxel[other]
    grid = solids.distance[solids.distance_start[other]:solids.distance_start[other + 1]]
    middle = solids.centre[body]
    best = np.full(_OCTANTS, reach)
    deepest = np.zeros(_OCTANTS, np.int64)
    for index in range(solids.point_start[body], solids.point_start[body + 1]):
        x, y, z = solids.points[index]
        octant = (x > middle[0]) * 4 + (y > middle[1]) * 2 + (z > middle[2])
        u = turn[0, 0] * x + turn[0, 1] * y + turn[0, 2] * z + shift[0]
        v = turn[1, 0] * x + turn[1, 1] * y + turn[1, 2] * z + shift[1]
        w = turn[2, 0] * x + turn[2, 1] * y + turn[2, 2] * z + shift[2]
        if _nearest_node(grid, counts, low, voxel, u, v, w) - voxel > best[octant]:    # too far in any case
            continue
        d, gx, gy, gz = _look_up(grid, counts, low, voxel, u, v, w)
        length = np.sqrt(gx * gx + gy * gy + gz * gz)
        if d < best[octant] and length > _LEAST_GRADIENT:
            best[octant] = d
            deepest[octant] = index
    return best, deepest


@numba.njit(cache=True, nogil=True)
def measure_contacts(solids, rotation, origin, plane, which):  # pragma: no cover (compiled)
    """point, normal and gap of _Contacts for (K, 3) a, b and index; the gap is infinite where nothing is near."""
    count = len(which)
    point, normal, gap = np.empty((count, 3)), np.zeros((count, 3)), np.empty(count)
    for c in range(count):
        a, b, index = which[c]
        own = solids.corners[index] if b < 0 else solids.points[index]
        point[c] = rotation[a] @ own + origin[a]
        if b < 0:
            normal[c], gap[c] = plane[:3], plane[:3] @ point[c] + plane[3]
            continue
        x, y, z = rotation[b].T @ (point[c] - origin[b])
        grid = solids.distance[solids.distance_start[b]:solids.distance_start[b + 1]]
        gap[c], gx, gy, gz = _look_up(grid, solids.counts[b], solids.low[b], solids.voxel[b], x, y, z)
        length = np.sqrt(gx * gx + gy * gy + gz * gz)
        if length > _LEAST_GRADIENT:
            normal[c] = rotation[b] @ (np.array([gx, gy, gz]) / length)
        else:
            gap[c] = np.inf
    return point, normal, gap


@numba.njit(cache=True, nogil=True)
def depths(distance, counts, low, voxel, points):  # pragma: no cover (compiled)
    """How deep each of (P, 3) points, object frame, is inside, at least 0, and the way out (P, 3), unit."""
    depth, outward = np.zeros(len(points)), np.zeros((len(points), 3))
    for index in range(len(points)):
        d, x, y, z = _look_up(distance, counts, low, voxel, points[index, 0], points[index, 1], points[index, 2])
        length = np.sqrt(x * x + y * y + z * z)
        if d < 0 and length > _LEAST_GRADIENT:
            depth[index] = -d
            outward[index, 0], outward[index, 1], outward[index, 2] = x / length, y / length, z / length
    return depth, outward


@numba.njit(cache=True, nogil=True)
def ways(distance, counts, low, voxel, points, directions):  # pragma: no cover (compiled)
    """How far each of (P, 3) points, object frame, goes in its direction, (P, 3) unit, until it is outside; 0 if it is.
    """
    way = np.zeros(len(points))
    longest = voxel * (counts[0] + counts[1] + counts[2])
    for index in range(len(points)):
        while way[index] < longest:
            x, y, z = points[index] + way[index] * directions[index]
            d = _look_up(distance, counts, low, voxel, x, y, z)[0]
            if d >= 0:
                break
            way[index] += max(-d, voxel / 8)
    return way
