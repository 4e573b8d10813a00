"""What a robot could use without a learned model, and upper bounds, to compare the product with.

Every baseline takes the same frame as the product and returns one mesh per label, in the camera frame, metres.
Objects with fewer than MIN_POINTS depth readings inside their mask are left out.  Without depth, or without a support
plane where one is needed, a Fault is raised.
"""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import open3d as o3d
import trimesh
from scipy.spatial.transform import Rotation

from sam3d_ros.perception.cube import NO_POINTS, fit_cube, inlier_points
from sam3d_ros.perception.faults import Fault, FaultCode
from sam3d_ros.perception.frame import Frame, back_project
from sam3d_ros.perception.pipeline import PipelineConfig
from sam3d_ros.perception.plane import fit_support_plane
from sam3d_ros.perception.raycasting import raycasting_scene
from sam3d_ros.perception.surface import extract_surface
from sam3d_ros.runtime.signature import COARSE, VOLUME

MIN_POINTS = 50
# Points farther from the median than this many times the median distance (plus a margin) are left out; a
# hull needs a stricter cut than the product's, because a single flying pixel spoils it.
OUTLIER_FACTOR = 3.0
# The support plane is fitted to the background within this distance (metres) of the objects' middle, not to the room.
SUPPORT_RADIUS = 0.35
SUPPORT_TOLERANCE = 0.008

# Oriented box: directions tried for its sides, and percentiles of the points that its sides pass through.
BOX_ANGLES = np.deg2rad(np.arange(0, 90, 1))
BOX_PERCENTILES = (1, 99)

# Oracle: registration of the true mesh to the depth readings by iterative closest point (Besl & McKay 1992,
# point-to-plane) from many starts, because the true pose is not given to it.
ICP_STARTS = 24
ICP_POINTS = 600
ICP_MODEL_POINTS = 3000
ICP_DISTANCES = (0.04, 0.01)      # metres; pairs farther apart are left out, first coarse, then fine
FREE_SPACE_TOLERANCE = 0.01       # metres by which the model may stand in front of the measured surface


def convex_hulls(frame: Frame) -> dict[int, trimesh.Trimesh]:
    """Convex hull of the visible points of each object."""
    return {label: _hull(points) for label, points in _visible_points(frame).items()}


def extruded_hulls(frame: Frame) -> dict[int, trimesh.Trimesh]:
    """Convex hull of the visible points and of their projections onto the support plane."""
    plane = _support_plane(frame)
    return {label: _extruded_hull(points, plane) for label, points in _visible_points(frame).items()}


def oriented_boxes(frame: Frame) -> dict[int, trimesh.Trimesh]:
    """Box that stands on the support plane and holds the visible points, of the smallest footprint."""
    plane = _support_plane(frame)
    return {label: _standing_box(points, plane) for label, points in _visible_points(frame).items()}


def oracle(frame: Frame, models: Mapping[int, trimesh.Trimesh], seed: int = 0) -> dict[int, trimesh.Trimesh]:
    """True mesh of each label (`models`, object frame, metres), registered to the depth from unknown poses."""
    points = _visible_points(frame)
    return {label: _registered(models[label], points[label], frame, seed) for label in points.keys() & models.keys()}


def true_distances(frame: Frame, posed: Mapping[int, trimesh.Trimesh]) -> dict[int, trimesh.Trimesh]:
    """Surface of the true signed distance at the voxels where the network gives it, made as the pipeline makes it.

    It tells what the model's resolution allows at best.  posed: closed true mesh of each label, camera frame, metres.
    Objects so thin that no voxel is inside are left out.
    """
    ticks = (np.arange(VOLUME) + 0.5) / VOLUME - 0.5
    grid = np.stack(np.meshgrid(ticks, ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 3)
    meshes = {}
    for label, points in _visible_points(frame).items():
        if label in posed:
            cube = fit_cube(points)
            metres = raycasting_scene(posed[label]).compute_signed_distance(
                o3d.core.Tensor(cube.to_camera(grid).astype(np.float32))).numpy()
            surface = extract_surface((metres / cube.voxel).reshape((VOLUME,) * 3), np.zeros((COARSE,) * 3, np.float32),
                                      cube, PipelineConfig().max_faces, NO_POINTS, symmetry=False)
            if surface is not None:
                meshes[label] = trimesh.Trimesh(surface.vertices, surface.triangles, process=False)
    return meshes


def _support_plane(frame: Frame) -> np.ndarray:
    """(4,) plane n, d of the background near the objects: n . p + d = 0, metres; the normal points to the camera."""
    points, labels = _measured_points(frame)
    distance = np.linalg.norm(points - np.median(points[labels > 0], axis=0), axis=1)
    return fit_support_plane(points[(labels == 0) & (distance < SUPPORT_RADIUS)], SUPPORT_TOLERANCE)


def _measured_points(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """All depth readings as (N, 3) points in the camera frame, metres, and the instance label of each, (N,).

    Raises Fault(DEPTH_MISSING).
    """
    if frame.depth is None:
        raise Fault(FaultCode.DEPTH_MISSING)
    rows, columns = np.nonzero(frame.depth)
    return back_project(frame.depth, frame.intrinsics, rows, columns), frame.labels[rows, columns]


def _visible_points(frame: Frame) -> dict[int, np.ndarray]:
    """Per label the (N, 3) points inside its mask, camera frame, metres, without flying pixels and mask leaks."""
    points, labels = _measured_points(frame)
    per_label = {instance.label: points[labels == instance.label] for instance in frame.instances}
    return {label: masked[inlier_points(masked, OUTLIER_FACTOR)] for label, masked in per_label.items()
            if len(masked) >= MIN_POINTS}


def _hull(points: np.ndarray) -> trimesh.Trimesh:
    return trimesh.Trimesh(points).convex_hull


def _extruded_hull(points: np.ndarray, plane: np.ndarray) -> trimesh.Trimesh:
    """Hull of (N, 3) points and of their projections onto the plane."""
    heights = points @ plane[:3] + plane[3]
    return _hull(np.concatenate([points, points - heights[:, None] * plane[:3]]))


def _standing_box(points: np.ndarray, plane: np.ndarray) -> trimesh.Trimesh:
    """Box of the smallest footprint that stands on the plane and holds (N, 3) points but for the outermost."""
    first, second = np.linalg.svd(plane[None, :3])[2][1:]                # any two axes in the plane
    candidates = []
    for angle in BOX_ANGLES:
        along = np.cos(angle) * first + np.sin(angle) * second
        axes = np.stack([along, np.cross(plane[:3], along), plane[:3]])
        low, high = np.percentile(points @ axes.T, BOX_PERCENTILES, axis=0)
        low[2] = -plane[3]
        candidates.append((np.prod(high[:2] - low[:2]), axes, low, high))
    _, axes, low, high = min(candidates, key=lambda candidate: candidate[0])
    camera_from_box = np.eye(4)
    camera_from_box[:3, :3] = axes.T
    return trimesh.creation.box(bounds=[low, high]).apply_transform(camera_from_box)


def _registered(model: trimesh.Trimesh, points: np.ndarray, frame: Frame, seed: int) -> trimesh.Trimesh:
    """`model` moved to where it fits the visible `points` best."""
    generator = np.random.default_rng(seed)
    observed = points[generator.choice(len(points), min(ICP_POINTS, len(points)), replace=False)]
    samples, faces = trimesh.sample.sample_surface(model, ICP_MODEL_POINTS, seed=seed)
    target = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(samples))
    target.normals = o3d.utility.Vector3dVector(model.face_normals[faces])

    best_misfit, best_pose = np.inf, None
    for rotation in Rotation.random(ICP_STARTS, random_state=seed).as_matrix():
        object_from_camera = _refined(observed, target, _start(rotation, observed, model))
        camera_from_object = np.linalg.inv(object_from_camera)
        misfit = _distance(observed, target, object_from_camera)
        misfit += _free_space_violation(samples, camera_from_object, frame)
        if misfit < best_misfit:
            best_misfit, best_pose = misfit, camera_from_object
    return model.copy().apply_transform(best_pose)


def _start(object_from_camera_rotation: np.ndarray, observed: np.ndarray, model: trimesh.Trimesh) -> np.ndarray:
    """object_from_camera (4, 4): the given rotation, with the model's middle a little behind the visible surface."""
    middle = np.median(observed, axis=0)
    behind = middle / np.linalg.norm(middle) * model.extents.min() / 2
    pose = np.eye(4)
    pose[:3, :3] = object_from_camera_rotation
    pose[:3, 3] = model.bounds.mean(axis=0) - object_from_camera_rotation @ (middle + behind)
    return pose


def _refined(observed: np.ndarray, target: o3d.geometry.PointCloud, object_from_camera: np.ndarray) -> np.ndarray:
    """object_from_camera (4, 4) after ICP of the `observed` points, camera frame, to `target`, object frame."""
    source = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(observed))
    method = o3d.pipelines.registration.TransformationEstimationPointToPlane()
    for distance in ICP_DISTANCES:
        result = o3d.pipelines.registration.registration_icp(source, target, distance, object_from_camera, method)
        object_from_camera = result.transformation
    return object_from_camera


def _distance(observed: np.ndarray, target: o3d.geometry.PointCloud, object_from_camera: np.ndarray) -> float:
    """Mean distance, metres, from the observed points to the model, each counted up to the coarse ICP distance."""
    source = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(observed)).transform(object_from_camera)
    return float(np.minimum(source.compute_point_cloud_distance(target), ICP_DISTANCES[0]).mean())


def _free_space_violation(samples: np.ndarray, camera_from_object: np.ndarray, frame: Frame) -> float:
    """Mean distance, metres, by which the model's surface stands where the camera saw through."""
    points = samples @ camera_from_object[:3, :3].T + camera_from_object[:3, 3]
    camera = frame.intrinsics
    z = np.maximum(points[:, 2], 1e-3)
    columns = np.rint(points[:, 0] / z * camera.fx + camera.cx).astype(int)
    rows = np.rint(points[:, 1] / z * camera.fy + camera.cy).astype(int)
    seen = (columns >= 0) & (columns < camera.width) & (rows >= 0) & (rows < camera.height)
    depth = frame.depth[rows.clip(0, camera.height - 1), columns.clip(0, camera.width - 1)]
    in_front = (depth - z - FREE_SPACE_TOLERANCE).clip(0, ICP_DISTANCES[0])
    return float((in_front * (seen & (depth > 0))).mean())
