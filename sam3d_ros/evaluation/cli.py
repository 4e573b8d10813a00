"""`sam3d bench`: figures of the product, measured here and now.

`sam3d bench frames` judges it, beside the baselines, on frame folders with ground truth; `sam3d bench latency` times it
from image bytes to mesh bytes in one process. What needs several processes (latency of the node, soak, message cost) is
in the repository's benchmarks/ folder.
"""
from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from sam3d_ros.evaluation import frames, latency
from sam3d_ros.evaluation.environment import describe_environment, write_report
from sam3d_ros.perception.pipeline import Pipeline
from sam3d_ros.reconstruct import add_pipeline_arguments, pipeline_config
from sam3d_ros.runtime.engine import ENGINE_CHOICES, ENGINES

PRODUCT = "sam3d"


def data_root() -> Path:
    """Folder of the third-party data: SAM3D_DATA, else ../shared/data."""
    return Path(os.environ.get("SAM3D_DATA", "../shared/data"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the benchmarks and their arguments."""
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    text = "errors of the rebuilt objects and of baselines on frame folders with gt.json"
    accuracy = benchmarks.add_parser("frames", help=text, description=text.capitalize() + ".")
    accuracy.add_argument("--frames", type=Path, default=data_root() / "frames", metavar="DIR",
                          help="folder of frame folders (default: %(default)s)")
    accuracy.add_argument("--meshes", type=Path, default=data_root(), metavar="ROOT",
                          help="folder that the mesh paths of gt.json start from (default: %(default)s)")
    accuracy.add_argument("--results", type=Path, metavar="OUT",
                          help="judge what `sam3d reconstruct -o OUT` wrote instead of reconstructing now")
    accuracy.add_argument("-o", "--out", type=Path, default=Path("benchmarks/results/frames.json"), metavar="JSON",
                          help="where the report goes (default: %(default)s)")
    add_pipeline_arguments(accuracy)
    text = "image bytes to mesh bytes in one process, by stage, for several numbers of objects and every engine"
    speed = benchmarks.add_parser("latency", help=text, description=text.capitalize() + ".")
    speed.add_argument("--objects", type=int, nargs="+", default=latency.OBJECTS, metavar="N",
                       help="numbers of objects, up to 16 (default: 1 2 4 8 16)")
    speed.add_argument("--engines", nargs="+", choices=ENGINE_CHOICES, metavar="ENGINE",
                       default=("auto", *ENGINES), help="engines to measure (default: auto and each that there is)")
    speed.add_argument("--runs", type=int, default=50, metavar="N", help="timed runs each (default: %(default)s)")
    speed.add_argument("-o", "--out", type=Path, default=Path("benchmarks/results/bytes_to_mesh.json"), metavar="JSON",
                       help="where the report goes (default: %(default)s)")
    add_pipeline_arguments(speed)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark that is asked for."""
    return _latency(args) if args.benchmark == "latency" else _frames(args)


def _latency(args: argparse.Namespace) -> int:
    """Time every engine, print the table and write the report; exit status 1 if the bar for one object is missed."""
    environment = describe_environment()
    results = latency.measure_all(pipeline_config(args), args.engines, args.objects, args.runs)
    print(latency.table(results))
    best = [result["objects"]["1"]["ms"]["p50"] for result in results.values() if "1" in result.get("objects", {})]
    passed = bool(best) and bool(min(best) <= latency.BAR_MS)
    write_report(args.out, environment, {"benchmark": "bytes_to_mesh", "image": "640x480 RGB-D", "engines": results,
                                         "bar": {"objects": 1, "p50_ms": min(best, default=None),
                                                 "limit_ms": latency.BAR_MS}, "passed": passed})
    print(f"\nreport: {args.out}")
    return 0 if passed else 1


def _frames(args: argparse.Namespace) -> int:
    """Judge product and baselines, print the table and write the report."""
    environment = describe_environment()
    with ExitStack() as stack:
        if args.results:
            engine, product = None, frames.stored(args.results)
        else:
            pipeline = Pipeline.from_config(pipeline_config(args))
            stack.callback(pipeline.close)
            engine, product = pipeline.engine_name, frames.live(pipeline)
        folders = tqdm(frames.frame_folders(args.frames), unit="frame")
        scores = frames.judge(folders, args.meshes, {PRODUCT: product} | frames.BASELINES)
    print(frames.table(scores))
    write_report(args.out, environment, {"benchmark": "frames", "engine": engine, "methods": frames.report(scores)})
    print(f"\nreport: {args.out}")
    return 0
