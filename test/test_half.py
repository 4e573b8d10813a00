"""Networks with their convolutions in float16."""
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from student_graphs import student_inputs, student_model

from sam3d_ros.runtime.graph import PrecisionError
from sam3d_ros.runtime.half import with_half_convolutions
from sam3d_ros.runtime.signature import STUDENT


def run(data: bytes, inputs):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return dict(zip(STUDENT.outputs, session.run(list(STUDENT.outputs), inputs), strict=True))


def types(data: bytes) -> dict[str, set[str]]:
    """Operator -> the types of its results."""
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(data))
    of = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.output)}
    found: dict[str, set[str]] = {}
    for node in model.graph.node:
        found.setdefault(node.op_type, set()).add(TensorProto.DataType.Name(of[node.output[0]]))
    return found


def test_convolutions_are_half_and_what_is_delicate_is_not():
    model = student_model()
    half = with_half_convolutions(model.SerializeToString())
    found = types(half)
    assert found["Relu"] == {"FLOAT16"} and found["Conv"] == {"FLOAT16", "FLOAT"}       # the heads stay float32
    for operator in ("GridSample", "MatMul", "Div", "ReduceMax", "ReduceSum", "Gemm", "Tanh", "Sigmoid",
                     "GlobalAveragePool"):
        assert found[operator] == {"FLOAT"}, operator
    proto = onnx.load_model_from_string(half)
    assert [value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)] == [1] * 7
    wanted = [v.SerializeToString() for v in (*model.graph.input, *model.graph.output)]
    assert [v.SerializeToString() for v in (*proto.graph.input, *proto.graph.output)] == wanted


def test_its_numbers_are_nearly_the_same():
    data, inputs = student_model().SerializeToString(), student_inputs(2, 2)
    exact, half = run(data, inputs), run(with_half_convolutions(data), inputs)
    for name in STUDENT.outputs:
        assert 0 < np.abs(exact[name] - half[name]).max() < 5e-3, name


def test_weights_stored_as_half_and_cast_are_unfolded():
    model = student_model()
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            stored = numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), weight.name + "_stored")
            casts.append(helper.make_node("Cast", [stored.name], [weight.name], to=TensorProto.FLOAT))
            weight.CopyFrom(stored)
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)
    data, inputs = model.SerializeToString(), student_inputs()
    half = with_half_convolutions(data)
    assert types(half)["Conv"] == {"FLOAT16", "FLOAT"}
    exact, found = run(data, inputs), run(half, inputs)
    for name in STUDENT.outputs:
        np.testing.assert_allclose(found[name], exact[name], atol=5e-3)


def test_no_weight_is_kept_twice():
    model = student_model(width=8)
    assert len(with_half_convolutions(model.SerializeToString())) < 0.8 * model.ByteSize()


def test_networks_without_convolutions_are_refused():
    value = helper.make_tensor_value_info
    graph = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "g", [value("a", TensorProto.FLOAT, ["n"])],
                              [value("b", TensorProto.FLOAT, ["n"])])
    with pytest.raises(PrecisionError, match="no convolution"):
        with_half_convolutions(helper.make_model(graph).SerializeToString())


def test_weights_beyond_float16_are_refused_by_name():
    model = student_model()
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    weight = next(w for w in model.graph.initializer if w.name == convolution.input[1])
    values = numpy_helper.to_array(weight).copy()
    for largest, refused in ((65504.0, False), (-7e4, True)):
        values.flat[3] = largest
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        if not refused:
            with_half_convolutions(model.SerializeToString())
            continue
        with pytest.raises(PrecisionError, match=f"{weight.name} is too large for float16: 7e"):
            with_half_convolutions(model.SerializeToString())
