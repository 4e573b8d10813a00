"""Engines give the network's numbers and refuse what is not a student."""
import importlib
import sys
from importlib.machinery import PathFinder
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from student_graphs import student_inputs, student_model

from sam3d_ros.runtime.engine import (
    CPU_ENGINES,
    ENGINES,
    SHIPPED_MODELS,
    BuildOptions,
    EngineError,
    available_engines,
    load_engine,
    load_named,
    parsed,
    read_model,
)
from sam3d_ros.runtime.golden import golden_inputs
from sam3d_ros.runtime.precision import typed
from sam3d_ros.runtime.processor import has_bfloat16
from sam3d_ros.runtime.signature import STUDENT, Signature


@pytest.fixture(scope="module")
def model_bytes() -> bytes:
    return student_model().SerializeToString()


@pytest.fixture
def model(model_bytes, tmp_path):
    path = tmp_path / "student.onnx"
    path.write_bytes(model_bytes)
    return path


def changed(model, edit):
    """The model file after `edit(ModelProto)`."""
    proto = onnx.load(model)
    edit(proto)
    path = model.with_name("changed.onnx")
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_one_network_for_any_number_of_objects_and_views(name, model):
    engine = load_engine(name, model, "fp32", threads=1, signature=STUDENT)
    assert engine.name == f"{name} fp32"
    alone = [engine.infer(student_inputs(1, 2, seed=seed)) for seed in range(3)]
    inputs = [student_inputs(1, 2, seed=seed) for seed in range(3)]
    together = engine.infer({key: np.concatenate([one[key] for one in inputs]) for key in STUDENT.inputs})
    for key, shape in STUDENT.output_shapes(batch=3, views=2).items():
        assert together[key].shape == shape and together[key].dtype == np.float32
        np.testing.assert_allclose(together[key], np.concatenate([one[key] for one in alone]), atol=1e-4)
    padded = {key: value.copy() for key, value in student_inputs(1, 3, seed=0).items()}
    padded["crops"][:, :2], padded["views"][:, :2] = inputs[0]["crops"], inputs[0]["views"]
    padded["views"][:, 2, 10] = 0                                       # a third view of weight 0
    assert np.abs(engine.infer(padded)["layout"] - alone[0]["layout"]).max() < 0.1
    engine.close()


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_results_are_not_overwritten_by_the_next(name, model):
    engine = load_engine(name, model, "fp32", threads=1, signature=STUDENT)
    first = engine.infer(student_inputs(seed=0))
    kept = {key: value.copy() for key, value in first.items()}
    engine.infer(student_inputs(seed=1))
    for key in STUDENT.outputs:
        np.testing.assert_array_equal(first[key], kept[key])


def test_engines_agree(model):
    results = [load_engine(name, model, "fp32", signature=STUDENT).infer(student_inputs(2, 2)) for name in CPU_ENGINES]
    for key in STUDENT.outputs:
        for other in results[1:]:
            np.testing.assert_allclose(results[0][key], other[key], atol=1e-3)


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_bad_model_files_are_named(name, model):
    with pytest.raises(EngineError) as missing:
        load_engine(name, model.with_name("none.onnx"))
    assert missing.value.reason == "MODEL_MISSING" and "none.onnx" in missing.value.detail

    with pytest.raises(EngineError) as unreadable:
        load_engine(name, model.with_name(300 * "x"))
    assert unreadable.value.reason == "MODEL_INVALID" and "File name too long" in unreadable.value.detail

    good, bad = model.read_bytes(), model.with_name("bad.onnx")
    for content in (good[:len(good) // 2], b"", b"not a model at all", bytes(1000)):
        bad.write_bytes(content)
        with pytest.raises(EngineError) as invalid:
            load_engine(name, bad, signature=STUDENT)
        assert invalid.value.reason in ("MODEL_INVALID", "MODEL_MISMATCH")


def rename_output(proto):
    proto.graph.output[0].name = "log_std_2"
    proto.graph.node.append(onnx.helper.make_node("Identity", ["distance"], ["log_std_2"]))


def fix_batch(proto):
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1


def other_support(proto):
    proto.graph.input[2].type.tensor_type.shape.dim[1].dim_value = 6


def test_a_file_in_the_format_of_onnxruntime_is_refused(model):
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(model.with_name("student.ort"))
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    with pytest.raises(EngineError, match="is not in the ONNX format") as error:
        load_engine("onnxruntime", options.optimized_model_filepath, "fp32", signature=STUDENT)
    assert error.value.reason == "MODEL_INVALID"


def half_input(proto):
    proto.graph.input[2].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    for node in proto.graph.node:
        node.input[:] = ["support_32" if name == "support" else name for name in node.input]
    proto.graph.node.insert(0, onnx.helper.make_node("Cast", ["support"], ["support_32"], to=onnx.TensorProto.FLOAT))


def half_output(proto):
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = ["layout_32" if name == "layout" else name for name in names]
    proto.graph.node.append(onnx.helper.make_node("Cast", ["layout_32"], ["layout"], to=onnx.TensorProto.FLOAT16))
    next(value for value in proto.graph.output
         if value.name == "layout").type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


@pytest.mark.parametrize("name", CPU_ENGINES)
@pytest.mark.parametrize(("edit", "said"), [
    (half_input, "support is FLOAT16 instead of FLOAT"),
    (half_output, "layout is FLOAT16 instead of FLOAT"),
    (rename_output, "outputs colour, layout, log_std, log_std_2 instead of colour, distance, layout, log_std"),
    (fix_batch, "crops is 1 x ? x 6 x 96 x 96 instead of batch x views x 6 x 96 x 96")])
def test_another_signature_is_refused(name, edit, said, model):
    with pytest.raises(EngineError) as mismatch:
        load_engine(name, changed(model, edit), signature=STUDENT)
    assert mismatch.value.reason == "MODEL_MISMATCH" and said in mismatch.value.detail


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_a_student_of_another_version_is_refused(name, model):
    with pytest.raises(EngineError) as mismatch:
        load_engine(name, model, signature=Signature({"evidence_v1": ("batch", 3, 64, 64, 64)}, STUDENT.outputs))
    assert mismatch.value.reason == "MODEL_MISMATCH" and "evidence_v1" in mismatch.value.detail
    with pytest.raises(EngineError) as invalid:
        load_engine(name, changed(model, other_support), signature=STUDENT)
    assert invalid.value.reason in ("MODEL_INVALID", "MODEL_MISMATCH")


def test_signature():
    signature = Signature({"a": ("batch", 3)}, {"b": ("batch", 2)})
    assert signature.input_shapes(batch=4) == {"a": (4, 3)}
    assert signature.difference({"a": (None, 3)}, {"b": (None, 2)}) == ""
    assert signature.difference({"a": (None, 3)}, {"b": (None, None)}) == ""       # not known before it runs
    assert signature.difference({"a": (None, None)}, {"b": (None, 2)}) == "a is ? x ? instead of batch x 3"
    assert signature.difference({"a": (2, 3)}, {"b": (None, 2)}) == "a is 2 x 3 instead of batch x 3"
    assert signature.difference({"a": (None, 3)}, {"b": (None, 1)}) == "b is ? x 1 instead of batch x 2"
    assert signature.difference({}, {"b": (None, 1, 1)}) == "inputs none instead of a"


def test_unknown_engine_is_refused(model):
    with pytest.raises(EngineError) as error:
        load_engine("tensorflow", model)
    assert error.value.reason == "ENGINE_UNAVAILABLE" and available_engines()[0] in error.value.detail


@pytest.mark.parametrize("precision", ["auto", "fp32"])
@pytest.mark.parametrize("name", [*CPU_ENGINES, "torch"])
def test_a_model_cannot_name_other_files(name, precision, model, monkeypatch):
    """Weights stored outside the file are not read, not even where the program was started beside them."""
    pytest.importorskip(ENGINES[name])
    onnx.save(onnx.load(model), model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    monkeypatch.chdir(model.parent)
    with pytest.raises(EngineError, match="is stored in another file") as error:
        load_engine(name, model, precision, signature=STUDENT)
    assert error.value.reason == "MODEL_INVALID"


def constant_elsewhere(proto):
    tensor = onnx.numpy_helper.from_array(np.ones(3, np.float32), "secret")
    onnx.external_data_helper.set_external_data(tensor, "/etc/hostname")
    result = onnx.helper.make_tensor_value_info("constant", onnx.TensorProto.FLOAT, [3])
    inner = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["constant"], value=tensor)], "inner", [],
                                   [result])
    proto.graph.node.append(onnx.helper.make_node("If", ["condition"], ["out"], then_branch=inner, else_branch=inner))


def test_a_constant_within_a_graph_cannot_name_other_files(model):
    with pytest.raises(EngineError, match="secret is stored in another file"):
        parsed(read_model(changed(model, constant_elsewhere)))
    assert parsed(read_model(model)) == onnx.load(model)


@pytest.mark.parametrize("name", SHIPPED_MODELS)
def test_a_shipped_model_agrees_in_all_engines(name):
    assert SHIPPED_MODELS[name].stat().st_size < 25e6
    inputs = golden_inputs()
    reference = load_engine("onnxruntime", name, "fp32").infer(inputs)
    assert all((volume < 0).any() and (volume > 0).any() for volume in reference["distance"])
    for precision, tolerance in [("fp32", 1e-3), *[("bf16", 0.1)] * has_bfloat16()]:
        found = load_engine("openvino", name, precision).infer(inputs)
        near = np.abs(reference["distance"]) < 4
        assert np.abs(found["distance"] - reference["distance"])[near].mean() < tolerance
        assert np.abs(found["colour"] - reference["colour"]).mean() < tolerance


@pytest.mark.parametrize("error", [ImportError, OSError])
def test_a_library_that_does_not_import_is_named(error, model, monkeypatch):
    """As one that lacks a shared library of the system."""
    def fail(module):
        raise error("libfoo.so.2: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(EngineError) as unavailable:
        load_named("onnxruntime", read_model(model), "fp32", 1, STUDENT, BuildOptions())
    assert unavailable.value.reason == "ENGINE_UNAVAILABLE" and "onnxruntime: libfoo.so.2" in unavailable.value.detail


def test_what_is_left_of_a_library_is_not_one(model, tmp_path, monkeypatch):
    """Of onnxruntime beside onnxruntime-gpu, which share their files, when one of them is uninstalled."""
    pytest.importorskip("openvino")
    (tmp_path / "onnxruntime" / "capi").mkdir(parents=True)
    left = PathFinder.find_spec("onnxruntime", [str(tmp_path)])
    finder = SimpleNamespace(find_spec=lambda name, path, target=None: left if name == "onnxruntime" else None)
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnxruntime"]:
        monkeypatch.delitem(sys.modules, name)
    engine = load_engine("cpu", model, signature=STUDENT, options=BuildOptions(folder=tmp_path))
    assert engine.name.startswith("openvino")
    for name in ("onnxruntime", "onnxruntime-cuda"):
        with pytest.raises(EngineError) as unavailable:
            load_engine(name, model, signature=STUDENT)
        assert unavailable.value.reason == "ENGINE_UNAVAILABLE"
        assert f"{name}: only parts of onnxruntime are left" in unavailable.value.detail


@pytest.mark.parametrize(("said", "reason"), [("no kernel", "ENGINE_BUILD_FAILED"),
                                              ("Out of memory", "ENGINE_OUT_OF_MEMORY")])
def test_a_network_that_openvino_does_not_compile_is_named(said, reason, model, monkeypatch):
    openvino = pytest.importorskip("openvino")

    def fail(*arguments):
        raise RuntimeError(said)

    monkeypatch.setattr(openvino.Core, "compile_model", fail)
    with pytest.raises(EngineError, match=said) as error:
        load_engine("openvino", model, "fp32", signature=STUDENT)
    assert error.value.reason == reason


@pytest.mark.parametrize(("error", "said"), [(RuntimeError(), "RuntimeError"), (RuntimeError(" \n"), "RuntimeError"),
                                             (RuntimeError("Check failed\nno such operator\n"), "no such operator")])
def test_a_network_that_an_engine_does_not_read_is_named(error, said, model, monkeypatch):
    """Whether the library says why or not."""
    openvino, onnxruntime = pytest.importorskip("openvino"), pytest.importorskip("onnxruntime")

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(openvino.Core, "read_model", fail)
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    monkeypatch.setattr("sam3d_ros.runtime.precision.with_half_convolutions", fail)
    for load in (lambda: load_engine("openvino", model, "fp32", signature=STUDENT),
                 lambda: load_engine("onnxruntime", model, "fp32", signature=STUDENT),
                 lambda: typed(read_model(model), "fp16")):
        with pytest.raises(EngineError) as invalid:
            load()
        assert (invalid.value.reason, invalid.value.detail) == ("MODEL_INVALID", f"{model}: {said}")


def test_torch_has_no_integers():
    pytest.importorskip("torch")
    with pytest.raises(EngineError) as unavailable:
        load_engine("torch", precision="int8")
    assert unavailable.value.reason == "ENGINE_UNAVAILABLE" and "torch computes in fp32" in unavailable.value.detail


def test_torch_out_of_device_memory(monkeypatch):
    torch = pytest.importorskip("torch")

    def fail(network, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(torch.nn.Module, "to", fail)
    with pytest.raises(EngineError) as full:
        load_engine("torch")
    assert full.value.reason == "ENGINE_OUT_OF_MEMORY"


def test_torch_in_float32_is_float32_on_a_gpu(monkeypatch):
    """As in the other engines, and as the golden outputs were computed; PyTorch's default for convolutions is TF32."""
    torch = pytest.importorskip("torch")
    for backend in (torch.backends.cudnn, torch.backends.cuda.matmul):
        monkeypatch.setattr(backend, "allow_tf32", True)
    assert load_engine("torch").name == "torch fp32" and torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.nn.Module, "to", lambda network, device: network)
    assert load_engine("torch").name == "torch-cuda fp32"
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
