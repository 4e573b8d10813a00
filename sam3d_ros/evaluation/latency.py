"""`sam3d bench latency`: image bytes to mesh bytes in one process, by stage, beside what the network alone takes.

Two references are measured in the same run: the network in plain PyTorch (engine torch), and the least time that this
machine could take for its operations and bytes.
"""
from __future__ import annotations

import gc
import importlib.util
import io
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np

from ..perception.faults import Fault
from ..perception.frame import Frame, Instance, Intrinsics
from ..perception.objects import ReconstructedObject
from ..perception.pipeline import Pipeline, PipelineConfig
from ..runtime.processor import has_bfloat16
from . import operations

OBJECTS = (1, 2, 4, 8, 16)
BAR_MS = 80.0                # one object, bytes to mesh, median, on two cores
_WARM_UP = 3
_COPIED, _RATE_RUNS = 128 << 20, 7     # bytes; the best run counts
_WIDTH, _HEIGHT, _FOCAL, _WALL = 640, 480, 600.0, 0.8
_COLUMNS = 4                 # of balls in the picture
_RADIUS = 0.035              # metres


def ball_frame(count: int) -> Frame:
    """`count` balls, up to 16, before a wall: 640x480, depth in metres."""
    camera = Intrinsics(_WIDTH, _HEIGHT, _FOCAL, _FOCAL, _WIDTH / 2 - 0.5, _HEIGHT / 2 - 0.5)
    rows, columns = np.indices((_HEIGHT, _WIDTH))
    rays = np.stack([(columns - camera.cx) / _FOCAL, (rows - camera.cy) / _FOCAL, np.ones(rows.shape)], axis=-1)
    depth, labels = np.full(rows.shape, _WALL, np.float32), np.zeros(rows.shape, np.int32)
    square = (rays ** 2).sum(axis=-1)
    for index in range(count):
        centre = np.array([0.19 * (index % _COLUMNS - 1.5), 0.14 * (index // _COLUMNS - 1.5), _WALL - 0.05])
        along = rays @ centre
        root = along ** 2 - square * (centre @ centre - _RADIUS ** 2)
        hit = root > 0
        depth[hit] = ((along - np.sqrt(np.maximum(root, 0))) / square)[hit]
        labels[hit] = index + 1
    colour = (255 * np.clip(np.stack([0.5 + rays[..., 0], 0.5 + rays[..., 1], 1.2 - depth], axis=-1), 0, 1))
    return Frame(colour.astype(np.uint8), depth, labels, camera, tuple(Instance(i + 1) for i in range(count)))


def encoded(frame: Frame) -> tuple[bytes, bytes, bytes]:
    """Colour, depth (16UC1, millimetres) and labels as a camera and a detector send them: rows of raw bytes."""
    return (frame.colour.tobytes(), np.round(1000 * frame.depth).astype("<u2").tobytes(),
            frame.labels.astype("<i4").tobytes())


def decoded(data: tuple[bytes, bytes, bytes], like: Frame) -> Frame:
    """The frame in the bytes; `like`: its camera and instances."""
    shape = like.labels.shape
    return replace(like, colour=np.frombuffer(data[0], np.uint8).reshape(*shape, 3),
                   depth=(np.frombuffer(data[1], "<u2").reshape(shape) * np.float32(0.001)),
                   labels=np.frombuffer(data[2], "<i4").reshape(shape).astype(np.int32))


def mesh_bytes(objects: Sequence[ReconstructedObject]) -> bytes:
    """Meshes as the flat arrays of a message."""
    stream = io.BytesIO()
    for item in objects:
        for array in (item.vertices, item.triangles, item.vertex_rgba, item.vertex_std, item.camera_from_object):
            stream.write(np.ascontiguousarray(array).data)
    return stream.getvalue()


def measure(config: PipelineConfig, counts: Sequence[int], runs: int) -> dict[str, Any]:
    """Figures of one engine: milliseconds, whole and by stage, for each number of objects; the most memory that the
    process has had so far, with the engines before.

    Raises Fault if the engine cannot be had.
    """
    with closing(Pipeline.from_config(config)) as pipeline:
        return {"engine": pipeline.engine_name,
                "objects": {str(count): _measure_count(pipeline, ball_frame(count), runs) for count in counts},
                "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def measure_all(config: PipelineConfig, engines: Sequence[str], counts: Sequence[int], runs: int) -> dict[str, Any]:
    """Engine -> its figures, or why there are none."""
    results: dict[str, Any] = {}
    for name in engines:
        try:
            results[name] = measure(replace(config, engine=name), counts, runs)
        except Fault as fault:
            results[name] = {"fault": str(fault)}
    return results


def complete_ms(results: dict[str, Any], count: int = 1) -> float | None:
    """The least median for `count` objects among the engines that found them all; None without any."""
    figures = (result.get("objects", {}).get(str(count)) for result in results.values())
    return min((each["ms"]["p50"] for each in figures if each and each["found"] == count), default=None)


def _measure_count(pipeline: Pipeline, frame: Frame, runs: int) -> dict[str, Any]:
    data, wholes, stages = encoded(frame), [], []
    for _ in range(_WARM_UP):
        pipeline.run(decoded(data, frame))
    gc.collect()
    for _ in range(runs):
        start = time.perf_counter()
        received = decoded(data, frame)
        ready = time.perf_counter()
        result = pipeline.run(received)
        done = time.perf_counter()
        size = len(mesh_bytes(result.objects))
        end = time.perf_counter()
        wholes.append(1e3 * (end - start))
        stages.append({"decode": 1e3 * (ready - start), **result.stage_ms, "encode": 1e3 * (end - done)})
    p50, p95, p99 = np.percentile(wholes, [50, 95, 99])
    medians = {stage: round(float(np.median([run[stage] for run in stages])), 2) for stage in stages[0]}
    return {"found": len(result.objects), "mesh_bytes": size, "runs": runs,
            "ms": {"p50": round(float(p50), 2), "p95": round(float(p95), 2), "p99": round(float(p99), 2),
                   "min": round(min(wholes), 2)},
            "stages_ms": medians, "network_share": round(medians["inference"] / max(sum(medians.values()), 1e-9), 3)}


def machine_rates() -> dict[str, float]:
    """What this machine's processor does at best: products of large matrices in float32 and, if it has bfloat16 and
    PyTorch is at hand, in that (GFLOP/s, a multiplication and an addition being two), and copying (GB/s, read and
    written)."""
    side, block = 2048, np.ones(_COPIED, np.uint8)
    matrix, target = np.ones((side, side), np.float32), np.empty_like(block)
    rates = {"fp32_gflops": 2e-9 * side ** 3 / _least_seconds(lambda: matrix @ matrix),
             "copy_gb_s": 2e-9 * _COPIED / _least_seconds(lambda: np.copyto(target, block))}
    if importlib.util.find_spec("torch") and has_bfloat16():
        from ..models.torch_engine import bfloat16_product

        rates["bf16_gflops"] = 2e-9 * side ** 3 / _least_seconds(bfloat16_product(side))
    return {name: round(rate, 1) for name, rate in rates.items()}


def physical_limit(model: bytes) -> dict[str, Any]:
    """Least milliseconds for one object on this machine's processor, by arithmetic, and from what they follow."""
    cost, rates = operations.count(model), machine_rates()
    return {"rates": rates, "operations": cost.operations, "bytes": cost.weights + cost.activations,
            "ms": {arithmetic: round(1e3 * cost.seconds(1e9 * rates[f"{arithmetic}_gflops"], 1e9 * rates["copy_gb_s"]),
                                     2) for arithmetic in ("fp32", "bf16") if f"{arithmetic}_gflops" in rates}}


def _least_seconds(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(_RATE_RUNS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def table(results: dict[str, Any]) -> str:
    """The figures as text."""
    lines = ["engine                objects  p50 ms  p95 ms  p99 ms  median by stage, ms"]
    for name, result in results.items():
        if "fault" in result:
            lines.append(f"{name:22}{result['fault']}")
            continue
        for count, figures in result["objects"].items():
            ms = figures["ms"]
            stages = "  ".join(f"{stage} {value:.1f}" for stage, value in figures["stages_ms"].items())
            lines.append(f"{result['engine']:22}{count:>7}{ms['p50']:8.1f}{ms['p95']:8.1f}{ms['p99']:8.1f}  {stages}")
    return "\n".join(lines)
