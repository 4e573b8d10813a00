"""`sam3d export`: its arguments, which need none of what training does."""
from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the subcommand."""
    parser.add_argument("checkpoint", type=Path, help="checkpoint.pt of a training run")
    parser.add_argument("onnx", type=Path, help="where the model goes")
    parser.add_argument("--report", type=Path, metavar="JSON", help="write how it was trained, too")


def run(args: argparse.Namespace) -> int:
    """Export as the arguments say."""
    from .export import export_checkpoint
    export_checkpoint(args.checkpoint, args.onnx, args.report)
    return 0
