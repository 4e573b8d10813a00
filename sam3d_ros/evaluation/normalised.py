"""SAM 3D's own shape protocol, so that its published figures can stand beside ours; never to be mixed with the metric
ones: both meshes are scaled to [-1, 1], each by itself, and aligned by ICP before they are compared.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from sam3d_ros.evaluation.alignment import icp
from sam3d_ros.evaluation.metrics import f_score, surface_distances, volume_iou

F_THRESHOLD = 0.01
EMD_POINTS = 1024


@dataclass(frozen=True)
class NormalisedErrors:
    """Unitless: lengths are in half edges of the normalised cube.

    f1_001: harmonic mean of the shares of both surfaces that lie nearer than 0.01 to the other
    volume_iou: on a 64^3 grid; chamfer: mean of the two directed mean distances
    emd: earth mover's distance, the mean distance of the best one-to-one pairing of 1024 points of each surface; its
        floor, for a surface against itself drawn anew, is 0.04 to 0.14, the more the larger its area is
    """

    f1_001: float
    volume_iou: float
    chamfer: float
    emd: float


def compare_normalised(predicted: trimesh.Trimesh, true: trimesh.Trimesh, seed: int = 0) -> NormalisedErrors:
    """Errors of `predicted` against `true` after normalisation and alignment; axes as they stand are the start."""
    predicted, true = _normalised(predicted), _normalised(true)
    predicted.apply_transform(icp(predicted, true, seed))
    to_true, to_predicted = surface_distances(predicted, true, seed=seed)
    return NormalisedErrors(
        f1_001=f_score(to_true, to_predicted, F_THRESHOLD),
        volume_iou=volume_iou(predicted, true),
        chamfer=float(to_true.mean() + to_predicted.mean()) / 2,
        emd=earth_movers_distance(predicted, true, seed),
    )


def earth_movers_distance(predicted: trimesh.Trimesh, true: trimesh.Trimesh, seed: int = 0) -> float:
    """Mean distance between EMD_POINTS points of each surface, paired so that it is least."""
    points = trimesh.sample.sample_surface(predicted, EMD_POINTS, seed=seed)[0]
    true_points = trimesh.sample.sample_surface(true, EMD_POINTS, seed=seed + 1)[0]
    distances = cdist(points, true_points)
    return float(distances[linear_sum_assignment(distances)].mean())


def _normalised(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """The mesh moved and scaled so that its bounding box is centred and its longest side spans -1 to 1."""
    scale = 2 / mesh.extents.max()
    transform = np.diag([scale, scale, scale, 1.0])
    transform[:3, 3] = -scale * mesh.bounds.mean(axis=0)
    return mesh.copy().apply_transform(transform)
