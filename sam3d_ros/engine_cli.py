"""`sam3d engine`: engines that are built for a GPU, ahead of the node's first start, and the cache they are kept in."""
from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from contextlib import suppress
from pathlib import Path

from sam3d_ros.perception.faults import engine_faults
from sam3d_ros.runtime import golden
from sam3d_ros.runtime.engine import (
    DEFAULT_MODEL,
    ENGINES,
    MODEL_HELP,
    BuildOptions,
    EngineError,
    ModelFile,
    read_model,
)
from sam3d_ros.runtime.engine_cache import EngineCache, EngineKey, Entry
from sam3d_ros.runtime.signature import STUDENT
from sam3d_ros.runtime.tensorrt_build import NAMES, TENSORRT_PRECISIONS, load_library
from sam3d_ros.runtime.tensorrt_engine import build_ahead, engine_key, load_tensorrt, open_device
from sam3d_ros.terminal import printable

AHEAD = "tensorrt-rtx"              # the one that builds for GPUs that are not there


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions and their arguments."""
    parser.add_argument("--cache", type=Path, metavar="DIR",
                        help="cache folder (default: SAM3D_CACHE, else ~/.cache/sam3d_ros)")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="build the engine for this GPU, or ahead of time for others",
                               description="Build the engine for this GPU, check it and keep it; nothing is built that "
                                           "is there already. With --capability, build for GPUs that are not here.")
    build.add_argument("--model", default=DEFAULT_MODEL, help=f"{MODEL_HELP} (default: %(default)s)")
    build.add_argument("--engine", choices=NAMES, help=f"(default: the first of {' and '.join(NAMES)} that is "
                                                       f"installed; with --capability: {AHEAD})")
    build.add_argument("--precision", choices=TENSORRT_PRECISIONS, default=TENSORRT_PRECISIONS[0],
                       help="(default: %(default)s)")
    build.add_argument("--capability", action="append", metavar="X.Y", default=[], type=_capability,
                       help="compute capability of the GPU, as 8.6, 8.9 or 12.0; may be given several times; "
                            f"{AHEAD} only")
    build.set_defaults(refuse=build.error)
    actions.add_parser("list", help="say what is in the cache", description="Say what is in the cache.")
    verify = actions.add_parser("verify", help="check every engine",
                                description="Check that every engine is whole and ours, and, of those built for this "
                                            "machine, that they answer as they should.")
    verify.add_argument("--model", default=DEFAULT_MODEL, help=f"{MODEL_HELP} (default: %(default)s)")
    clear = actions.add_parser("clear", help="delete engines",
                               description="Delete all engines of the cache, and the timings of kernels that TensorRT "
                                           "keeps beside them.")
    clear.add_argument("--damaged", action="store_true", help="only those that would not be loaded")


def run(args: argparse.Namespace) -> int:
    """Do what is asked for; the exit status is 1 if an engine was found unusable."""
    cache = EngineCache(args.cache)
    actions = {"build": lambda: _build(args), "list": lambda: _list(cache), "verify": lambda: _verify(cache, args),
               "clear": lambda: _clear(cache, args.damaged)}
    with engine_faults():
        return actions[args.action]()


class ProgressLine:
    """Called with percent done and what is being done: one line on stderr, written over by the next where there is a
    terminal; none if nothing is new."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, percent: int, what: str) -> None:
        line = f"sam3d: engine {percent:3d} % {what:<40}"
        if line != self._last:
            self._last = line
            end = "\r" if sys.stderr.isatty() and percent < 100 else "\n"
            print(line, end=end, file=sys.stderr, flush=True)


def _capability(text: str) -> str:
    if not re.fullmatch(r"[0-9]+\.[0-9]", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no compute capability, such as 8.6")
    return text


def _check_capabilities(args: argparse.Namespace) -> None:
    """End with a usage error if engines are wanted that cannot be built ahead of time.

    Raises EngineError(ENGINE_UNAVAILABLE) where the library is not installed.
    """
    if not args.capability:
        return
    if args.engine not in (None, AHEAD):
        args.refuse(f"argument --capability: only {AHEAD} builds ahead of time")
    known = re.findall(r"\bSM(\d+)(\d)\b", " ".join(dir(load_library(AHEAD).module.ComputeCapability)))
    supported = [f"{major}.{minor}" for major, minor in known]
    unknown = [capability for capability in args.capability if capability not in supported]
    if unknown:
        args.refuse(f"argument --capability: {AHEAD} builds for {', '.join(supported)}, not for {', '.join(unknown)}")


def _installed() -> str:
    """The first of the engines whose library is installed, without importing it; the first of all if none is."""
    return next((name for name in NAMES if importlib.util.find_spec(ENGINES[name])), NAMES[0])


def _build(args: argparse.Namespace) -> int:
    _check_capabilities(args)
    name = args.engine or (AHEAD if args.capability else _installed())
    model = read_model(args.model)
    options = BuildOptions(must_keep=True, folder=args.cache, on_progress=ProgressLine())
    for capability in args.capability:
        key = build_ahead(name, model, STUDENT, args.precision, capability, options)
        print(f"{key.digest[:12]}  {key.library}, {key.precision}, for compute capability {capability}")
    if not args.capability:
        engine = load_tensorrt(name, model, STUDENT, args.precision, options)
        print(f"{engine.name} is ready")
        engine.close()
    return 0


def _list(cache: EngineCache) -> int:
    entries = cache.entries()
    for entry in entries:
        print(_line(entry))
    print(f"{len(entries)} engines in {cache.folder}, {sum(bool(entry.problem) for entry in entries)} of them unusable")
    return 0


def _verify(cache: EngineCache, args: argparse.Namespace) -> int:
    model, entries, bad = read_model(args.model), cache.entries(), 0
    here, obstacle = _keys_here(model)
    for entry in entries:
        problem = _problem_here(entry.key, model, args.cache) if entry.key in here and not entry.problem else ""
        is_bad = bool(entry.problem or problem)
        bad += is_bad
        print(f"{'BAD' if is_bad else 'ok ':3} {_line(entry)}" + (f": {printable(problem)}" if problem else ""))
    unasked = f"; none was asked for answers: {obstacle}" if entries and obstacle else ""
    print(f"{len(entries)} engines in {cache.folder}, {bad} of them unusable{unasked}")
    return 1 if bad else 0


def _clear(cache: EngineCache, damaged: bool) -> int:
    progress = ProgressLine()
    removed = cache.remove((lambda entry: bool(entry.problem)) if damaged else None,
                           lambda: progress(0, "waiting for a build to end"))
    print(f"{len(removed)} engines deleted from {cache.folder}")
    return 0


def _line(entry: Entry) -> str:
    if entry.key is None:
        return f"{entry.name[:12]}  {printable(entry.problem)}"
    key = entry.key
    device = key.device or "any GPU"
    check = f"refused: {entry.problem}" if entry.problem else entry.details.get("check", "not checked on a GPU yet")
    return printable(f"{entry.name[:12]}  {key.library}, {key.precision}, {device} ({key.capability}), model "
                     f"{key.model[:12]}, {entry.bytes / 2**20:.1f} MiB, built {entry.details.get('built', '?')}, "
                     f"{check}")


def _keys_here(model: ModelFile) -> tuple[set[EngineKey], str]:
    """Keys of a model's engines for this machine's GPU and libraries, and what is in the way if it has no GPU."""
    try:
        device = open_device()
    except EngineError as error:
        return set(), error.detail
    keys = set()
    for name in NAMES:
        with suppress(EngineError):         # of a library that is not installed
            library = load_library(name)
            keys |= {engine_key(library, model, STUDENT, precision, device) for precision in TENSORRT_PRECISIONS}
    device.close()
    return keys, ""


def _problem_here(key: EngineKey, model: ModelFile, folder: Path | None) -> str:
    """What is wrong with the answers of an engine that was built for this machine; empty if nothing.

    folder: of the cache, None: the default
    """
    options = BuildOptions(allow_build=False, folder=folder)
    try:
        engine = load_tensorrt(key.library.split()[0], model, STUDENT, key.precision, options)
    except EngineError as error:
        return error.detail
    try:
        golden.check(engine, golden.reference(model))
    except EngineError as error:
        return error.detail
    finally:
        engine.close()
    return ""
