"""What a network costs: operations and bytes of one pass, counted in its ONNX graph; the physical limit of its time.

    python -m sam3d_ros.evaluation.operations base.onnx small.onnx -o benchmarks/results/operations.json
"""
from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from ..runtime.signature import STUDENT
from .environment import describe_environment, write_report

_COUNTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")


@dataclass(frozen=True)
class Cost:
    """Of one pass: operations: of convolutions and matrix products, a multiplication and an addition being two;
    weights: bytes in float16; activations: bytes in float16 written by those layers and read once.
    """

    operations: int
    weights: int
    activations: int

    def seconds(self, operations_per_second: float, bytes_per_second: float, width: int = 2) -> float:
        """Least time on a device of this matrix rate and memory bandwidth: whichever of the two takes longer.

        width: bytes of a number, 2 being those of float16
        """
        return max(self.operations / operations_per_second,
                   width / 2 * (self.weights + self.activations) / bytes_per_second)


def count(model: bytes, batch: int = 1, views: int = 1) -> Cost:
    """Cost of one pass of a student, from the shapes that its layers have when it runs."""
    proto = onnx.load_model_from_string(model)
    nodes = [node for node in proto.graph.node if node.op_type in _COUNTED]
    known = {value.name for value in proto.graph.output}
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name)
                              for name in {node.output[0] for node in nodes} - known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = {name: np.ones(shape, np.float32) for name, shape in
              STUDENT.input_shapes(batch=batch, views=views).items()}
    names = [node.output[0] for node in nodes]
    sizes = {name: array.size for name, array in zip(names, session.run(names, inputs), strict=True)}
    weights = {weight.name: weight.dims for weight in proto.graph.initializer}
    weights |= {node.output[0]: node.attribute[0].t.dims for node in proto.graph.node if node.op_type == "Constant"}
    casts = {node.output[0]: node.input[0] for node in proto.graph.node if node.op_type == "Cast"}
    operations = sum(2 * sizes[node.output[0]] * _inner(node, weights[casts.get(node.input[1], node.input[1])])
                     for node in nodes)
    return Cost(operations, 2 * sum(int(np.prod(dims)) for dims in weights.values()), 4 * sum(sizes.values()))


def _inner(node: onnx.NodeProto, weight: tuple[int, ...]) -> int:
    """Products that are added up for each value of a layer's result."""
    if node.op_type.startswith("Conv"):
        return int(np.prod(weight[1:]))
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return int(weight[-1] if transposed else weight[-2])


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    costs = {model.stem: asdict(count(model.read_bytes())) for model in args.models}
    write_report(args.out, describe_environment(),
                 {"benchmark": "operations", "objects": 1, "views": 1, "models": costs})
    print(costs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
