"""The benchmarks in simulated clutter: `sam3d bench physics` and `sam3d bench grasp`."""
from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from sam3d_ros.evaluation import grasping, physics
from sam3d_ros.evaluation.dev_models import graspable_models
from sam3d_ros.evaluation.environment import describe_environment, write_report
from sam3d_ros.perception.pipeline import Pipeline
from sam3d_ros.reconstruct import add_pipeline_arguments, pipeline_config
from sam3d_ros.terminal import in_range

SEEDS = 0, 2**32 - 1
METHODS = ("sam3d", "extruded hull", "true mesh")
PICTURED = 2                        # rounds of each method that --pictures draws


def add_benchmarks(benchmarks: argparse._SubParsersAction, data: Path) -> None:
    """Declare both; data: where the third-party meshes are by default."""
    text = "penetration, gaps and shape errors of rebuilt objects in clutter, before and after they are settled"
    settling = benchmarks.add_parser("physics", help=text, description=text.capitalize() + ".")
    settling.add_argument("--scenes", type=in_range(int, 1, 1_000_000), default=25, metavar="N",
                          help="of each kind (default: %(default)s)")
    settling.set_defaults(measure=run_physics)

    text = "grasps in simulation, closed loop, planned on rebuilt meshes, on a baseline's and on the true ones"
    grasps = benchmarks.add_parser("grasp", help=text, description=text.capitalize() + ".")
    grasps.add_argument("--rounds", type=in_range(int, 1, 1_000_000), default=100, metavar="N",
                        help="of each kind of scene, order and method (default: %(default)s)")
    grasps.add_argument("--orders", nargs="+", choices=tuple(grasping.ORDERS), default=tuple(grasping.ORDERS),
                        help="any: the planner chooses what to grasp; in turn: each object is asked for")
    grasps.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="meshes to plan on")
    grasps.add_argument("--pictures", type=Path, metavar="DIR", help="draw the first rounds there")
    grasps.set_defaults(measure=run_grasp)

    for parser, name in ((settling, "physics"), (grasps, "grasp")):
        parser.add_argument("--kinds", nargs="+", choices=tuple(grasping.SCENES), default=tuple(grasping.SCENES),
                            help="kinds of scenes (default: all)")
        parser.add_argument("--data", type=Path, default=data, metavar="ROOT",
                            help="folder of the third-party data (default: %(default)s)")
        parser.add_argument("--seed", type=in_range(int, *SEEDS), default=0,
                            help="of the first scene (default: %(default)s)")
        parser.add_argument("-o", "--out", type=Path, default=Path(f"benchmarks/results/{name}.json"), metavar="JSON",
                            help="where the report goes (default: %(default)s)")
        add_pipeline_arguments(parser)


def run_physics(args: argparse.Namespace) -> int:
    """Settle rebuilt objects, print the table and write the report."""
    environment = describe_environment()
    models = graspable_models(args.data)
    pipeline = Pipeline.from_config(pipeline_config(args))
    measured: dict[str, tuple[list[physics.SettledObject], list[float]]] = {}
    try:
        pipeline.warm_up()
        for kind in args.kinds:
            objects, milliseconds = measured[kind] = [], []
            for seed in tqdm(range(args.seed, args.seed + args.scenes), desc=kind, unit="scene"):
                found, duration = physics.measure(kind, models, seed, pipeline)
                objects += found
                milliseconds.append(duration)
    finally:
        pipeline.close()
    results = {kind: physics.report(*found) | {"each": [asdict(item) for item in found[0]]}
               for kind, found in measured.items()}
    objects, milliseconds = (list(chain.from_iterable(parts)) for parts in zip(*measured.values(), strict=True))
    results["all"] = physics.report(objects, milliseconds)
    print(physics.table(results))
    write_report(args.out, environment, {"benchmark": "physics", "engine": pipeline.engine_name,
                                         "scenes": args.scenes, "kinds": results})
    print(f"\nreport: {args.out}")
    return 0


def run_grasp(args: argparse.Namespace) -> int:
    """Play all rounds, print the table and write the report."""
    environment = describe_environment()
    models = graspable_models(args.data)
    pipeline = Pipeline.from_config(pipeline_config(args))
    methods = {"sam3d": grasping.rebuilt(pipeline), "extruded hull": grasping.extruded,
               "true mesh": grasping.true_meshes}
    rounds: dict[str, dict[str, list[grasping.Round]]] = defaultdict(lambda: defaultdict(list))
    try:
        pipeline.warm_up()
        # All methods of one scene together: an interrupted run has compared them on the same scenes.
        for seed in tqdm(range(args.seed, args.seed + args.rounds), unit="round"):
            for kind in args.kinds:
                placed = grasping.scene(kind, models, seed)
                for order in args.orders:
                    for name in args.methods:
                        is_drawn = args.pictures and seed < args.seed + PICTURED
                        strip = grasping.PictureStrip() if is_drawn else None
                        played = grasping.ORDERS[order](placed, methods[name], seed, strip)
                        rounds[f"{kind}, {order}"][name].append(played)
                        if strip and strip.pictures:
                            args.pictures.mkdir(parents=True, exist_ok=True)
                            file = f"{kind}_{order}_{name}_{seed}.png".replace(" ", "_")
                            Image.fromarray(strip.image()).save(args.pictures / file)
            results = {scenes: {name: grasping.report(played) for name, played in by_method.items()}
                       for scenes, by_method in rounds.items()}
            write_report(args.out, environment, {
                "benchmark": "grasp", "engine": pipeline.engine_name, "models": [model.name for model in models],
                "rounds": seed + 1 - args.seed, "scenes": results})
    finally:
        pipeline.close()
    print(grasping.table(results))
    print(f"\nreport: {args.out}")
    return 0
