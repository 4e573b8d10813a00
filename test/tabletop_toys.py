"""A table with a box and an ellipsoid, seen by a depth camera: ray casting in closed form, fast enough for tests."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import trimesh
from made_objects import made_object

from sam3d_ros.perception.frame import Frame, Instance, Intrinsics
from sam3d_ros.perception.objects import ReconstructedObject

CAMERA = Intrinsics(240, 180, 230.0, 230.0, 119.5, 89.5)
NOISE = 0.0012            # metres at 1 m, growing with the square


@dataclass(frozen=True)
class Toy:
    """kind: box or ellipsoid; size: (3,) full extents, metres, along its own axes."""

    kind: str
    size: np.ndarray

    def mesh(self, error: float = 0.0, seed: int = 0) -> trimesh.Trimesh:
        """Its mesh; error: metres, amplitude of smooth dents and bumps, as a reconstruction has."""
        if self.kind == "box":
            mesh = trimesh.creation.box(self.size)
            for _ in range(4):
                mesh = mesh.subdivide()
        else:
            mesh = trimesh.creation.icosphere(3)
            mesh.vertices *= self.size / 2
        rng = np.random.default_rng(seed)
        waves, phases = rng.normal(size=(6, 3)) * 40, rng.uniform(0, 2 * np.pi, 6)
        bumps = np.sin(mesh.vertices @ waves.T + phases).sum(axis=1) * error / np.sqrt(3)
        mesh.vertices += mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True) * bumps[:, None]
        return mesh

    def hit(self, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """Ray parameters (N,) of the first hits, infinite where there is none; object frame."""
        if self.kind == "box":
            with np.errstate(divide="ignore", invalid="ignore"):
                first, second = (-self.size / 2 - origin) / rays, (self.size / 2 - origin) / rays
            near, far = np.minimum(first, second).max(axis=1), np.maximum(first, second).min(axis=1)
            return np.where((near < far) & (near > 0), near, np.inf)
        start, along = origin / (self.size / 2), rays / (self.size / 2)
        a, b, c = (along ** 2).sum(1), along @ start, start @ start - 1
        root = b ** 2 - a * c
        return np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf)


BOX, EGG, CAN = (Toy("box", np.array([0.12, 0.08, 0.06])), Toy("ellipsoid", np.array([0.11, 0.07, 0.05])),
                 Toy("box", np.array([0.05, 0.05, 0.11])))


def pose(x: float, y: float, z: float, yaw: float = 0.0) -> np.ndarray:
    """(4, 4) about the vertical."""
    result = np.eye(4)
    result[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    result[:3, 3] = x, y, z
    return result


def camera_at(azimuth: float, elevation: float = 0.7, distance: float = 0.7) -> np.ndarray:
    """world_from_camera (4, 4) of a camera that looks at the table's middle."""
    towards = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    z = -towards
    x = np.cross(z, [0.0, 0.0, 1.0])
    x /= np.linalg.norm(x)
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = np.stack([x, np.cross(z, x), z], axis=1), distance * towards
    return result


def picture(toys: Sequence[tuple[Toy, np.ndarray]], world_from_camera: np.ndarray, labels: Sequence[int],
            seconds: float = 0.0, in_world: bool = True, rng: np.random.Generator | None = None) -> Frame:
    """Frame of toys at world_from_object (4, 4) on a table z = 0, with mask numbers `labels`, 0: no mask."""
    rows, columns = np.indices((CAMERA.height, CAMERA.width))
    rays = np.stack([(columns - CAMERA.cx) / CAMERA.fx, (rows - CAMERA.cy) / CAMERA.fy, np.ones(rows.shape)], -1)
    rays = rays.reshape(-1, 3) @ world_from_camera[:3, :3].T
    origin = world_from_camera[:3, 3]
    depth = np.where(rays[:, 2] < 0, -origin[2] / np.minimum(rays[:, 2], -1e-9), np.inf)
    mask = np.zeros(len(depth), np.int32)
    for (toy, world_from_object), label in zip(toys, labels, strict=True):
        inverse = np.linalg.inv(world_from_object)
        hit = toy.hit(inverse[:3, :3] @ origin + inverse[:3, 3], rays @ inverse[:3, :3].T)
        front = hit < depth
        depth, mask = np.where(front, hit, depth), np.where(front, label, mask)
    depth = np.where(np.isfinite(depth) & (depth < 5), depth, 0)
    if rng is not None:
        depth = np.where(depth > 0, depth + NOISE * depth ** 2 * rng.normal(size=depth.shape), 0)
    depth, mask = depth.reshape(rows.shape).astype(np.float32), mask.reshape(rows.shape)
    instances = tuple(Instance(label) for label in sorted({*labels} - {0}) if (mask == label).any())
    return Frame(np.full((*rows.shape, 3), 128, np.uint8), depth, mask, CAMERA, instances,
                 world_from_camera if in_world else None, int((1 + seconds) * 1e9))


def reconstruction(toy: Toy, camera_from_object: np.ndarray, label: int, error: float = 0.001,
                   seed: int = 0) -> ReconstructedObject:
    """What a reconstruction would give of a toy."""
    mesh = toy.mesh(error, seed)
    return made_object(mesh.vertices, mesh.faces, camera_from_object, label=label, size=toy.size.copy())
