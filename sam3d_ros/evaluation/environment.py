"""Reports of benchmarks: where they go, and the machine of the measurement, which every one describes."""
from __future__ import annotations

import argparse
import errno
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..runtime.engine import DEFAULT_MODEL, EngineError, read_model
from ..runtime.processor import cpu_model, instructions
from ..runtime.tensorrt_engine import gpu_facts

RESULTS = Path("benchmarks/results")
PACKAGES = ("sam3d_ros", "numpy", "numba", "open3d", "openvino", "onnxruntime", "onnxruntime-gpu", "tensorrt",
            "tensorrt-rtx-cu13", "torch", "scikit-image", "trimesh", "mujoco", "coacd", "ros-jazzy-rclpy",
            "ros-jazzy-rmw-fastrtps-cpp")


def describe_environment(cores: int | None = None) -> dict[str, Any]:
    """Device, software, time and command line of this process, ready for JSON.

    cores: to which the measurement will keep, if not to all that this process may use
    """
    usable = len(os.sched_getaffinity(0))
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "git_commit": git_commit(Path(__file__).parent),
        "cpu": cpu_model(),
        "cpu_instructions": instructions(),
        "cores": min(cores or usable, usable),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": _gpu(),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": package_versions(PACKAGES),
    }


def describe_model(model: str) -> dict[str, str]:
    """Name and digest of a model, for the report of what is measured with it; model: as of PipelineConfig.

    Raises EngineError MODEL_MISSING, MODEL_INVALID.
    """
    file = read_model(model)
    return {"model": file.path.stem, "model_sha256": file.sha256}


def _gpu() -> dict[str, Any] | None:
    """The GPU's facts; None without one that can be used."""
    try:
        return gpu_facts()
    except EngineError:
        return None


def git_commit(folder: Path) -> str | None:
    """Commit of the checkout that `folder` lies in, with `+changes` if files differ from it; None outside of one, or
    where git is not installed.
    """
    if shutil.which("git") is None:
        return None
    described = subprocess.run(["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--exclude=*",
                                "--dirty=+changes"], capture_output=True, text=True, check=False)
    return described.stdout.strip() or None


def package_versions(names: tuple[str, ...]) -> dict[str, str | None]:
    """Installed version of each distribution, None where it is not installed."""
    return {name: _version(name) for name in names}


def add_report(parser: argparse.ArgumentParser, name: str) -> None:
    """Declare -o, which `report_path` reads; name: of the report's file, without a suffix."""
    parser.add_argument("-o", "--out", type=Path, metavar="JSON",
                        help=f"where the report goes (default: {RESULTS / name}.json; the name goes on with sections, "
                             "model and `quick` where these are chosen)")
    parser.set_defaults(report=name, sections=(), model=DEFAULT_MODEL, quick=False)


def report_path(args: argparse.Namespace) -> Path:
    """Where the report goes: to -o, else to benchmarks/results/NAME[_SECTION ...][_MODEL][_quick].json, so that a part
    or another model does not replace what is published.  The folder is made.

    Raises OSError if the report could not be written there.
    """
    model = [] if args.model == DEFAULT_MODEL else [Path(args.model).stem]
    name = "_".join([args.report, *args.sections, *model, *["quick"] * args.quick])
    path = args.out or RESULTS / f"{name}.json"
    check_report_path(path)
    return path


def check_report_path(path: Path) -> None:
    """Make the folder of a report before measuring.  Raises OSError if the report could not be written there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def write_report(path: Path, environment: dict[str, Any], report: dict[str, Any]) -> None:
    """Write a benchmark's report as JSON; environment: from describe_environment(), called before measuring."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": environment} | report, indent=1) + "\n", encoding="utf-8")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
