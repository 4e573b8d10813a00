"""A student that begins with the weights of an exported one, in which normalisation is folded into the convolutions."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from ..models.student import Student


def convolution_weights(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Weight and bias of every convolution and linear layer of an exported student, by its name in the network."""
    graph = onnx.load(path).graph
    arrays = {item.name: numpy_helper.to_array(item).astype(np.float32) for item in graph.initializer}
    arrays |= {node.output[0]: arrays[node.input[0]] for node in graph.node
               if node.op_type == "Cast" and node.input[0] in arrays}
    found = {}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm") and node.input[1] in arrays:
            bias = arrays[node.input[2]] if len(node.input) > 2 else None
            found[_module_name(node.name)] = arrays[node.input[1]], bias
    return found


def _module_name(node_name: str) -> str:
    """Dotted module name from a node's, in which sequences repeat their prefix: "/a/a.0/b/b.1/Conv" -> "a.0.b.1"."""
    parts: list[str] = []
    for part in node_name.strip("/").split("/")[:-1]:
        if parts and part.startswith(parts[-1] + "."):
            parts[-1] = part
        else:
            parts.append(part)
    return ".".join(parts)


def _fitted(old: np.ndarray, new: torch.Tensor) -> torch.Tensor | None:
    """`old` in the shape of `new`, inputs that it lacks set to 0; None if the shapes do not correspond."""
    if old.ndim != new.ndim or old.shape[0] != new.shape[0] or old.shape[2:] != tuple(new.shape[2:]) \
            or old.shape[1] > new.shape[1]:
        return None
    weight = torch.zeros_like(new)
    weight[:, :old.shape[1]] = torch.from_numpy(old.copy())
    return weight


@torch.no_grad()
def initialise_from_onnx(network: Student, path: Path, samples: dict[str, np.ndarray]) -> int:
    """Take over the weights of `path`; returns how many layers were.

    samples: inputs (as samples.fixed_samples gives them) on which each normalisation behind a taken convolution is set
    so that it passes on exactly what the folded convolution gave.  Filters are brought back to the size that they are
    initialised with, which the normalisation undoes: folded ones are several times smaller, and the same step of the
    optimiser would change them several times as much.
    """
    weights = convolution_weights(path)
    modules = dict(network.named_modules())
    taken = 0
    hooks = []
    for name, module in modules.items():
        if not isinstance(module, (nn.Conv2d, nn.Conv3d, nn.Linear)) or name not in weights:
            continue
        weight = _fitted(weights[name][0], module.weight)
        if weight is None:
            continue
        taken += 1
        module.weight.copy_(weight)
        bias = weights[name][1]
        if module.bias is not None:
            module.bias.copy_(torch.from_numpy(bias.copy()))
            continue
        parent, index = name.rsplit(".", 1)
        norm = modules[f"{parent}.{int(index) + 1}"]
        if isinstance(module, nn.Conv2d):        # of the backbone, which is frozen
            _pass_on(norm, torch.from_numpy(bias.copy()))
        else:
            factor = _resized(module.weight)
            hooks.append(norm.register_forward_pre_hook(_set_statistics(torch.from_numpy(bias.copy()), factor)))
    network.eval()
    network(*(torch.from_numpy(samples[name]) for name in ("crops", "views", "support")))
    for hook in hooks:
        hook.remove()
    network.train()
    return taken


def _pass_on(norm: nn.BatchNorm2d, bias: torch.Tensor) -> None:
    """Let the normalisation do nothing but add `bias`."""
    norm.running_mean.zero_()
    norm.running_var.fill_(1)
    norm.weight.fill_((1 + norm.eps) ** 0.5)
    norm.bias.copy_(bias)


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
