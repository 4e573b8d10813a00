"""Fewer triangles, by quadric edge collapse (Garland and Heckbert 1997)."""
from __future__ import annotations

from threading import Lock

import fast_simplification
import numpy as np

# The library keeps the mesh in global variables from one of its steps to the next: another thread that came between
# would get this mesh for its own.
_ONE_AT_A_TIME = Lock()


def decimated(vertices: np.ndarray, triangles: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (N, 3) and triangles (M, 3), vertex indices, of about the same surface with `count` triangles at most;
    the given ones if they are no more.  What is returned in their stead is float32 and int32, and may not be closed.
    """
    if len(triangles) <= count:
        return vertices, triangles
    with _ONE_AT_A_TIME:
        return fast_simplification.simplify(np.asarray(vertices, np.float32), np.asarray(triangles, np.int32),
                                            target_count=count)
