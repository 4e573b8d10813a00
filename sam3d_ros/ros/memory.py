"""The memory of a process that runs for months: no more of it than is used, and no pauses to look through it."""
from __future__ import annotations

import ctypes
import gc

# Parameters of mallopt(3), and their values here.  Blocks of at least so many bytes are mapped one by one, and given
# back when they are freed: the network's weights and volumes, not images of 640 x 480 pixels, which come too often.
_M_MMAP_THRESHOLD, _LEAST_MAPPED = -3, 4 << 20
# Bytes that may lie free at the end of a heap; as many as glibc would take for that threshold.
_M_TRIM_THRESHOLD, _MOST_FREE = -1, 2 * _LEAST_MAPPED
# Heaps that threads share; glibc would take up to 8 per core, each with its own free blocks.
_M_ARENA_MAX, _HEAPS = -8, 4


def limit_heaps() -> None:
    """Keep freed memory from staying in heaps; to be called before a process starts threads.  Elsewhere than with glibc
    it does nothing.

    As it is, glibc maps ever larger blocks in heaps once a large one has been freed (up to 32 MiB; mallopt(3),
    M_MMAP_THRESHOLD). Then every unloading of the model leaves holes in them: some 100 MiB after the first.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for parameter, value in ((_M_MMAP_THRESHOLD, _LEAST_MAPPED), (_M_TRIM_THRESHOLD, _MOST_FREE),
                                 (_M_ARENA_MAX, _HEAPS)):
            library.mallopt(parameter, value)


def exempt_from_collection() -> None:
    """Keep Python's collector of cyclic garbage from what there is by now; to be called when all is loaded.

    Modules, compiled functions and a model are some 240,000 objects.  Looking at all of them halts every thread for a
    tenth of a second and more, once in a minute or two.
    """
    gc.unfreeze()                                  # what was exempt before, of which some may be garbage by now
    gc.collect()
    gc.freeze()
