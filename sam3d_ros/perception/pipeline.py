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
from threadpoolctl import ThreadpoolController

from ..runtime.engine import BuildOptions, Engine, answers, load_engine
from ..runtime.signature import STUDENT, shape_text
from . import hollows
from .appearance import seen_vertices, vertex_colours, vertex_normals
from .candidates import Candidate, find_candidates, rejection
from .config import DEFAULTS, PipelineConfig
from .cube import IMAGE_UP
from .evidence import Observation
from .faults import Fault, FaultCode, engine_faults
from .frame import Frame, Instance, Intrinsics, check_frame
from .in_step import in_step
from .looks import Look, batches, first_look, merged, network_inputs, second_look
from .noise import without_noise
from .object_frame import object_frame
from .objects import Mesh, ReconstructedObject, Rejection, ScaleSource
from .outline import grown_masks, hidden_share
from .standing import standing
from .support import given_plane, support_plane
from .surface import Surface, extract_surface
from .uncertainty import pose_uncertainty

_PLANE_SCALE_STD, _MODEL_SCALE_STD = 0.1, 0.5   # 1 sigma of the scale factor without depth
_MOST_FUSED_VIEWS = 8            # of one object, the present one among them

# OpenBLAS's threads spin for tens of milliseconds after a product, on the cores that the network needs next.
_one_blas_thread = ThreadpoolController().wrap(limits=1, user_api="blas")


@dataclass(frozen=True)
class PipelineResult:
    """Objects of one frame, rejected instances, and milliseconds per stage: evidence, inference, surface, colour.

    plane: (4,) that the objects stand on, unit normal, up, and offset in metres, camera frame; None if unknown
    warnings: what is wrong with the frame, and was mended: DEPTH_SHIFTED, MASKS_SHIFTED
    """

    objects: list[ReconstructedObject]
    rejections: tuple[Rejection, ...]
    stage_ms: dict[str, float]
    plane: np.ndarray | None = None
    warnings: tuple[Fault, ...] = ()


class Pipeline:
    """Reconstructs all instances of a frame.  Not to be called by two threads at a time."""

    def __init__(self, engine: Engine, config: PipelineConfig):
        self.config = config
        self._engine = engine
        self._workers = ThreadPoolExecutor(config.threads or len(os.sched_getaffinity(0)), "surface")

    @classmethod
    def from_config(cls, config: PipelineConfig = DEFAULTS,
                    on_progress: Callable[[int, str], None] = lambda percent, what: None) -> Pipeline:
        """Load model and engine.  Raises Fault: MODEL_MISSING, MODEL_INVALID, MODEL_MISMATCH, ENGINE_*.

        on_progress: called with percent done and what is being done while an engine is built
        """
        options = BuildOptions(config.allow_engine_build, on_progress=on_progress, must_keep=config.build_only)
        with engine_faults():
            engine = load_engine(config.engine, config.model, config.precision, config.threads, options=options)
        return cls(engine, config)

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
        for number in self._engine.first_runs:
            self.run(replace(frame, instances=frame.instances[:number]))
        hidden_share(frame, 1)
        without_noise(replace(frame, depth=frame.depth + (0.01 * (np.arange(64 * count) % 2)).astype(np.float32)))
        hollows.warm_up()

    def __call__(self, frame: Frame) -> list[ReconstructedObject]:
        """The objects of `run`."""
        return self.run(frame).objects

    @_one_blas_thread
    def run(self, frame: Frame, earlier: Mapping[int, Sequence[Observation]] | None = None,
            on_stage: Callable[[str], None] | None = None, others: Sequence[Mesh] | None = ()) -> PipelineResult:
        """Reconstruct frame.instances.

        earlier: per label of `frame`, other views of the same object, which are fused with this one (at most
        8 in all, the first ones given)
        on_stage: called with EVIDENCE, INFERENCE, SURFACE, DONE as work proceeds; from EVIDENCE it is DONE at once
        where no instance can be reconstructed
        others: meshes of known objects beside these, on which some may rest; None lets shapes float as the network
        gives them

        A frame without depth is reconstructed from colour and masks; see `_sized`.
        Raises Fault if the whole frame cannot be used: DEPTH_SIZE_MISMATCH, DEPTH_EMPTY, DEPTH_UNIT_SUSPECT,
        MASK_SIZE_MISMATCH, CAMERA_INFO_UNCALIBRATED, CAMERA_INFO_SIZE_MISMATCH, ENGINE_FAILED,
        ENGINE_OUT_OF_MEMORY, MODEL_MISMATCH.
        """
        report = on_stage or (lambda stage: None)
        clock = _Clock()
        check_frame(frame)
        report("EVIDENCE")
        with clock("evidence"):
            frame, shifted = in_step(frame)
            frame, warnings = without_noise(frame), () if shifted is None else (shifted,)
            plane = support_plane(frame)
            up = _up(frame, plane)
            views = {label: tuple(seen)[:_MOST_FUSED_VIEWS - 1] for label, seen in (earlier or {}).items()}
            frame, candidates, rejections = find_candidates(grown_masks(frame, plane), frame.labels, plane, up, views,
                                                            self.config.min_points, self.config.max_objects)
        if not candidates:
            report("DONE")
            return PipelineResult([], tuple(rejections), clock.milliseconds, plane, warnings)
        with clock("evidence"):
            looks, second_looks = _looks(frame, candidates, views, plane, up)
        report("INFERENCE")
        with clock("inference"):
            outputs = merged(self._infer(looks), second_looks)
        report("SURFACE")
        if up is None:
            up = _guessed_up(outputs["layout"], candidates)
        with clock("surface"):
            found, surfaces, shapeless = self._surfaces(candidates, outputs)
            candidates, layouts = [candidates[index] for index in found], outputs["layout"][found]
            if plane is not None and others is not None:
                surfaces = standing(surfaces, [c.instance.label for c in candidates], frame, plane, others)
        with clock("colour"):
            objects = list(self._workers.map(
                lambda candidate, surface, layout: _object(frame, candidate, surface, layout, up,
                                                           views.get(candidate.instance.label, ())),
                candidates, surfaces, layouts))
        report("DONE")
        return PipelineResult(objects, (*rejections, *shapeless), clock.milliseconds, plane, warnings)

    def variant(self, **changes: Any) -> Pipeline:
        """A pipeline with other settings that uses this one's engine; only this one frees the engine."""
        return Pipeline(self._engine, replace(self.config, **changes))

    def close(self) -> None:
        """Free the engine."""
        self._workers.shutdown()
        self._engine.close()

    def _infer(self, looks: Sequence[Look]) -> dict[str, np.ndarray]:
        """Outputs of the network, one row for each look.

        Raises Fault ENGINE_FAILED, ENGINE_OUT_OF_MEMORY, MODEL_MISMATCH.
        """
        groups = batches(looks, self._engine.most_crops)
        with engine_faults():
            parts = [answers(self._engine, network_inputs([looks[index] for index in group])) for group in groups]
        outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        # A model file need not state the shapes of its outputs, so they are known only now.
        wrong = [f"{name} is {shape_text(outputs[name].shape)} instead of {shape_text(shape)}"
                 for name, shape in STUDENT.output_shapes(batch=len(looks)).items() if outputs[name].shape != shape]
        if wrong:
            raise Fault(FaultCode.MODEL_MISMATCH, f"{self.engine_name}: {'; '.join(wrong)}")
        if not all(np.isfinite(array).all() for array in outputs.values()):
            raise Fault(FaultCode.ENGINE_FAILED, f"{self.engine_name} returned values that are not finite")
        order = np.argsort(np.concatenate(groups))
        return {name: array[order] for name, array in outputs.items()}

    def _surfaces(self, candidates: Sequence[Candidate],
                  outputs: dict[str, np.ndarray]) -> tuple[list[int], list[Surface], list[Rejection]]:
        """Indices of the candidates in which the network found a solid, their surfaces, and rejections of the others.
        """
        def one(candidate: Candidate, distance: np.ndarray, log_std: np.ndarray) -> Surface | None:
            return extract_surface(distance, log_std, candidate.cube, self.config.max_faces, candidate.seen,
                                   candidate.outline, candidate.unread, self.config.symmetry)
        surfaces = [*self._workers.map(one, candidates, outputs["distance"][:, 0], outputs["log_std"][:, 0])]
        found = [index for index, surface in enumerate(surfaces) if surface is not None]
        return found, [surfaces[index] for index in found], [
            rejection(candidate.instance, FaultCode.SHAPE_NOT_FOUND)
            for candidate, surface in zip(candidates, surfaces, strict=True) if surface is None]


class _Clock:
    """Adds up the milliseconds spent per stage."""

    def __init__(self) -> None:
        self.milliseconds = {stage: 0.0 for stage in ("evidence", "inference", "surface", "colour")}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.milliseconds[stage] += 1e3 * (time.perf_counter() - started)


def _looks(frame: Frame, candidates: Sequence[Candidate], views: Mapping[int, Sequence[Observation]],
           plane: np.ndarray | None,
           up: np.ndarray | None) -> tuple[list[Look], dict[int, Look]]:
    """A look at each candidate, then the second looks; and these by the candidate's index.

    views: label -> other views of it; plane, up: as of `find_candidates`
    """
    shown = [(frame, c, views.get(c.instance.label, ()), plane, up) for c in candidates]
    second = {index: look for index, each in enumerate(shown) if (look := second_look(*each))}
    return [*(first_look(*each) for each in shown), *second.values()], second


def _up(frame: Frame, plane: np.ndarray | None) -> np.ndarray | None:
    """Unit vector against gravity in the camera frame: given, else the support's normal, else None."""
    if frame.world_from_camera is not None:
        return frame.world_from_camera[2, :3]
    return None if plane is None else plane[:3].astype(np.float64)


def _guessed_up(layout: np.ndarray, candidates: list[Candidate]) -> np.ndarray:
    """Up (3,) in the camera frame as the network sees it, the mean over all objects; layout: (B, 10)."""
    up = sum(c.cube.virtual_from_camera.T @ row[:3] for c, row in zip(candidates, layout, strict=True))
    return up / max(float(np.linalg.norm(up)), 1e-9) if np.linalg.norm(up) > 1e-6 else IMAGE_UP


def _sized(frame: Frame, candidate: Candidate, surface: Surface,
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


def _object(frame: Frame, candidate: Candidate, surface: Surface, layout: np.ndarray, up: np.ndarray,
            earlier: Sequence[Observation]) -> ReconstructedObject:
    """A candidate with its surface, (N, 3) in the camera frame, as an object in its own frame.

    layout: (10,), as runtime/signature.py has it; up: (3,) unit vector against gravity, camera frame
    """
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
