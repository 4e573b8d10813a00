"""What the benchmarks share: processes that end with the benchmark, records of what was received, statistics."""
from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sam3d_ros.evaluation.environment import add_report
from sam3d_ros.ros.processes import NodeProcess, private_graph
from sam3d_ros.terminal import in_range

DEPTH_UNIT_M = 0.001            # frames are played as 16UC1, millimetres
START_TIMEOUT = 120.0           # seconds; loading and compiling a model on a slow, busy machine


def common_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Arguments that every benchmark takes; name: of its report."""
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it works; not for figures")
    parser.add_argument("--cores", type=in_range(int, 1, 1024), default=2, metavar="N",
                        help="CPU cores for all processes together (default: %(default)s)")
    add_report(parser, name)


@contextlib.contextmanager
def workspace(cores: int) -> Iterator[Path]:
    """A temporary folder, with this process and its children bound to the first `cores` cores and in a ROS graph of
    their own.

    SIGTERM ends the benchmark as Ctrl-C does, so that its processes end with it. The logs are kept when it fails.
    """
    os.environ.update(private_graph())
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = Path(tempfile.mkdtemp(prefix="sam3d_benchmark_"))
    try:
        yield folder
    except Exception:
        print(f"logs: {folder}", file=sys.stderr)
        raise
    except BaseException:           # interrupted
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)


def wait_until(condition: Callable[[], bool], processes: Iterable[NodeProcess], timeout: float, what: str) -> None:
    """Wait for `condition`; TimeoutError naming `what` after `timeout` seconds, ProcessEnded if a process ends."""
    deadline = time.monotonic() + timeout
    while not condition():
        for process in processes:
            process.check_alive()
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} within {timeout:g} s")
        time.sleep(0.05)


class WithheldTime:
    """How long the hypervisor gives the processors of this virtual machine to others ("steal", proc(5)), noted every
    50 ms while the `with` block runs."""

    def __init__(self) -> None:
        self._notes: list[tuple[int, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> WithheldTime:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def between(self, start_ns: int, end_ns: int) -> float:
        """Milliseconds, of all processors together, between two moments of time.time_ns(), to 50 ms on both sides."""
        times, withheld = (np.array(column) for column in zip(*self._notes, strict=True))
        first, last = np.searchsorted(times, [start_ns, end_ns])
        return float(withheld[min(last, len(times) - 1)] - withheld[max(first - 1, 0)])

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            steal = int(Path("/proc/stat").read_text().split(maxsplit=9)[8])
            self._notes.append((time.time_ns(), 1e3 * steal / os.sysconf("SC_CLK_TCK")))


def read_records(path: Path) -> list[dict[str, Any]]:
    """Complete lines of a recorder's file; empty if there is no file yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def statistics(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Percentiles, mean, extremes and number of at least one value; in the values' unit."""
    values = np.asarray(values, float)
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    figures = {"p50": p50, "p95": p95, "p99": p99, "mean": values.mean(), "min": values.min(), "max": values.max()}
    return {name: round(float(value), 3) for name, value in figures.items()} | {"count": len(values)}
