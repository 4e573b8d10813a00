"""Networks with their convolutions in int8."""
import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from student_graphs import student_inputs, student_model

from sam3d_ros.runtime import golden, precision
from sam3d_ros.runtime.engine import SHIPPED_MODELS, EngineError, load_engine, read_model
from sam3d_ros.runtime.graph import PrecisionError
from sam3d_ros.runtime.int8 import FEW_WEIGHT_STEPS, RANGES_KEY, WEIGHT_STEPS, activation_ranges, with_int8_convolutions
from sam3d_ros.runtime.signature import STUDENT
from sam3d_ros.training.calibration import calibrate


@pytest.fixture
def model(tmp_path):
    """A student with its ranges, measured on three objects."""
    proto = student_model()
    for index, node in enumerate(node for node in proto.graph.node if node.op_type == "Conv"):
        node.name = f"convolution{index}"
    path = tmp_path / "student.onnx"
    onnx.save(proto, path)
    calibrate(path, student_inputs(3, 2))
    return path


def with_text(model, text):
    """The model's bytes with other text in the place of its ranges."""
    proto = onnx.load(model)
    helper.set_model_props(proto, {RANGES_KEY: text})
    return proto.SerializeToString()


def test_ranges_are_those_of_what_is_read(model):
    proto = onnx.load(model)
    ranges = activation_ranges(proto)
    kernels = {node.name: next(w.dims for w in proto.graph.initializer if w.name == node.input[1])
               for node in proto.graph.node if node.op_type == "Conv"}
    assert set(ranges) == {name for name, dims in kernels.items() if len(dims) == 5 and dims[2] > 1} and len(ranges) > 5
    after_relu = {node.output[0] for node in proto.graph.node if node.op_type == "Relu"}
    reads = {node.name: node.input[0] for node in proto.graph.node if node.op_type == "Conv"}
    assert any(reads[name] in after_relu for name in ranges)
    assert all(low == 0 for name, (low, high) in ranges.items() if reads[name] in after_relu)


@pytest.mark.parametrize("signed", [False, True])
def test_numbers_are_nearly_the_same_and_weights_are_bytes(model, signed):
    data = with_int8_convolutions(model.read_bytes(), signed)
    proto = onnx.load_model_from_string(data)
    count = len(activation_ranges(proto))
    operators = [node.op_type for node in proto.graph.node]
    assert operators.count("DequantizeLinear") == count + operators.count("QuantizeLinear")
    stored = [w for w in proto.graph.initializer if w.data_type == TensorProto.INT8 and len(w.dims) == 5]
    assert len(stored) == count
    zeros = {w.data_type for w in proto.graph.initializer if w.name.endswith("_zero") and not w.dims}
    assert zeros == {TensorProto.INT8 if signed else TensorProto.UINT8}
    model.with_name("int8.onnx").write_bytes(data)
    inputs = student_inputs(2, 2)
    exact = load_engine("onnxruntime", model, "fp32").infer(inputs)
    found = load_engine("onnxruntime", model.with_name("int8.onnx"), "fp32").infer(inputs)
    for name in STUDENT.outputs:
        spread = np.abs(exact[name]).max()
        assert 0 < np.abs(found[name] - exact[name]).mean() < 0.02 * spread, name


@pytest.mark.parametrize(("exact", "steps"), [(True, WEIGHT_STEPS), (False, FEW_WEIGHT_STEPS)])
def test_weights_suit_the_processor(model, monkeypatch, exact, steps):
    monkeypatch.setattr(precision, "sums_bytes_exactly", lambda: exact)
    proto = onnx.load_model_from_string(precision.typed(read_model(str(model)), "int8"))
    stored = [onnx.numpy_helper.to_array(w) for w in proto.graph.initializer
              if w.data_type == TensorProto.INT8 and len(w.dims) == 5]
    largest = {int(np.abs(w.astype(int)).reshape(len(w), -1).max(axis=1).min()) for w in stored}
    assert largest == {steps}                  # of every filter: all steps are used, and no more
    assert 2 * 255 * FEW_WEIGHT_STEPS <= np.iinfo(np.int16).max


def test_openvino_computes_in_int8(model):
    inputs = student_inputs(2, 2)
    engine = load_engine("openvino", model, "int8")
    assert engine.name == "openvino int8"
    exact, found = load_engine("openvino", model, "fp32").infer(inputs), engine.infer(inputs)
    assert (np.abs(found["distance"] - exact["distance"]) < 0.2).mean() > 0.99


@pytest.mark.parametrize(("text", "said"), [
    ("", "not readable"), ("[1]", "not readable"), ('{"a": 3}', "not readable"), ('{"a": [0, "x"]}', "not readable"),
    ("{}", "do not hold 0"), ('{"a": [0, 0]}', "do not hold 0"), ('{"a": [1, 2]}', "do not hold 0"),
    ('{"a": [0, Infinity]}', "not finite"), ('{"a": [0, NaN]}', "not finite"), ('{"a": [0, 1]}', "not those of its")])
def test_ranges_that_cannot_be_used_are_named(model, text, said):
    with pytest.raises(PrecisionError, match=said):
        with_int8_convolutions(with_text(model, text))


def test_ranges_of_what_is_no_convolution_are_refused(model):
    relu = next(node.name for node in onnx.load(model).graph.node if node.op_type == "Relu")
    with pytest.raises(PrecisionError, match="no convolution"):
        with_int8_convolutions(with_text(model, json.dumps({relu: [0, 1]})))


def test_a_model_without_ranges_has_no_int8_and_auto_takes_another(tmp_path):
    path = tmp_path / "student.onnx"
    path.write_bytes(student_model().SerializeToString())
    with pytest.raises(EngineError) as error:
        load_engine("openvino", path, "int8")
    assert error.value.reason == "ENGINE_UNAVAILABLE" and "does not tell the ranges" in error.value.detail
    assert "int8" not in load_engine("cpu", path).name


@pytest.mark.parametrize("name", SHIPPED_MODELS)
def test_shipped_models_pass_the_check_in_int8(name):
    model = read_model(name)
    found = golden.check(load_engine("openvino", name, "int8"), golden.reference(model))
    assert found.accepted, found
