"""The benchmarks in simulated clutter: `sam3d bench physics` and `sam3d bench grasp`."""
from __future__ import annotations

import argparse
from collections import defaultdict
from contextlib import closing
from dataclasses import asdict
from itertools import chain, product
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from sam3d_ros.evaluation import grasping, physics
from sam3d_ros.evaluation.arguments import MOST, SEEDS, add_benchmark, add_data
from sam3d_ros.evaluation.dev_models import graspable_models
from sam3d_ros.evaluation.environment import describe_environment, describe_model, write_report
from sam3d_ros.perception.pipeline import Pipeline
from sam3d_ros.reconstruct import pipeline_config
from sam3d_ros.terminal import in_range

METHODS = ("sam3d", "extruded hull", "true mesh")
PICTURED = 2                        # rounds of each method that --pictures draws


def add_physics(benchmarks: argparse._SubParsersAction) -> None:
    """Declare `sam3d bench physics`."""
    parser = add_benchmark(
        benchmarks, "physics", run_physics, "physics",
        "penetration, gaps and shape errors of rebuilt objects in clutter, before and after they are settled")
    parser.add_argument("--scenes", type=in_range(int, 1, MOST), default=25, metavar="N",
                        help="of each kind (default: %(default)s)")
    _add_scene_arguments(parser)


def add_grasp(benchmarks: argparse._SubParsersAction) -> None:
    """Declare `sam3d bench grasp`."""
    parser = add_benchmark(
        benchmarks, "grasp", run_grasp, "grasp",
        "grasps in simulation, closed loop, planned on rebuilt meshes, on a baseline's and on the true ones")
    parser.add_argument("--rounds", type=in_range(int, 1, MOST), default=100, metavar="N",
                        help="of each kind of scene, order and method (default: %(default)s)")
    parser.add_argument("--orders", nargs="+", choices=tuple(grasping.ORDERS), default=tuple(grasping.ORDERS),
                        help="any: the planner chooses what to grasp; in turn: each object is asked for")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="meshes to plan on")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="draw the first rounds there")
    _add_scene_arguments(parser)


def _add_scene_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kinds", nargs="+", choices=tuple(grasping.SCENES), default=tuple(grasping.SCENES),
                        help="kinds of scenes (default: all)")
    add_data(parser)
    parser.add_argument("--seed", type=in_range(int, *SEEDS), default=0,
                        help="of the first scene (default: %(default)s)")


def run_physics(args: argparse.Namespace) -> int:
    """Settle rebuilt objects, print the table and write the report."""
    environment, model = describe_environment(), describe_model(args.model)
    models = graspable_models(args.data)
    measured: dict[str, tuple[list[physics.SettledObject], list[float]]] = {}
    with closing(Pipeline.from_config(pipeline_config(args))) as pipeline:
        pipeline.warm_up()
        for kind in args.kinds:
            objects, milliseconds = measured[kind] = [], []
            for seed in tqdm(range(args.seed, args.seed + args.scenes), desc=kind, unit="scene"):
                found, duration = physics.measure(kind, models, seed, pipeline)
                objects += found
                milliseconds.append(duration)
    results = {kind: physics.report(*found) | {"each": [asdict(item) for item in found[0]]}
               for kind, found in measured.items()}
    objects, milliseconds = (list(chain.from_iterable(parts)) for parts in zip(*measured.values(), strict=True))
    results["all"] = physics.report(objects, milliseconds)
    print(physics.table(results))
    write_report(args.out, environment, {"benchmark": "physics", **model, "engine": pipeline.engine_name,
                                         "scenes": args.scenes, "kinds": results})
    print(f"\nreport: {args.out}")
    return 0


def run_grasp(args: argparse.Namespace) -> int:
    """Play all rounds, print the table and write the report."""
    environment, model = describe_environment(), describe_model(args.model)
    models = graspable_models(args.data)
    rounds: dict[str, dict[str, list[grasping.Round]]] = defaultdict(lambda: defaultdict(list))
    with closing(Pipeline.from_config(pipeline_config(args))) as pipeline:
        pipeline.warm_up()
        methods = {"sam3d": grasping.rebuilt(pipeline), "extruded hull": grasping.extruded,
                   "true mesh": grasping.true_meshes}
        # All methods of one scene together: an interrupted run has compared them on the same scenes.
        for seed in tqdm(range(args.seed, args.seed + args.rounds), unit="round"):
            folder = args.pictures if seed < args.seed + PICTURED else None
            for kind in args.kinds:
                placed = grasping.scene(kind, models, seed)
                for order, name in product(args.orders, args.methods):
                    strip = grasping.PictureStrip() if folder else None
                    rounds[f"{kind}, {order}"][name].append(
                        grasping.ORDERS[order](placed, methods[name], seed, strip))
                    if strip and strip.pictures:
                        _save(strip, folder, f"{kind}_{order}_{name}_{seed}.png".replace(" ", "_"))
            results = {scenes: {name: grasping.report(played) for name, played in by_method.items()}
                       for scenes, by_method in rounds.items()}
            write_report(args.out, environment, {
                "benchmark": "grasp", **model, "engine": pipeline.engine_name, "models": [m.name for m in models],
                "rounds": seed + 1 - args.seed, "scenes": results})
    print(grasping.table(results))
    print(f"\nreport: {args.out}")
    return 0


def _save(strip: grasping.PictureStrip, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(strip.image()).save(folder / name)
