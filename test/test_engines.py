"""Engines give the network's numbers and refuse what is not a student."""
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sam3d_ros.runtime.engine import (
    ENGINES,
    INPUT_NAME,
    OUTPUT_NAME,
    SHIPPED_MODEL,
    EngineError,
    available_engines,
    load_engine,
)


def write_model(path, input_name=INPUT_NAME, channels=3):
    """A model with a student's signature whose logits are twice the first evidence channel."""
    shape = ["batch", channels, 64, 64, 64]
    nodes = [helper.make_node("Split", [input_name], [f"c{i}" for i in range(channels)], axis=1, num_outputs=channels),
             helper.make_node("Add", ["c0", "c0"], [OUTPUT_NAME])]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, shape)],
                              [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["batch", 1, 64, 64, 64])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.mark.parametrize("name", ENGINES)
def test_numbers_and_any_batch_size(name, tmp_path):
    engine = load_engine(name, write_model(tmp_path / "m.onnx"), "fp32", threads=1)
    assert engine.name == f"{name} fp32"
    for batch in (1, 3, 2):
        evidence = np.random.default_rng(batch).normal(size=(batch, 3, 64, 64, 64)).astype(np.float32)
        first = engine.infer(evidence)
        np.testing.assert_allclose(first, 2 * evidence[:, :1], rtol=1e-6)
        engine.infer(evidence + 1)
        np.testing.assert_allclose(first, 2 * evidence[:, :1], rtol=1e-6)   # results are not overwritten later
    engine.close()


@pytest.mark.parametrize("name", ENGINES)
def test_bad_model_files_are_named(name, tmp_path):
    with pytest.raises(EngineError) as missing:
        load_engine(name, tmp_path / "none.onnx")
    assert missing.value.reason == "MODEL_MISSING" and "none.onnx" in missing.value.detail

    good = write_model(tmp_path / "m.onnx").read_bytes()
    for content in (good[:len(good) // 2], b"", b"not a model at all", bytes(1000)):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(EngineError) as invalid:
            load_engine(name, tmp_path / "bad.onnx")
        assert invalid.value.reason in ("MODEL_INVALID", "MODEL_MISMATCH")

    for other in (dict(input_name="evidence_v0"), dict(channels=4)):
        with pytest.raises(EngineError) as mismatch:
            load_engine(name, write_model(tmp_path / "other.onnx", **other))
        assert mismatch.value.reason == "MODEL_MISMATCH"


def test_unknown_engine_is_refused(tmp_path):
    with pytest.raises(EngineError) as error:
        load_engine("tensorflow", write_model(tmp_path / "m.onnx"))
    assert error.value.reason == "ENGINE_UNAVAILABLE" and available_engines()[0] in error.value.detail


def test_a_model_cannot_name_other_files(tmp_path):
    """Weights stored outside the file are not read: the bytes are parsed, not the folder."""
    weights = onnx.numpy_helper.from_array(np.ones((1, 1, 1, 1, 1), np.float32), "w")
    model = onnx.load(write_model(tmp_path / "m.onnx"))
    model.graph.initializer.append(weights)
    model.graph.node[-1].input[1] = "w"
    onnx.save(model, tmp_path / "external.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    for name in ENGINES:
        with pytest.raises(EngineError):
            load_engine(name, tmp_path / "external.onnx")


def test_the_shipped_model_agrees_in_all_engines():
    evidence = np.zeros((2, 3, 64, 64, 64), np.float32)
    depth = np.linspace(1, -1, 64, dtype=np.float32)
    evidence[:, 0] = np.clip(depth * 10, -1, 1)
    evidence[:, 1, 20:44, 20:44] = 1
    evidence[:, 2] = 1
    reference = load_engine("onnxruntime").infer(evidence)
    assert SHIPPED_MODEL.stat().st_size < 25e6 and (reference > 0).any() and (reference < 0).any()
    for precision, tolerance in (("fp32", 1e-3), ("auto", 0.15)):
        logits = load_engine("openvino", precision=precision).infer(evidence)
        near = np.abs(reference) < 4
        assert np.abs(logits - reference)[near].mean() < tolerance
        assert ((logits > 0) == (reference > 0)).mean() > 0.998
