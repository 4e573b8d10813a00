"""Error of the colours on the sides that the camera did not see, beside that of the mean colour of the seen pixels."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh
from scipy.spatial import cKDTree
from skimage.color import rgb2lab

from sam3d_ros.evaluation.scenes import Model
from sam3d_ros.perception.frame import Frame
from sam3d_ros.perception.objects import ReconstructedObject
from sam3d_ros.synth.raycaster import image_paint

POINTS = 4000
SEEN_TOLERANCE = 0.003      # metres between a surface point and the noiseless depth of its pixel
GAMMA = 2.2


@dataclass(frozen=True)
class ColourErrors:
    """Mean distances in Lab (CIE 1976) over the points of the true surface that are not seen; NaN if there are none.

    unseen: of the colours given; mean_colour: of the mean of the object's pixels instead
    unseen_relit, mean_colour_relit: the same against the true colours as bright as the object's pixels are, so that
        the light does not count
    mean_true_colour: of the mean of the true colours of what is seen, which no image tells: the light is in it
    """

    unseen: float
    mean_colour: float
    unseen_relit: float
    mean_colour_relit: float
    mean_true_colour: float


def colour_errors(item: ReconstructedObject, model: Model, camera_from_object: np.ndarray, frame: Frame,
                  clean: Frame) -> ColourErrors:
    """Errors of a result against the true model (object frame) that stands at camera_from_object (4, 4).

    frame: the input; clean: the same without noise, which tells what is seen
    """
    points, normals, rgb = _coloured_points(model)
    points = trimesh.transform_points(points, camera_from_object)
    seen = _seen(points, normals @ camera_from_object[:3, :3].T, clean, item.label)
    pixels = frame.colour[frame.labels == item.label] / 255
    mean = pixels.mean(axis=0)
    vertices = trimesh.transform_points(item.vertices, item.camera_from_object)
    nearest = cKDTree(vertices).query(points[~seen])[1]
    given = item.vertex_rgba[nearest, :3] / 255
    gain = (pixels ** GAMMA).mean() / max((rgb[seen] ** GAMMA).mean(), 1e-6) if seen.any() else 1.0
    true, relit = rgb[~seen], np.clip(rgb[~seen] * gain ** (1 / GAMMA), 0, 1)
    return ColourErrors(lab_distance(given, true), lab_distance(mean, true),
                        lab_distance(given, relit), lab_distance(mean, relit),
                        lab_distance(rgb[seen].mean(axis=0), true) if seen.any() else float("nan"))


def lab_distance(rgb: np.ndarray, other: np.ndarray) -> float:
    """Mean distance in Lab of colours (N, 3) or (3,) from (N, 3), sRGB, 0 to 1; NaN without any."""
    if not len(other):
        return float("nan")
    return float(np.linalg.norm(rgb2lab(np.broadcast_to(rgb, other.shape)) - rgb2lab(other), axis=1).mean())


def _coloured_points(model: Model) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points and normals (N, 3) of the model's surface, object frame, and their colours (N, 3), sRGB, 0 to 1."""
    points, faces = trimesh.sample.sample_surface(model.mesh, POINTS, seed=0)
    corners = model.mesh.faces[faces]
    weights = trimesh.triangles.points_to_barycentric(model.mesh.triangles[faces], points)
    rgb = image_paint(model.image, model.uv)(points, corners, weights) / 255
    return points, model.mesh.face_normals[faces], rgb


def _seen(points: np.ndarray, normals: np.ndarray, clean: Frame, label: int) -> np.ndarray:
    """(N,) bool: which points, camera frame, metres, the noiseless image shows as part of the object."""
    k = clean.intrinsics
    columns = np.rint(points[:, 0] / points[:, 2] * k.fx + k.cx).astype(int).clip(0, k.width - 1)
    rows = np.rint(points[:, 1] / points[:, 2] * k.fy + k.cy).astype(int).clip(0, k.height - 1)
    facing = (normals * points).sum(axis=1) < 0
    return facing & (clean.labels[rows, columns] == label) & \
        (np.abs(points[:, 2] - clean.depth[rows, columns]) < SEEN_TOLERANCE)
