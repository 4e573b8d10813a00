"""Export of a trained checkpoint to the ONNX file that the engines load, and how it was trained."""
from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from ..evaluation.environment import check_report_path, describe_environment, write_report
from ..models.student import Student, StudentConfig
from ..runtime.engine import ModelFile
from ..runtime.golden import write_golden
from ..runtime.signature import STUDENT
from ..synth.shapes import KINDS
from ..terminal import UserError
from . import checkpoint
from .calibration import calibrate
from .meshes import MeshStore
from .samples import Curriculum, fixed_samples

OPSET = 17
_CALIBRATED = 48         # samples on which the ranges of activations are measured


def load_student(path: Path) -> Student:
    """The averaged network of a checkpoint, ready for inference.  Raises OSError, UserError."""
    state = checkpoint.load(path)
    model = Student(StudentConfig(state["config"]["width"], state["config"]["blocks"]))
    model.load_state_dict({k.removeprefix("module."): v for k, v in state["average"].items() if k != "n_averaged"})
    return model.eval()


def export(model: Student, path: Path) -> None:
    """Write `model` as ONNX: batch and views dynamic, batch normalisation folded into convolutions, weights in float16.

    The graph computes in float32, or in what the engine is told to use; only the file is half as large.
    """
    inputs = tuple(torch.rand(shape) for shape in STUDENT.input_shapes(batch=2, views=3).values())
    axes = {name: {i: axis for i, axis in enumerate(shape) if isinstance(axis, str)}
            for name, shape in {**STUDENT.inputs, **STUDENT.outputs}.items()}
    content = io.BytesIO()
    with warnings.catch_warnings():
        # The newer exporter, which this warning recommends, fixes the batch size in the reshapes.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(model, inputs, content, dynamo=False, opset_version=OPSET, dynamic_axes=axes,
                          input_names=list(STUDENT.inputs), output_names=list(STUDENT.outputs))
    onnx.save(_half_weights(onnx.load_model_from_string(content.getvalue())), path)


def training_report(path: Path) -> dict:
    """Config, meshes, samples and log of the run that the checkpoint `path` lies in; for JSON.

    Raises OSError, UserError.
    """
    state = checkpoint.load(path)
    store = MeshStore.load(path.parents[1] / "train_meshes")
    log = _log(path.parent / "log.jsonl")
    procedural = int(np.isin(store.name, KINDS).sum())
    return {"config": state["config"], "minutes": round(state["elapsed"] / 60, 1),
            "meshes": {"train split": len(store) - procedural, "procedural": procedural},
            "samples": log[-1]["samples"], "log": log}


def _log(path: Path) -> list[dict]:
    """Rows of a run's log.  Raises OSError, and UserError without any."""
    rows = [json.loads(line) for line in checkpoint.whole_lines(path).splitlines()]
    if not rows:
        raise UserError(f"{path} is empty: train until the next report, then export again")
    return rows


def _half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its float32 weights stored as float16, each followed by a Cast that engines fold when loading.

    Only weights of layers: what places voxels in the crops stays exact.
    """
    casts = []
    layers = {name for node in model.graph.node if node.op_type in ("Conv", "Gemm") for name in node.input[1:]}
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT and weight.name in layers:
            name = weight.name
            half = numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), name + "_half")
            weight.CopyFrom(half)
            casts.append(helper.make_node("Cast", [half.name], [name], to=TensorProto.FLOAT))
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)
    onnx.checker.check_model(model)
    return model


def export_checkpoint(file: Path, path: Path, report: Path | None) -> None:
    """Write the student of a checkpoint, in its folder of a run, as ONNX, which appears under its name only when
    complete; beside it its golden outputs, by which engines are checked; and how it was trained as JSON to `report`.

    Raises OSError, UserError.
    """
    file = file.absolute()          # its run is the folder above its own
    check_report_path(path)
    if report:
        check_report_path(report)
        figures = training_report(file)
    student = load_student(file)
    store = MeshStore.load(file.parents[1] / "train_meshes")
    partial = path.with_name(path.name + ".partial")
    try:
        export(student, partial)
        calibrate(partial, fixed_samples(store, _CALIBRATED, 1, Curriculum(), views=3))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    write_golden(ModelFile(path, path.read_bytes()))
    if report:
        write_report(report, describe_environment(), figures)
