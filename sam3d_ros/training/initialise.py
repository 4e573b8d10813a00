"""Starts a student with the weights of an exported one, in which normalisation is folded into the convolutions."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..models.folded import layer_weights, layers, pass_on, student_from_onnx
from ..models.student import Student
from ..terminal import UserError
from .narrow import narrowed


def _fitted(old: np.ndarray, new: torch.Tensor) -> torch.Tensor | None:
    """`old` in the shape of `new`, inputs that it lacks set to 0; None if the shapes do not correspond."""
    if old.ndim != new.ndim or old.shape[0] != new.shape[0] or old.shape[2:] != tuple(new.shape[2:]) \
            or old.shape[1] > new.shape[1]:
        return None
    weight = torch.zeros_like(new)
    weight[:, :old.shape[1]] = torch.from_numpy(old)
    return weight


def check_start(path: Path, width: int) -> None:
    """Raise UserError if `initialise_from_onnx` could make nothing of `path` for a network of `width`; OSError."""
    model = path.read_bytes()
    try:
        wide = student_from_onnx(model).config
    except Exception as error:              # protobuf's own, and those of a graph that is another network's
        raise UserError(f"{path} is no exported student ({type(error).__name__})") from None
    if wide.width > width and wide.blocks != 1:
        raise UserError(f"{path} has {wide.blocks} residual blocks a level: only students with one can be narrowed")


@torch.no_grad()
def initialise_from_onnx(network: Student, path: Path, samples: dict[str, np.ndarray]) -> int:
    """Take over the weights of `path`, or those of its imitation if it is wider; returns how many layers were.

    samples: inputs (as samples.fixed_samples gives them) on which each normalisation behind a taken convolution is set
    so that it passes on exactly what the folded convolution gave.  Filters are brought back to the size that they are
    initialised with, which the normalisation undoes: folded ones are several times smaller, and the same step of the
    optimiser would change them several times as much.
    """
    model = path.read_bytes()
    weights = layer_weights(model)
    if len(weights["stem.0"][0]) > network.config.width:
        weights = narrowed(student_from_onnx(model), network.config.width, weights, samples)
    taken, hooks = 0, []
    for name, layer, norm in layers(network):
        weight = _fitted(weights[name][0], layer.weight) if name in weights else None
        if weight is None:
            continue
        taken += 1
        layer.weight.copy_(weight)
        bias = weights[name][1]
        if norm is None:
            layer.bias.copy_(torch.from_numpy(bias))
        elif isinstance(layer, nn.Conv2d):        # of the backbone, which is frozen
            pass_on(norm, bias)
        else:
            hooks.append(norm.register_forward_pre_hook(
                _set_statistics(torch.from_numpy(bias), _resized(layer.weight))))
    network.eval()
    network(*(torch.from_numpy(samples[name]) for name in ("crops", "views", "support")))
    for hook in hooks:
        hook.remove()
    network.train()
    return taken


def _resized(weight: torch.Tensor) -> torch.Tensor:
    """Scale every filter of `weight` to the standard deviation 1 / sqrt(3 fan-in), in place; the factors (filters,)."""
    filters = weight.flatten(1)
    factor = (3 * filters.shape[1]) ** -0.5 / filters.square().mean(dim=1).sqrt().clamp_min(1e-9)
    weight.mul_(factor[:, None, None, None, None])
    return factor


def _set_statistics(bias: torch.Tensor, factor: torch.Tensor):
    def hook(norm: nn.BatchNorm3d, inputs: tuple[torch.Tensor]) -> None:
        axes = (0, 2, 3, 4)
        mean, variance = inputs[0].mean(axes), inputs[0].var(axes)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt() / factor)
        norm.bias.copy_(mean / factor + bias)
    return hook
