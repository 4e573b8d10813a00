"""Memory that is freed is given back, and looking for garbage takes no time."""
from __future__ import annotations

import gc
import platform
import subprocess
import sys
import weakref

import pytest

from sam3d_ros.ros.memory import exempt_from_collection

# Model and views come and go, and small things that stay are made in between.
_PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from sam3d_ros.ros.memory import limit_heaps

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) / 256

if sys.argv[1] == "limited":
    limit_heaps()
np.ones(30 << 20, np.uint8)
before, kept = resident_mib(), []
for _ in range(8):
    blocks = [np.ones(6 << 20, np.uint8) for _ in range(8)]
    kept.append(np.ones(100_000, np.uint8))
    del blocks
print(resident_mib() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc")
def test_what_is_freed_between_things_that_stay_is_given_back():
    def growth(mode: str) -> float:
        run = subprocess.run([sys.executable, "-c", _PROGRAM, mode], capture_output=True, text=True, check=True)
        return float(run.stdout)

    assert growth("limited") < 4
    assert growth("as it is") > 20          # or this test would show nothing


class _Ring:
    """Garbage that only the collector finds, once it is dropped."""

    def __init__(self):
        self.itself = self


def test_what_was_loaded_is_not_looked_through_again_and_again():
    try:
        ring = _Ring()
        loaded = weakref.ref(ring)
        exempt_from_collection()
        assert len(gc.get_objects()) < 1000         # of which a full collection looks at each
        del ring
        gc.collect()
        assert loaded()
        exempt_from_collection()                     # loaded anew
        assert not loaded()
    finally:
        gc.unfreeze()
