"""Export of a trained checkpoint to the ONNX file that the engines load.

    python -m sam3d_ros.training.export training_runs/student/checkpoint.pt sam3d_ros/weights/student.onnx
"""
from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from ..models.student import Student
from ..runtime.signature import EVIDENCE_STUDENT, INPUT_NAME, OUTPUT_NAME

OPSET = 17


def load_student(checkpoint: Path) -> Student:
    """The averaged network of a checkpoint, ready for inference."""
    state = torch.load(checkpoint, weights_only=True)["average"]
    model = Student()
    model.load_state_dict({k.removeprefix("module."): v for k, v in state.items() if k != "n_averaged"})
    return model.eval()


def export(model: Student, path: Path) -> None:
    """Write `model` as ONNX: batch dynamic, batch normalisation folded into convolutions, weights stored in float16.

    The graph computes in float32, or in what the engine is told to use; only the file is half as large.
    """
    with warnings.catch_warnings():
        # The newer exporter, which this warning recommends, fixes the batch size in the reshapes.
        warnings.simplefilter("ignore", DeprecationWarning)
        evidence = torch.zeros(EVIDENCE_STUDENT.input_shapes(batch=2)[INPUT_NAME])
        torch.onnx.export(model, (evidence,), str(path), dynamo=False, opset_version=OPSET, input_names=[INPUT_NAME],
                          output_names=[OUTPUT_NAME],
                          dynamic_axes={INPUT_NAME: {0: "batch"}, OUTPUT_NAME: {0: "batch"}})
    onnx.save(_half_weights(onnx.load(path)), path)


def _half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its float32 weights stored as float16, each followed by a Cast that engines fold when loading."""
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            name = weight.name
            half = numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), name + "_half")
            weight.CopyFrom(half)
            casts.append(helper.make_node("Cast", [half.name], [name], to=TensorProto.FLOAT))
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)
    onnx.checker.check_model(model)
    return model


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("onnx", type=Path)
    args = parser.parse_args()
    export(load_student(args.checkpoint), args.onnx)


if __name__ == "__main__":
    main()
