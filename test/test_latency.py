"""`sam3d bench latency`."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
from student_graphs import student_model

from sam3d_ros import cli
from sam3d_ros.evaluation import latency, operations
from sam3d_ros.perception.faults import Fault, FaultCode
from sam3d_ros.perception.pipeline import Pipeline, PipelineResult


class FakePipeline:
    """Finds `share` of the objects, without a vertex, and says that the network took 3 of 4 ms."""

    engine_name = "fake fp32"

    def __init__(self, share=1.0):
        self._share = share

    def run(self, frame):
        assert frame.depth.dtype == np.float32 and frame.labels.max() == len(frame.instances)
        nothing = np.empty(0, np.float32)
        arrays = ("vertices", "triangles", "vertex_rgba", "vertex_std", "camera_from_object")
        found = [SimpleNamespace(**dict.fromkeys(arrays, nothing))] * int(self._share * len(frame.instances))
        return PipelineResult(found, (), {"evidence": 1.0, "inference": 3.0})

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


@pytest.mark.timeout(60)
def test_report(monkeypatch, tmp_path, capsys):
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


def test_an_engine_that_finds_less_is_not_fast(monkeypatch, tmp_path):
    monkeypatch.setattr(Pipeline, "from_config", lambda *_: FakePipeline(share=0.5))
    assert cli.main(["bench", "latency", "--objects", "1", "--engines", "auto", "--runs", "1", "-o",
                     str(tmp_path / "latency.json")]) == 1
    report = json.loads((tmp_path / "latency.json").read_text())
    assert report["bar"]["p50_ms"] is None and not report["passed"]


def test_operations_of_a_network():
    one, four = (operations.count(student_model(width=2).SerializeToString(), batch) for batch in (1, 4))
    assert four.operations == 4 * one.operations and four.weights == one.weights
    # The two widest layers by hand: 18 -> 2 and 2 -> 2 channels at 32^3, 27 products each.
    assert one.operations > 2 * 32 ** 3 * 27 * (18 * 2 + 2 * 2)
    assert one.seconds(1e12, 1e15) == pytest.approx(one.operations / 1e12)
    assert one.seconds(1e18, 1e9) == pytest.approx((one.weights + one.activations) / 1e9)
