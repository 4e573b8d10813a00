"""Frame -> reconstructed objects: the whole way, all objects of a frame in one batch."""
from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage
from threadpoolctl import ThreadpoolController

from ..runtime.engine import DEFAULT_MODEL, BuildOptions, Engine, EngineError, load_engine
from . import hollows
from .appearance import seen_vertices, vertex_colours, vertex_normals
from .cube import EDGE_PER_EXTENT, IMAGE_UP, NO_POINTS, Cube, fit_cube, fit_cube_to_mask, inlier_points
from .evidence import Observation, filled, first_view, further_view, observed_points, support_row
from .faults import Fault, FaultCode
from .frame import Frame, Instance, Intrinsics, back_project, check_frame, pixel_directions
from .object_frame import object_frame
from .objects import Mesh, ReconstructedObject, ScaleSource, Status
from .outline import grown_masks, hidden_share
from .standing import standing
from .support import given_plane, support_plane
from .surface import Surface, extract_surface
from .uncertainty import pose_uncertainty

_FEW_POINTS = 4                 # times min_points: below, a result is marked LOW_QUALITY
_LEAST_READINGS, _ENOUGH_POINTS = 4, 4000       # of a view, to find an object's cube and surface by
_PLANE_SCALE_STD, _MODEL_SCALE_STD = 0.1, 0.5   # 1 sigma of the scale factor without depth
MOST_VIEWS = 8                  # of one object that are fused
_LEAST_ABOVE = 0.2              # share of an object's points: below, it is as flat as what it lies on
_MOST_HIDDEN = 0.25             # share of the outline that others hide: above, a result is marked LOW_QUALITY
_MASK_EDGE = 2                  # pixels of a mask's border that may belong to what is beside the object
_CLEARANCE = 0.003              # metres above the support: nearer than this a reading may be the support's
_BOX_CLEARANCE = 0.008          # metres above the support from which a box's content counts as the object
_LARGEST = 2.0                  # metres that an object's readings may span, far more than the model is trained for
_SPARSE = 0.1                   # share of its bounding box that a mask fills: below, it may be scattered pixels
_APART = 2                      # pixels within which a pixel of an object has another one of it
_LEAST_TOGETHER = 0.5           # share of a mask's pixels that have: below, it is no object's

# OpenBLAS's threads spin for tens of milliseconds after a product, on the cores that the network needs next.
_one_blas_thread = ThreadpoolController().wrap(limits=1, user_api="blas")


@dataclass(frozen=True)
class PipelineConfig:
    """What can be chosen.

    model: base or small, the models that are shipped, or the path of an ONNX student; engine: one of
    runtime.engine.ENGINE_CHOICES; precision: one of PRECISIONS there; threads: 0 = all cores; allow_engine_build: build
    an engine for this GPU if there is none yet, which takes minutes; build_only: it is built for later use, and has to
    be kept; max_objects: the largest masks of a frame are
    kept; max_faces: triangles per mesh; symmetry: complete hidden sides by planes of symmetry; min_points: depth
    readings inside a mask (without depth: pixels) that are too few below this
    """

    model: str = DEFAULT_MODEL
    engine: str = "auto"
    precision: str = "auto"
    threads: int = 0
    allow_engine_build: bool = True
    build_only: bool = False
    max_objects: int = 16
    max_faces: int = 5000
    symmetry: bool = True
    min_points: int = 50


@dataclass(frozen=True)
class Rejection:
    """An instance that was not reconstructed, and why."""

    label: int
    fault: Fault


@dataclass(frozen=True)
class PipelineResult:
    """Objects of one frame, rejected instances, and milliseconds per stage: evidence, inference, surface, colour.

    plane: (4,) that the objects stand on, unit normal, up, and offset in metres, camera frame; None if unknown
    """

    objects: list[ReconstructedObject]
    rejections: tuple[Rejection, ...]
    stage_ms: dict[str, float]
    plane: np.ndarray | None = None


@dataclass(frozen=True)
class _Candidate:
    """An instance with its depth readings: points (P, 3) float64, metres, camera frame, at rows and columns (P,).

    seen: (Q, 3), some of them and of what other views show of it, in the same frame; the surface is fitted to these.
    unread: (U, 3), as many of the mask's pixels without a reading, their directions in the same frame.

    Without depth there are no points, and the cube stands at the scale at which the object's near side lies at 1 m.
    """

    instance: Instance
    points: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    seen: np.ndarray
    unread: np.ndarray
    cube: Cube
    status: Status


class Pipeline:
    """Reconstructs all instances of a frame.  Not to be called by two threads at a time."""

    def __init__(self, engine: Engine, config: PipelineConfig):
        self.config = config
        self._engine = engine
        self._workers = ThreadPoolExecutor(config.threads or len(os.sched_getaffinity(0)), "surface")

    @classmethod
    def from_config(cls, config: PipelineConfig = PipelineConfig(),
                    on_progress: Callable[[int, str], None] = lambda percent, what: None) -> Pipeline:
        """Load model and engine.  Raises Fault: MODEL_MISSING, MODEL_INVALID, MODEL_MISMATCH, ENGINE_*.

        on_progress: called with percent done and what is being done while an engine is built
        """
        options = BuildOptions(config.allow_engine_build, on_progress=on_progress, must_keep=config.build_only)
        try:
            return cls(load_engine(config.engine, config.model, config.precision, config.threads, options=options),
                       config)
        except EngineError as error:
            raise Fault(FaultCode[error.reason], error.detail) from error
        except OSError as error:
            if not config.build_only:
                raise
            raise Fault(FaultCode.ENGINE_NOT_KEPT, str(error)) from error

    @property
    def engine_name(self) -> str:
        """Engine and precision, as "openvino bf16"."""
        return self._engine.name

    def warm_up(self) -> None:
        """Compile kernels and let the engine allocate all that it will need, so that the first frame is as fast as the
        next, and memory does not grow with the number of objects.
        """
        count = self._engine.most_crops
        rows, columns = np.indices((48, 64))
        ball = 64 - (rows - 24.0) ** 2 - (columns - 32.0) ** 2
        depth = np.where(ball > 0, 0.5 - np.sqrt(np.maximum(ball, 0)) * 0.005, 0.55).astype(np.float32)
        labels = np.concatenate([(ball > 0) * np.int32(n) for n in range(1, count + 1)], axis=1)
        camera = Intrinsics(64 * count, 48, 100, 100, 32 * count, 24)
        frame = Frame(np.full((*labels.shape, 3), 128, np.uint8), np.tile(depth, (1, count)), labels, camera,
                      tuple(Instance(n) for n in range(1, count + 1)))
        self.run(frame)
        hidden_share(frame, 1)
        hollows.warm_up()

    def __call__(self, frame: Frame) -> list[ReconstructedObject]:
        """The objects of `run`."""
        return self.run(frame).objects

    @_one_blas_thread
    def run(self, frame: Frame, earlier: Mapping[int, Sequence[Observation]] | None = None,
            on_stage: Callable[[str], None] | None = None, others: Sequence[Mesh] | None = ()) -> PipelineResult:
        """Reconstruct frame.instances.

        earlier: per label of `frame`, other views of the same object, which are fused with this one (at most
        MOST_VIEWS in all, the first ones given).  on_stage is called with EVIDENCE, INFERENCE, SURFACE, DONE as work
        proceeds.  others: meshes of known objects beside these, on which some may rest; None lets shapes float as the
        network gives them.  A frame without depth is reconstructed from colour and masks; see `_sized`.
        Raises Fault if the whole frame cannot be used: DEPTH_SIZE_MISMATCH, DEPTH_EMPTY, DEPTH_UNIT_SUSPECT,
        MASK_SIZE_MISMATCH, CAMERA_INFO_UNCALIBRATED, CAMERA_INFO_SIZE_MISMATCH, ENGINE_FAILED.
        """
        report = on_stage or (lambda stage: None)
        clock = _Clock()
        check_frame(frame)
        report("EVIDENCE")
        with clock("evidence"):
            plane = support_plane(frame)
            up = _up(frame, plane)
            given, frame = frame.labels, grown_masks(frame, plane)
            earlier = {label: tuple(views)[:MOST_VIEWS - 1] for label, views in (earlier or {}).items()}
            frame, candidates, rejections = self._candidates(frame, given, plane, up, earlier)
            inputs = _inputs(frame, candidates, earlier, plane, up) if candidates else {}
        report("INFERENCE")
        with clock("inference"):
            outputs = self._infer(inputs) if candidates else {}
        report("SURFACE")
        if candidates and up is None:
            up = _guessed_up(outputs["layout"], candidates)
        with clock("surface"):
            surfaces = list(self._workers.map(
                lambda candidate, distance, log_std: extract_surface(
                    distance, log_std, candidate.cube, self.config.max_faces, candidate.seen,
                    _outline(frame, candidate), candidate.unread, self.config.symmetry),
                candidates, outputs["distance"][:, 0], outputs["log_std"][:, 0])) if candidates else []
            rejections += [_rejection(candidate.instance, FaultCode.SHAPE_NOT_FOUND)
                           for candidate, surface in zip(candidates, surfaces, strict=True) if surface is None]
            found = [index for index, surface in enumerate(surfaces) if surface is not None]
            surfaces = [surfaces[index] for index in found]
            if plane is not None and others is not None:
                labels = [candidates[index].instance.label for index in found]
                surfaces = standing(surfaces, labels, frame, plane, others)
        with clock("colour"):
            objects = list(self._workers.map(
                lambda index, surface: _object(frame, candidates[index], surface, outputs["layout"][index], up,
                                               earlier.get(candidates[index].instance.label, ())),
                found, surfaces))
        report("DONE")
        return PipelineResult(objects, tuple(rejections), clock.milliseconds, plane)

    def variant(self, **changes: Any) -> Pipeline:
        """A pipeline with the same engine, which this one frees, and other settings of what comes before and after it.
        """
        return Pipeline(self._engine, replace(self.config, **changes))

    def close(self) -> None:
        """Free the engine."""
        self._workers.shutdown()
        self._engine.close()

    def _infer(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        count, views = inputs["crops"].shape[:2]
        step = max(1, self._engine.most_crops // views)
        try:
            parts = [self._engine.infer({name: array[start:start + step] for name, array in inputs.items()})
                     for start in range(0, count, step)]
        except RuntimeError as error:
            raise Fault(FaultCode.ENGINE_FAILED, f"{self.engine_name}: {error}") from error
        outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if not all(np.isfinite(array).all() for array in outputs.values()):
            raise Fault(FaultCode.ENGINE_FAILED, f"{self.engine_name} returned values that are not finite")
        return outputs

    def _candidates(self, frame: Frame, given: np.ndarray, plane: np.ndarray | None, up: np.ndarray | None,
                    earlier: Mapping[int, Sequence[Observation]]) -> tuple[Frame, list[_Candidate], list[Rejection]]:
        """Instances with enough depth, at most max_objects; the frame with boxes narrowed to what stands in them.

        given: (H, W) labels before the masks grew, which joins pixels that lay apart
        """
        if frame.depth is None:
            return self._masks_only(frame, up)
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
            if rejection := self._no_object(instance, f"{len(points)} readings", len(points), given, window):
                rejections.append(rejection)
                continue
            further = np.concatenate([NO_POINTS, *(observed_points(view, _LEAST_READINGS, _ENOUGH_POINTS)
                                                   for view in earlier.get(instance.label, ()))])
            step = max(1, len(points) // _ENOUGH_POINTS)
            thin = points[::step]
            cube = fit_cube(thin, IMAGE_UP if up is None else up, further)
            if (extent := cube.edge / EDGE_PER_EXTENT) > _LARGEST:
                rejections.append(_rejection(instance, FaultCode.OBJECT_TOO_LARGE, f"{extent:.3g} m"))
                continue
            doubtful = instance.is_box or len(points) < _FEW_POINTS * self.config.min_points or \
                _touches_border(window, labels.shape) or \
                _is_cut_off(frame, instance.label, window, earlier.get(instance.label, ()))
            seen = _above_support(np.concatenate([thin, further]), plane)
            unread = NO_POINTS if instance.is_box else _unread(frame, instance.label, window)[::step]
            found.append(_Candidate(instance, points, rows, columns, seen, unread, cube,
                                    Status.LOW_QUALITY if doubtful else Status.OK))
        kept, surplus = self._largest(found)
        return replace(frame, labels=labels), kept, rejections + surplus

    def _masks_only(self, frame: Frame, up: np.ndarray | None) -> tuple[Frame, list[_Candidate], list[Rejection]]:
        """Instances of a frame without depth."""
        found, rejections = [], []
        slices = ndimage.find_objects(frame.labels, max_label=max((i.label for i in frame.instances), default=0))
        for instance in frame.instances:
            window = slices[instance.label - 1]
            rows, columns = _pixels(frame.labels, None, instance.label, window)
            if rejection := self._no_object(instance, f"{len(rows)} pixels", len(rows), frame.labels, window):
                rejections.append(rejection)
                continue
            cube = fit_cube_to_mask(rows, columns, frame.intrinsics, IMAGE_UP if up is None else up)
            found.append(_Candidate(instance, NO_POINTS, rows, columns, NO_POINTS, NO_POINTS, cube,
                                    Status.LOW_QUALITY))
        kept, surplus = self._largest(found)
        return frame, kept, rejections + surplus

    def _no_object(self, instance: Instance, found: str, count: int, labels: np.ndarray,
                   window: tuple[slice, slice] | None) -> Rejection | None:
        """Why a mask is no object's, None if it may be one.

        found: the `count` readings in it, as text; labels: (H, W), as they were given; window: around the instance
        """
        if count < self.config.min_points:
            return _rejection(instance, FaultCode.TOO_FEW_POINTS, found)
        return _rejection(instance, FaultCode.MASK_SCATTERED) if _is_scattered(labels, instance.label, window) else None

    def _largest(self, found: list[_Candidate]) -> tuple[list[_Candidate], list[Rejection]]:
        """The max_objects candidates of most pixels, by label, and the rejections of the rest."""
        found = sorted(found, key=lambda c: -len(c.rows))
        surplus = [_rejection(c.instance, FaultCode.TOO_MANY_OBJECTS, f"{len(found)} > {self.config.max_objects}")
                   for c in found[self.config.max_objects:]]
        return sorted(found[:self.config.max_objects], key=lambda c: c.instance.label), surplus


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
    return Rejection(instance.label, Fault(code, f"label {instance.number}" + (f": {detail}" if detail else "")))


def _pixels(labels: np.ndarray, depth: np.ndarray | None, label: int, window: tuple[slice, slice] | None):
    """Rows and columns of the instance's pixels that have depth (of all its pixels, if depth is None).

    window: its bounding box, None if it has no pixel
    """
    if window is None:
        return np.empty(0, int), np.empty(0, int)
    own = labels[window] == label
    rows, columns = np.nonzero(own if depth is None else own & (depth[window] > 0))
    return rows + window[0].start, columns + window[1].start


def _is_scattered(labels: np.ndarray, label: int, window: tuple[slice, slice]) -> bool:
    """Whether most pixels of a mask have no other one of it near: noise, where a thin object's pixels form a line."""
    own = labels[window] == label
    if own.mean() > _SPARSE:
        return False
    around = ndimage.convolve(own.astype(np.uint8), np.ones((2 * _APART + 1,) * 2, np.uint8), mode="constant")
    return float((around[own] > 1).mean()) < _LEAST_TOGETHER


def _above_support(points: np.ndarray, plane: np.ndarray | None) -> np.ndarray:
    """The points (P, 3) that are not the support's, (4,), which a wide mask takes in; all of them if few are left."""
    if plane is None:
        return points
    above = points @ plane[:3] + plane[3] > _CLEARANCE
    return points[above] if above.mean() > _LEAST_ABOVE else points


def _narrowed(labels: np.ndarray, label: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    narrowed = np.where(labels == label, 0, labels)
    narrowed[rows, columns] = label
    return narrowed


def _touches_border(window: tuple[slice, slice], shape: tuple[int, int]) -> bool:
    return any(s.start == 0 or s.stop == n for s, n in zip(window, shape, strict=True))


def _is_cut_off(frame: Frame, label: int, window: tuple[slice, slice], earlier: Sequence[Observation]) -> bool:
    """Whether in every view much of what an instance ends at stands before it, so that it may be larger."""
    return hidden_share(frame, label, window) > _MOST_HIDDEN and \
        all(hidden_share(view.frame, view.label) > _MOST_HIDDEN for view in earlier)


def _up(frame: Frame, plane: np.ndarray | None) -> np.ndarray | None:
    """Unit vector against gravity in the camera frame: given, else the support's normal, else None."""
    if frame.world_from_camera is not None:
        return frame.world_from_camera[2, :3]
    return None if plane is None else plane[:3].astype(np.float64)


def _guessed_up(layout: np.ndarray, candidates: list[_Candidate]) -> np.ndarray:
    """Up (3,) in the camera frame as the network sees it, the mean over all objects; layout: (B, 10)."""
    up = sum(c.cube.virtual_from_camera.T @ row[:3] for c, row in zip(candidates, layout, strict=True))
    return up / max(float(np.linalg.norm(up)), 1e-9) if np.linalg.norm(up) > 1e-6 else IMAGE_UP


def _inputs(frame: Frame, candidates: list[_Candidate], earlier: Mapping[int, Sequence[Observation]],
            plane: np.ndarray | None, up: np.ndarray | None) -> dict[str, np.ndarray]:
    """Inputs of the network, as runtime/signature.py has them, for all candidates."""
    seen = []
    for candidate in candidates:
        label = candidate.instance.label
        views = [first_view(frame, label, candidate.cube)]
        others = (further_view(observation, candidate.cube) for observation in earlier.get(label, ()))
        seen.append(views + [view for view in others if view is not None])
    count = max(len(views) for views in seen)
    crops, rows = (np.stack(arrays) for arrays in zip(*(filled(views, count) for views in seen), strict=True))
    support = np.stack([support_row(candidate.cube, up, plane) for candidate in candidates])
    return {"crops": crops, "views": rows, "support": support}


def _outline(frame: Frame, candidate: _Candidate) -> np.ndarray:
    """(R, 3) directions, camera frame, of the mask's first and last pixel in each row and column; none with depth."""
    if frame.depth is not None:
        return NO_POINTS
    ends = []
    for major, minor in ((candidate.rows, candidate.columns), (candidate.columns, candidate.rows)):
        order = np.lexsort((minor, major))
        new = np.flatnonzero(np.diff(major[order])) + 1
        ends += [order[np.r_[0, new]], order[np.r_[new - 1, -1]]]
    index = np.concatenate(ends)
    return pixel_directions(frame.intrinsics, candidate.rows[index], candidate.columns[index])


def _unread(frame: Frame, label: int, window: tuple[slice, slice]) -> np.ndarray:
    """(U, 3) directions, camera frame, of the pixels well inside an instance's mask that have no depth."""
    own = ndimage.binary_erosion(frame.labels[window] == label, iterations=_MASK_EDGE)
    rows, columns = np.nonzero(own & (frame.depth[window] == 0))
    return pixel_directions(frame.intrinsics, rows + window[0].start, columns + window[1].start)


def _sized(frame: Frame, candidate: _Candidate, surface: Surface,
           layout: np.ndarray) -> tuple[Surface, ScaleSource, float | None]:
    """The surface at its metric size, where that comes from, and 1 sigma of the scale if it is not the depth's.

    Without depth, a surface is known up to its distance from the camera.  Where the frame says how high the camera is
    over the support, the distance is that at which the lowest point touches the support; else the network's guess.
    """
    if frame.depth is not None:
        return surface, ScaleSource.DEPTH, None
    plane = given_plane(frame)
    drop = 0.0 if plane is None else float((-surface.vertices @ plane[:3]).max())   # below the camera, at this scale
    if plane is not None and drop > 0 and plane[3] > 0:
        factor, source, sigma = float(plane[3]) / drop, ScaleSource.SUPPORT_PLANE, _PLANE_SCALE_STD
    else:
        factor, source, sigma = float(np.exp(layout[9])) / candidate.cube.edge, ScaleSource.MODEL, _MODEL_SCALE_STD
    return replace(surface, vertices=surface.vertices * factor,
                   vertex_std=(surface.vertex_std * factor).astype(np.float32)), source, sigma


def _object(frame: Frame, candidate: _Candidate, surface: Surface, layout: np.ndarray, up: np.ndarray,
            earlier: Sequence[Observation]) -> ReconstructedObject:
    surface, source, sigma = _sized(frame, candidate, surface, layout)
    camera_from_object, size = object_frame(surface.vertices, up)
    normals, areas = vertex_normals(surface.vertices, surface.triangles)
    seen, _, _ = seen_vertices(surface.vertices, normals, frame, candidate.instance.label)
    views = [Observation(frame, candidate.instance.label, np.eye(4)), *earlier]
    vertices = (surface.vertices - camera_from_object[:3, 3]) @ camera_from_object[:3, :3]
    covariance, scale_std = pose_uncertainty(vertices, surface.vertex_std, size, camera_from_object)
    if sigma is not None:
        scale_std = float(np.hypot(scale_std, sigma))
        covariance[:3, :3] += sigma ** 2 * np.outer(camera_from_object[:3, 3], camera_from_object[:3, 3])
    return ReconstructedObject(
        label=candidate.instance.label, class_id=candidate.instance.class_id, score=candidate.instance.score,
        detector_id=candidate.instance.detector_id, camera_from_object=camera_from_object, pose_covariance=covariance,
        size=size, vertices=vertices.astype(np.float32), triangles=surface.triangles,
        vertex_rgba=vertex_colours(surface.vertices, normals, views), vertex_std=surface.vertex_std,
        scale_source=source, scale_std=scale_std, visible_fraction=float(areas[seen].sum() / areas.sum()),
        status=candidate.status,
        observed_points=candidate.points.astype(np.float32),
        observed_rgb=frame.colour[candidate.rows, candidate.columns] if len(candidate.points) else
        np.empty((0, 3), np.uint8))
