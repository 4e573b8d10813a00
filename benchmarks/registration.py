"""Ways to register a known mesh to a depth image: time and error of the product's own, Open3D's and small_gicp's.

small_gicp is no dependency: it takes part where it is installed. See benchmarks/README.md.
"""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import open3d as o3d
import trimesh

from benchmarks.harness import statistics
from benchmarks.scenes import tabletop
from sam3d_ros.evaluation.environment import add_report, describe_environment, describe_model, report_path, write_report
from sam3d_ros.perception.pipeline import Pipeline
from sam3d_ros.runtime.engine import DEFAULT_MODEL
from sam3d_ros.scene.motion import difference, shifted
from sam3d_ros.scene.readings import read
from sam3d_ros.scene.registration import register
from sam3d_ros.scene.shape import make_shape

OBJECTS, STARTS = 5, 20
# 1 sigma of the starts, metres and radians: an object that is carried, from image to image.
SHIFT, TURN = 0.006, 0.05
REACH = 0.02              # metres, of correspondences
MODEL_POINTS = 2000
Method = Callable[[np.ndarray, np.ndarray], np.ndarray]


def own(vertices: np.ndarray, triangles: np.ndarray) -> Method:
    """The product's: points to the mesh's signed-distance grid."""
    shape = make_shape(vertices, triangles)
    prior = np.eye(6) * 1e-3
    return lambda points, start: register(shape, points, start, prior).camera_from_object


def open3d_icp(vertices: np.ndarray, triangles: np.ndarray) -> Method:
    """Open3D: point to plane, against points of the mesh."""
    mesh = trimesh.Trimesh(vertices, triangles, process=False)
    samples, faces = trimesh.sample.sample_surface(mesh, MODEL_POINTS, seed=0)
    target = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(samples))
    target.normals = o3d.utility.Vector3dVector(mesh.face_normals[faces])
    estimation = o3d.pipelines.registration.TransformationEstimationPointToPlane(
        o3d.pipelines.registration.TukeyLoss(0.01))

    def fit(points: np.ndarray, start: np.ndarray) -> np.ndarray:
        source = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points))
        result = o3d.pipelines.registration.registration_icp(source, target, REACH, np.linalg.inv(start), estimation)
        return np.linalg.inv(result.transformation)
    return fit


def small_gicp_icp(vertices: np.ndarray, triangles: np.ndarray) -> Method:
    """small_gicp: generalised ICP, one thread, against points of the mesh."""
    import small_gicp
    mesh = trimesh.Trimesh(vertices, triangles, process=False)
    target, tree = small_gicp.preprocess_points(mesh.sample(MODEL_POINTS, seed=0), downsampling_resolution=0.002,
                                                num_threads=1)

    def fit(points: np.ndarray, start: np.ndarray) -> np.ndarray:
        source, _ = small_gicp.preprocess_points(points, downsampling_resolution=0.002, num_threads=1)
        result = small_gicp.align(target, source, tree, init_T_target_source=np.linalg.inv(start),
                                  max_correspondence_distance=REACH, num_threads=1)
        return np.linalg.inv(result.T_target_source)
    return fit


def methods() -> dict[str, Callable[[np.ndarray, np.ndarray], Method]]:
    """Name -> method; small_gicp where it is installed."""
    found = {"signed-distance grid": own, "Open3D point to plane": open3d_icp}
    try:
        import small_gicp  # noqa: F401
    except ModuleNotFoundError:
        return found
    return found | {"small_gicp": small_gicp_icp}


def measure() -> dict[str, dict[str, Any]]:
    """Per method: CPU milliseconds of one registration from a random start, and by how much its result differs from the
    pose that the mesh was made at, millimetres and degrees."""
    frame = tabletop(OBJECTS)
    with closing(Pipeline.from_config()) as pipeline:
        objects = pipeline(frame)
    readings = read(frame)
    rng = np.random.default_rng(0)
    steps = np.concatenate([rng.normal(size=(STARTS, 3)) * SHIFT, rng.normal(size=(STARTS, 3)) * TURN], axis=1)
    report = {}
    for name, make in methods().items():
        times, shifts, turns = [], [], []
        for item in objects:
            fit = make(item.vertices, item.triangles)
            points = readings.points[int(readings.lookup[item.label])]
            fit(points, item.camera_from_object)        # compiled, warm
            for step in steps:
                started = time.thread_time()
                found = fit(points, shifted(item.camera_from_object, step))
                times.append(1e3 * (time.thread_time() - started))
                error = difference(found, item.camera_from_object)
                shifts.append(1e3 * float(np.linalg.norm(error[:3])))
                turns.append(float(np.rad2deg(np.linalg.norm(error[3:]))))
        report[name] = {"cpu_ms": statistics(times), "mm": statistics(shifts), "degrees": statistics(turns)}
    return report


def main() -> int:
    """Run the comparison, print it and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_report(parser, "registration")
    args = parser.parse_args()
    out = report_path(args)
    environment, model = describe_environment(), describe_model(DEFAULT_MODEL)
    report = measure()
    for name, figures in report.items():
        print(f"{name:24}" + "".join(f"{key} {value['p50']:8.2f} {value['p95']:8.2f}   "
                                     for key, value in figures.items()))
    write_report(out, environment, {"benchmark": "registration", **model, "objects": OBJECTS, "starts": STARTS,
                                    "start_sigma_m_rad": [SHIFT, TURN], "methods": report})
    return 0


if __name__ == "__main__":
    sys.exit(main())
