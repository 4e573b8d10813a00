"""Students from their exported form, in which normalisation is folded into the convolutions before it."""
from __future__ import annotations

import numpy as np
import onnx
import torch
from torch import nn

from ..runtime.graph import unfolded_constants
from .student import Student, StudentConfig

Weights = dict[str, tuple[np.ndarray, "np.ndarray | None"]]


def layer_weights(model: bytes) -> Weights:
    """Weight and bias, float32, of every convolution and linear layer of an exported student, by its name there."""
    graph = onnx.load_model_from_string(model).graph
    arrays = {name: array.astype(np.float32) for name, array in unfolded_constants(graph).items()}
    return {_module_name(node.name): (arrays[node.input[1]], arrays[node.input[2]] if len(node.input) > 2 else None)
            for node in graph.node if node.op_type in ("Conv", "Gemm") and node.input[1] in arrays}


def layers(network: nn.Module) -> list[tuple[str, nn.Module, nn.Module | None]]:
    """What `layer_weights` tells of: name, layer and, if it has no bias of its own, the normalisation behind it."""
    modules = dict(network.named_modules())
    found = []
    for name, module in modules.items():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
            parent, _, index = name.rpartition(".")
            found.append((name, module, None if module.bias is not None else modules[f"{parent}.{int(index) + 1}"]))
    return found


@torch.no_grad()
def pass_on(norm: nn.Module, bias: np.ndarray) -> None:
    """Let a normalisation of C channels do nothing but add `bias`, (C,) float32."""
    norm.running_mean.zero_()
    norm.running_var.fill_(1)
    norm.weight.fill_((1 + norm.eps) ** 0.5)
    norm.bias.copy_(torch.from_numpy(bias))


def student_from_onnx(model: bytes) -> Student:
    """The network of an exported student, for inference.  Raises KeyError or RuntimeError if it is not one."""
    weights = layer_weights(model)
    blocks = sum(name.startswith("deep3.") and name.endswith(".inner.1") for name in weights)
    return folded_student(StudentConfig(len(weights["stem.0"][0]), blocks), weights)


@torch.no_grad()
def folded_student(config: StudentConfig, weights: Weights) -> Student:
    """A network, for inference, of layers as `layer_weights` tells them.  Raises KeyError or RuntimeError if some lack
    or do not fit.
    """
    network = Student(config).eval()
    for name, layer, norm in layers(network):
        weight, bias = weights[name]
        layer.weight.copy_(torch.from_numpy(weight))
        if norm is None:
            layer.bias.copy_(torch.from_numpy(bias))
        else:
            pass_on(norm, bias)
    return network


def _module_name(node_name: str) -> str:
    """Dotted module name from a node's, in which sequences repeat their prefix: "/a/a.0/b/b.1/Conv" -> "a.0.b.1"."""
    parts: list[str] = []
    for part in node_name.strip("/").split("/")[:-1]:
        if parts and part.startswith(parts[-1] + "."):
            parts[-1] = part
        else:
            parts.append(part)
    return ".".join(parts)
