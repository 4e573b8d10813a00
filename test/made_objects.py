"""Reconstructed objects for tests that need one, whatever it is."""
from __future__ import annotations

from typing import Any

import numpy as np

from sam3d_ros.perception.objects import ReconstructedObject, ScaleSource, Status

BOX_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32) / 2
BOX_SIDES = np.array([[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
                      [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]], np.uint32)


def made_object(vertices: np.ndarray, triangles: np.ndarray, camera_from_object: np.ndarray,
                **fields: Any) -> ReconstructedObject:
    """An object with this mesh, (N, 3) metres and (M, 3), white, at this pose, (4, 4); fields: whatever else matters to
    the test."""
    count = len(vertices)
    chosen = dict(
        label=1, class_id="", score=1.0, detector_id="", camera_from_object=camera_from_object,
        pose_covariance=np.diag([1e-6] * 3 + [1e-4] * 3), size=np.ptp(vertices, axis=0).astype(np.float64),
        vertices=np.asarray(vertices, np.float32), triangles=np.asarray(triangles, np.uint32),
        vertex_rgba=np.full((count, 4), 255, np.uint8), vertex_std=np.full(count, 0.002, np.float32),
        scale_source=ScaleSource.DEPTH, scale_std=0.01, visible_fraction=0.4, status=Status.OK,
        observed_points=np.empty((0, 3), np.float32), observed_rgb=np.empty((0, 3), np.uint8))
    return ReconstructedObject(**(chosen | fields))
