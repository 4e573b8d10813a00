"""Common steps of rewriting an ONNX graph for another precision."""
from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper


class PrecisionError(ValueError):
    """The network cannot be computed in the wanted precision."""


def unfolded_constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Weights of the graph by name; weights stored as float16 and cast by a node become float32 weights."""
    stored = {weight.name: weight for weight in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            stored[node.output[0]] = node.attribute[0].t
            weight = TensorProto()
            weight.CopyFrom(node.attribute[0].t)
            weight.name = node.output[0]
            graph.initializer.append(weight)
        elif node.op_type == "Cast" and node.input[0] in stored and node.attribute[0].i == TensorProto.FLOAT:
            array = numpy_helper.to_array(stored[node.input[0]]).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
            stored[node.output[0]] = graph.initializer[-1]
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    drop_unused_weights(graph)
    return {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}


def drop_unused_weights(graph: onnx.GraphProto) -> None:
    """Remove the weights that no node reads."""
    used = consumed(graph.node)
    weights = [weight for weight in graph.initializer if weight.name in used]
    del graph.initializer[:]
    graph.initializer.extend(weights)


def consumed(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Names of all tensors that the nodes read."""
    return {name for node in nodes for name in node.input}
