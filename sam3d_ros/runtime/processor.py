"""This machine's processor, and which arithmetic it has instructions for."""
from __future__ import annotations

import platform
from pathlib import Path

from llvmlite.binding import get_host_cpu_features

# Those that decide how fast a network is, as LLVM names them: x86, then ARM.
_INSTRUCTIONS = ("avx2", "avx512f", "avxvnni", "avx512vnni", "avx512bf16", "amx-int8", "amx-bf16",
                 "dotprod", "i8mm", "bf16", "sve")


def cpu_model() -> str:
    """Model name of the processor, as Linux reports it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()          # /proc/cpuinfo has no model name on some ARM boards


def instructions() -> list[str]:
    """The processor's instruction sets, of those that decide how fast a network is."""
    return [name for name in _INSTRUCTIONS if _has(name)]


def has_bfloat16() -> bool:
    """Whether it multiplies bfloat16.  Where it does not, PyTorch is slower in bfloat16 by far than in float32."""
    return _has("avx512bf16", "amx-bf16", "bf16")


def sums_bytes_exactly() -> bool:
    """Whether a dot product of uint8 and int8 is summed in 32 bits.  x86 without VNNI adds every two products in 16
    bits, and stops at 32767."""
    return platform.machine().lower() not in ("x86_64", "amd64") or _has("avxvnni", "avx512vnni")


def _has(*features: str) -> bool:
    found = get_host_cpu_features()
    return any(found.get(feature, False) for feature in features)
