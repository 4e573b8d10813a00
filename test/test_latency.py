"""`sam3d bench latency`."""
import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from fake_gpu import FakeCuda
from student_graphs import student_model

from sam3d_ros import cli
from sam3d_ros.evaluation import latency, operations
from sam3d_ros.perception.faults import Fault, FaultCode
from sam3d_ros.perception.pipeline import Pipeline, PipelineResult
from sam3d_ros.runtime import cuda


class FakePipeline:
    """Finds `share` of the objects, without a vertex, and says that the network took 3 of 4 ms."""

    def __init__(self, share=1.0, engine_name="fake fp32", inference_ms=3.0):
        self._share, self.engine_name, self._inference_ms = share, engine_name, inference_ms

    def run(self, frame):
        assert frame.depth.dtype == np.float32 and frame.labels.max() == len(frame.instances)
        nothing = np.empty(0, np.float32)
        arrays = ("vertices", "triangles", "vertex_rgba", "vertex_std", "camera_from_object")
        found = [SimpleNamespace(**dict.fromkeys(arrays, nothing))] * int(self._share * len(frame.instances))
        return PipelineResult(found, (), {"evidence": 1.0, "inference": self._inference_ms})

    def close(self):
        pass


def test_frames_survive_being_bytes():
    frame = latency.ball_frame(16)
    assert np.unique(frame.labels).tolist() == list(range(17))
    assert frame.depth[frame.labels > 0].max() < 0.8
    received = latency.decoded(latency.encoded(frame), frame)
    np.testing.assert_array_equal(received.colour, frame.colour)
    np.testing.assert_array_equal(received.labels, frame.labels)
    np.testing.assert_allclose(received.depth, frame.depth, atol=0.0006)


@pytest.fixture
def on_cores(monkeypatch):
    """Takes how many cores this process may seem to use; what the processor can do has not to be measured."""
    monkeypatch.setattr(latency, "machine_rates", lambda: {"fp32_gflops": 100.0, "copy_gb_s": 10.0})
    return lambda cores: monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))


@pytest.mark.timeout(60)
def test_report(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    def from_config(config, on_progress=None):
        if config.engine == "tensorrt":
            raise Fault(FaultCode.ENGINE_UNAVAILABLE, "no NVIDIA driver")
        return FakePipeline()

    monkeypatch.setattr(Pipeline, "from_config", from_config)
    out = tmp_path / "latency.json"
    arguments = ["--objects", "1", "8", "--engines", "auto", "tensorrt", "--runs", "3", "--model", "base", "-o",
                 str(out)]
    assert cli.main(["bench", "latency", *arguments]) == 0
    report = json.loads(out.read_text())
    assert "no NVIDIA driver" in report["engines"]["tensorrt"]["fault"]
    figures = report["engines"]["auto"]["objects"]["8"]
    assert figures["stages_ms"]["inference"] == 3 and 0.5 < figures["network_share"] <= 0.75
    assert figures["ms"]["p50"] <= figures["ms"]["p99"] and report["passed"] and report["environment"]["cores"]
    limit = report["physical_limit"]
    assert limit["operations"] > 5e9 and limit["rates"]["fp32_gflops"] > 1 and limit["rates"]["copy_gb_s"] > 0.5
    assert limit["ms"]["fp32"] == pytest.approx(1e-6 * limit["operations"] / limit["rates"]["fp32_gflops"], rel=0.5)
    assert "no NVIDIA driver" in (printed := capsys.readouterr().out) and "physical limit fp32" in printed
    assert report["network"] == {"auto": {"ms": 3, "torch_ms": None, "limit_ms": limit["ms"]["fp32"]}}
    assert limit["gpu"] == {"not_measured": "no NVIDIA driver"}
    assert report["model"] == "base" and len(report["model_sha256"]) == 64
    assert "physical limit and PyTorch on the GPU: not measured: no NVIDIA driver\n" in printed


@pytest.fixture
def gpu(monkeypatch):
    """A machine whose driver stands in for a GPU of 8 GiB, and whose processor has not to be measured."""
    driver = FakeCuda()
    monkeypatch.setattr(latency, "machine_rates", lambda: {"fp32_gflops": 100.0, "copy_gb_s": 10.0})
    monkeypatch.setattr(cuda, "load_driver", lambda: driver)
    return driver


def test_an_engine_is_compared_with_the_references_where_it_computes(gpu, monkeypatch, tmp_path, capsys):
    gpu_rates = pytest.importorskip("sam3d_ros.models.gpu_rates")
    names = {"tensorrt": ("tensorrt fp16", 0.5), "tensorrt-rtx": ("tensorrt-rtx int8", 0.25),
             "torch": ("torch-cuda fp32", 2.0), "openvino": ("openvino fp32", 9.0)}

    def from_config(config, on_progress=None):
        engine, milliseconds = names[config.engine]
        memory = cuda.Device(gpu)
        memory.allocate((3 << 20) * len(engine.split()[0]))         # whoever computes where
        pipeline = FakePipeline(engine_name=engine, inference_ms=milliseconds)
        pipeline.close = memory.close
        return pipeline

    monkeypatch.setattr(Pipeline, "from_config", from_config)
    monkeypatch.setattr(gpu_rates, "gpu_rates", lambda: {"fp32_gflops": 1e6, "fp16_gflops": 1e6, "copy_gb_s": 2.0})
    out, model = tmp_path / "latency.json", tmp_path / "student.onnx"
    model.write_bytes(student_model(width=2).SerializeToString())
    assert cli.main(["bench", "latency", "--objects", "1", "--engines", *names, "--runs", "1", "--model", str(model),
                     "-o", str(out)]) == 0
    report, printed = json.loads(out.read_text()), capsys.readouterr().out
    limit = report["physical_limit"]
    ms = limit["gpu"]["ms"]
    assert ms["fp32"] == pytest.approx(2e3 * limit["bytes"] / 2e9, rel=0.01)            # four bytes a number
    assert ms["fp16"] == pytest.approx(1e3 * limit["bytes"] / 2e9, rel=0.01)
    assert report["network"] == {
        "tensorrt": {"ms": 0.5, "torch_ms": 2.0, "limit_ms": ms["fp16"]},
        "tensorrt-rtx": {"ms": 0.25, "torch_ms": 2.0, "limit_ms": None},
        "torch": {"ms": 2.0, "torch_ms": 2.0, "limit_ms": ms["fp32"]},
        "openvino": {"ms": 9.0, "torch_ms": None, "limit_ms": limit["ms"]["fp32"]}}
    assert f"network 0.5 ms, {0.5 / ms['fp16']:.1f} times the limit, PyTorch takes 4.0 times as long\n" in printed
    assert f"network 2 ms, {2 / ms['fp32']:.1f} times the limit\n" in printed          # PyTorch itself
    assert f"physical limit fp16 on the GPU: {ms['fp16']:.3g} ms" in printed
    memory = {name: result.get("gpu_memory_mib") for name, result in report["engines"].items()}
    assert memory == {"tensorrt": 24, "tensorrt-rtx": 36, "torch": 30, "openvino": None} and not gpu.in_use


def test_memory_is_told_after_an_engine_that_failed(gpu):
    """It closes its device, and the thread has none until the next one is used."""
    with latency._gpu() as device:
        cuda.Device(gpu).close()
        assert device.memory_in_use() == 0


def test_why_the_limit_of_a_gpu_was_not_measured(gpu, monkeypatch):
    torch = pytest.importorskip("torch")
    model = student_model(width=2).SerializeToString()
    for version, said in ((None, f"PyTorch {torch.__version__} is built without CUDA"),
                          ("13.0", f"PyTorch {torch.__version__} for CUDA 13.0 finds no GPU")):
        monkeypatch.setattr(torch.version, "cuda", version)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert latency.physical_limit(model)["gpu"] == {"not_measured": said}
    for module in [name for name in sys.modules if name.startswith("sam3d_ros.models.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "torch" in latency.physical_limit(model)["gpu"]["not_measured"]


def test_rates_of_a_gpu(monkeypatch):
    """What is computed is computed, on the CPU; a GPU's clock that says 2 ms each time."""
    gpu_rates = pytest.importorskip("sam3d_ros.models.gpu_rates")
    torch, started = gpu_rates.torch, []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            started.append(self)

        def synchronize(self):
            assert started[-1] is self

        def elapsed_time(self, end):
            assert started[-2:] == [self, end]
            return 2.0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(gpu_rates, "_DEVICE", "cpu")
    monkeypatch.setattr(gpu_rates, "_PRODUCTS", {"fp32": (torch.float32, 200), "fp16": (torch.float16, 100)})
    monkeypatch.setattr(gpu_rates, "_COPIED", 1000)
    assert gpu_rates.gpu_rates() == {"fp32_gflops": 8.0, "fp16_gflops": 1.0, "copy_gb_s": 0.0}
    assert not torch.backends.cudnn.allow_tf32


def test_an_engine_that_finds_less_is_not_fast(on_cores, monkeypatch, tmp_path):
    on_cores(2)
    monkeypatch.setattr(Pipeline, "from_config", lambda *_: FakePipeline(share=0.5))
    assert cli.main(["bench", "latency", "--objects", "1", "--engines", "auto", "--runs", "1", "-o",
                     str(tmp_path / "latency.json")]) == 1
    report = json.loads((tmp_path / "latency.json").read_text())
    assert report["bar"]["p50_ms"] is None and report["passed"] is False


@pytest.mark.parametrize("cores, objects", [(1, "1"), (4, "1"), (2, "8")])
def test_what_the_bar_is_not_for_does_not_miss_it(on_cores, monkeypatch, tmp_path, cores, objects):
    on_cores(cores)
    monkeypatch.setattr(latency, "BAR_MS", 0.0)
    monkeypatch.setattr(Pipeline, "from_config", lambda *_: FakePipeline())
    assert cli.main(["bench", "latency", "--objects", objects, "--engines", "auto", "--runs", "1", "-o",
                     str(tmp_path / "latency.json")]) == 0
    assert json.loads((tmp_path / "latency.json").read_text())["passed"] is None


def test_operations_of_a_network():
    one, four = (operations.count(student_model(width=2).SerializeToString(), batch) for batch in (1, 4))
    assert four.operations == 4 * one.operations and four.weights == one.weights
    # The two widest layers by hand: 18 -> 2 and 2 -> 2 channels at 32^3, 27 products each.
    assert one.operations > 2 * 32 ** 3 * 27 * (18 * 2 + 2 * 2)
    assert one.seconds(1e12, 1e15) == pytest.approx(one.operations / 1e12)
    assert one.seconds(1e18, 1e9) == pytest.approx((one.weights + one.activations) / 1e9)
