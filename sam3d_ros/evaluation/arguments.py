"""Arguments that several benchmarks of `sam3d bench` share."""
from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from sam3d_ros.evaluation.environment import add_report
from sam3d_ros.reconstruct import add_pipeline_arguments

SEEDS = 0, 2**32 - 1     # what NumPy's generators take
MOST = 1_000_000         # of anything that a user may count


def data_root() -> Path:
    """Folder of the third-party data: SAM3D_DATA, else ../shared/data."""
    return Path(os.environ.get("SAM3D_DATA", "../shared/data"))


def add_benchmark(benchmarks: argparse._SubParsersAction, name: str, measure: Callable[[argparse.Namespace], int],
                  report: str, text: str) -> argparse.ArgumentParser:
    """Declare a benchmark with the options of the pipeline and -o; its own options are up to the caller.

    measure: runs it and returns the exit status; report: name of its file in benchmarks/results; text: what it measures
    """
    parser = benchmarks.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    add_report(parser, report)
    add_pipeline_arguments(parser)
    parser.set_defaults(measure=measure)
    return parser


def add_data(parser: argparse.ArgumentParser) -> None:
    """Declare --data."""
    parser.add_argument("--data", type=Path, default=data_root(), metavar="ROOT",
                        help="folder of the third-party data (default: %(default)s)")
