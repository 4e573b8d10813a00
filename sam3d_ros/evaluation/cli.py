"""`sam3d bench`: figures of the product, measured here and now.

`sam3d bench frames` judges it, beside the baselines, on frame folders with ground truth; `sam3d bench physics` and
`sam3d bench grasp` in simulated clutter. What needs several processes (latency, soak, message cost) is in the
repository's benchmarks/ folder.
"""
from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from sam3d_ros.evaluation import frames, simulated
from sam3d_ros.evaluation.environment import describe_environment, write_report
from sam3d_ros.perception.pipeline import Pipeline
from sam3d_ros.reconstruct import add_pipeline_arguments, pipeline_config

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
    accuracy.set_defaults(measure=run_frames)
    simulated.add_benchmarks(benchmarks, data_root())


def run(args: argparse.Namespace) -> int:
    """Run the chosen benchmark."""
    return args.measure(args)


def run_frames(args: argparse.Namespace) -> int:
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
