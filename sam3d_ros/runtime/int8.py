"""A network's 3-D convolutions in 8-bit integers, written into its graph as QuantizeLinear and DequantizeLinear.

Engines that have integer kernels (OpenVINO, TensorRT) compute in them what stands between such a pair and the next.
Weights have a scale per filter, what a convolution reads has one for all (Nagel et al. 2021, arXiv:2106.08295, section
2.4): that of the range of its numbers on samples, which is kept in the file since it was exported.
"""
from __future__ import annotations

import json
import math

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .graph import PrecisionError, drop_unused_weights, unfolded_constants

RANGES_KEY = "activation_ranges"      # key in the file's metadata: JSON, name of a convolution -> [least, largest]
Ranges = dict[str, tuple[float, float]]
WEIGHT_STEPS = 127                # to the largest weight of a filter
FEW_WEIGHT_STEPS = 63             # where two products are added in 16 bits: 2 x 255 x 63 < 32768


def with_int8_convolutions(model: bytes, signed: bool = False, weight_steps: int = WEIGHT_STEPS) -> bytes:
    """The ONNX model with those convolutions in int8 whose ranges the file tells; inputs and outputs stay float32.

    signed: what convolutions read becomes int8 with 0 at 0, as TensorRT wants it, instead of uint8 with its zero where
    it uses all 256 steps; weight_steps: WEIGHT_STEPS, or FEW_WEIGHT_STEPS for processors that add products in 16 bits
    Raises PrecisionError if there are no ranges, or if they are not those of this network.
    """
    proto = onnx.load_model_from_string(model)
    ranges, graph = activation_ranges(proto), proto.graph
    constants = unfolded_constants(graph)
    nodes: list[onnx.NodeProto] = []
    added: set[str] = set()
    for node in graph.node:
        if node.name in ranges:
            if node.op_type != "Conv" or node.input[1] not in constants:
                raise PrecisionError(f"{node.name} is no convolution with weights")
            scale, zero = _activation_scale(*ranges[node.name], signed)
            nodes += _quantised_input(graph, node, scale, zero, added)
            nodes.append(_quantised_weight(graph, node, constants[node.input[1]], weight_steps))
        nodes.append(node)
    if len(ranges) != sum(node.name in ranges for node in graph.node):
        raise PrecisionError("the ranges of the file are not those of its convolutions")
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused_weights(graph)
    del graph.value_info[:]
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def activation_ranges(proto: onnx.ModelProto) -> Ranges:
    """Least and largest number that each convolution reads, by its name.  Raises PrecisionError if a file has none."""
    text = next((item.value for item in proto.metadata_props if item.key == RANGES_KEY), None)
    if text is None:
        raise PrecisionError("the file does not tell the ranges of its activations")
    try:
        ranges = {name: (float(low), float(high)) for name, (low, high) in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise PrecisionError(f"the ranges of activations are not readable: {error}") from None
    if not ranges or not all(math.isfinite(low) and math.isfinite(high) and low <= 0 < high
                             for low, high in ranges.values()):
        raise PrecisionError("the ranges of activations are not finite, or do not hold 0")
    return ranges


def _activation_scale(low: float, high: float, signed: bool) -> tuple[np.float32, np.generic]:
    """Size of a step, and which step 0 is."""
    if signed:
        return np.float32(max(-low, high) / 127), np.int8(0)
    step = (high - low) / 255
    return np.float32(step), np.uint8(round(-low / step))


def _quantised_input(graph: onnx.GraphProto, node: onnx.NodeProto, scale: np.float32, zero: np.generic,
                     added: set[str]) -> list[onnx.NodeProto]:
    """Nodes that round what `node` reads, which it reads from then on; none if another convolution has them already.

    added: names of the tensors that have them
    """
    name = node.input[0]
    node.input[0] = f"{name}_dequantised"
    if name in added:
        return []
    added.add(name)
    steps = [f"{name}_scale", f"{name}_zero"]
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), key)
                             for key, value in zip(steps, (scale, zero), strict=True))
    return [helper.make_node("QuantizeLinear", [name, *steps], [f"{name}_quantised"]),
            helper.make_node("DequantizeLinear", [f"{name}_quantised", *steps], [f"{name}_dequantised"])]


def _quantised_weight(graph: onnx.GraphProto, node: onnx.NodeProto, weight: np.ndarray, most: int) -> onnx.NodeProto:
    """The node that `node` reads its weight from, which is stored as int8, (filters, ...)."""
    name = node.input[1]
    node.input[1] = f"{name}_dequantised"
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    scale = (np.maximum(largest, 1e-8) / most).astype(np.float32)
    steps = np.rint(weight / scale.reshape(-1, *(1,) * (weight.ndim - 1))).clip(-most, most).astype(np.int8)
    parts = {f"{name}_quantised": steps, f"{name}_scale": scale, f"{name}_zero": np.zeros(len(weight), np.int8)}
    graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in parts.items())
    return helper.make_node("DequantizeLinear", list(parts), [node.input[1]], axis=0)
