"""ONNX Runtime on a GPU: what is asked of it, and what its failures become, on a stand-in that computes on the CPU."""
import json
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from fake_gpu import FakeCuda
from student_graphs import student_inputs, student_model

from benchmarks import onnxruntime_graphs
from sam3d_ros.runtime import cuda, golden
from sam3d_ros.runtime.engine import GPU_ENGINES, BuildOptions, EngineError, load_engine
from sam3d_ros.runtime.signature import STUDENT

NAMES = [name for name in GPU_ENGINES if name.startswith("onnxruntime")]
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


class EPFail(Exception):
    """As the class of this name: no RuntimeError."""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """providers: what works; asked: settings of the last session on a GPU by provider; error, run_error: what making
    one, and a run on a GPU, raises; record_error: what making one for CUDA graphs raises; replays_nothing: whether it
    answers what it did at first; shapes: of the crops of each run.
    """
    path = tmp_path / "student.onnx"
    path.write_bytes(student_model().SerializeToString())
    state = SimpleNamespace(model=path, providers=[TENSORRT, CUDA, CPU], asked={}, error=None, run_error=None,
                            shapes=[], record_error=None, replays_nothing=False)
    make = onnxruntime.InferenceSession

    class Session:
        def __init__(self, graph, options, providers, enable_fallback=1):
            if "enable_cuda_graph" in providers[0][1]:
                options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
                if state.record_error:
                    raise state.record_error
            if state.error and enable_fallback:
                print("*************** EP Error ***************")
            elif state.error:
                raise state.error
            self.session, self.fallback, self.is_recorded = make(graph, options, providers=[CPU]), True, False
            self.on_gpu, self.asked = providers[0][0] != CPU, dict(providers)
            if self.on_gpu:
                state.asked = self.asked

        def get_providers(self):
            return [name for name in self.asked if name in state.providers]

        def disable_fallback(self):
            self.fallback = False

        def run(self, names, inputs):
            state.shapes.append(inputs["crops"].shape[:2])
            if state.run_error and self.on_gpu and self.fallback:
                print("EP Error")
            elif state.run_error and self.on_gpu:
                raise state.run_error
            return self.session.run(names, inputs)

        def run_with_iobinding(self, binding):
            if not (state.replays_nothing and self.is_recorded):
                self.session.run_with_iobinding(binding)
            self.is_recorded = True

        def __getattr__(self, name):
            return getattr(self.session, name)

    def load(name, precision="fp32", **options):
        return load_engine(name, path, precision, 1, STUDENT, BuildOptions(folder=tmp_path, **options))

    inputs = {name: array[:1] for name, array in golden.golden_inputs().items()}
    monkeypatch.setattr(golden, "golden_inputs", lambda: inputs)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcufft.so.11"), raising=False)
    monkeypatch.setattr(cuda, "load_driver", FakeCuda)
    for module in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)
    state.load = load
    return state


@pytest.fixture(autouse=True)
def quiet(capsys):
    """What is printed on stdout spoils `sam3d doctor --json`."""
    yield
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", NAMES)
def test_numbers_in_any_batch_size(machine, name):
    engine, inputs = machine.load(name), student_inputs(11, 2)
    assert engine.name == f"{name} fp32" and engine.first_runs == (8, 7, 6, 5, 4, 3, 2, 1)
    machine.shapes.clear()
    found = engine.infer(inputs)
    assert machine.shapes == [(8, 2), (3, 2)]
    wanted = machine.load("onnxruntime").infer(inputs)
    for key, shape in STUDENT.output_shapes(batch=11).items():
        assert found[key].shape == shape
        np.testing.assert_allclose(found[key], wanted[key], atol=1e-5)


def test_tensorrt_builds_once_for_all_shapes(machine):
    machine.load("onnxruntime-tensorrt")
    settings = machine.asked[TENSORRT]
    assert settings["trt_profile_min_shapes"] == "crops:1x1x6x96x96,views:1x1x11,support:1x5"
    assert settings["trt_profile_opt_shapes"] == settings["trt_profile_min_shapes"]
    assert settings["trt_profile_max_shapes"] == "crops:8x8x6x96x96,views:8x8x11,support:8x5"
    assert settings["trt_engine_cache_enable"] == "0" and "trt_fp16_enable" not in settings


def test_tensorrt_is_not_built_where_nothing_may_be(machine):
    """Nor for later use, as it would not be kept."""
    for options in (dict(allow_build=False), dict(must_keep=True)):
        with pytest.raises(EngineError) as error:
            machine.load("onnxruntime-tensorrt", **options)
        assert error.value.reason == "ENGINE_NOT_BUILT" and "keeps no engine" in error.value.detail
        assert machine.load("auto", **options).name == "onnxruntime-cuda fp32"


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_fails_is_a_runtime_error_and_not_done_elsewhere(machine, name):
    engine = machine.load(name)
    machine.run_error = EPFail("[ONNXRuntimeError] : 11 : EP_FAIL : CUDA failure 700: an illegal memory access")
    with pytest.raises(RuntimeError, match="CUDA failure 700"):
        engine.infer(student_inputs())
    with pytest.raises(EngineError) as error:
        machine.load(name)
    assert error.value.reason == "ENGINE_FAILED" and "CUDA failure 700" in error.value.detail
    for said in ("CUDA failure 2: out of memory", "Failed to allocate memory for requested buffer of size 1024"):
        machine.run_error = EPFail(said)
        with pytest.raises(EngineError) as error:
            machine.load(name)
        assert error.value.reason == "ENGINE_OUT_OF_MEMORY"
    assert machine.load("auto").name in ("openvino fp32", "onnxruntime fp32")


@pytest.mark.parametrize("name", NAMES)
def test_a_session_that_cannot_be_made_is_no_fault_of_the_model(machine, name):
    machine.error = EPFail("TensorRT EP failed to create engine from network")
    with pytest.raises(EngineError) as error:
        machine.load(name)
    assert error.value.reason == "ENGINE_BUILD_FAILED" and "failed to create engine" in error.value.detail
    machine.error = RuntimeError("libcublasLt.so.12: cannot open shared object file")
    with pytest.raises(EngineError, match="libcublasLt"):
        machine.load(name)


def test_without_tensorrts_libraries_its_provider_is_unavailable(machine):
    """Said as onnxruntime-gpu 1.31 says it; nothing was built that could have failed."""
    machine.error = RuntimeError("onnxruntime_pybind_state.cc:729 void RegisterTensorRTPluginsAsCustomOps(...) Please "
                                 "install TensorRT libraries as mentioned in the GPU requirements page")
    with pytest.raises(EngineError, match="install TensorRT libraries") as error:
        machine.load("onnxruntime-tensorrt")
    assert error.value.reason == "ENGINE_UNAVAILABLE"


@pytest.mark.parametrize("name", NAMES)
def test_a_provider_that_does_not_work_is_unavailable(machine, name):
    machine.providers = [CPU]
    with pytest.raises(EngineError) as error:
        machine.load(name)
    assert error.value.reason == "ENGINE_UNAVAILABLE" and "does not work on this machine" in error.value.detail


@pytest.mark.parametrize("name", NAMES)
def test_a_build_without_the_provider_is_not_asked_for_cuda(machine, name, monkeypatch, capsys):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    with pytest.raises(EngineError) as error:
        machine.load(name)
    assert error.value.reason == "ENGINE_UNAVAILABLE" and "has no" in error.value.detail
    assert capsys.readouterr() == ("", "")


def test_a_run_on_the_cpu_that_fails_is_a_runtime_error(machine):
    with pytest.raises(RuntimeError):
        machine.load("onnxruntime").infer(student_inputs() | {"support": np.zeros((1, 4), np.float32)})


def test_cuda_graphs_are_compared_with_what_is_used(machine, monkeypatch, tmp_path, capsys):
    """With bindings of the real ONNX Runtime, to memory of the CPU, where nothing is recorded."""
    values, given = onnxruntime.OrtValue.ortvalue_from_shape_and_type, student_inputs(2)
    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", staticmethod(
        lambda shape, kind, device, index: values(shape, kind, {"cuda": "cpu"}[device], index)))
    given["crops"][1] *= 20         # so that answers differ
    monkeypatch.setattr(golden, "golden_inputs", lambda: given)
    monkeypatch.setattr(onnxruntime_graphs, "BUCKETS", (1, 4))
    out = tmp_path / "report.json"

    def measured():
        monkeypatch.setattr(sys, "argv", ["graphs", "--model", str(machine.model), "--precision", "fp32", "--runs", "2",
                                          "-o", str(out)])
        return onnxruntime_graphs.main(), json.loads(out.read_text())["objects"]

    status, report = measured()
    assert status == 0 and list(report) == ["1", "4"]
    assert report["4"]["deviation"].startswith("vIoU 1.0000")
    assert min(report["4"]["plain_ms"], report["4"]["recorded_ms"]) > 0
    assert machine.asked[CUDA] == {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE", "enable_cuda_graph": "1"}
    left = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert "Conv" in left and "Shape" not in left            # which ONNX Runtime computes on the CPU

    machine.replays_nothing = True
    status, report = measured()
    assert status == 1 and not report["1"]["accepted"] and not report["4"]["accepted"]
    machine.record_error = EPFail("all compute graph nodes have not been partitioned to the CUDAExecutionProvider")
    assert measured() == (1, dict.fromkeys(("1", "4"), {"fault": str(machine.record_error)}))
    machine.error = EPFail("out of memory")
    with pytest.raises(SystemExit):
        measured()
    assert capsys.readouterr().err.endswith("ENGINE_OUT_OF_MEMORY: onnxruntime-cuda: out of memory\n")
