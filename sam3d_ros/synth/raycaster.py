"""Pictures of posed meshes: colour, depth and instance labels by ray casting on the CPU, no graphics driver needed.

One lamp with soft shadows, a fill light and an ambient term; colours come from a function of the surface point, so a
texture is as sharp as the picture.  Camera (optical) frame: x right, y down, z forward; pixel centres have integer
coordinates.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import open3d as o3d
import trimesh
from scipy import ndimage

from ..perception.frame import Intrinsics, pixel_directions

# (points (N, 3) in the body's frame, corners (N, 3) vertex indices, weights (N, 3) barycentric) -> (N, 3) uint8 RGB
Paint = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

SMOOTH_ANGLE = np.deg2rad(50.0)      # edges sharper than this stay sharp in the shading
GAMMA = 2.2
_LINEAR = (np.arange(256, dtype=np.float32) / 255) ** GAMMA
AMBIENT, LAMP, FILL, GLOSS = 0.38, 0.72, 0.16, 0.06
SHADOW_BIAS = 5e-4                   # metres; keeps a surface from shading itself
EDGE_STEP = 0.015                    # metres between neighbouring pixels that make a depth discontinuity


def vertex_paint(rgb: np.ndarray) -> Paint:
    """Colours interpolated between vertices; rgb: (V, 3) uint8."""
    levels = rgb.astype(np.float32)
    return lambda points, corners, weights: np.einsum("nck,nc->nk", levels[corners], weights).astype(np.uint8)


def texture_paint(texture: Callable[[np.ndarray], np.ndarray]) -> Paint:
    """Colours from a function of the position in the body's frame: (N, 3) metres -> (N, 3) uint8."""
    return lambda points, corners, weights: texture(points)


def image_paint(image: np.ndarray, uv: np.ndarray) -> Paint:
    """Colours from a texture; image: (H, W, 3) uint8, uv: (V, 2) of each vertex, v = 0 at the image's lower border."""
    height, width = image.shape[:2]
    pixels = (uv * [1, -1] + [0, 1]) * [width - 1, height - 1]

    def paint(points: np.ndarray, corners: np.ndarray, weights: np.ndarray) -> np.ndarray:
        columns, rows = np.rint(np.einsum("nck,nc->nk", pixels[corners], weights)).astype(int).T
        return image[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return paint


@dataclass(frozen=True)
class Body:
    """A mesh in the world.

    mesh: metres, body frame; paint: its colours; world_from_body: (4, 4); label: in the label image, 0 = background
    """

    mesh: trimesh.Trimesh
    paint: Paint
    world_from_body: np.ndarray
    label: int = 0


@dataclass(frozen=True)
class Lamp:
    """A round area light; position in the world, metres; radius 0 gives hard shadows."""

    position: np.ndarray = field(default_factory=lambda: np.array([-0.9, -0.7, 1.8]))
    radius: float = 0.22
    samples: int = 6          # shadow rays per pixel; 0: no shadows


@dataclass(frozen=True)
class View:
    """A rendered picture.

    colour: (H, W, 3) uint8 RGB; depth: (H, W) float32, metres along the optical axis, 0 = nothing hit;
    labels: (H, W) uint16
    """

    colour: np.ndarray
    depth: np.ndarray
    labels: np.ndarray

    def depth_edges(self) -> np.ndarray:
        """(H, W) bool: pixels at a depth discontinuity, where depth cameras lose readings."""
        return ndimage.maximum_filter(self.depth, 3) - ndimage.minimum_filter(self.depth, 3) > EDGE_STEP


class Raycaster:
    """Renders a fixed set of bodies from any camera."""

    def __init__(self, bodies: Sequence[Body], lamp: Lamp = Lamp()):
        self._bodies = tuple(bodies)
        self._lamp = lamp
        self._scene = o3d.t.geometry.RaycastingScene()
        for body in self._bodies:
            vertices = trimesh.transform_points(body.mesh.vertices, body.world_from_body)
            self._scene.add_triangles(o3d.core.Tensor(vertices.astype(np.float32)),
                                      o3d.core.Tensor(np.asarray(body.mesh.faces, np.uint32)))
        self._corner_normals = [_corner_normals(body.mesh) for body in self._bodies]

    def render(self, intrinsics: Intrinsics, world_from_camera: np.ndarray,
               background: tuple[int, int, int] = (205, 211, 219)) -> View:
        """The picture of a camera at world_from_camera (4, 4), optical frame; repeatable."""
        rays = pixel_rays(intrinsics, world_from_camera)
        hits = {name: tensor.numpy() for name, tensor in self._scene.cast_rays(o3d.core.Tensor(rays)).items()}
        depth = hits["t_hit"]         # rays have z = 1 in the camera frame, so t is the depth
        hit = np.isfinite(depth)
        points = rays[hit, :3] + depth[hit, None] * rays[hit, 3:]
        body_of = hits["geometry_ids"][hit].astype(int)
        triangle = hits["primitive_ids"][hit].astype(int)
        albedo, normals = self._surface(points, body_of, triangle, hits["primitive_uvs"][hit])
        towards = -rays[hit, 3:] / np.linalg.norm(rays[hit, 3:], axis=1, keepdims=True)
        normals *= np.where((normals * towards).sum(axis=1, keepdims=True) < 0, -1, 1)

        shape = (intrinsics.height, intrinsics.width)
        colour = np.empty((*shape, 3), np.uint8)
        colour[...] = background
        labels = np.zeros(shape, np.uint16)
        colour[hit.reshape(shape)] = self._shade(points, albedo, normals, towards)
        labels[hit.reshape(shape)] = np.array([body.label for body in self._bodies], np.uint16)[body_of]
        return View(colour, np.where(hit, depth, 0).astype(np.float32).reshape(shape), labels)

    def _surface(self, points: np.ndarray, body_of: np.ndarray, triangle: np.ndarray,
                 uv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Albedo (N, 3), 0 to 1, linear, and unit normals (N, 3) in the world, of hit points."""
        albedo, normals = np.empty_like(points), np.empty_like(points)
        weights = np.stack([1 - uv.sum(axis=1), uv[:, 0], uv[:, 1]], axis=1)
        for index, body in enumerate(self._bodies):
            mine = body_of == index
            rotation, translation = np.split(body.world_from_body[:3].astype(np.float32), [3], axis=1)
            local = (points[mine] - translation.T) @ rotation
            colours = body.paint(local, body.mesh.faces[triangle[mine]], weights[mine])
            albedo[mine] = _LINEAR[colours]
            corner_normals = self._corner_normals[index][triangle[mine]]
            normals[mine] = np.einsum("nck,nc->nk", corner_normals, weights[mine]) @ rotation.T
        return albedo, normals / np.linalg.norm(normals, axis=1, keepdims=True)

    def _shade(self, points: np.ndarray, albedo: np.ndarray, normals: np.ndarray, towards: np.ndarray) -> np.ndarray:
        """Lambert and Blinn-Phong shading; (N, 3) uint8."""
        to_lamp = self._lamp.position.astype(np.float32) - points
        to_lamp /= np.linalg.norm(to_lamp, axis=1, keepdims=True)
        lit = np.clip((normals * to_lamp).sum(axis=1), 0, None) * self._lamp_visibility(points, normals)
        half = to_lamp + towards
        half /= np.linalg.norm(half, axis=1, keepdims=True)
        gloss = GLOSS * np.clip((normals * half).sum(axis=1), 0, None) ** 40 * (lit > 0)
        fill = np.clip((normals * towards).sum(axis=1), 0, None)
        light = AMBIENT * (0.75 + 0.25 * normals[:, 2]) + LAMP * lit + FILL * fill
        linear = albedo * light[:, None] + gloss[:, None]
        return (np.clip(linear, 0, 1) ** (1 / GAMMA) * 255).astype(np.uint8)

    def _lamp_visibility(self, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        """Share of the lamp that each point sees, (N,), 0 to 1."""
        if not self._lamp.samples:
            return np.ones(len(points))
        # One random point of the disc per surface point, turned by equal steps: no two neighbours share their pattern,
        # so soft shadows are grainy rather than banded.
        first, radius = np.random.default_rng(0).random((2, len(points)), dtype=np.float32)
        radius = self._lamp.radius * np.sqrt(radius)
        rays = np.empty((len(points), 6), np.float32)
        rays[:, :3] = points + SHADOW_BIAS * normals
        seen = np.zeros(len(points), np.float32)
        for k in range(self._lamp.samples):
            angle = np.float32(2 * np.pi) * (first + k / self._lamp.samples)
            rays[:, 3:] = self._lamp.position.astype(np.float32) - rays[:, :3]
            rays[:, 3] += radius * np.cos(angle)
            rays[:, 4] += radius * np.sin(angle)
            seen += ~self._scene.test_occlusions(o3d.core.Tensor(rays), tnear=0.0, tfar=1.0).numpy()
        return seen / self._lamp.samples


def pixel_rays(intrinsics: Intrinsics, world_from_camera: np.ndarray) -> np.ndarray:
    """(H * W, 6) float32: origin and direction in the world; the direction has z = 1 in the camera frame."""
    v, u = np.mgrid[:intrinsics.height, :intrinsics.width].reshape(2, -1)
    directions = pixel_directions(intrinsics, v, u)
    rays = np.empty((u.size, 6), np.float32)
    rays[:, :3] = world_from_camera[:3, 3]
    rays[:, 3:] = directions @ world_from_camera[:3, :3].T
    return rays


def _corner_normals(mesh: trimesh.Trimesh) -> np.ndarray:
    """(F, 3, 3) normals of each triangle's corners: the area-weighted mean over the triangles around the vertex whose
    normals are within SMOOTH_ANGLE of this triangle's."""
    face_of = np.repeat(np.arange(len(mesh.faces)), 3)
    vertex_of = mesh.faces.ravel()
    order = np.argsort(vertex_of, kind="stable")
    counts = np.bincount(vertex_of, minlength=len(mesh.vertices))
    starts = np.cumsum(counts) - counts
    # Every pair (corner, triangle at the same vertex).
    repeats = counts[vertex_of]
    pair_corner = np.repeat(np.arange(len(vertex_of)), repeats)
    within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    other = face_of[order[starts[vertex_of[pair_corner]] + within]]
    normals = mesh.face_normals
    near = (normals[face_of[pair_corner]] * normals[other]).sum(axis=1) > np.cos(SMOOTH_ANGLE)
    share = np.where(near, mesh.area_faces[other], 0)[:, None] * normals[other]
    sums = np.stack([np.bincount(pair_corner, share[:, k], len(vertex_of)) for k in range(3)], axis=1)
    sums += 1e-12 * normals[face_of]        # a sliver without area keeps its own normal
    sums /= np.linalg.norm(sums, axis=1, keepdims=True) + 1e-30
    return sums.reshape(-1, 3, 3).astype(np.float32)
