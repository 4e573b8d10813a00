"""Shared fixtures."""
from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# A shell that starts the tests in the background has them ignore SIGINT, and so would the processes that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# benchmarks/ is not installed. The source tree comes last, here and in child processes: after colcon build, what is
# installed is tested.
ROOT = str(Path(__file__).resolve().parents[1])
sys.path.append(ROOT)
os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), ROOT])

# Tests neither use nor fill the user's engine cache; one for all of them, so that engines are measured once.
os.environ["SAM3D_CACHE"] = tempfile.mkdtemp(prefix="sam3d_cache_")
atexit.register(shutil.rmtree, os.environ["SAM3D_CACHE"], ignore_errors=True)

from sam3d_ros.ros.processes import private_graph  # noqa: E402

# Tests must not hear, nor be heard by, robots on the network and nodes on this machine.
os.environ.update(private_graph())


@pytest.fixture(scope="session")
def ros() -> Iterator[None]:
    """rclpy, initialised once for the whole run; a SIGINT does not shut it down for the tests that follow."""
    import rclpy
    from rclpy.signals import SignalHandlerOptions
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    yield
    rclpy.try_shutdown()
