"""Frame -> reconstructed objects: the whole way, all objects of a frame in one batch."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from ..runtime.engine import Engine, EngineError, load_engine
from .appearance import seen_vertices, vertex_colours, vertex_normals
from .cube import Cube, fit_cube, inlier_points
from .evidence import evidence
from .faults import Fault, FaultCode
from .frame import Frame, Instance, Intrinsics, back_project, check_frame
from .object_frame import CAMERA_UP, object_frame
from .objects import ReconstructedObject, ScaleSource, Status
from .surface import Surface, extract_surface
from .tabletop import fit_support_plane
from .uncertainty import pose_uncertainty

_FEW_POINTS = 4                 # times min_points: below, a result is marked LOW_QUALITY
_CUBE_POINTS = 4000             # points that are enough for medians and percentiles
_PLANE_POINTS = 6000
_PLANE_REACH = 0.35             # metres around the objects: their support, not the room
_PLANE_TOLERANCE = 0.006        # metres at 1 m
_BOX_CLEARANCE = 0.008          # metres above the support from which a box's content counts as the object


@dataclass(frozen=True)
class PipelineConfig:
    """What can be chosen.

    model: path of an ONNX student, empty for the one that is shipped; engine: auto, openvino or onnxruntime;
    precision: auto, fp32 or bf16; threads: 0 = all cores; max_objects: the largest masks of a frame are kept;
    max_faces: triangles per mesh; min_points: depth readings inside a mask that are too few below this
    """

    model: str = ""
    engine: str = "auto"
    precision: str = "auto"
    threads: int = 0
    max_objects: int = 16
    max_faces: int = 5000
    min_points: int = 50


@dataclass(frozen=True)
class Rejection:
    """An instance that was not reconstructed, and why."""

    label: int
    fault: Fault


@dataclass(frozen=True)
class PipelineResult:
    """Objects of one frame, rejected instances, and milliseconds per stage: evidence, inference, surface, colour."""

    objects: list[ReconstructedObject]
    rejections: tuple[Rejection, ...]
    stage_ms: dict[str, float]


@dataclass(frozen=True)
class _Candidate:
    """An instance with its depth readings: points (P, 3) float64, metres, camera frame, at rows and columns (P,)."""

    instance: Instance
    points: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    cube: Cube
    status: Status


class Pipeline:
    """Reconstructs all instances of a frame.  Not to be called by two threads at a time."""

    def __init__(self, engine: Engine, config: PipelineConfig):
        self.config = config
        self._engine = engine

    @classmethod
    def from_config(cls, config: PipelineConfig = PipelineConfig()) -> Pipeline:
        """Load model and engine.  Raises Fault: MODEL_MISSING, MODEL_INVALID, MODEL_MISMATCH, ENGINE_UNAVAILABLE."""
        try:
            return cls(load_engine(config.engine, config.model, config.precision, config.threads), config)
        except EngineError as error:
            raise Fault(FaultCode[error.reason], error.detail) from error

    @property
    def engine_name(self) -> str:
        """Engine and precision, as "openvino bf16"."""
        return self._engine.name

    def warm_up(self) -> None:
        """Compile kernels and let the engine allocate, so that the first frame is as fast as the next."""
        colour = np.full((48, 64, 3), 128, np.uint8)
        rows, columns = np.indices((48, 64))
        ball = 64 - (rows - 24.0) ** 2 - (columns - 32.0) ** 2
        depth = np.where(ball > 0, 0.5 - np.sqrt(np.maximum(ball, 0)) * 0.005, 0.55).astype(np.float32)
        camera = Intrinsics(64, 48, 100, 100, 32, 24)
        self.run(Frame(colour, depth, (ball > 0).astype(np.int32), camera, (Instance(1),)))

    def __call__(self, frame: Frame) -> list[ReconstructedObject]:
        """The objects of `run`."""
        return self.run(frame).objects

    def run(self, frame: Frame, on_stage: Callable[[str], None] | None = None) -> PipelineResult:
        """Reconstruct frame.instances.

        on_stage is called with EVIDENCE, INFERENCE, SURFACE, DONE as work proceeds.
        Raises Fault if the whole frame cannot be used: DEPTH_MISSING, DEPTH_SIZE_MISMATCH, DEPTH_EMPTY,
        DEPTH_UNIT_SUSPECT, MASK_SIZE_MISMATCH, CAMERA_INFO_UNCALIBRATED, CAMERA_INFO_SIZE_MISMATCH, ENGINE_FAILED.
        """
        report = on_stage or (lambda stage: None)
        clock = _Clock()
        check_frame(frame)
        report("EVIDENCE")
        with clock("evidence"):
            plane = _support_plane(frame)
            frame, candidates, rejections = self._candidates(frame, plane)
            volumes = evidence(frame.depth, frame.labels, frame.intrinsics, [c.cube for c in candidates],
                               [c.instance.label for c in candidates]) if candidates else None
        report("INFERENCE")
        with clock("inference"):
            logits = self._infer(volumes) if candidates else ()
        report("SURFACE")
        up = _up(frame, plane)
        objects = []
        for candidate, volume in zip(candidates, logits, strict=True):
            with clock("surface"):
                surface = extract_surface(volume[0], candidate.cube, self.config.max_faces)
            if surface is None:
                rejections.append(_rejection(candidate.instance, FaultCode.SHAPE_NOT_FOUND))
                continue
            with clock("colour"):
                objects.append(_object(frame, candidate, surface, up))
        report("DONE")
        return PipelineResult(objects, tuple(rejections), clock.milliseconds)

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()

    def _infer(self, volumes: np.ndarray) -> np.ndarray:
        try:
            logits = self._engine.infer(volumes)
        except RuntimeError as error:
            raise Fault(FaultCode.ENGINE_FAILED, f"{self.engine_name}: {error}") from error
        if not np.isfinite(logits).all():
            raise Fault(FaultCode.ENGINE_FAILED, f"{self.engine_name} returned values that are not finite")
        return logits

    def _candidates(self, frame: Frame, plane: np.ndarray | None) -> tuple[Frame, list[_Candidate], list[Rejection]]:
        """Instances with enough depth, at most max_objects; the frame with boxes narrowed to what stands in them."""
        labels = frame.labels
        slices = ndimage.find_objects(labels, max_label=max((i.label for i in frame.instances), default=0))
        found: list[_Candidate] = []
        rejections: list[Rejection] = []
        for instance in frame.instances:
            window = slices[instance.label - 1]
            rows, columns = _pixels(labels, frame.depth, instance.label, window)
            points = back_project(frame.depth, frame.intrinsics, rows, columns)
            if instance.is_box and plane is not None and len(points):
                clear = points @ plane[:3] + plane[3] > _BOX_CLEARANCE
                labels = _narrowed(labels, instance.label, rows[clear], columns[clear])
                rows, columns, points = rows[clear], columns[clear], points[clear]
            if len(points) >= self.config.min_points:
                keep = inlier_points(points)
                rows, columns, points = rows[keep], columns[keep], points[keep]
            if len(points) < self.config.min_points:
                rejections.append(_rejection(instance, FaultCode.TOO_FEW_POINTS, f"{len(points)} readings"))
                continue
            cube = fit_cube(points[::max(1, len(points) // _CUBE_POINTS)])
            doubtful = instance.is_box or len(points) < _FEW_POINTS * self.config.min_points or \
                _touches_border(window, labels.shape)
            found.append(_Candidate(instance, points, rows, columns, cube,
                                    Status.LOW_QUALITY if doubtful else Status.OK))
        found.sort(key=lambda c: -len(c.points))
        rejections += [_rejection(c.instance, FaultCode.TOO_MANY_OBJECTS, f"{len(found)} > {self.config.max_objects}")
                       for c in found[self.config.max_objects:]]
        kept = sorted(found[:self.config.max_objects], key=lambda c: c.instance.label)
        return replace(frame, labels=labels), kept, rejections


class _Clock:
    """Adds up the milliseconds spent per stage."""

    def __init__(self) -> None:
        self.milliseconds = {stage: 0.0 for stage in ("evidence", "inference", "surface", "colour")}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.milliseconds[stage] += 1e3 * (time.perf_counter() - started)


def _rejection(instance: Instance, code: FaultCode, detail: str = "") -> Rejection:
    return Rejection(instance.label, Fault(code, f"label {instance.label}" + (f": {detail}" if detail else "")))


def _pixels(labels: np.ndarray, depth: np.ndarray, label: int, window: tuple[slice, slice] | None):
    """Rows and columns of the instance's pixels that have depth; window: its bounding box, None if it has no pixel."""
    if window is None:
        return np.empty(0, int), np.empty(0, int)
    rows, columns = np.nonzero((labels[window] == label) & (depth[window] > 0))
    return rows + window[0].start, columns + window[1].start


def _narrowed(labels: np.ndarray, label: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    narrowed = np.where(labels == label, 0, labels)
    narrowed[rows, columns] = label
    return narrowed


def _touches_border(window: tuple[slice, slice], shape: tuple[int, int]) -> bool:
    return any(s.start == 0 or s.stop == n for s, n in zip(window, shape, strict=True))


def _support_plane(frame: Frame) -> np.ndarray | None:
    """Plane under the objects, (4,): normal to the camera and offset, metres, camera frame; None if none is seen."""
    if not frame.instances:
        return None
    step = max(1, int(np.sqrt(frame.depth.size / 60_000)))
    depth, labels = frame.depth[::step, ::step], frame.labels[::step, ::step]
    own = np.isin(labels, [i.label for i in frame.instances]) & (depth > 0)
    rows, columns = np.nonzero(~own & (depth > 0))
    own_rows, own_columns = np.nonzero(own)
    if not len(own_rows):
        return None
    points = back_project(frame.depth, frame.intrinsics, rows * step, columns * step)
    objects = back_project(frame.depth, frame.intrinsics, own_rows * step, own_columns * step)
    low, high = np.percentile(objects, [1, 99], axis=0)
    near = points[((points > low - _PLANE_REACH) & (points < high + _PLANE_REACH)).all(axis=1)]
    try:
        return fit_support_plane(near[::max(1, len(near) // _PLANE_POINTS)], _PLANE_TOLERANCE)
    except Fault:
        return None


def _up(frame: Frame, plane: np.ndarray | None) -> np.ndarray:
    """Unit vector against gravity in the camera frame: given, else the support's normal, else up in the image."""
    if frame.world_from_camera is not None:
        return frame.world_from_camera[2, :3]
    return plane[:3].astype(np.float64) if plane is not None else CAMERA_UP


def _object(frame: Frame, candidate: _Candidate, surface: Surface, up: np.ndarray) -> ReconstructedObject:
    camera_from_object, size = object_frame(surface.vertices, up)
    normals, areas = vertex_normals(surface.vertices, surface.triangles)
    seen, rows, columns = seen_vertices(surface.vertices, normals, frame, candidate.instance.label)
    vertices = (surface.vertices - camera_from_object[:3, 3]) @ camera_from_object[:3, :3]
    covariance, scale_std = pose_uncertainty(vertices, surface.vertex_std, size, camera_from_object)
    return ReconstructedObject(
        label=candidate.instance.label, class_id=candidate.instance.class_id, score=candidate.instance.score,
        detector_id=candidate.instance.detector_id, camera_from_object=camera_from_object, pose_covariance=covariance,
        size=size, vertices=vertices.astype(np.float32), triangles=surface.triangles,
        vertex_rgba=vertex_colours(surface.vertices, seen, rows, columns, frame), vertex_std=surface.vertex_std,
        scale_source=ScaleSource.DEPTH, scale_std=scale_std,
        visible_fraction=float(areas[seen].sum() / areas.sum()), watertight=surface.watertight, status=candidate.status,
        observed_points=candidate.points.astype(np.float32),
        observed_rgb=frame.colour[candidate.rows, candidate.columns])
