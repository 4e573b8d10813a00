"""What an NVIDIA GPU does at best, measured with PyTorch: products of large matrices, and copying in its memory."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from .torch_engine import without_tf32

_DEVICE = "cuda"
# Arithmetic -> type and side of the matrices: large enough that starting a product takes no time beside it.
_PRODUCTS = {"fp32": (torch.float32, 4096), "fp16": (torch.float16, 8192)}
_COPIED = 1 << 28            # bytes, more than any cache holds
_WARM_UP, _RUNS = 3, 7       # the best run counts


def gpu_rates() -> dict[str, float]:
    """GFLOP/s of products in float32 and float16 (a multiplication and an addition being two), GB/s read and written.

    Raises RuntimeError, saying why, where PyTorch has no GPU to compute on, or too little of its memory.
    """
    if not torch.cuda.is_available():
        build = f"for CUDA {torch.version.cuda} finds no GPU" if torch.version.cuda else "is built without CUDA"
        raise RuntimeError(f"PyTorch {torch.__version__} {build}")
    without_tf32()
    rates = {}
    for arithmetic, (kind, side) in _PRODUCTS.items():
        left, right = torch.randn(2, side, side, device=_DEVICE, dtype=kind)
        rates[f"{arithmetic}_gflops"] = 2e-9 * side ** 3 / _least_seconds(partial(torch.mm, left, right))
    source = torch.ones(_COPIED, dtype=torch.uint8, device=_DEVICE)
    target = torch.empty_like(source)
    rates["copy_gb_s"] = 2e-9 * _COPIED / _least_seconds(partial(target.copy_, source))
    return {name: round(rate, 1) for name, rate in rates.items()}


def _least_seconds(work: Callable[[], Any]) -> float:
    """Of the GPU, which starts late and runs on when `work` returns: its own clock tells."""
    for _ in range(_WARM_UP):
        work()
    times = []
    for _ in range(_RUNS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(1e-3 * start.elapsed_time(end))
    return min(times)
