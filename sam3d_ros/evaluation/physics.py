"""What perception/standing.py and scene/physics.py do for reconstructed objects: cluttered scenes with 8 objects, seen
in one noisy view, before and after what floats is drawn down, surfaces give way and poses are settled.

Depths and gaps are measured on the meshes by ray casting, apart from the distance grids that the settling uses itself.
"""
from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import open3d as o3d
import trimesh

from sam3d_ros.evaluation.grasping import SCENES, observe
from sam3d_ros.evaluation.metrics import compare
from sam3d_ros.perception.frame import Frame, back_project
from sam3d_ros.perception.objects import ReconstructedObject
from sam3d_ros.perception.pipeline import Pipeline
from sam3d_ros.perception.plane import fit_support_plane
from sam3d_ros.perception.raycasting import raycasting_scene
from sam3d_ros.scene.physics import Body, Outcome, Settled, body_from_object, settle
from sam3d_ros.scene.yielding import yielding
from sam3d_ros.synth.clutter import Model, Placed

OBJECTS = 8
TIMINGS = 5                        # of one scene, of which the median counts
_PLANE_TOLERANCE = 0.006           # metres
_FAR = 0.5                         # metres: a gap is looked for down to here


@dataclass(frozen=True)
class Contacts:
    """Of one object, metres: deepest penetration into another one and into the support; gap below it."""

    into_others: float
    into_support: float
    gap: float

    @property
    def penetration(self) -> float:
        """The deeper of the two."""
        return max(self.into_others, self.into_support)


@dataclass(frozen=True)
class SettledObject:
    """One object before and after; chamfer_mm: unaligned, against the truth."""

    scene: str
    name: str
    refused: bool
    before: Contacts
    after: Contacts
    chamfer_mm_before: float
    chamfer_mm_after: float
    moved: float


def measure(kind: str, models: Sequence[Model], seed: int, pipeline: Pipeline) -> tuple[list[SettledObject], float]:
    """Every object of scene number `seed`, and the milliseconds that settling took (solids prepared before)."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(models), OBJECTS, replace=False)
    placed = SCENES[kind]([models[index] for index in chosen], rng)
    frame = observe(placed, seed)
    plane = _support(frame)
    seen = pipeline.run(frame, others=None).objects
    objects = yielding(pipeline.run(frame).objects, plane)
    bodies = [body_from_object(item) for item in objects]
    settled = settle(bodies, plane)
    duration = float(np.median([_timed(bodies, plane) for _ in range(TIMINGS)]))
    before = [_posed(item, item.camera_from_object) for item in seen]
    after = [_posed(item, pose) for item, pose in zip(objects, settled.poses, strict=True)]
    true = [placed[item.label - 1] for item in seen]
    return _compared(kind, true, before, after, settled, frame), duration


def report(objects: Sequence[SettledObject], milliseconds: Sequence[float]) -> dict[str, Any]:
    """Means before and after, None of no objects, and by how much they fell, None where there was nothing to fall."""
    figures: dict[str, Any] = {"objects": len(objects), "refused": sum(item.refused for item in objects),
                               "settle_ms_median": float(np.median(milliseconds)),
                               "settle_ms_max": float(np.max(milliseconds))}
    for name, values in {
        "penetration_mm": [(1e3 * o.before.penetration, 1e3 * o.after.penetration) for o in objects],
        "gap_mm": [(1e3 * o.before.gap, 1e3 * o.after.gap) for o in objects],
        "chamfer_mm": [(o.chamfer_mm_before, o.chamfer_mm_after) for o in objects],
    }.items():
        before, after = np.mean(values, axis=0).tolist() if values else (None, None)
        figures[name] = {"before": before, "after": after, "change": after / before - 1 if before else None}
    return figures


def table(results: dict[str, dict[str, Any]]) -> str:
    """Text of scenes -> report."""
    lines = []
    for kind, figures in results.items():
        lines.append(f"{kind}: {figures['objects']} objects, {figures['refused']} refused, settled in "
                     f"{figures['settle_ms_median']:.1f} ms (median of scenes)")
        for name in ("penetration_mm", "gap_mm", "chamfer_mm"):
            before, after, change = figures[name].values()
            fall = "" if change is None else f"   {100 * change:+.0f} %"
            lines.append(f"    {name:16}" + ("" if before is None else f"{before:8.2f} -> {after:6.2f}{fall}"))
    return "\n".join(lines)


def contacts(meshes: Sequence[trimesh.Trimesh], plane: np.ndarray) -> list[Contacts]:
    """Contacts of meshes posed in one frame; plane: (4,) n . p + d is the height of p over the support."""
    scenes = [raycasting_scene(mesh) for mesh in meshes]
    points = [np.concatenate([mesh.vertices, trimesh.sample.sample_surface(mesh, 2000, seed=0)[0]]).astype(np.float32)
              for mesh in meshes]
    found = []
    for index, own in enumerate(points):
        heights = own @ plane[:3].astype(np.float32) + np.float32(plane[3])
        depth, gap = 0.0, max(float(heights.min()), 0.0)
        for other, scene in enumerate(scenes):
            if other == index or (np.abs(meshes[index].bounds.mean(axis=0) - meshes[other].bounds.mean(axis=0))
                                  > (meshes[index].extents + meshes[other].extents) / 2 + _FAR).any():
                continue
            # Of a pair the deeper of both views counts for both: how far a point of one is inside the other.
            depth = max(depth, _depth(scene, own), _depth(scenes[index], points[other]))
            gap = min(gap, _way(scene, own, -plane[:3]), _way(scenes[index], points[other], plane[:3]))
        found.append(Contacts(depth, max(0.0, -float(heights.min())), 0.0 if depth > 0 else gap))
    return found


def _depth(scene: o3d.t.geometry.RaycastingScene, points: np.ndarray) -> float:
    # Of three rays: one that meets an edge takes the wrong side, and a depth of centimetres for none.
    return max(0.0, -float(scene.compute_signed_distance(o3d.core.Tensor(points), nsamples=3).numpy().min()))


def _way(scene: o3d.t.geometry.RaycastingScene, points: np.ndarray, direction: np.ndarray) -> float:
    """Metres from the nearest of (P, 3) points to the mesh in a direction, (3,) unit; infinite without a hit."""
    rays = np.concatenate([points, np.tile(direction.astype(np.float32), (len(points), 1))], axis=1)
    return float(scene.cast_rays(o3d.core.Tensor(rays))["t_hit"].numpy().min())


def _support(frame: Frame) -> np.ndarray:
    """(4,) plane of the background, camera frame."""
    rows, columns = np.nonzero((frame.labels == 0) & (frame.depth > 0))
    return fit_support_plane(back_project(frame.depth, frame.intrinsics, rows, columns), _PLANE_TOLERANCE)


def _posed(item: ReconstructedObject, camera_from_object: np.ndarray) -> trimesh.Trimesh:
    mesh = trimesh.Trimesh(item.vertices, item.triangles, process=False)
    return mesh.apply_transform(camera_from_object)


def _timed(bodies: Sequence[Body], plane: np.ndarray) -> float:
    """Milliseconds of one thread, whatever else the machine does meanwhile."""
    started = time.thread_time()
    settle(bodies, plane)
    return 1e3 * (time.thread_time() - started)


def _compared(kind: str, true: Sequence[Placed], before: list[trimesh.Trimesh], after: list[trimesh.Trimesh],
              settled: Settled, frame: Frame) -> list[SettledObject]:
    camera_from_world = np.linalg.inv(frame.world_from_camera)
    true_plane = np.append(frame.world_from_camera[2, :3], frame.world_from_camera[2, 3])
    found = []
    rows = zip(true, before, after, contacts(before, true_plane), contacts(after, true_plane), settled.report,
               strict=True)
    for item, seen, moved, contacts_before, contacts_after, body in rows:
        truth = item.model.mesh.copy().apply_transform(camera_from_world @ item.world_from_object)
        found.append(SettledObject(kind, item.model.name, body.outcome is Outcome.REFUSED, contacts_before,
                                   contacts_after, compare(seen, truth).chamfer_mm, compare(moved, truth).chamfer_mm,
                                   body.translation))
    return found
