"""A 30 Hz camera for ten minutes: does the node grow, leak or fall behind? See benchmarks/README.md."""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.harness import START_TIMEOUT, WithheldTime, common_arguments, statistics, workspace
from benchmarks.node_run import NodeRun, Result
from benchmarks.scenes import tabletop
from sam3d_ros.evaluation.environment import describe_environment, describe_model, report_path, write_report
from sam3d_ros.perception.pipeline import PipelineConfig
from sam3d_ros.reconstruct import add_pipeline_arguments, pipeline_config
from sam3d_ros.terminal import in_range

CAMERA_RATE = 30.0
OBJECTS = 3
SAMPLE_PERIOD = 2.0             # seconds
# Bars. Memory, threads and files are judged over the second half, when everything has been in use.
MAX_GROWTH_MIB_PER_MINUTE = 1.0
MAX_AGE_PER_PROCESSING_TIME = 3.0


@dataclass(frozen=True)
class Sample:
    """State of a process at one moment; memory is the resident set."""

    elapsed_s: float
    memory_mib: float
    threads: int
    open_files: int


def take_sample(pid: int, elapsed_s: float) -> Sample:
    """Sample of a running process, from /proc."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Sample(round(elapsed_s, 2), int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"]),
                  len(list(Path(f"/proc/{pid}/fd").iterdir())))


def memory_growth(samples: Sequence[Sample]) -> float:
    """MiB per minute, slope of the straight line through at least two samples."""
    minutes = np.array([sample.elapsed_s for sample in samples]) / 60
    return float(np.polyfit(minutes, [sample.memory_mib for sample in samples], deg=1)[0])


def first_of_each_image(results: list[Result]) -> list[Result]:
    """The results whose age is judged: of each image the first, without the first image of all.

    After a reconstruction the objects are published again, in the newest image.  The processing time of that result
    begins only then, when the image is up to a period of the camera old, although it has not waited.  The first image
    of all has no other result: nothing is published before the first meshes are made.
    """
    first: dict[int, Result] = {}
    for result in results:
        first.setdefault(result.stamp_ns, result)
    return [*first.values()][1:]


def judge(samples: list[Sample], results: list[Result]) -> dict[str, Any]:
    """Each bar's figure and whether it is kept; `samples` span the whole run, `results` are those of
    `first_of_each_image`."""
    late = samples[len(samples) // 2:]
    growth = memory_growth(late)
    ages = np.array([result.latency_ms / result.processing_ms for result in results])
    return {
        "memory_growth_mib_per_minute": {"value": round(growth, 3), "limit": MAX_GROWTH_MIB_PER_MINUTE,
                                         "passed": growth <= MAX_GROWTH_MIB_PER_MINUTE},
        "threads": _constant([sample.threads for sample in late]),
        "open_files": _constant([sample.open_files for sample in late]),
        "age_per_processing_time": {"value": round(float(ages.max()), 3), "limit": MAX_AGE_PER_PROCESSING_TIME,
                                    "passed": bool(ages.max() <= MAX_AGE_PER_PROCESSING_TIME)},
    }


def measure(config: PipelineConfig, minutes: float,
            cores: int) -> tuple[list[Sample], list[Result], list[dict[str, float]]]:
    """Run the node on a 30 Hz camera; the samples of its process, every result with its age, and the late ones."""
    with workspace(cores) as folder, NodeRun(folder, config, tabletop(OBJECTS), CAMERA_RATE) as run, \
            WithheldTime() as withheld:
        run.wait_for_results(1, START_TIMEOUT)
        start, samples = time.monotonic(), []
        for index in tqdm(range(int(minutes * 60 / SAMPLE_PERIOD)), unit="sample"):
            time.sleep(max(0.0, start + index * SAMPLE_PERIOD - time.monotonic()))
            run.check_alive()
            samples.append(take_sample(run.node.pid, time.monotonic() - start))
        results = run.results()
        return samples, results, late_results(first_of_each_image(results), withheld)


def late_results(results: list[Result], withheld: WithheldTime) -> list[dict[str, float]]:
    """The results that are older than the bar allows, and how long the hypervisor withheld the processors meanwhile."""
    return [{"age_ms": round(result.latency_ms, 3), "processing_ms": round(result.processing_ms, 3),
             "withheld_ms": withheld.between(result.stamp_ns, result.stamp_ns + round(1e6 * result.latency_ms))}
            for result in results if result.latency_ms > MAX_AGE_PER_PROCESSING_TIME * result.processing_ms]


def main() -> int:
    """Run the benchmark; exit status 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    common_arguments(parser, "soak")
    add_pipeline_arguments(parser)
    parser.add_argument("--minutes", type=in_range(float, 0.1, 1e5), default=10.0,
                        help="how long (default: %(default)s; --quick: 0.5)")
    args = parser.parse_args()
    minutes = 0.5 if args.quick else args.minutes
    out = report_path(args)
    environment, model = describe_environment(args.cores), describe_model(args.model)
    samples, results, late_ones = measure(pipeline_config(args), minutes, args.cores)
    bars = judge(samples, first_of_each_image(results))
    passed = all(bar["passed"] for bar in bars.values())
    write_report(out, environment, {
        "benchmark": "soak", "quick": args.quick, **model, "engine": results[-1].engine, "minutes": minutes,
        "camera_rate_hz": CAMERA_RATE, "objects": OBJECTS, "results": len(results),
        "results_per_second": round(len(results) / (60 * minutes), 2),
        "age_ms": statistics([result.latency_ms for result in results]),
        "processing_ms": statistics([result.processing_ms for result in results]),
        "bars": bars, "passed": passed, "late": late_ones, "samples": [asdict(sample) for sample in samples]})
    for name, bar in bars.items():
        print(f"{'ok    ' if bar['passed'] else 'FAILED'} {name}: {bar['value']} (limit {bar['limit']})")
    for one in late_ones:
        print(f"late: {one['age_ms']} ms old, {one['processing_ms']} ms of work, processors withheld for "
              f"{one['withheld_ms']:g} ms")
    print(f"report: {out}")
    return 0 if passed else 1


def _constant(values: list[int]) -> dict[str, Any]:
    spread = max(values) - min(values)
    return {"value": spread, "limit": 0, "passed": spread == 0, "count": max(values)}


if __name__ == "__main__":
    sys.exit(main())
