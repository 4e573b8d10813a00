"""Calibration of `vertex_std` against the true error of the surface."""
from __future__ import annotations

from typing import Any

import numpy as np
import trimesh

from sam3d_ros.evaluation.metrics import distances_to
from sam3d_ros.perception.objects import ReconstructedObject
from sam3d_ros.perception.raycasting import raycasting_scene

BINS = 10
VERTICES = 2000             # of each object, so that none weighs more than another


def vertex_errors(item: ReconstructedObject, true: trimesh.Trimesh, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """vertex_std and distance to the true mesh (camera frame), each (VERTICES,), metres, of randomly drawn vertices."""
    chosen = np.random.default_rng(seed).integers(len(item.vertices), size=VERTICES)
    points = trimesh.transform_points(item.vertices[chosen], item.camera_from_object).astype(np.float32)
    return item.vertex_std[chosen].astype(np.float64), distances_to(raycasting_scene(true), points)


def reliability(std: np.ndarray, error: np.ndarray) -> dict[str, Any]:
    """How well `std` predicts `error`, both (N,), metres.

    half_ratio: mean error of the most certain half over that of the least certain half
    within_1_sigma, within_2_sigma: shares of the errors (0.683 and 0.954 if calibrated)
    curve: BINS groups from the most to the least certain one: mean error expected of a normal distribution of the
        stated sigma, and observed, mm
    """
    order = np.argsort(std, kind="stable")
    half = len(order) // 2
    return {
        "vertices": len(order),
        "half_ratio": float(error[order[:half]].mean() / error[order[half:]].mean()),
        "within_1_sigma": float((error < std).mean()),
        "within_2_sigma": float((error < 2 * std).mean()),
        "curve": [{"expected_mm": 1e3 * float(np.sqrt(2 / np.pi) * std[part].mean()),
                   "observed_mm": 1e3 * float(error[part].mean())} for part in np.array_split(order, BINS)],
    }
