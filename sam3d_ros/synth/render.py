"""Rendered training samples: one object on a table among others, seen by a depth camera."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import open3d as o3d
import trimesh

from ..perception.frame import Intrinsics
from .sdf import raycasting_scene

CROP = 96              # pixels, edge of the square image around the object
MIN_VISIBLE_PIXELS = 150


@dataclass(frozen=True)
class View:
    """A rendered view.

    depth: (96, 96) float32, metres, 0 = nothing hit; mask: (96, 96) bool, the target's visible pixels
    target_from_camera: (4, 4) float64, camera frame (metres) -> frame of the normalised target mesh (largest extent 1)
    scale: metres per unit of the target's frame
    """

    depth: np.ndarray
    mask: np.ndarray
    intrinsics: Intrinsics
    target_from_camera: np.ndarray
    scale: float


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """Uniform random rotation matrix (3, 3) from a normalised Gaussian quaternion (Shoemake 1992)."""
    w, x, y, z = (q := rng.normal(size=4)) / np.linalg.norm(q)
    return np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                     [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                     [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])


def _about_z(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _resting_rotation(rng: np.random.Generator) -> np.ndarray:
    """Upright (half), lying on a side (a third) or anyhow, turned about the vertical."""
    kind = rng.random()
    if kind < 0.5:
        base = np.eye(3)
    elif kind < 0.8:
        base = np.roll(np.eye(3), 1 + rng.integers(2), axis=0) * (1 if rng.random() < 0.5 else -1)
        base *= np.linalg.det(base)
    else:
        base = random_rotation(rng)
    return _about_z(rng.uniform(0, 2 * np.pi)) @ base


def look_at(eye: np.ndarray, target: np.ndarray, roll: float) -> np.ndarray:
    """camera_from_world rotation (3, 3) of an optical frame at `eye` that looks at `target`, world +Z up.

    roll: radians about the optical axis.
    """
    z = (target - eye) / np.linalg.norm(target - eye)
    x = np.cross(z, [0.0, 0.0, 1.0])
    x /= np.linalg.norm(x) + 1e-9
    return _about_z(roll) @ np.stack([x, np.cross(z, x), z])


def _rectangle(corners: np.ndarray) -> trimesh.Trimesh:
    return trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False)


def _room(rng: np.random.Generator, reach: float, camera_side: np.ndarray) -> list[trimesh.Trimesh]:
    """Table (nine in ten) and a wall behind the objects (one in four)."""
    parts = []
    if rng.random() < 0.9:
        parts.append(_rectangle(np.array([[-3, -3, 0], [3, -3, 0], [3, 3, 0], [-3, 3, 0.0]])))
    if rng.random() < 0.25:
        away = -camera_side / np.linalg.norm(camera_side)
        side = np.array([-away[1], away[0], 0])
        middle = away * (reach + rng.uniform(0.03, 0.6))
        up = np.array([0, 0, 1.5])
        parts.append(_rectangle(np.array([middle - 2 * side, middle + 2 * side, middle + 2 * side + up,
                                          middle - 2 * side + up])))
    return parts


def _neighbours(meshes: list[trimesh.Trimesh], rng: np.random.Generator, reach: float,
                camera_azimuth: float) -> list[trimesh.Trimesh]:
    """Up to four other objects beside the target; one in three stands towards the camera and may hide part of it."""
    found = []
    for _ in range(rng.integers(0, 5)):
        mesh = meshes[rng.integers(len(meshes))]
        vertices = mesh.vertices @ (rng.uniform(0.05, 0.22) * _resting_rotation(rng)).T
        vertices[:, 2] -= vertices[:, 2].min()
        radius = np.linalg.norm(vertices[:, :2], axis=1).max()
        angle = camera_azimuth + rng.normal() * 0.5 if rng.random() < 0.33 else rng.uniform(0, 2 * np.pi)
        distance = (reach + radius) * rng.uniform(0.65, 1.15)
        vertices[:, :2] += distance * np.array([np.cos(angle), np.sin(angle)])
        found.append(trimesh.Trimesh(vertices, mesh.faces, process=False))
    return found


def render_view(target: trimesh.Trimesh, others: list[trimesh.Trimesh], rng: np.random.Generator,
                size: float | None = None, stretch: bool = True) -> View | None:
    """One random view of `target` (normalised, largest extent 1) among `others` (likewise).

    size: largest extent in metres, None draws 4 to 28 cm; stretch: squeeze the axes by up to 30 % each.
    Returns None if less than 150 pixels of the target are seen.
    """
    squeeze = np.diag(rng.uniform(0.7, 1.0, 3)) if stretch else np.eye(3)
    scale = rng.uniform(0.05, 0.25) if size is None else size
    linear = scale * _resting_rotation(rng) @ squeeze
    vertices = target.vertices @ linear.T
    shift = np.array([0, 0, -vertices[:, 2].min()])
    vertices = vertices + shift
    centre = np.array([0, 0, vertices[:, 2].max() / 2])
    radius = float(np.linalg.norm(vertices - centre, axis=1).max())
    reach = float(np.linalg.norm(vertices[:, :2], axis=1).max())

    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(15, 85))
    distance = rng.uniform(0.35, 1.2) + 0.3 * radius
    towards = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    eye = centre + distance * towards
    rotation = look_at(eye, centre + rng.normal(size=3) * 0.1 * radius, rng.normal() * 0.15)

    meshes = [trimesh.Trimesh(vertices, target.faces, process=False)]
    meshes += _neighbours(others, rng, reach, azimuth) + _room(rng, reach, np.r_[towards[:2] + 1e-6, 0])
    focal = 0.5 * CROP * distance / (radius * rng.uniform(1.05, 2.0))
    middle = (CROP - 1) / 2
    # Open3D's rays go through (u + 0.5): half a pixel more of principal point puts pixel centres at integers
    matrix = np.array([[focal, 0, middle + 0.5], [0, focal, middle + 0.5], [0, 0, 1]])
    camera_from_world = np.eye(4)
    camera_from_world[:3, :3], camera_from_world[:3, 3] = rotation, -rotation @ eye
    rays = o3d.t.geometry.RaycastingScene.create_rays_pinhole(
        o3d.core.Tensor(matrix), o3d.core.Tensor(camera_from_world), CROP, CROP)
    hits = raycasting_scene(*meshes).cast_rays(rays)
    depth = hits["t_hit"].numpy()  # rays have z = 1 in the camera frame, so t is the depth
    mask = hits["geometry_ids"].numpy() == 0
    if mask.sum() < MIN_VISIBLE_PIXELS:
        return None

    inverse = np.linalg.inv(linear)
    target_from_camera = np.eye(4)
    target_from_camera[:3, :3] = inverse @ rotation.T
    target_from_camera[:3, 3] = inverse @ (eye - shift)
    return View(np.where(np.isfinite(depth), depth, 0).astype(np.float32), mask,
                Intrinsics(CROP, CROP, focal, focal, middle, middle), target_from_camera, scale)
