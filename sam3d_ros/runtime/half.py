"""A network's convolutions in float16, written into its graph, for engines that compute as the graph says.

TensorRT 11 and TensorRT-RTX take precision from the graph alone ("strongly typed"); 10 can.  What is prone to overflow
or to rounding stays in float32: coordinates, look-ups, distances, reductions, normalisation, everything
exponential, and the last convolution before each output.
"""
from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .graph import PrecisionError, consumed, drop_unused_weights, unfolded_constants

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
# Follow their inputs into float16: they move numbers about, or make them hardly larger.
_FOLLOWERS = frozenset({
    "Relu", "LeakyRelu", "Add", "Concat", "Resize", "Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Identity",
    "MaxPool", "DepthToSpace", "SpaceToDepth", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "PRelu", "Pad"})
# Inputs of followers that are numbers of the network; their other inputs are shapes, scales and axes.
_DATA_INPUTS = {"Add": 2, "Concat": None, "Clip": 3, "PRelu": 2}
_LARGEST_HALF = 65504.0


def with_half_convolutions(model: bytes) -> bytes:
    """The ONNX model with all but its last convolutions in float16; inputs and outputs stay float32.

    Raises PrecisionError if a weight is too large for float16, or if there is no convolution to convert.
    """
    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    constants = unfolded_constants(graph)
    halves = _half_nodes(graph, constants)
    if not any(graph.node[index].op_type in _CONVOLUTIONS for index in halves):
        raise PrecisionError("the network has no convolution that could be computed in float16")
    _convert(graph, constants, halves)
    drop_unused_weights(graph)
    del graph.value_info[:]
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def _half_nodes(graph: onnx.GraphProto, constants: dict[str, np.ndarray]) -> set[int]:
    """Indices of the nodes to compute in float16."""
    heads = _heads(graph)
    dequantised = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    halves, half_tensors = set(), set()
    for index, node in enumerate(graph.node):
        if node.op_type in _CONVOLUTIONS and index not in heads:
            follows = node.input[0] not in dequantised      # which is computed in integers
        elif node.op_type in _FOLLOWERS:
            data = [name for name in _data_inputs(node) if not _is_float_constant(name, constants)]
            follows = bool(data) and all(name in half_tensors for name in data)
        else:
            follows = False
        if follows:
            halves.add(index)
            half_tensors.update(node.output)
    return halves


def _heads(graph: onnx.GraphProto) -> set[int]:
    """Indices of convolutions after which no other comes, on any way to an output."""
    before_convolution: set[str] = set()        # tensors from which a convolution is reached
    heads = set()
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        reaches = any(name in before_convolution for name in node.output)
        if node.op_type in _CONVOLUTIONS and not reaches:
            heads.add(index)
        if reaches or node.op_type in _CONVOLUTIONS:
            before_convolution.update(node.input)
    return heads


def _data_inputs(node: onnx.NodeProto) -> list[str]:
    """Names of the inputs that hold the network's numbers."""
    if node.op_type in _CONVOLUTIONS:
        return [name for name in node.input if name]
    count = _DATA_INPUTS.get(node.op_type, 1)
    return [name for name in node.input[:count] if name]


def _is_float_constant(name: str, constants: dict[str, np.ndarray]) -> bool:
    return name in constants and constants[name].dtype == np.float32


def _convert(graph: onnx.GraphProto, constants: dict[str, np.ndarray], halves: set[int]) -> None:
    """Cast what goes into and comes out of the nodes `halves`, and store their weights as float16."""
    produced = {name for index in halves for name in graph.node[index].output}
    consumers = consumed(graph.node[i] for i in range(len(graph.node)) if i not in halves)
    outputs = {value.name for value in graph.output}
    nodes: list[onnx.NodeProto] = []
    cast: dict[str, str] = {}
    for index, node in enumerate(graph.node):
        if index not in halves:
            nodes.append(node)
            continue
        data = set(_data_inputs(node))
        for position, name in enumerate(node.input):
            if name not in data:
                continue
            if name in produced:
                node.input[position] = name + "_half"
            elif name in constants:
                node.input[position] = _half_weight(graph, cast, name, constants[name])
            else:
                if name not in cast:
                    cast[name] = name + "_half"
                    nodes.append(helper.make_node("Cast", [name], [cast[name]], to=TensorProto.FLOAT16))
                node.input[position] = cast[name]
        produced_here = list(node.output)
        for position, name in enumerate(produced_here):
            node.output[position] = name + "_half"
        nodes.append(node)
        nodes += [helper.make_node("Cast", [name + "_half"], [name], to=TensorProto.FLOAT)
                  for name in produced_here if name in consumers or name in outputs]
    del graph.node[:]
    graph.node.extend(nodes)


def _half_weight(graph: onnx.GraphProto, cast: dict[str, str], name: str, array: np.ndarray) -> str:
    """Name of the float16 copy of a weight.  Bounds of Clip may be infinite or larger than float16 reaches."""
    if name not in cast:
        if array.size > 1 and np.abs(array).max() > _LARGEST_HALF:
            raise PrecisionError(f"weight {name} is too large for float16: {np.abs(array).max():.3g}")
        cast[name] = name + "_half"
        half = np.clip(array, -_LARGEST_HALF, _LARGEST_HALF).astype(np.float16)
        graph.initializer.append(numpy_helper.from_array(half, cast[name]))
    return cast[name]
