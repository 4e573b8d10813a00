"""The demo: figures and pictures from known meshes, and the whole run with a stand-in for the node."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import trimesh
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from PIL import Image

from sam3d_ros import demo_report
from sam3d_ros.demo_report import (
    PosedMesh,
    RebuiltMesh,
    Recording,
    markdown_table,
    match,
    object_errors,
    outlined,
    overview,
    timing,
)
from sam3d_ros.nodes import demo_recorder
from sam3d_ros.synth.tabletop import camera_intrinsics, framing_pose

FOLDER = Path(__file__).parent
RUN = """
import argparse, sys
from sam3d_ros import demo
parser = argparse.ArgumentParser()
demo.add_arguments(parser)
sys.exit(demo.run(parser.parse_args(), node_module="fake_sam3d_node"))
"""


def posed_box(name: str, size: float, position: tuple[float, float, float]) -> dict:
    mesh = trimesh.creation.box([size, size, size])
    return {"name": name, "vertices": mesh.vertices, "triangles": mesh.faces,
            "rgb": np.full((len(mesh.vertices), 3), 150, np.uint8),
            "world_from_object": trimesh.transformations.translation_matrix(position)}


@pytest.fixture
def recording() -> Recording:
    """Three true cubes; the second and the first are rebuilt, in this order: 5 mm aside, and 4 mm too large."""
    truth = tuple(PosedMesh(**posed_box(*box)) for box in
                  (("one", 0.1, (0, 0, 0.05)), ("two", 0.1, (0.3, 0, 0.05)), ("three", 0.1, (0, 0.3, 0.05))))
    aside = RebuiltMesh(**posed_box("", 0.1, (0.305, 0, 0.05)), size=np.full(3, 0.1), visible_fraction=0.5)
    large = RebuiltMesh(**posed_box("", 0.104, (0, 0, 0.05)), size=np.full(3, 0.104), visible_fraction=0.4)
    intrinsics = camera_intrinsics(160, 120)
    points = np.concatenate([mesh.in_world.vertices for mesh in truth])
    labels = np.zeros((120, 160), np.uint16)
    labels[20:60, 30:80] = 2
    return Recording(colour=np.full((120, 160, 3), 100, np.uint8), labels=labels, intrinsics=intrinsics,
                     world_from_camera=framing_pose(points, 0.5, 0.7, intrinsics), truth=truth, rebuilt=(aside, large),
                     latencies_ms=np.array([100.0, 110, 120, 130]), arrivals=np.array([5.0, 5.5, 6.0, 6.5]))


def test_errors_are_those_of_the_nearest_rebuilt_object(recording: Recording) -> None:
    assert match(recording.truth, recording.rebuilt) == {0: 1, 1: 0}
    one, two, three = object_errors(recording)
    assert one.size_mm == pytest.approx(4.0, abs=0.01) and one.position_mm == pytest.approx(0, abs=0.01)
    assert one.chamfer_mm == pytest.approx(2.0, abs=0.1)                 # 2 mm on every side
    assert two.position_mm == pytest.approx(5.0, abs=0.01) and two.size_mm == pytest.approx(0, abs=0.01)
    assert two.chamfer_mm == pytest.approx(5 / 3, abs=0.15)              # 5 mm on two of six sides
    assert three.chamfer_mm is None


def test_timing_and_table(recording: Recording) -> None:
    times = timing(recording)
    assert times.latency_p50_ms == 115 and times.results_per_second == pytest.approx(2.0)
    table = markdown_table(object_errors(recording), times)
    assert "not rebuilt" in table and "p50 115 ms" in table and "2.0 results per second" in table
    assert len({len(line) for line in table.splitlines() if line.startswith("|")}) == 1


def test_outlines_lie_inside_the_mask(recording: Recording) -> None:
    picture = outlined(recording.colour, recording.labels, 2)
    changed = (picture != recording.colour).any(axis=2)
    assert np.array_equal(changed, recording.labels > 0)


def test_overview_shows_rebuilt_and_true_meshes(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_report, "SUPERSAMPLING", 1)
    picture = overview(recording, object_errors(recording))
    pixels = np.asarray(picture.convert("L"), float)
    assert picture.width > 1000
    half_y, half_x = (size // 2 for size in pixels.shape)
    upper, lower = slice(60, half_y), slice(half_y + 60, None)
    left, right = slice(half_x - 20), slice(half_x + 20, None)
    assert all(pixels[panel].std() > 10 for panel in ((upper, right), (lower, left), (lower, right)))


def said(code: str, text: str, level: bytes) -> DiagnosticArray:
    values = [KeyValue(key="code", value=code), KeyValue(key="state", value="unconfigured")]
    return DiagnosticArray(status=[DiagnosticStatus(level=level, message=text, values=values)])


@pytest.mark.usefixtures("ros")
def test_the_demo_waits_for_a_set_up_that_takes_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(demo_recorder.time, "monotonic", lambda: clock[0])
    recorder = demo_recorder.DemoRecorder()

    def overdue(now: float) -> bool:
        clock[0] = now
        return recorder.is_overdue(100.0, 120.0)

    try:
        assert not overdue(219.0) and overdue(221.0)
        clock[0] = 150.0
        recorder._on_diagnostics(said("CONFIGURING", "CONFIGURING: 40 %, timing kernels", DiagnosticStatus.WARN))
        assert not overdue(150.0 + 1799.0) and overdue(150.0 + 1801.0)
        assert recorder.last_said == "CONFIGURING: 40 %, timing kernels" and not recorder.setup_fault
        clock[0] = 900.0
        recorder._on_diagnostics(said("OK", "OK", DiagnosticStatus.OK))
        assert not overdue(900.0 + 119.0) and overdue(900.0 + 121.0)
        recorder._on_diagnostics(said("OK", "OK", DiagnosticStatus.OK))
        assert overdue(900.0 + 121.0)
        recorder._on_diagnostics(said("MODEL_INVALID", "MODEL_INVALID: a.onnx", DiagnosticStatus.ERROR))
        assert recorder.last_said == recorder.setup_fault == "MODEL_INVALID: a.onnx"
    finally:
        recorder.destroy_node()


def demo_process(out: Path, behaviour: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(FOLDER)])}
    environment.pop("_ROS_WHEELS_BOOTSTRAP_COMPLETE", None)
    arguments = ["-o", str(out), "--seconds", "1", "--objects", "2", "--model", behaviour]
    return subprocess.Popen([sys.executable, "-c", RUN, *arguments], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.timeout(180)
def test_whole_run_leaves_pictures_meshes_and_figures(tmp_path: Path) -> None:
    process = demo_process(tmp_path, "work")
    output, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    results = json.loads((tmp_path / "results.json").read_text())
    rebuilt, missing = results["objects"]
    assert rebuilt["position_mm"] == pytest.approx(4.0, abs=0.05) and rebuilt["size_mm"] == pytest.approx(0, abs=0.05)
    assert 0.5 < rebuilt["chamfer_mm"] < 4.0
    assert missing["chamfer_mm"] is None and missing["mesh"] is None
    assert results["timing"]["results"] >= 2 and results["timing"]["results_per_second"] > 1
    assert trimesh.load_mesh(tmp_path / rebuilt["mesh"]).is_watertight
    assert Image.open(tmp_path / "input.png").size == (640, 480)
    assert Image.open(tmp_path / "overview.png").width > 1000
    assert (tmp_path / "table.md").read_text() in output


@pytest.mark.timeout(120)
@pytest.mark.parametrize("behaviour, line", [("fault", "MODEL_MISSING"),
                                             ("die", "fake_sam3d_node ended with status 1")])
def test_fault_or_crash_of_the_node_ends_the_demo_with_one_line(tmp_path: Path, behaviour: str, line: str) -> None:
    process = demo_process(tmp_path, behaviour)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    assert [text for text in errors.splitlines() if text.startswith("sam3d: error:") and line in text]
    if behaviour == "die":
        assert "a test's crash" in errors


@pytest.mark.timeout(120)
def test_ctrl_c_stops_every_process(tmp_path: Path) -> None:
    process = demo_process(tmp_path, "work")
    log = tmp_path / "logs" / "node.log"
    deadline = time.monotonic() + 60
    while not log.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=50)
    assert process.returncode != 0, errors
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
