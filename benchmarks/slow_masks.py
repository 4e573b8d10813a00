"""Poses with a detector that is slower than the camera, and late: ahead of its masks, and without. See
benchmarks/README.md."""
from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np

from benchmarks.frame_player import MASK_LAG
from benchmarks.harness import START_TIMEOUT, common_arguments, statistics, workspace
from benchmarks.node_run import NodeRun, Result
from benchmarks.scenes import tabletop
from sam3d_ros.evaluation.environment import describe_environment, describe_model, report_path, write_report
from sam3d_ros.perception.pipeline import PipelineConfig
from sam3d_ros.reconstruct import add_pipeline_arguments, pipeline_config

CAMERA_RATE, MASKS_EVERY, OBJECTS = 30.0, 5, 5
SETTLING = 5.0          # seconds after the first result that do not count: objects are made, clocks rise
LEAST_RATE = 15.0       # poses per second


def measure(config: PipelineConfig, seconds: float, cores: int, follow_ahead: bool) -> list[Result]:
    """What is received in so many seconds."""
    with workspace(cores) as folder, \
            NodeRun(folder, config, tabletop(OBJECTS), CAMERA_RATE, masks_every=MASKS_EVERY,
                    parameters={"follow_ahead": follow_ahead}) as run:
        run.wait_for_results(1, START_TIMEOUT)
        time.sleep(SETTLING)
        before = len(run.results())
        time.sleep(seconds)
        return run.results()[before:]


def figures(results: list[Result]) -> dict[str, Any]:
    """Rate and age of at least two results, and whether their stamps rise and all have all objects."""
    stamps = np.array([result.stamp_ns for result in results])
    return {"results_per_second": round(float(1e9 * (len(stamps) - 1) / (stamps[-1] - stamps[0])), 2),
            "age_ms": statistics([result.latency_ms for result in results]),
            "stamps_rise": bool((np.diff(stamps) >= 0).all()),
            "complete": all(result.objects == OBJECTS for result in results)}


def main() -> int:
    """Run the benchmark; exit status 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    common_arguments(parser, "slow_masks")
    add_pipeline_arguments(parser)
    args = parser.parse_args()
    out = report_path(args)
    environment, model = describe_environment(args.cores), describe_model(args.model)
    seconds = 5.0 if args.quick else 60.0
    results = {name: measure(pipeline_config(args), seconds, args.cores, ahead)
               for name, ahead in (("ahead of the masks", True), ("with the masks", False))}
    runs = {name: figures(received) for name, received in results.items()}
    ahead = runs["ahead of the masks"]
    passed = ahead["results_per_second"] >= LEAST_RATE and ahead["stamps_rise"] and ahead["complete"]
    write_report(out, environment, {
        "benchmark": "slow_masks", "quick": args.quick, **model,
        "engine": results["ahead of the masks"][-1].engine, "seconds": seconds, "objects": OBJECTS,
        "camera_rate_hz": CAMERA_RATE, "mask_rate_hz": CAMERA_RATE / MASKS_EVERY, "mask_lag_ms": 1e3 * MASK_LAG,
        "runs": runs, "bar": {"results_per_second": LEAST_RATE}, "passed": passed})
    for name, run in runs.items():
        print(f"{name}: {run['results_per_second']} results/s, age {run['age_ms']['p50']:.0f} ms (p95 "
              f"{run['age_ms']['p95']:.0f}), stamps rise: {run['stamps_rise']}, complete: {run['complete']}")
    print(f"{'ok' if passed else 'FAILED'}; report: {out}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
