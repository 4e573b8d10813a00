"""`sam3d train`: its arguments, which need none of what training does."""
from __future__ import annotations

import argparse
from pathlib import Path

from ..terminal import UserError, in_range


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the subcommand."""
    parser.add_argument("configs", nargs="+", metavar="config",
                        help="base, small, or a config file; several learn from the same batches")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR",
                        help="folder that holds meshes/manifest.jsonl")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR",
                        help="folder of the mesh store, and of a folder with checkpoint and log for each student")
    parser.add_argument("--minutes", type=in_range(float, 0, 1e6), default=60,
                        help="wall time of training in all (default: %(default)s)")
    parser.add_argument("--workers", type=in_range(int, 0, 1024), default=1,
                        help="rendering processes per device (default: %(default)s)")
    parser.add_argument("--devices", type=in_range(int, 1, 1024), default=1,
                        help="GPUs, where there are some (default: %(default)s)")
    parser.add_argument("--start-from", type=Path, nargs="+", default=[], metavar="ONNX",
                        help="begin with the weights of an exported student; one for each config")


def run(args: argparse.Namespace) -> int:
    """Train as the arguments say."""
    from .train import read_configs, train
    if len(args.start_from) not in (0, len(args.configs)):
        raise UserError(f"--start-from: one file for each config is wanted, {len(args.configs)} in all, not "
                        f"{len(args.start_from)}")
    train(read_configs(args.configs), args.data, args.run, args.minutes, args.workers, args.start_from, args.devices)
    return 0
