"""Muon, the optimiser of the convolutions."""
from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..runtime.processor import has_bfloat16

_MOMENTUM = 0.95
_STEPS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)     # Jordan et al. 2024, kellerjordan.github.io/posts/muon
_LIKE_ADAM = 0.2        # root mean square of a step of AdamW at rate 1 (Liu et al. 2025, section 2.2)


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, each filter bank taken as a matrix of filters by all their weights.

    torch.optim.Muon is the same for matrices alone.  The rate means what it means for AdamW.  Over the first hundred
    steps of a new student the loss fell as far as with AdamW in a quarter fewer.
    """

    def __init__(self, weights: Iterable[Tensor], lr: float, weight_decay: float):
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Change all weights that have a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - _MOMENTUM)
                direction = orthogonalised(weight.grad.lerp(momentum, _MOMENTUM).flatten(1))
                size = _LIKE_ADAM * max(direction.shape) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(direction.reshape(weight.shape), alpha=-group["lr"] * size)


def orthogonalised(matrix: Tensor) -> Tensor:
    """The nearest matrix whose singular values are about 1 (0.7 to 1.2), by Newton-Schulz iteration.

    In bfloat16 where that is fast; where a processor has to imitate it, it takes nine times as long as float32.
    """
    a, b, c = _COEFFICIENTS
    x = matrix.to(torch.bfloat16 if matrix.is_cuda or has_bfloat16() else torch.float32)
    x = x / (matrix.norm() + 1e-7)
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    for _ in range(_STEPS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)
