"""The output: reconstructed objects, and why others were rejected."""
from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from .faults import Fault

Mesh = tuple[np.ndarray, np.ndarray]      # vertices (N, 3), metres, camera frame, and triangles (M, 3)


@dataclass(frozen=True)
class Rejection:
    """An instance that was not reconstructed, and why; label: value of its mask in Frame.labels."""

    label: int
    fault: Fault


class ScaleSource(IntEnum):
    """Where the metric scale comes from; the values of sam3d_ros/ObjectMesh SCALE_*."""

    UNKNOWN = 0
    MODEL = 1
    DEPTH = 2
    SUPPORT_PLANE = 3
    GIVEN = 4


class Status(IntEnum):
    """The values of sam3d_ros/ObjectMesh STATUS_*."""

    OK = 0
    LOW_QUALITY = 1
    HIDDEN = 2


@dataclass(frozen=True)
class ReconstructedObject:
    """A complete object: closed mesh in its own frame, and the pose of that frame in the camera frame.

    label: value of its mask in Frame.labels
    camera_from_object: (4, 4) float64, object frame -> camera frame
    pose_covariance: (6, 6) float64, order x, y, z (m), rotation about x, y, z (rad), camera frame axes
    size: (3,) float64, metres, extents along the object frame's axes (the mesh spans -size/2 to +size/2)
    vertices: (N, 3) float32, metres, object frame
    triangles: (M, 3) uint32, counter-clockwise seen from outside
    vertex_rgba: (N, 4) uint8
    vertex_std: (N,) float32, metres, 1 sigma of the surface along its normal
    scale_std: 1 sigma of the scale factor
    visible_fraction: share of the mesh's surface seen in the image, 0 to 1
    observed_points: (P, 3) float32, camera frame, metres: the depth readings it was built from
    observed_rgb: (P, 3) uint8, their colours
    """

    label: int
    class_id: str
    score: float
    detector_id: str
    camera_from_object: np.ndarray
    pose_covariance: np.ndarray
    size: np.ndarray
    vertices: np.ndarray
    triangles: np.ndarray
    vertex_rgba: np.ndarray
    vertex_std: np.ndarray
    scale_source: ScaleSource
    scale_std: float
    visible_fraction: float
    status: Status
    observed_points: np.ndarray
    observed_rgb: np.ndarray
