"""`sam3d bench`: figures of the product, measured here and now.

`sam3d bench frames` judges it, beside the baselines, on frame folders with ground truth; `sam3d bench shape` on
rendered scenes of objects that it was not trained on. What needs several processes (latency, soak, message cost) is in
the repository's benchmarks/ folder.
"""
from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from sam3d_ros.evaluation import frames, pictures, shape, shape_report
from sam3d_ros.evaluation.environment import describe_environment, write_report
from sam3d_ros.evaluation.references import REFERENCES
from sam3d_ros.evaluation.scenes import cache_root
from sam3d_ros.perception.pipeline import Pipeline
from sam3d_ros.reconstruct import add_pipeline_arguments, pipeline_config
from sam3d_ros.runtime.engine import read_model

PRODUCT = "sam3d"
QUICK_OBJECTS = 10


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

    text = "errors of the rebuilt objects and of baselines on rendered scenes of the dev split"
    rendered = benchmarks.add_parser("shape", help=text, description=text.capitalize() + ".")
    rendered.add_argument("--sections", nargs="+", choices=tuple(shape.SECTIONS), default=tuple(shape.SECTIONS),
                          metavar="SECTION", help=f"what to measure (default: all): {', '.join(shape.SECTIONS)}")
    rendered.add_argument("--data", type=Path, default=data_root(), metavar="ROOT",
                          help="folder of the third-party data (default: %(default)s)")
    rendered.add_argument("--objects", type=int, default=150, metavar="N",
                          help="objects in each of the two sets (default: %(default)s)")
    rendered.add_argument("--quick", action="store_true", help="10 objects in each set: only shows that it works")
    rendered.add_argument("--seed", type=int, default=0, help="of the scenes (default: %(default)s)")
    rendered.add_argument("--scenes", type=Path, metavar="DIR",
                          help="where the rendered scenes are kept (default: the user's cache folder)")
    rendered.add_argument("--pictures", type=Path, metavar="DIR",
                          help="write pictures of the best, median and worst objects there")
    rendered.add_argument("-o", "--out", type=Path, default=Path("benchmarks/results/shape.json"), metavar="JSON",
                          help="where the report goes (default: %(default)s)")
    add_pipeline_arguments(rendered)
    rendered.set_defaults(measure=run_shape)


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
    methods = frames.report(scores)
    for name, method in methods.items():
        method["sam3d_protocol"] = frames.normalised_means([score for score in scores if score.method == name])
    write_report(args.out, environment, {"benchmark": "frames", "engine": engine, "methods": methods})
    print(f"\nreport: {args.out}")
    return 0


def run_shape(args: argparse.Namespace) -> int:
    """Measure the chosen sections on the rendered scenes, print the tables and write the report."""
    environment = describe_environment()
    model = read_model(args.model)
    pipeline = Pipeline.from_config(pipeline_config(args))
    try:
        pipeline.warm_up()
        objects = QUICK_OBJECTS if args.quick else args.objects
        bench = shape.Bench(pipeline, args.data, args.scenes or cache_root(), objects, args.seed)
        sections = {}
        for name in (progress := tqdm(args.sections, unit="section")):
            progress.set_description(name)
            sections[name] = shape.run_section(bench, name)
        if args.pictures:
            pictures.draw(bench, args.pictures)
    finally:
        pipeline.close()
    print(shape_report.text(sections))
    write_report(args.out, environment, {
        "benchmark": "shape", "quick": args.quick, "model": model.path.stem, "model_sha256": model.sha256,
        "engine": pipeline.engine_name, "seed": args.seed, "objects": objects, "sections": sections,
        "references": REFERENCES})
    print(f"\nreport: {args.out}")
    return 0
