"""`sam3d bench`: figures of the product, measured here and now.

`sam3d bench frames` judges it, beside the baselines, on frame folders with ground truth; `sam3d bench shape` on
rendered scenes of objects that it was not trained on; `sam3d bench track` follows objects under a simulated moving
camera; `sam3d bench physics` and `sam3d bench grasp` work in simulated clutter; `sam3d bench latency` times it from
image bytes to mesh bytes in one process. What needs several processes (latency of the node, soak, message cost) is in
the repository's benchmarks/ folder.
"""
from __future__ import annotations

import argparse
import os
from contextlib import ExitStack, closing
from pathlib import Path

from tqdm import tqdm

from sam3d_ros.evaluation import frames, latency, pictures, shape, shape_report, simulated, tracking
from sam3d_ros.evaluation.arguments import MOST, SEEDS, add_benchmark, add_data, data_root
from sam3d_ros.evaluation.environment import describe_environment, describe_model, report_path, write_report
from sam3d_ros.evaluation.references import REFERENCES
from sam3d_ros.evaluation.scenes import cache_root
from sam3d_ros.evaluation.tracking_stage import RATE, Disturbance, Stage
from sam3d_ros.perception.faults import engine_faults
from sam3d_ros.perception.pipeline import Pipeline
from sam3d_ros.reconstruct import pipeline_config
from sam3d_ros.runtime.engine import ENGINE_CHOICES, ENGINES, read_model
from sam3d_ros.scene.tracker import warm_up
from sam3d_ros.synth.tabletop import MAX_OBJECTS
from sam3d_ros.terminal import in_range

PRODUCT = "sam3d"
QUICK_OBJECTS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the benchmarks and their arguments."""
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    _add_frames(benchmarks)
    _add_shape(benchmarks)
    _add_track(benchmarks)
    simulated.add_physics(benchmarks)
    simulated.add_grasp(benchmarks)
    _add_latency(benchmarks)


def _add_frames(benchmarks: argparse._SubParsersAction) -> None:
    parser = add_benchmark(benchmarks, "frames", run_frames, "frames",
                           "errors of the rebuilt objects and of baselines on frame folders with gt.json")
    parser.add_argument("--frames", type=Path, default=data_root() / "frames", metavar="DIR",
                        help="folder of frame folders (default: %(default)s)")
    parser.add_argument("--meshes", type=Path, default=data_root(), metavar="ROOT",
                        help="folder that the mesh paths of gt.json start from (default: %(default)s)")
    parser.add_argument("--results", type=Path, metavar="OUT",
                        help="judge what `sam3d reconstruct -o OUT` wrote instead of reconstructing now")


def _add_shape(benchmarks: argparse._SubParsersAction) -> None:
    parser = add_benchmark(benchmarks, "shape", run_shape, "shape",
                           "errors of the rebuilt objects and of baselines on rendered scenes of the dev split")
    parser.add_argument("--sections", nargs="+", choices=tuple(shape.SECTIONS), default=(), metavar="SECTION",
                        help=f"what to measure (default: all): {', '.join(shape.SECTIONS)}")
    add_data(parser)
    parser.add_argument("--objects", type=in_range(int, 1, MOST), default=150, metavar="N",
                        help="objects in each of the two sets (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="10 objects in each set: only shows that it works")
    parser.add_argument("--seed", type=in_range(int, *SEEDS), default=0, help="of the scenes (default: %(default)s)")
    parser.add_argument("--scenes", type=Path, metavar="DIR",
                        help="where the rendered scenes are kept (default: the user's cache folder)")
    parser.add_argument("--pictures", type=Path, metavar="DIR",
                        help="write pictures of the best, median and worst objects there")


def _add_track(benchmarks: argparse._SubParsersAction) -> None:
    parser = add_benchmark(benchmarks, "track", run_track, "track",
                           "ids and poses of objects under a simulated moving camera, with masks missing and shuffled")
    parser.add_argument("--seconds", type=in_range(float, tracking.LEAST_SECONDS, 86400), default=60.0,
                        help=f"of each run, {tracking.LEAST_SECONDS:g} or more (default: %(default)s)")
    parser.add_argument("--objects", type=in_range(int, 1, MAX_OBJECTS), default=5, metavar="N",
                        help=f"on the table, up to {MAX_OBJECTS} (default: %(default)s)")
    parser.add_argument("--seeds", type=in_range(int, *SEEDS), nargs="+", default=[1, 2], metavar="SEED",
                        help="of the scenes (default: 1 2); each is run with the camera's pose and without")
    parser.add_argument("--drop", type=in_range(float, 0, 1), default=0.2, metavar="SHARE",
                        help="of the masks that are missing (default: %(default)s)")


def _add_latency(benchmarks: argparse._SubParsersAction) -> None:
    parser = add_benchmark(
        benchmarks, "latency", run_latency, "bytes_to_mesh",
        "image bytes to mesh bytes in one process, by stage, for several numbers of objects and every engine")
    parser.add_argument("--objects", type=in_range(int, 1, max(latency.OBJECTS)), nargs="+", default=latency.OBJECTS,
                        metavar="N", help="numbers of objects, up to 16 (default: 1 2 4 8 16)")
    parser.add_argument("--engines", nargs="+", choices=ENGINE_CHOICES, metavar="ENGINE",
                        default=("auto", *ENGINES), help="engines to measure (default: auto and each that there is)")
    parser.add_argument("--runs", type=in_range(int, 1, MOST), default=50, metavar="N",
                        help="timed runs each (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark that was chosen.  Raises OSError, at once, where the report cannot go, and Fault."""
    args.out = report_path(args)
    with engine_faults():
        return args.measure(args)


def run_track(args: argparse.Namespace) -> int:
    """Follow objects in simulated scenes, print the table and write the report; exit status 1 if a bar is missed."""
    environment, model = describe_environment(), describe_model(args.model)
    with closing(Pipeline.from_config(pipeline_config(args))) as pipeline:
        pipeline.warm_up()
        warm_up()
        stages = (Stage(seed, args.objects, args.seconds) for seed in args.seeds)
        runs = [tracking.run(pipeline, stage, Disturbance(args.drop, world))
                for stage in stages for world in (True, False)]
    kept = tracking.bars(runs)
    print(tracking.table(runs))
    for name, bar in kept.items():
        print(f"{'ok    ' if bar['passed'] else 'FAILED'} {name}: {bar['value']} (limit {bar['limit']})")
    passed = all(bar["passed"] for bar in kept.values())
    write_report(args.out, environment, {
        "benchmark": "track", **model, "engine": pipeline.engine_name, "seconds": args.seconds, "objects": args.objects,
        "camera_rate_hz": RATE, "load_average_at_end": round(os.getloadavg()[0], 2), "bars": kept,
        "passed": passed, "runs": runs})
    print(f"report: {args.out}")
    return 0 if passed else 1


def run_latency(args: argparse.Namespace) -> int:
    """Time every engine, print the table and write the report; exit status 1 if the bar for one object is missed, which
    is judged only where one object was measured on as many cores as it is meant for."""
    environment, model = describe_environment(), describe_model(args.model)
    results = latency.measure_all(pipeline_config(args), args.engines, args.objects, args.runs)
    limit = latency.physical_limit(read_model(args.model).data)
    networks = latency.beside_references(results, limit)
    print(latency.table(results), latency.reference_text(networks, limit), sep="\n\n")
    best = latency.complete_ms(results)
    is_judged = 1 in args.objects and environment["cores"] == latency.BAR_CORES
    passed = best is not None and best <= latency.BAR_MS if is_judged else None
    write_report(args.out, environment, {"benchmark": "bytes_to_mesh", **model, "image": "640x480 RGB-D",
                                         "engines": results, "physical_limit": limit, "network": networks,
                                         "bar": {"objects": 1, "cores": latency.BAR_CORES, "p50_ms": best,
                                                 "limit_ms": latency.BAR_MS},
                                         "passed": passed})
    print(f"\nreport: {args.out}")
    return 1 if passed is False else 0


def run_frames(args: argparse.Namespace) -> int:
    """Judge product and baselines, print the table and write the report."""
    environment = describe_environment()
    folders = frames.frame_folders(args.frames)
    with ExitStack() as stack:
        if args.results:
            measured, product = {"engine": None}, frames.stored(args.results)
        else:
            model = describe_model(args.model)
            pipeline = Pipeline.from_config(pipeline_config(args))
            stack.callback(pipeline.close)
            measured, product = model | {"engine": pipeline.engine_name}, frames.live(pipeline)
        progress = stack.enter_context(tqdm(folders, unit="frame"))
        scores = frames.judge(progress, args.meshes, {PRODUCT: product} | frames.BASELINES)
    print(frames.table(scores))
    methods = frames.report(scores)
    for name, method in methods.items():
        method["sam3d_protocol"] = frames.normalised_means([score for score in scores if score.method == name])
    write_report(args.out, environment, {"benchmark": "frames", **measured, "methods": methods})
    print(f"\nreport: {args.out}")
    return 0


def run_shape(args: argparse.Namespace) -> int:
    """Measure the chosen sections on the rendered scenes, print the tables and write the report."""
    environment, model = describe_environment(), describe_model(args.model)
    with closing(Pipeline.from_config(pipeline_config(args))) as pipeline:
        pipeline.warm_up()
        objects = QUICK_OBJECTS if args.quick else args.objects
        bench = shape.Bench(pipeline, args.data, args.scenes or cache_root(), objects, args.seed)
        sections = {}
        for name in (progress := tqdm(args.sections or shape.SECTIONS, unit="section")):
            progress.set_description(name)
            sections[name] = shape.SECTIONS[name](bench)
            write_report(args.out, environment, {             # each time: what follows takes long
                "benchmark": "shape", "quick": args.quick, **model, "engine": pipeline.engine_name,
                "seed": args.seed, "objects": objects, "sections": sections, "references": REFERENCES})
        if args.pictures:
            pictures.draw(bench, args.pictures)
    print(shape_report.text(sections))
    print(f"\nreport: {args.out}")
    return 0
