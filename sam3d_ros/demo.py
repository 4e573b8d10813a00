"""`sam3d demo`: the simulated camera and the node as separate processes, and a folder with what came out."""
from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from sam3d_ros.ros.processes import NodeProcess, ProcessEnded, interrupt_deferred, private_graph, ros_environment
from sam3d_ros.runtime.engine import DEFAULT_MODEL, MODEL_HELP
from sam3d_ros.terminal import in_range

CAMERA, NODE = "sam3d_ros.nodes.simulated_camera", "sam3d_ros.nodes.sam3d_node"
BAR = "{desc} |{bar}| {n:.0f} of {total:.0f} s"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the subcommand."""
    parser.add_argument("-o", "--out", type=Path, default=Path("sam3d_demo"), help="folder (default: %(default)s)")
    parser.add_argument("--seconds", type=in_range(float, 1, 3600), default=20.0,
                        help="of recording (default: %(default)g)")
    parser.add_argument("--objects", type=in_range(int, 1, 12), default=5,
                        help="on the table, 1 to 12 (default: %(default)s)")
    parser.add_argument("--seed", type=in_range(int, 0, 2**31 - 1), default=94895,
                        help="decides the scene (default: %(default)s)")
    parser.add_argument("--motion", choices=("still", "orbit"), default="still", help="of the camera (default: still)")
    parser.add_argument("--model", default=DEFAULT_MODEL,
                        help=f"{MODEL_HELP} (default: %(default)s)")


def run(args: argparse.Namespace, node_module: str = NODE) -> int:
    """Run the demo; 0, or 1 with one clear line on stderr. node_module: what is tried, as `python -m` knows it."""
    logs = args.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    os.environ.update(ros_environment() | private_graph())
    # Imported only now: they load the middleware, which reads the environment.
    from sam3d_ros.demo_report import write_report
    from sam3d_ros.nodes.demo_recorder import NoResult, record

    camera_parameters = {"seed": args.seed, "objects": args.objects, "motion": args.motion}
    try:
        with ExitStack() as stack, interrupt_deferred() as interrupts:
            processes = [stack.enter_context(NodeProcess(module, parameters=parameters, log=logs / log))
                         for module, parameters, log in ((CAMERA, camera_parameters, "camera.log"),
                                                         (node_module, {"model": args.model}, "node.log"))]

            def check_alive() -> None:
                if interrupts:
                    raise KeyboardInterrupt
                for process in processes:
                    process.check_alive()

            with tqdm(total=args.seconds, desc="starting", bar_format=BAR, disable=None) as bar:
                def on_progress(recorded: float) -> None:
                    bar.set_description("recording", refresh=False)
                    bar.update(recorded - bar.n)
                recording = record(args.seconds, check_alive, on_progress)
        print("drawing ...", file=sys.stderr)
        table = write_report(recording, args.out)
    except (ProcessEnded, NoResult) as error:
        print(f"sam3d: error: {error}", file=sys.stderr)
        return 1
    if not recording.rebuilt:
        print(f"sam3d: error: no object was rebuilt; see {logs / 'node.log'}", file=sys.stderr)
        return 1
    print(f"\n{table}\n{args.out}/: overview.png, input.png, objects/*.ply, table.md, results.json")
    return 0
