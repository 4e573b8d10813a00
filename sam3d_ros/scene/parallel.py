"""Work on several objects at once."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Answer = TypeVar("Answer")
_WORKERS = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "scene")     # has no thread before there is work


def in_parallel(function: Callable[..., Answer], *arguments: Iterable) -> list[Answer]:
    """As list(map(function, *arguments)), on all cores; for functions that are compiled code for nearly all their time,
    which runs without Python's lock, and that do not call this one."""
    return list(_WORKERS.map(function, *arguments))
