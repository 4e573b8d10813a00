"""`sam3d bench latency`: image bytes to mesh bytes in one process, by stage, beside what the network alone takes.

Two references are measured in the same run: the network in plain PyTorch (engine torch), and the least time that this
machine's processor, and its GPU where PyTorch can use it, could take for its operations and bytes.
"""
from __future__ import annotations

import gc
import importlib.util
import io
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from ..perception.faults import Fault
from ..perception.frame import Frame, Instance, Intrinsics
from ..perception.objects import ReconstructedObject
from ..perception.pipeline import Pipeline, PipelineConfig
from ..runtime import cuda
from ..runtime.engine import GPU_ENGINES, EngineError
from ..runtime.processor import has_bfloat16
from ..runtime.tensorrt_engine import open_device
from . import operations

OBJECTS = (1, 2, 4, 8, 16)
BAR_MS, BAR_CORES = 80.0, 2  # one object, bytes to mesh, median
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
    process has had so far, with the engines before; if it computes on a GPU, by how much the GPU's memory that is in
    use has grown.

    Raises Fault if the engine cannot be had.
    """
    with _gpu() as gpu:
        before = gpu.memory_in_use() if gpu else 0
        with closing(Pipeline.from_config(config)) as pipeline:
            figures = {"engine": pipeline.engine_name,
                       "objects": {str(count): _measure_count(pipeline, ball_frame(count), runs) for count in counts},
                       "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
            if gpu and _on_gpu(pipeline.engine_name):
                figures["gpu_memory_mib"] = (gpu.memory_in_use() - before) >> 20
    return figures


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
    """Least milliseconds for one object on this machine's processor, by arithmetic, and from what they follow; `gpu`:
    the same of its GPU, or why that was not measured."""
    cost = operations.count(model)
    return {"operations": cost.operations, "bytes": cost.weights + cost.activations, **_limit(cost, machine_rates()),
            "gpu": _gpu_limit(cost)}


def beside_references(results: dict[str, Any], limit: dict[str, Any]) -> dict[str, Any]:
    """Engine -> milliseconds that its network takes for one object, a GPU's with the ways to it and back; beside them,
    None where not measured, those of PyTorch where the engine computes, and the physical limit there in its arithmetic.
    """
    networks = {name: (result["engine"], result["objects"]["1"]["stages_ms"]["inference"])
                for name, result in results.items() if "1" in result.get("objects", {})}
    torch_ms = {_on_gpu(engine): ms for engine, ms in networks.values() if engine.startswith("torch")}
    return {name: {"ms": ms, "torch_ms": torch_ms.get(_on_gpu(engine)),
                   "limit_ms": (limit["gpu"] if _on_gpu(engine) else limit).get("ms", {}).get(engine.split()[-1])}
            for name, (engine, ms) in networks.items()}


def reference_text(networks: dict[str, Any], limit: dict[str, Any]) -> str:
    """Physical limits, and what `beside_references` gave, as text."""
    lines = [f"physical limit {arithmetic}{where}: {ms:.3g} ms for the network and one object"
             for where, part in (("", limit), (" on the GPU", limit["gpu"])) for arithmetic, ms in
             part.get("ms", {}).items()]
    if "not_measured" in limit["gpu"]:
        lines.append(f"physical limit and PyTorch on the GPU: not measured: {limit['gpu']['not_measured']}")
    for name, network in networks.items():
        parts = [f"{name:22}network {network['ms']:.3g} ms"]
        if network["limit_ms"]:
            parts.append(f"{network['ms'] / network['limit_ms']:.1f} times the limit")
        if network["torch_ms"] and name != "torch":
            parts.append(f"PyTorch takes {network['torch_ms'] / max(network['ms'], 1e-9):.1f} times as long")
        lines.append(", ".join(parts))
    return "\n".join(lines)


def _limit(cost: operations.Cost, rates: dict[str, float]) -> dict[str, Any]:
    ms = {arithmetic: 1e3 * cost.seconds(1e9 * rates[f"{arithmetic}_gflops"], 1e9 * rates["copy_gb_s"], width)
          for arithmetic, width in (("fp32", 4), ("bf16", 2), ("fp16", 2)) if f"{arithmetic}_gflops" in rates}
    return {"rates": rates, "ms": {arithmetic: round(least, 4) for arithmetic, least in ms.items()}}


def _gpu_limit(cost: operations.Cost) -> dict[str, Any]:
    if cuda.load_driver() is None:
        return {"not_measured": "no NVIDIA driver"}
    try:
        from ..models.gpu_rates import gpu_rates

        return _limit(cost, gpu_rates())
    except (ImportError, OSError, RuntimeError) as error:       # not installed; broken; without a GPU
        return {"not_measured": " ".join(str(error).split())}


def _gpu() -> AbstractContextManager[cuda.Device | None]:
    """The GPU, opened, so that its context is there before any engine's; None where none can be used."""
    try:
        return closing(open_device())
    except EngineError:
        return nullcontext()


def _on_gpu(engine: str) -> bool:
    """Whether an engine of this name, with its precision, computes on a GPU."""
    return engine.split()[0] in (*GPU_ENGINES, "torch-cuda")


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
