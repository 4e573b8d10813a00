"""Tests that need a process of their own: a signal is for all that a process has loaded."""
from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_IS_OWN = "SAM3D_TEST_IN_ITS_OWN_PROCESS"


def in_own_process(test: Callable[..., None]) -> Callable[..., None]:
    """Decorator of a test, which then runs in a pytest of its own."""
    @functools.wraps(test)
    def run(*arguments: object, **fixtures: object) -> None:
        if _IS_OWN in os.environ:
            test(*arguments, **fixtures)
            return
        name = os.environ["PYTEST_CURRENT_TEST"].rpartition(" (")[0]
        child = subprocess.run([sys.executable, "-m", "pytest", "-q", name], cwd=Path(__file__).parents[1],
                               env=os.environ | {_IS_OWN: "1"}, capture_output=True, text=True, check=False)
        assert child.returncode == 0, child.stdout + child.stderr
    return run
