"""The `sam3d` command: dispatches to the subcommands, each in a module of its own that is imported only when asked for.

A subcommand's module has `add_arguments(parser) -> None` and `run(args) -> int`, the exit status.
"""
from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from sam3d_ros import __version__
from sam3d_ros.perception.faults import Fault
from sam3d_ros.terminal import UserError, printable

EXIT_FAULT = 1
EXIT_INTERRUPTED = 130      # what a shell reports for a process that SIGINT ended


class Command(NamedTuple):
    """module: where it lives; help: one line; packages: where it says how to get those that not everybody has."""

    module: str
    help: str
    packages: str = ""


_TRAINING = "docs/training.md says what training needs: `make venv TRAIN=1`, or `pip install '.[train]'`"
COMMANDS = {
    "reconstruct": Command("sam3d_ros.reconstruct", "rebuild the objects of frame folders"),
    "replay": Command("sam3d_ros.replay", "rebuild the objects of a recorded bag and write them into a new bag"),
    "export-scene": Command("sam3d_ros.export_scene", "write rebuilt objects as a scene for a simulator"),
    "demo": Command("sam3d_ros.demo", "run the simulated camera and the node together and draw the result"),
    "bench": Command("sam3d_ros.evaluation.cli", "measure accuracy and latency"),
    "train": Command("sam3d_ros.training.train_command", "train a student", _TRAINING),
    "export": Command("sam3d_ros.training.export_command",
                      "write a trained checkpoint as the ONNX file that the engines load", _TRAINING),
    "engine": Command("sam3d_ros.engine_cli", "build, list, verify and delete engines for NVIDIA GPUs"),
    "doctor": Command("sam3d_ros.doctor", "say what is installed, what works, and what to do about each gap"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status; whatever the user can mend is one line on stderr."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        parser, run = _parser(arguments)
        return run(parser.parse_args(arguments))
    except (Fault, OSError, UserError) as error:
        print(f"sam3d: error: {printable(str(error))}", file=sys.stderr)
        return EXIT_FAULT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _parser(arguments: Sequence[str]):
    """The parser, complete for the subcommand that `arguments` name, and that subcommand's `run`."""
    parser = argparse.ArgumentParser(prog="sam3d", description="Complete metric object meshes and 6D poses.")
    parser.add_argument("--version", action="version", version=f"sam3d_ros {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((argument for argument in arguments if not argument.startswith("-")), None)
    run = None
    for name, command in COMMANDS.items():
        description = f"{command.help[0].upper()}{command.help[1:]}."
        subparser = subparsers.add_parser(name, help=command.help, description=description)
        if name == chosen:
            module = importlib.import_module(command.module)
            module.add_arguments(subparser)
            run = partial(_run, command, module.run)
    return parser, run


def _run(command: Command, run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """A subcommand's exit status; UserError if a package that not everybody has is not installed."""
    try:
        return run(args)
    except ModuleNotFoundError as error:
        if not command.packages:
            raise
        raise UserError(f"{error.name} is not installed; {command.packages}") from None


if __name__ == "__main__":
    sys.exit(main())
