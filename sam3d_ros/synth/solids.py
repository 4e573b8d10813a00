"""Closed triangle meshes to make objects from: lofts, swept tubes, boxes and prisms, joined by Boolean union.

All are closed, with triangles that run counter-clockwise seen from outside; lengths in metres.
"""
from __future__ import annotations

import manifold3d
import numpy as np
import trimesh


def mesh_of(solid: manifold3d.Manifold) -> trimesh.Trimesh:
    """The surface of a solid."""
    data = solid.to_mesh()
    return trimesh.Trimesh(data.vert_properties[:, :3], data.tri_verts, process=False)


def solid_of(mesh: trimesh.Trimesh) -> manifold3d.Manifold:
    """The solid within a closed mesh."""
    vertices, triangles = np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.uint32)
    return manifold3d.Manifold(manifold3d.Mesh(vertices, triangles))


def union(*parts: trimesh.Trimesh) -> trimesh.Trimesh:
    """One closed surface around all the parts, which may overlap."""
    return mesh_of(manifold3d.Manifold.batch_boolean([solid_of(part) for part in parts], manifold3d.OpType.Add))


def placed(mesh: trimesh.Trimesh, offset=(0.0, 0.0, 0.0), axis=(0.0, 0.0, 1.0), angle: float = 0.0) -> trimesh.Trimesh:
    """The mesh, changed in place: turned about an axis through the origin by `angle` (radians), then moved."""
    transform = trimesh.transformations.rotation_matrix(angle, axis)
    transform[:3, 3] = offset
    return mesh.apply_transform(transform)


def lying(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """The mesh, changed in place: turned from standing along +Z to lying along +X."""
    return placed(mesh, axis=(0, 1, 0), angle=np.pi / 2)


def superellipse(sections: int, squareness: float = 2.0, flatness: float = 1.0) -> np.ndarray:
    """Superellipse |x|^n + |y|^n = 1 with exponent n = squareness, y scaled by flatness; (sections, 2)."""
    angle = np.linspace(0, 2 * np.pi, sections, endpoint=False)
    ray = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    radius = (np.abs(ray) ** squareness).sum(axis=1) ** (-1 / squareness)
    return ray * radius[:, None] * [1, flatness]


def _resampled(polyline: np.ndarray, pieces: int) -> np.ndarray:
    """Long segments cut so that the polyline has about `pieces` segments; its corners stay."""
    lengths = np.linalg.norm(np.diff(polyline, axis=0), axis=1)
    counts = np.maximum(1, np.floor(lengths / lengths.sum() * pieces)).astype(int)
    cuts = [polyline[i] + (polyline[i + 1] - polyline[i]) * np.linspace(0, 1, n, endpoint=False)[:, None]
            for i, n in enumerate(counts)]
    return np.concatenate([*cuts, polyline[-1:]])


def _tube_faces(rings: int, sections: int) -> np.ndarray:
    """Triangles of stacked rings (rings * sections vertices) closed by two poles (the next two vertices)."""
    here = np.arange(sections)
    after = (here + 1) % sections
    low, high = np.arange(rings - 1)[:, None] * sections, np.arange(1, rings)[:, None] * sections
    side = np.concatenate([np.stack([low + here, low + after, high + after], axis=-1),
                           np.stack([low + here, high + after, high + here], axis=-1)]).reshape(-1, 3)
    first, last, top = rings * sections, rings * sections + 1, (rings - 1) * sections
    return np.concatenate([side, np.stack([np.full(sections, first), after, here], axis=1),
                           np.stack([np.full(sections, last), top + here, top + after], axis=1)])


def loft(profile: np.ndarray, outline: np.ndarray | None = None, pieces: int = 32) -> trimesh.Trimesh:
    """Solid of revolution, or with an outline other than the circle, a tapered prism.

    profile: (K, 2) radius and height, from the axis below, along the outside (and back down the inside of a hollow
    object), to the axis above; first and last radius are 0.
    """
    outline = superellipse(40) if outline is None else outline
    profile = _resampled(np.asarray(profile, float), pieces)
    rings = [np.column_stack([outline * r, np.full(len(outline), z)]) for r, z in profile[1:-1]]
    poles = [[0, 0, profile[0, 1]], [0, 0, profile[-1, 1]]]
    return trimesh.Trimesh(np.concatenate([*rings, poles]), _tube_faces(len(rings), len(outline)), process=False)


def sweep(path: np.ndarray, radius: np.ndarray | float, section: np.ndarray | None = None) -> trimesh.Trimesh:
    """Tube along a path.

    path: (K, 3); radius: (K,) or one, metres; section: (S, 2) unit cross-section, counter-clockwise. Frames are carried
    along by parallel transport, so the tube does not twist.
    """
    section = superellipse(16) if section is None else section
    radii = np.broadcast_to(radius, len(path))
    tangents = np.gradient(path, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    side = np.cross(tangents[0], np.eye(3)[np.argmin(np.abs(tangents[0]))])
    rings = []
    for point, tangent, r in zip(path, tangents, radii, strict=True):
        side = side - tangent * (side @ tangent)
        side /= np.linalg.norm(side)
        rings.append(point + r * (section[:, :1] * side + section[:, 1:] * np.cross(tangent, side)))
    vertices = np.concatenate([*rings, path[[0, -1]]])
    return trimesh.Trimesh(vertices, _tube_faces(len(path), len(section)), process=False)


def rounded_box(size: np.ndarray, radius: float = 0.0, cells: int = 13) -> trimesh.Trimesh:
    """Box centred at the origin, edges rounded by `radius`, each side cut into about cells x cells squares."""
    half = np.asarray(size, float) / 2
    fillet = 3 if radius else 0
    steps = np.array([np.concatenate([np.linspace(-h, radius - h, fillet, endpoint=False),
                                      np.linspace(radius - h, h - radius, cells + 1 - 2 * fillet),
                                      np.linspace(h - radius, h, fillet + 1)[1:]]) for h in half])
    u, v = (grid.ravel() for grid in np.meshgrid(np.arange(cells), np.arange(cells), indexing="ij"))
    quads = []
    for axis in range(3):
        for end, corners in ((0, ((0, 0), (0, 1), (1, 1), (1, 0))), (cells, ((0, 0), (1, 0), (1, 1), (0, 1)))):
            quad = np.empty((len(u), 4, 3), int)
            for c, (du, dv) in enumerate(corners):
                quad[:, c, axis], quad[:, c, axis - 2], quad[:, c, axis - 1] = end, u + du, v + dv
            quads.append(quad)
    lattice, index = np.unique(np.concatenate(quads).reshape(-1, 3), axis=0, return_inverse=True)
    points = np.take_along_axis(steps.T, lattice, axis=0)
    if radius:
        core = np.clip(points, radius - half, half - radius)
        beyond = points - core
        points = core + beyond * (radius / np.linalg.norm(beyond, axis=1, keepdims=True))
    quad = index.reshape(-1, 4)
    return trimesh.Trimesh(points, np.concatenate([quad[:, [0, 1, 2]], quad[:, [0, 2, 3]]]), process=False)


def extrude(outline: np.ndarray, depth: float, rounding: float = 0.0, edge: float | None = None) -> trimesh.Trimesh:
    """Prism over a counter-clockwise outline (K, 2) from z = -depth/2 to depth/2, its corners rounded."""
    shape = manifold3d.CrossSection([np.asarray(outline, float)])
    if rounding:
        shape = shape.offset(-rounding, manifold3d.JoinType.Miter)
        shape = shape.offset(rounding, manifold3d.JoinType.Round, 2.0, 24)
    prism = manifold3d.Manifold.extrude(shape, depth).translate((0, 0, -depth / 2))
    return mesh_of(prism.refine_to_length(edge) if edge else prism)


def unit_arc(start: float, end: float, count: int) -> np.ndarray:
    """Points of the unit circle, (count, 2), from angle `start` to `end` (radians)."""
    angle = np.linspace(start, end, count)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def ball_profile(radius: float, height: float, count: int = 25) -> np.ndarray:
    """Profile of an ellipsoid of the given equatorial radius and full height, standing on z = 0."""
    profile = unit_arc(-np.pi / 2, np.pi / 2, count) * [radius, height / 2] + [0, height / 2]
    profile[[0, -1], 0] = 0
    return profile


def bumpy(rng: np.random.Generator, mesh: trimesh.Trimesh, amplitude: float) -> trimesh.Trimesh:
    """The mesh, displaced in place by a few long waves, as nature is never exact.  amplitude: share of its size."""
    size = mesh.extents.max()
    waves = rng.normal(0, 3 / size, (3, 4))
    shift = np.sin(mesh.vertices @ waves + rng.uniform(0, 6, 4)) @ rng.normal(0, amplitude / 2, (4, 3))
    mesh.vertices += np.clip(shift, -2 * amplitude, 2 * amplitude) * size
    return mesh
