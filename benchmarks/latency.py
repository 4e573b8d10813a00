"""Image stamp to mesh received in another process, and where the time goes; see benchmarks/README.md."""
from __future__ import annotations

import argparse
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import START_TIMEOUT, common_arguments, statistics, workspace
from benchmarks.node_run import NodeRun, Result
from benchmarks.scenes import tabletop
from sam3d_ros.evaluation.environment import describe_environment, describe_model, report_path, write_report
from sam3d_ros.perception.frame import Frame
from sam3d_ros.perception.pipeline import Pipeline, PipelineConfig
from sam3d_ros.reconstruct import add_pipeline_arguments, pipeline_config

# Objects in the scene -> bar for the median time to a new mesh, milliseconds.
BARS_MS = {1: 150.0, 5: 400.0}
WARM_UP = 5                     # results left out


@dataclass(frozen=True)
class Mode:
    """rate: images per second; new: the node forgets all objects after each mesh, so that each result is a mesh made
    from the image that it is stamped with, which comes when the node is idle; else known objects are followed."""

    rate: float
    new: bool
    results: int


MODES = {"new": Mode(0.7, True, 40), "followed": Mode(30.0, False, 150)}
_QUICK = 10
RESULT_TIMEOUT = 5.0            # seconds from one result to the next


def measure_node(folder: Path, config: PipelineConfig, frame: Frame, mode: Mode, count: int) -> list[Result]:
    """`count` results of the real node, after warming up."""
    folder.mkdir()
    with NodeRun(folder, config, frame, mode.rate, reconstruct_always=mode.new) as run:
        return run.wait_for_results(WARM_UP + count, START_TIMEOUT + count * RESULT_TIMEOUT)[WARM_UP:]


def measure_pipeline(config: PipelineConfig, frame: Frame, count: int) -> tuple[str, dict[str, float]]:
    """The engine's name, and the median milliseconds of each stage of the pipeline in this process."""
    with closing(Pipeline.from_config(config)) as pipeline:
        times = [pipeline.run(frame).stage_ms for _ in range(WARM_UP + count)][WARM_UP:]
    return pipeline.engine_name, {stage: float(np.median([time[stage] for time in times])) for stage in times[0]}


def stage_shares(latency_ms: float, processing_ms: float, pipeline_ms: dict[str, float]) -> dict[str, dict[str, float]]:
    """Median latency of a new mesh divided among the stages; they add up to it.

    `node` is the node's work on the image that shows the result (decoding, following the objects, messages),
    `transport` the rest: the way of the image into the node, making new meshes ready for following, and the way of the
    result out of it.
    """
    rest = latency_ms - processing_ms - sum(pipeline_ms.values())
    stages = pipeline_ms | {"node": processing_ms, "transport": rest}
    return {name: {"ms": round(ms, 2), "share": round(ms / latency_ms, 3)} for name, ms in stages.items()}


def measure(config: PipelineConfig, objects: int, quick: bool, folder: Path) -> tuple[str, dict[str, Any]]:
    """The engine's name, and the figures of a scene with this many objects."""
    frame = tabletop(objects)
    engine, pipeline_ms = measure_pipeline(config, frame, _QUICK if quick else MODES["new"].results)
    report: dict[str, Any] = {}
    for name, mode in MODES.items():
        results = measure_node(folder / f"{objects}_{name}", config, frame, mode, _QUICK if quick else mode.results)
        latency = statistics([result.latency_ms for result in results])
        processing = statistics([result.processing_ms for result in results])
        span_s = (results[-1].stamp_ns - results[0].stamp_ns) / 1e9
        report[name] = {
            "rate_hz": mode.rate, "results_per_second": round((len(results) - 1) / span_s, 2),
            "latency_ms": latency, "processing_ms": processing,
            "vertices": round(float(np.median([result.vertices for result in results])))}
    new = report["new"]
    new["stages"] = stage_shares(new["latency_ms"]["p50"], new["processing_ms"]["p50"], pipeline_ms)
    return engine, report


def main() -> int:
    """Run the benchmark; exit status 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    common_arguments(parser, "latency")
    add_pipeline_arguments(parser)
    args = parser.parse_args()
    config = pipeline_config(args)
    out = report_path(args)
    environment, model = describe_environment(args.cores), describe_model(args.model)
    scenes = {}
    with workspace(args.cores) as folder:
        for objects in BARS_MS:
            engine, scenes[objects] = measure(config, objects, args.quick, folder)
    bars = {objects: {"p50_ms": scene["new"]["latency_ms"]["p50"], "limit_ms": BARS_MS[objects]}
            for objects, scene in scenes.items()}
    passed = all(bar["p50_ms"] <= bar["limit_ms"] for bar in bars.values())
    write_report(out, environment, {"benchmark": "latency", "quick": args.quick, "image": "640x480 RGB-D", **model,
                                    "engine": engine, "objects": scenes, "bars": bars, "passed": passed})
    print(table(scenes))
    print(f"{'passed' if passed else 'FAILED'}: "
          + ", ".join(f"{n} objects {bar['p50_ms']:.0f} of {bar['limit_ms']:.0f} ms" for n, bar in bars.items())
          + f"; engine {engine}; report: {out}")
    return 0 if passed else 1


def table(scenes: dict[int, dict[str, Any]]) -> str:
    """The figures as text."""
    lines = ["objects  mode      p50 ms  p95 ms  p99 ms  per s  median by stage, ms"]
    for objects, scene in scenes.items():
        for mode, run in scene.items():
            latency = run["latency_ms"]
            stages = "  ".join(f"{name} {stage['ms']:.1f}" for name, stage in run.get("stages", {}).items())
            lines.append(f"{objects:7}  {mode:8}{latency['p50']:8.1f}{latency['p95']:8.1f}{latency['p99']:8.1f}"
                         f"{run['results_per_second']:7.1f}  {stages}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
