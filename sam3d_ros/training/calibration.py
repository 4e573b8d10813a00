"""Ranges of what convolutions read, for engines that compute them in int8; kept in the exported file."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from ..runtime.graph import unfolded_constants
from ..runtime.int8 import RANGES_KEY, Ranges
from ..runtime.signature import STUDENT

# The layout is read from what these convolutions give.  They are few operations, and in int8 they made the centre and
# the scale of one model wrong by 1.5 % of the cube, where 0.4 % is left without them.
_EXACT = "/down3/"


def calibrate(path: Path, samples: dict[str, np.ndarray]) -> None:
    """Write into an exported student the ranges of its activations on samples, as samples.fixed_samples gives them."""
    model = onnx.load(path)
    helper.set_model_props(model, {RANGES_KEY: json.dumps(measured_ranges(model, samples))})
    onnx.save(model, path)


def measured_ranges(model: onnx.ModelProto, samples: dict[str, np.ndarray]) -> Ranges:
    """Least and largest number that each 3-D convolution wider than a voxel reads, by its name; 0 is among them.

    Those named _EXACT are left out, and so will not be computed in int8.
    """
    listening = onnx.ModelProto()
    listening.CopyFrom(model)
    constants = unfolded_constants(listening.graph)
    shapes = {node.name: constants[node.input[1]].shape for node in listening.graph.node if node.op_type == "Conv"}
    read = {node.name: node.input[0] for node in listening.graph.node if node.op_type == "Conv"
            and len(shapes[node.name]) == 5 and shapes[node.name][2] > 1 and not node.name.startswith(_EXACT)}
    tensors = list(dict.fromkeys(read.values()))
    listening.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors)
    session = onnxruntime.InferenceSession(listening.SerializeToString(), providers=["CPUExecutionProvider"])
    low, high = np.zeros(len(tensors)), np.zeros(len(tensors))
    for index in range(len(samples["crops"])):
        activations = session.run(tensors, {name: samples[name][index:index + 1] for name in STUDENT.inputs})
        low = np.minimum(low, [array.min() for array in activations])
        high = np.maximum(high, [array.max() for array in activations])
    found = dict(zip(tensors, zip(low.tolist(), high.tolist(), strict=True), strict=True))
    return {name: found[tensor] for name, tensor in read.items()}
