"""Unaligned, metric comparison of a predicted mesh with the true mesh.

Both meshes stand posed in one frame and nothing is aligned or scaled before they are compared: a wrong pose or scale
counts in full, as it does for a gripper.
"""
from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import open3d as o3d
import trimesh

from sam3d_ros.evaluation.alignment import icp, rotation_angle_deg
from sam3d_ros.perception.raycasting import raycasting_scene

VOLUME_RESOLUTION = 64
# The cube of the volumetric IoU is this much larger than the union of the two bounding boxes.
VOLUME_MARGIN = 1.02
ADD_S_THRESHOLD = 0.1


@dataclass(frozen=True)
class ShapeErrors:
    """How far a predicted posed mesh is from the true one.

    chamfer_mm: mean of accuracy_mm and completeness_mm
    accuracy_mm: mean distance from the predicted surface to the true surface
    completeness_mm: mean distance from the true surface to the predicted surface
    f_score_5mm, f_score_10mm: harmonic mean of the shares of both surfaces that lie nearer than 5 or 10 mm to the other
    volume_iou: intersection over union of the two solids, on a 64^3 grid over their union box
    add_s: chamfer distance as a share of the diagonal of the true mesh's bounding box
    add_s_accepted: add_s is below 0.1
    box_iou: intersection over union of the axis-aligned bounding boxes
    icp_rotation_deg: angle by which ICP turns the predicted mesh, from where it stands, to fit the true one: SAM 3D's
        ICP-Rot
    """

    chamfer_mm: float
    accuracy_mm: float
    completeness_mm: float
    f_score_5mm: float
    f_score_10mm: float
    volume_iou: float
    add_s: float
    add_s_accepted: bool
    box_iou: float
    icp_rotation_deg: float


def compare(predicted: trimesh.Trimesh, true: trimesh.Trimesh, samples: int = 10_000, seed: int = 0) -> ShapeErrors:
    """Errors of `predicted` against `true`, both in metres and in the same frame.

    samples: surface points drawn from each mesh, uniform by area; seed: makes the draw repeatable.
    """
    predicted_scene, true_scene = raycasting_scene(predicted), raycasting_scene(true)
    to_true, to_predicted = _surface_distances(predicted, true, predicted_scene, true_scene, samples, seed)
    accuracy, completeness = float(to_true.mean()), float(to_predicted.mean())
    chamfer = (accuracy + completeness) / 2
    add_s = chamfer / float(np.linalg.norm(true.extents))
    return ShapeErrors(
        chamfer_mm=1e3 * chamfer,
        accuracy_mm=1e3 * accuracy,
        completeness_mm=1e3 * completeness,
        f_score_5mm=f_score(to_true, to_predicted, 0.005),
        f_score_10mm=f_score(to_true, to_predicted, 0.010),
        volume_iou=_volume_iou(predicted_scene, true_scene, predicted.bounds, true.bounds),
        add_s=add_s,
        add_s_accepted=add_s < ADD_S_THRESHOLD,
        box_iou=_box_iou(predicted.bounds, true.bounds),
        # Open3D adds up in threads, in no fixed order: without the rounding two runs differ in the last digits.
        icp_rotation_deg=round(rotation_angle_deg(icp(predicted, true, seed)), 2),
    )


def surface_distances(predicted: trimesh.Trimesh, true: trimesh.Trimesh, samples: int = 10_000,
                      seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Distances (samples,) from points of the predicted surface to the true one, and of the true to the predicted."""
    return _surface_distances(predicted, true, raycasting_scene(predicted), raycasting_scene(true), samples, seed)


def mean_errors(errors: list[ShapeErrors]) -> dict[str, float]:
    """Mean of every field over at least one comparison, the median of the chamfer distance, and their number.

    The mean of add_s_accepted is the share of objects under 0.1.
    """
    rows = [asdict(error) for error in errors]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    median = float(np.median([error.chamfer_mm for error in errors]))
    return means | {"chamfer_mm_median": median, "objects": len(errors)}


def distances_to(scene: o3d.t.geometry.RaycastingScene, points: np.ndarray) -> np.ndarray:
    """(N,) unsigned distances in metres from (N, 3) float32 points to the nearest triangle."""
    return scene.compute_distance(o3d.core.Tensor(points)).numpy()


def volume_iou(predicted: trimesh.Trimesh, true: trimesh.Trimesh) -> float:
    """Intersection over union of two solids in one frame, on a 64^3 grid over their union box."""
    return _volume_iou(raycasting_scene(predicted), raycasting_scene(true), predicted.bounds, true.bounds)


def f_score(to_true: np.ndarray, to_predicted: np.ndarray, threshold: float) -> float:
    """Harmonic mean of the shares of the distances, each (N,), below the threshold."""
    precision, recall = float((to_true < threshold).mean()), float((to_predicted < threshold).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def _surface_distances(predicted: trimesh.Trimesh, true: trimesh.Trimesh,
                       predicted_scene: o3d.t.geometry.RaycastingScene, true_scene: o3d.t.geometry.RaycastingScene,
                       samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return (distances_to(true_scene, _surface_points(predicted, samples, seed)),
            distances_to(predicted_scene, _surface_points(true, samples, seed)))


def _surface_points(mesh: trimesh.Trimesh, samples: int, seed: int) -> np.ndarray:
    """(samples, 3) float32 points, uniform over the surface."""
    return trimesh.sample.sample_surface(mesh, samples, seed=seed)[0].astype(np.float32)


def _volume_iou(predicted: o3d.t.geometry.RaycastingScene, true: o3d.t.geometry.RaycastingScene,
                predicted_bounds: np.ndarray, true_bounds: np.ndarray) -> float:
    """volume_iou() of two meshes given as scenes with their bounding boxes, each (2, 3): low and high corner."""
    low = np.minimum(predicted_bounds[0], true_bounds[0])
    high = np.maximum(predicted_bounds[1], true_bounds[1])
    edge = VOLUME_MARGIN * float((high - low).max())
    inside, other_inside = (_solid_voxels(scene, (low + high) / 2, edge) for scene in (predicted, true))
    union = np.count_nonzero(inside | other_inside)
    return float(np.count_nonzero(inside & other_inside) / union) if union else 0.0


def _solid_voxels(scene: o3d.t.geometry.RaycastingScene, centre: np.ndarray, edge: float) -> np.ndarray:
    """(64, 64, 64) bool: voxel centres of the cube, (3,) centre and edge in metres, that lie inside the scene's mesh.

    One ray per column of voxels, along each axis: inside is where it has crossed the surface an odd number of times.
    Two of the three axes decide, so that a mesh with small holes is still filled.
    """
    n = VOLUME_RESOLUTION
    ticks = ((np.arange(n) + 0.5) / n - 0.5) * edge
    first, second = (grid.ravel() for grid in np.meshgrid(ticks, ticks, indexing="ij"))
    votes = np.zeros((n, n, n), np.int8)
    for axis in range(3):
        rays = np.zeros((n * n, 6), np.float32)
        rays[:, :3] = centre
        rays[:, [i for i in range(3) if i != axis]] += np.stack([first, second], axis=1).astype(np.float32)
        rays[:, axis] -= edge                     # half an edge before the cube's first side
        rays[:, 3 + axis] = 1
        crossings = scene.list_intersections(o3d.core.Tensor(rays))
        voxel = np.ceil((crossings["t_hit"].numpy() / edge - 0.5) * n - 0.5).astype(int).clip(0, n)
        column = crossings["ray_ids"].numpy().astype(int)
        counts = np.bincount(column * (n + 1) + voxel, minlength=n * n * (n + 1)).reshape(n, n, n + 1)
        votes += np.moveaxis(np.cumsum(counts[:, :, :n], axis=2) & 1, 2, axis).astype(np.int8)
    return votes >= 2


def _box_iou(bounds: np.ndarray, other_bounds: np.ndarray) -> float:
    overlap = np.minimum(bounds[1], other_bounds[1]) - np.maximum(bounds[0], other_bounds[0])
    intersection = np.prod(overlap.clip(min=0))
    union = np.prod(np.ptp(bounds, axis=0)) + np.prod(np.ptp(other_bounds, axis=0)) - intersection
    return float(intersection / union)
