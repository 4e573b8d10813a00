"""Unaligned, metric comparison of a predicted mesh with the true mesh.

Both meshes stand posed in one frame and nothing is aligned or scaled before they are compared: a wrong pose or scale
counts in full, as it does for a gripper.
"""
from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import open3d as o3d
import trimesh

from sam3d_ros.synth.sdf import raycasting_scene

VOLUME_RESOLUTION = 64
# The cube of the volumetric IoU is this much larger than the union of the two bounding boxes.
VOLUME_MARGIN = 1.02
# Rays per voxel that vote on inside or outside, so that a true mesh with small holes is still filled.
OCCUPANCY_RAYS = 5
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


def compare(predicted: trimesh.Trimesh, true: trimesh.Trimesh, samples: int = 10_000, seed: int = 0) -> ShapeErrors:
    """Errors of `predicted` against `true`, both in metres and in the same frame.

    samples: surface points drawn from each mesh, uniform by area; seed: makes the draw repeatable.
    """
    predicted_scene, true_scene = raycasting_scene(predicted), raycasting_scene(true)
    to_true = _distances(true_scene, _surface_points(predicted, samples, seed))
    to_predicted = _distances(predicted_scene, _surface_points(true, samples, seed))

    accuracy, completeness = float(to_true.mean()), float(to_predicted.mean())
    chamfer = (accuracy + completeness) / 2
    voxels = _union_cube_points(predicted.bounds, true.bounds)
    add_s = chamfer / float(np.linalg.norm(true.extents))
    return ShapeErrors(
        chamfer_mm=1e3 * chamfer,
        accuracy_mm=1e3 * accuracy,
        completeness_mm=1e3 * completeness,
        f_score_5mm=_f_score(to_true, to_predicted, 0.005),
        f_score_10mm=_f_score(to_true, to_predicted, 0.010),
        volume_iou=_volume_iou(_inside(predicted_scene, voxels), _inside(true_scene, voxels)),
        add_s=add_s,
        add_s_accepted=add_s < ADD_S_THRESHOLD,
        box_iou=_box_iou(predicted.bounds, true.bounds),
    )


def mean_errors(errors: list[ShapeErrors]) -> dict[str, float]:
    """Mean of every field over at least one comparison, the median of the chamfer distance, and their number.

    The mean of add_s_accepted is the share of objects under 0.1.
    """
    rows = [asdict(error) for error in errors]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    median = float(np.median([error.chamfer_mm for error in errors]))
    return means | {"chamfer_mm_median": median, "objects": len(errors)}


def _surface_points(mesh: trimesh.Trimesh, samples: int, seed: int) -> np.ndarray:
    """(samples, 3) float32 points, uniform over the surface."""
    return trimesh.sample.sample_surface(mesh, samples, seed=seed)[0].astype(np.float32)


def _distances(scene: o3d.t.geometry.RaycastingScene, points: np.ndarray) -> np.ndarray:
    """(N,) unsigned distances in metres from (N, 3) float32 points to the nearest triangle."""
    return scene.compute_distance(o3d.core.Tensor(points)).numpy()


def _f_score(to_true: np.ndarray, to_predicted: np.ndarray, threshold: float) -> float:
    precision, recall = float((to_true < threshold).mean()), float((to_predicted < threshold).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def _union_cube_points(bounds: np.ndarray, other_bounds: np.ndarray) -> np.ndarray:
    """(64^3, 3) float32 voxel centres of the cube around two bounding boxes, each (2, 3): low and high corner."""
    low = np.minimum(bounds[0], other_bounds[0])
    high = np.maximum(bounds[1], other_bounds[1])
    edge = VOLUME_MARGIN * (high - low).max()
    ticks = ((np.arange(VOLUME_RESOLUTION) + 0.5) / VOLUME_RESOLUTION - 0.5) * edge
    grid = np.stack(np.meshgrid(ticks, ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 3)
    return (grid + (low + high) / 2).astype(np.float32)


def _inside(scene: o3d.t.geometry.RaycastingScene, points: np.ndarray) -> np.ndarray:
    """(N,) bool: which of (N, 3) float32 points lie inside the mesh."""
    return scene.compute_occupancy(o3d.core.Tensor(points), nsamples=OCCUPANCY_RAYS).numpy() > 0.5


def _volume_iou(inside: np.ndarray, other_inside: np.ndarray) -> float:
    union = np.count_nonzero(inside | other_inside)
    return np.count_nonzero(inside & other_inside) / union if union else 0.0


def _box_iou(bounds: np.ndarray, other_bounds: np.ndarray) -> float:
    overlap = np.minimum(bounds[1], other_bounds[1]) - np.maximum(bounds[0], other_bounds[0])
    intersection = np.prod(overlap.clip(min=0))
    union = np.prod(np.ptp(bounds, axis=0)) + np.prod(np.ptp(other_bounds, axis=0)) - intersection
    return float(intersection / union)
