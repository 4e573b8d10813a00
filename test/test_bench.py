"""The benchmarks' own arithmetic, and each of them once on something small."""
from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trimesh
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from scipy.spatial.transform import Rotation

from benchmarks import frame_player, latency, message_cost, rough_soak, slow_masks, soak
from benchmarks.harness import WithheldTime, common_arguments, read_records, statistics, wait_until
from benchmarks.node_run import Result
from benchmarks.result_recorder import ResultRecorder
from benchmarks.scenes import tabletop
from sam3d_ros import cli
from sam3d_ros.evaluation import baselines, frames, physics, simulated, tracking
from sam3d_ros.evaluation import cli as bench_cli
from sam3d_ros.evaluation.environment import describe_environment, describe_model, report_path
from sam3d_ros.evaluation.tracking_stage import FIRST_STAMP_NS, RATE, Disturbance, Moment
from sam3d_ros.msg import ObjectMesh, ObjectMeshArray
from sam3d_ros.perception.faults import Fault, FaultCode
from sam3d_ros.perception.folder import write_frame_folder
from sam3d_ros.perception.frame import Frame, Instance, Intrinsics, back_project
from sam3d_ros.perception.objects import ReconstructedObject, ScaleSource, Status
from sam3d_ros.perception.pipeline import PipelineResult, Rejection
from sam3d_ros.runtime.engine import SHIPPED_MODELS
from sam3d_ros.scene.track import Presence, TrackedObject
from sam3d_ros.scene.tracker import Tracker
from sam3d_ros.synth.raycaster import Body, Lamp, Raycaster, vertex_paint
from sam3d_ros.synth.tabletop import PlacedObject

CAMERA = Intrinsics(160, 120, 150.0, 150.0, 79.5, 59.5)
DATA = Path(os.environ.get("SAM3D_DATA", Path(__file__).parents[2] / "shared" / "data"))


# ------------------------------------------------------------------------------------------------- statistics

def test_statistics():
    figures = statistics(np.arange(101.0))
    assert (figures["p50"], figures["p95"], figures["p99"], figures["max"], figures["count"]) == (50, 95, 99, 100, 101)


def test_half_written_record_is_left_for_later(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"a": 1}\n{"a":')
    assert read_records(tmp_path / "r.jsonl") == [{"a": 1}]
    assert read_records(tmp_path / "absent.jsonl") == []


def test_waiting_ends():
    with pytest.raises(TimeoutError, match="no rain within 0.1 s"):
        wait_until(lambda: False, [], 0.1, "rain")


def test_stages_add_up_to_the_latency():
    stages = latency.stage_shares(100.0, 20.0, {"evidence": 10.0, "inference": 50.0})
    assert {name: stage["ms"] for name, stage in stages.items()} == {
        "evidence": 10, "inference": 50, "node": 20, "transport": 20}
    assert sum(stage["share"] for stage in stages.values()) == pytest.approx(1)


def test_environment_names_the_device():
    environment = describe_environment()
    assert environment["cpu"] and environment["cores"] >= 1 and environment["packages"]["numpy"] == np.__version__
    assert environment["packages"]["mujoco"]
    assert describe_environment(cores=1)["cores"] == 1 and describe_environment(10_000)["cores"] == environment["cores"]


def test_a_model_is_told_by_its_digest(tmp_path):
    shutil.copy(SHIPPED_MODELS["small"], tmp_path / "mine.onnx")
    own, shipped = describe_model(str(tmp_path / "mine.onnx")), describe_model("small")
    assert (own["model"], shipped["model"]) == ("mine", "small")
    assert own["model_sha256"] == shipped["model_sha256"] != describe_model("base")["model_sha256"]


@pytest.mark.parametrize("benchmark", ["frames", "shape", "track", "latency", "physics", "grasp"])
def test_a_model_that_is_missing_is_one_clear_line(benchmark, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(simulated, "graspable_models", lambda data: [])
    frames_there = ["--frames", str(data / "frames")] if benchmark == "frames" else []
    assert cli.main(["bench", benchmark, *frames_there, "--model", "nosuch", "-o", str(tmp_path / "r.json")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sam3d: error: MODEL_MISSING: nosuch")


def test_where_no_report_can_go_nothing_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(frames, "judge", None)
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "file" / "report.json"):
        assert cli.main(["bench", "frames", "-o", str(out)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("sam3d: error: ") and str(tmp_path) in line


@pytest.mark.parametrize("options, name", [
    ("shape", "shape"), ("shape --quick", "shape_quick"), ("shape --sections core views", "shape_core_views"),
    ("shape --model base", "shape_base"), ("shape --sections core --model a/my.onnx --quick", "shape_core_my_quick"),
    ("latency --model base", "bytes_to_mesh_base"), ("frames -o there.json --model base", "../../there")])
def test_only_a_whole_run_replaces_the_published_report(options, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    bench_cli.add_arguments(parser)
    path = report_path(parser.parse_args(options.split()))
    assert path.resolve() == (tmp_path / "benchmarks" / "results" / f"{name}.json").resolve()


def test_a_quick_run_has_a_report_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    common_arguments(parser, "soak")
    names = [report_path(parser.parse_args(options)).name for options in ([], ["--quick"])]
    assert names == ["soak.json", "soak_quick.json"]


@pytest.mark.parametrize("options", [
    "shape --objects 0", "shape --seed -1", "track --objects 0", "track --objects 13", "track --seconds 12",
    "track --seconds nan", "track --drop 1.1", "track --seeds -1", "latency --objects 17", "latency --runs 0",
    "physics --scenes 0", "physics --seed -1", "grasp --rounds 0"])
def test_options_out_of_range_are_wrong_usage(options, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", *options.split()])
    assert ended.value.code == 2 and "is not a" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- soak verdict

def samples(growth_per_minute: float = 0.0, threads: int = 20, files: int = 15) -> list[soak.Sample]:
    """Ten minutes; the first two warm up by 100 MiB, 5 threads and 4 files."""
    return [soak.Sample(2.0 * i, 400 + min(i, 60) / 60 * 100 + growth_per_minute * i / 30,
                        min(threads, 15 + i), min(files, 11 + i)) for i in range(300)]


def result(age_ms: float, processing_ms: float = 100.0) -> Result:
    return Result(stamp_ns=0, latency_ms=age_ms, processing_ms=processing_ms, objects=1, vertices=100)


def failed(bars: dict) -> list[str]:
    return [name for name, bar in bars.items() if not bar["passed"]]


def test_steady_process_passes_whatever_its_start():
    assert failed(soak.judge(samples(), [result(140), result(290)])) == []


def test_leaks_and_lag_fail_by_name():
    assert failed(soak.judge(samples(growth_per_minute=1.5), [result(140)])) == ["memory_growth_mib_per_minute"]
    assert failed(soak.judge(samples(threads=10_000), [result(140)])) == ["threads"]
    assert failed(soak.judge(samples(files=10_000), [result(140)])) == ["open_files"]
    assert failed(soak.judge(samples(), [result(140), result(301), result(140)])) == ["age_per_processing_time"]


def test_what_is_published_again_after_a_reconstruction_is_not_late():
    first, again = result(180, 20), result(45, 12)
    results = [replace(first, stamp_ns=1), *(replace(item, stamp_ns=2) for item in (result(20, 12), again))]
    assert failed(soak.judge(samples(), soak.first_of_each_image(results))) == []
    late = [*results, replace(again, stamp_ns=3)]
    assert failed(soak.judge(samples(), soak.first_of_each_image(late))) == ["age_per_processing_time"]


def test_late_results_are_named_with_what_the_hypervisor_withheld(monkeypatch):
    steal = iter([*range(100, 104), *[150] * 1000])
    monkeypatch.setattr("benchmarks.harness.Path.read_text", lambda path: f"cpu  1 2 3 4 5 6 7 {next(steal)} 0 0\n")
    with WithheldTime() as withheld:
        start = time.time_ns()
        time.sleep(0.8)
    per_tick = 1000 / os.sysconf("SC_CLK_TCK")
    found = soak.late_results([Result(start, 790, 100, 1, 1), Result(start, 790, 400, 1, 1)], withheld)
    assert found == [{"age_ms": 790, "processing_ms": 100, "withheld_ms": pytest.approx(50 * per_tick)}]
    assert withheld.between(start - 10**9, start - 10**8) == 0


def test_sample_of_this_process():
    sample = soak.take_sample(os.getpid(), elapsed_s=1.0)
    with open("/dev/null") as held:
        assert soak.take_sample(os.getpid(), 1.0).open_files == sample.open_files + 1, held
    assert sample.memory_mib > 20 and sample.threads >= 1


# ------------------------------------------------------------------------------------------------- scene, messages

def test_a_scene_without_an_object_is_the_same_scene():
    whole, without = tabletop(2), tabletop(2, without=2)
    place = whole.labels == 2
    assert [instance.label for instance in without.instances] == [1] and 2 not in without.labels
    assert (without.depth[place] > whole.depth[place]).mean() > 0.9           # the camera looks through its place
    shadow = np.abs(without.colour.astype(int) - whole.colour).max(axis=2) > 0
    assert np.array_equal(without.depth[~place], whole.depth[~place]) and shadow[~place].mean() < 0.1


def test_scene_has_the_objects_asked_for():
    frame = tabletop(5)
    labels, pixels = np.unique(frame.labels, return_counts=True)
    assert labels.tolist() == [0, 1, 2, 3, 4, 5] and pixels[1:].min() > 1000
    assert [instance.label for instance in frame.instances] == [1, 2, 3, 4, 5]
    assert (frame.depth.dtype, frame.depth.shape) == (np.float32, (480, 640))


def test_a_result_is_recorded_with_the_engine_that_the_node_names(ros):
    file = io.StringIO()
    recorder = ResultRecorder(file, with_times=False)
    recorder._receive_diagnostics(DiagnosticArray(status=[
        DiagnosticStatus(values=[KeyValue(key="code", value="OK"), KeyValue(key="engine", value="openvino int8")])]))
    recorder._receive(ObjectMeshArray(objects=[ObjectMesh(), ObjectMesh(status=int(Status.HIDDEN))]))
    recorder.destroy_node()
    record = json.loads(file.getvalue())
    assert (record["engine"], record["objects"], record["fresh"]) == ("openvino int8", 2, 1)


@pytest.mark.timeout(120)
def test_mesh_travels_between_processes():
    costs = message_cost.measure(count=3, cores=os.cpu_count())
    assert {figures["count"] for figures in costs.values()} == {3}
    assert 0 < costs["publish_to_callback_ms"]["p50"] < 1000


# ------------------------------------------------------------------------------------------------- frames

@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data folder with one frame, `desk`: a box (1) and a ball (2) on a table, and a label without a pixel (3)."""
    root = tmp_path_factory.mktemp("data")
    shapes = {1: trimesh.creation.box(extents=(0.10, 0.06, 0.08)), 2: trimesh.creation.icosphere(radius=0.04)}
    poses = {1: trimesh.transformations.translation_matrix([-0.08, 0, 0.04]),
             2: trimesh.transformations.translation_matrix([0.08, 0, 0.04])}
    table = trimesh.creation.box(bounds=[[-0.6, -0.6, -0.02], [0.6, 0.6, 0]])
    bodies = [Body(mesh, vertex_paint(np.full((len(mesh.vertices), 3), 120, np.uint8)), pose, label)
              for label, mesh, pose in [(0, table, np.eye(4)), *((n, shapes[n], poses[n]) for n in shapes)]]
    world_from_camera = trimesh.transformations.rotation_matrix(np.deg2rad(-125), [1, 0, 0])
    world_from_camera[:3, 3] = [0, -0.5, 0.4]
    view = Raycaster(bodies, Lamp(samples=0)).render(CAMERA, world_from_camera)
    write_frame_folder(root / "frames" / "desk", Frame(
        view.colour, view.depth, view.labels.astype(np.int32), CAMERA,
        (Instance(1, "box"), Instance(2, "ball"), Instance(3, "mug"))))
    (root / "meshes").mkdir()
    for label, name in ((1, "box"), (2, "ball"), (3, "b_cups")):
        shapes.get(label, shapes[1]).export(root / "meshes" / f"{name}.ply")
    camera_from_world = np.linalg.inv(world_from_camera)
    objects = [{"label": label, "mesh": f"meshes/{name}.ply", "visible_fraction": 1.0,
                "pose_object_to_camera": (camera_from_world @ poses.get(label, np.eye(4))).tolist()}
               for label, name in ((1, "box"), (2, "ball"), (3, "b_cups"))]
    (root / "frames" / "desk" / "gt.json").write_text(json.dumps({"objects": objects}))
    return root


def scores_of(data: Path, method: frames.Method) -> dict[str, frames.Score]:
    scores = frames.judge(frames.frame_folders(data / "frames"), data, {"method": method})
    return {score.true.name: score for score in scores}


def test_the_truth_itself_has_no_error_and_what_is_not_found_is_counted(data):
    scores = scores_of(data, lambda true: {item.label: item.posed for item in true.objects if item.label != 3})
    assert scores["box"].errors.chamfer_mm < 1e-3 and scores["ball"].errors.chamfer_mm < 1e-3
    assert scores["b_cups"].errors is None
    report = frames.report(list(scores.values()))["method"]
    assert (report["all"]["objects"], report["all"]["found"], report["all"]["watertight"]) == (3, 2, 2)
    assert (report["thin-walled"]["objects"], report["thin-walled"]["mean"]) == (1, None)
    assert "missing" in frames.table(list(scores.values()))


def test_a_true_mesh_that_is_missing_is_named(data, tmp_path, capsys):
    results = tmp_path / "results"
    (results / "desk").mkdir(parents=True)
    (results / "desk" / "objects.json").write_text("[]")
    assert cli.main(["bench", "frames", "--frames", str(data / "frames"), "--meshes", str(tmp_path / "nosuch"),
                     "--results", str(results), "-o", str(tmp_path / "report.json")]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"sam3d: error: the true mesh {tmp_path / 'nosuch' / 'meshes' / 'box.ply'} does not exist")


def test_thin_walled_containers_are_known_by_their_name():
    def is_thin_walled(name: str) -> bool:
        return frames.TrueObject(1, name, trimesh.Trimesh(), np.eye(4), 1.0).is_thin_walled
    assert all(map(is_thin_walled, ["b_cups", "mug", "wine_glass", "pitcher_base", "bowl"]))
    assert not any(map(is_thin_walled, ["potted_meat_can", "cupboard", "mustard_bottle"]))


def test_baselines_on_a_clean_scene(data):
    """Noise-free: a box that stands on the table is found exactly, and the oracle finds every pose."""
    box = scores_of(data, frames.BASELINES["oriented box"])["box"].errors
    assert box.chamfer_mm < 2 and box.volume_iou > 0.9
    seen, extruded = (scores_of(data, frames.BASELINES[name]) for name in ("convex hull", "extruded hull"))
    for name in ("box", "ball"):
        assert extruded[name].errors.completeness_mm < seen[name].errors.completeness_mm
    oracle = scores_of(data, frames.BASELINES["oracle"])
    assert oracle["box"].errors.chamfer_mm < 1.5 and oracle["ball"].errors.chamfer_mm < 1.5
    assert oracle["b_cups"].errors is None
    exact = scores_of(data, lambda true: baselines.true_distances(
        true.frame, {item.label: item.posed for item in true.objects}))
    for name in ("box", "ball"):
        assert exact[name].errors.chamfer_mm < 0.5 and exact[name].errors.volume_iou > 0.97


def test_mask_without_enough_depth_has_no_baseline(data):
    true = frames.read_true_frame(data / "frames" / "desk", data)
    assert set(baselines.convex_hulls(true.frame)) == {1, 2}


class PipelineOfBoxes:
    """Stands in for the pipeline: a box of 10 x 6 x 8 cm in the place of label 1, and a rejection of label 2."""

    def run(self, frame: Frame, *_: Any) -> PipelineResult:
        box = trimesh.creation.box(extents=(0.10, 0.06, 0.08))
        pose = np.eye(4)
        pose[:3, 3] = np.median(back_project(frame.depth, frame.intrinsics, *np.nonzero(frame.labels == 1)), axis=0)
        vertices, none = len(box.vertices), np.empty((0, 3), np.float32)
        item = ReconstructedObject(
            label=1, class_id="box", score=1.0, detector_id="", camera_from_object=pose, pose_covariance=np.eye(6),
            size=box.extents, vertices=box.vertices.astype(np.float32), triangles=box.faces.astype(np.uint32),
            vertex_rgba=np.zeros((vertices, 4), np.uint8), vertex_std=np.zeros(vertices, np.float32),
            scale_source=ScaleSource.DEPTH, scale_std=0.0, visible_fraction=0.5, status=Status.OK,
            observed_points=none, observed_rgb=none.astype(np.uint8))
        return PipelineResult([item], (Rejection(2, Fault(FaultCode.SHAPE_NOT_FOUND)),), {})


def test_live_product_is_judged_where_it_puts_the_object(data, capsys):
    scores = scores_of(data, frames.live(PipelineOfBoxes()))
    assert scores["box"].mesh.is_watertight and 5 < scores["box"].errors.chamfer_mm < 50
    assert scores["ball"].errors is None
    assert "desk: object 2 rejected: SHAPE_NOT_FOUND" in capsys.readouterr().err


def test_bench_frames_judges_what_reconstruct_wrote(data, tmp_path, capsys):
    """A ball of 3 cm in place of the true one of 4 cm, at the right place."""
    true = {item.label: item for item in frames.read_true_frame(data / "frames" / "desk", data).objects}
    results = tmp_path / "out" / "desk"
    results.mkdir(parents=True)
    trimesh.creation.icosphere(radius=0.03).export(results / "object_2.ply")
    (results / "objects.json").write_text(json.dumps([{
        "label": 2, "mesh": "object_2.ply", "pose_object_to_camera": true[2].camera_from_object.tolist()}]))
    report = tmp_path / "report" / "frames.json"
    assert cli.main(["bench", "frames", "--frames", str(data / "frames"), "--meshes", str(data),
                     "--results", str(results.parent), "-o", str(report)]) == 0
    methods = json.loads(report.read_text())["methods"]
    assert set(methods) == {"sam3d", *frames.BASELINES}
    assert (methods["sam3d"]["all"]["objects"], methods["sam3d"]["all"]["found"]) == (3, 1)
    assert methods["sam3d"]["all"]["mean"]["chamfer_mm"] == pytest.approx(10, abs=0.2)
    assert methods["sam3d"]["sam3d_protocol"]["volume_iou"] > 0.95             # scale does not count there
    assert "convex hull" in capsys.readouterr().out


def test_frames_without_results_count_as_not_found(data, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="holds no frame's objects.json"):
        frames.stored(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "objects.json").write_text("[]")
    scores = scores_of(data, frames.stored(tmp_path))
    assert len(scores) == 3 and all(score.errors is None for score in scores.values())
    assert f"desk: {tmp_path / 'desk' / 'objects.json'} does not exist" in capsys.readouterr().err
    report = frames.report(list(scores.values()))["method"]["all"]
    assert (report["objects"], report["found"], report["mean"]) == (3, 0, None)


def test_a_frame_without_depth_has_no_baselines(data, tmp_path, capsys):
    folder = tmp_path / "desk"
    shutil.copytree(data / "frames" / "desk", folder)
    (folder / "depth.png").unlink()
    scores = frames.judge([folder], data, frames.BASELINES)
    assert len(scores) == 3 * len(frames.BASELINES) and not any(score.errors for score in scores)
    assert "desk: oriented box: DEPTH_MISSING" in capsys.readouterr().err


@pytest.mark.parametrize("code", [FaultCode.ENGINE_FAILED, FaultCode.ENGINE_OUT_OF_MEMORY])
def test_an_engine_that_fails_ends_the_benchmark(data, code):
    def fail(true):
        raise Fault(code, "openvino int8: it broke")

    with pytest.raises(Fault, match="it broke"):
        frames.judge([data / "frames" / "desk"], data, {"method": fail})


def test_a_frame_without_objects_is_reported_as_such():
    assert frames.report([]) == {} and "objects" in frames.table([])


@pytest.mark.parametrize("truth", ["{", "[]", '{"objects": [{"label": 1}]}', '{"objects": 3}',
                                   '{"objects": [{"label": 1, "mesh": "m", "pose_object_to_camera": [1]}]}'])
def test_a_broken_gt_json_is_named(data, tmp_path, truth):
    (tmp_path / "gt.json").write_text(truth)
    with pytest.raises(Fault, match="gt.json") as raised:
        frames.read_true_frame(tmp_path, data)
    assert raised.value.code is FaultCode.FRAME_FOLDER_INVALID


def test_visible_fraction_is_optional(data, tmp_path):
    folder = tmp_path / "desk"
    shutil.copytree(data / "frames" / "desk", folder)
    truth = json.loads((folder / "gt.json").read_text())
    del truth["objects"][0]["visible_fraction"]
    (folder / "gt.json").write_text(json.dumps(truth))
    assert frames.read_true_frame(folder, data).objects[0].visible_fraction == 1.0


def test_folder_without_frames_is_one_clear_line(tmp_path, capsys):
    folder = str(tmp_path)
    assert cli.main(["bench", "frames", "--frames", folder, "--results", folder, "-o", f"{folder}/r.json"]) == 1
    assert "holds no frame folder with a gt.json" in capsys.readouterr().err


@pytest.mark.skipif(not (DATA / "frames").is_dir(), reason="third-party data not found; set SAM3D_DATA")
def test_hulls_of_the_real_frames_have_the_known_errors():
    methods = {name: frames.BASELINES[name] for name in ("convex hull", "extruded hull")}
    report = frames.report(frames.judge(frames.frame_folders(DATA / "frames"), DATA, methods))
    known = {"convex hull": (7.49, 0.58, 0.57), "extruded hull": (7.75, 0.59, 0.57)}
    for name, (chamfer_mm, f_score, volume_iou) in known.items():
        mean = report[name]["all"]["mean"]
        assert mean["objects"] == 13
        assert mean["chamfer_mm"] == pytest.approx(chamfer_mm, abs=0.1)
        assert mean["f_score_5mm"] == pytest.approx(f_score, abs=0.01)
        assert mean["volume_iou"] == pytest.approx(volume_iou, abs=0.01)


# --------------------------------------------------------------------------------------------------- rough soak, track

def test_a_rough_soak_fails_on_old_and_on_stale_results():
    good = [(Result(stamp_ns=n, latency_ms=20, processing_ms=8, objects=5, vertices=0, fresh=4), 4) for n in range(3)]
    loaded = samples()[60::30]
    assert failed(rough_soak.judge(samples(), loaded, [0.1, 0.2], good, {"OK": 5})) == []
    assert failed(rough_soak.judge(samples(), loaded, [0.1, 1.2], good, {})) == ["oldest_result_s"]
    stale = [*good, (replace(good[0][0], fresh=5), 4)]
    assert failed(rough_soak.judge(samples(), loaded, [0.1], stale, {})) == ["gone_objects_shown_as_fresh"]
    assert failed(rough_soak.judge(samples(), loaded, [0.1], good, {"INTERNAL_ERROR": 1})) == ["internal_errors"]


def test_results_are_judged_once_an_object_is_gone_for_long_enough():
    """It vanishes after the 10th image, of 50, and is back in the 40th; stamps need not rise."""
    sent = [{"stamp_ns": 5_000_000 - n, "sent_ns": n * 33_000_000, "shown": 4 if 10 <= n < 40 else 5}
            for n in range(50)]
    results = [Result(image["stamp_ns"], latency_ms=20, processing_ms=8, objects=5, vertices=0) for image in sent]
    judged = rough_soak.results_when_gone(sent, results)
    assert [result.stamp_ns for result, _ in judged] == [5_000_000 - n for n in range(22, 40)]
    assert {shown for _, shown in judged} == {4}


def test_poses_with_slow_masks_are_counted_and_their_stamps_must_rise():
    good = [Result(stamp_ns=n * 50_000_000, latency_ms=20 + n, processing_ms=8, objects=slow_masks.OBJECTS, vertices=0)
            for n in range(11)]
    found = slow_masks.figures(good)
    assert found["results_per_second"] == 20 and found["age_ms"]["p50"] == 25
    assert found["stamps_rise"] and found["complete"]
    assert not slow_masks.figures([*good, replace(good[5], objects=4)])["stamps_rise"]
    assert not slow_masks.figures([*good[:5], replace(good[5], objects=4)])["complete"]


def test_a_rough_soak_compares_memory_as_newly_loaded():
    leaps = [replace(s, memory_mib=s.memory_mib + 60 * (n > 200)) for n, s in enumerate(samples())]
    growing = samples(growth_per_minute=1.2)
    assert failed(rough_soak.judge(leaps, samples()[60::30], [0.1], [], {})) == []
    assert failed(rough_soak.judge(leaps, growing[60::30], [0.1], [], {})) == ["memory_growth_mib_per_minute"]


class Camera:
    """Stands in for the player, in time of its own, of which every image takes 20 ms to send."""

    def __init__(self, monkeypatch, seconds: float):
        self.now, self.clock_offset_ns = 1000.0, 0
        self.began: list[float] = []
        self.shown: list[tuple[float, Frame]] = []
        self.counts: list[int] = []         # of objects, image by image
        end = self.now + seconds
        monkeypatch.setattr(frame_player, "rclpy", SimpleNamespace(ok=lambda: self.now < end))
        monkeypatch.setattr(frame_player, "time", SimpleNamespace(
            monotonic=lambda: self.now, time_ns=lambda: round(1e9 * self.now), sleep=self._wait))

    def play(self, silent: str = "") -> int:
        self.began.append(self.now)
        self.counts.append(len(self.shown[-1][1].instances) if self.shown else 3)
        self._wait(0.02)
        return round(1e9 * self.began[-1]) + self.clock_offset_ns

    def show(self, frame: Frame) -> None:
        self.shown.append((self.now, frame))

    def show_masks(self, labels: np.ndarray) -> None:
        assert labels.shape == (10, 12)

    def _wait(self, seconds: float) -> None:
        self.now += seconds


def test_an_image_is_sent_when_its_sending_begins(monkeypatch, tmp_path):
    camera = Camera(monkeypatch, seconds=60)
    frame_player.play_badly(camera, blocks(1, 2), [], 30.0, np.random.default_rng(0), tmp_path / "log")
    sent = read_records(tmp_path / "log")
    assert [record["sent_ns"] for record in sent] == [round(1e9 * began) for began in camera.began]
    assert len({record["stamp_ns"] - record["sent_ns"] for record in sent}) > 1           # the clock jumped


def test_an_object_is_not_there_for_some_seconds_now_and_then(monkeypatch, tmp_path):
    camera, whole, without = Camera(monkeypatch, seconds=300), blocks(1, 2, 3), [blocks(1, 3), blocks(2, 3)]
    frame_player.play_badly(camera, whole, without, 30.0, np.random.default_rng(0), tmp_path / "log")
    times, pictures = np.array([now for now, _ in camera.shown]), [id(picture) for _, picture in camera.shown]
    assert len(times) >= 30 and set(pictures[::2]) == {*map(id, without)} and set(pictures[1::2]) == {id(whole)}
    gone, period = np.diff(times)[::2], np.diff(times[::2])
    assert 2 <= gone.min() and gone.max() < 4.1 and 10 <= period.min() and period.max() < 20.1
    assert [image["shown"] for image in read_records(tmp_path / "log")] == camera.counts
    assert {*camera.counts} == {2, 3}


def blocks(*labels: int) -> Frame:
    """A frame with blocks of these labels, 1 to 9, one below the other."""
    rows = np.where(np.isin(np.arange(10), labels), np.arange(10), 0).astype(np.int32)
    masks = np.repeat(rows[:, None], 12, axis=1)
    return Frame(np.zeros((10, 12, 3), np.uint8), np.full((10, 12), 0.5, np.float32), masks,
                 Intrinsics(12, 10, 10.0, 10.0, 5.5, 4.5), tuple(Instance(label) for label in labels))


def test_age_counts_from_sending_however_the_stamps_jump():
    sent = [{"stamp_ns": 50_000, "sent_ns": 1_000_000_000}, {"stamp_ns": 7, "sent_ns": 2_000_000_000}]
    results = [Result(stamp_ns=7, latency_ms=0, processing_ms=8, objects=5, vertices=0)]
    assert rough_soak.ages(sent, results, [2_250_000_000]) == [0.25]
    unnoted = replace(results[0], stamp_ns=9)
    assert rough_soak.ages(sent, [*results, unnoted], [2_250_000_000, 2_300_000_000]) == [0.25]
    with pytest.raises(KeyError):
        rough_soak.ages(sent, [unnoted, *results], [2_250_000_000, 2_300_000_000])


def test_a_ball_s_turn_is_no_error_that_lowers_the_others():
    told = tracking._percentiles([2.0, np.nan, 4.0, np.nan])
    assert (told["mean"], told["count"], tracking._percentiles([np.nan])) == (3.0, 2, {})
    entry = {"object": "ball", "ids": 1, "images_seen": 9, "seen_share": 0.9, "mm": told, "degrees": {}, "nees": {}}
    assert "90%" in tracking.table([{"seed": 1, "camera_pose_given": True, "each": [entry]}])


def test_a_run_in_which_nothing_was_seen_misses_its_bars():
    nothing = {"id_switches": 0, "mm": {}, "degrees": {}, "update_cpu_ms": {"p95": 5.0}, "each": [
        {"seen_share": 0.0, "carried": {"seen_share": 0.0, "mm": {}}, "covered": {"seen_again_after_s": None}}]}
    kept = tracking.bars([nothing])
    assert failed(kept) == ["median_mm", "median_degrees", "seen_share", "carried_median_mm", "carried_seen_share",
                            "covered_seen_again_s"]
    json.dumps(kept, allow_nan=False)


def test_an_object_that_is_never_followed_misses_a_bar():
    """Of two balls that four images show, one is seen in three of them, the other in none; a third is out of view."""
    balls = tuple(PlacedObject(label, SimpleNamespace(mesh=trimesh.creation.icosphere(2, 0.05), kind="ball"), np.eye(4))
                  for label in (1, 2, 3))
    judge = tracking.Judge(balls)
    for index, presence in enumerate([Presence.HIDDEN, *[Presence.SEEN] * 3]):
        item = SimpleNamespace(id="object_1", presence=presence,
                               object=SimpleNamespace(label=1, camera_from_object=np.eye(4)))
        frame = SimpleNamespace(stamp_ns=FIRST_STAMP_NS + index * 33_000_000)
        judge.judge(None, [item], Moment(frame, {label: np.eye(4) for label in (1, 2, 3)}, {1: 1, 2: 2}, (1, 2)))
    report = tracking._report(judge, SimpleNamespace(objects=balls, seconds=20, carried=1, covered=1))
    assert [entry["seen_share"] for entry in report["each"]] == [0.75, 0.0, None]
    kept = tracking.bars([report | {"update_cpu_ms": {"p95": 5.0}}])
    assert "seen_share" in failed(kept) and kept["seen_share"]["value"] == 0
    assert {"median_mm", "median_degrees", "id_switches"}.isdisjoint(failed(kept))


def test_both_times_of_an_update_are_of_images_newer_than_all_before(monkeypatch):
    """On a run of three empty images."""
    frame = Frame(np.zeros((48, 64, 3), np.uint8), np.full((48, 64), 0.6, np.float32), np.zeros((48, 64), np.int32),
                  Intrinsics(64, 48, 60.0, 60.0, 31.5, 23.5), world_from_camera=np.eye(4))
    stage = SimpleNamespace(
        seed=1, seconds=3 / RATE, objects=(), rewind=lambda: None,
        moment=lambda now, _: Moment(replace(frame, stamp_ns=FIRST_STAMP_NS + int(now * 1e9)), {}, {}, ()))
    are_newer = []

    def update(tracker: Tracker, frame: Frame) -> list[TrackedObject]:
        are_newer.append(tracker.is_newer(frame))
        return follow(tracker, frame)

    follow = Tracker.update
    monkeypatch.setattr(Tracker, "update", update)
    monkeypatch.setattr(tracking, "TIMED_UPDATES", 2)
    pipeline = SimpleNamespace(run=lambda frame: time.sleep(0.001))
    report = tracking.run(pipeline, stage, Disturbance())
    assert report["update_ms"]["alone"]["count"] == report["update_ms"]["beside_reconstruction"]["count"] == 2
    assert are_newer == [True] * 7


def test_balls_alone_miss_no_bar_of_degrees():
    ball = {"id_switches": 0, "mm": {"p50": 1.0}, "degrees": {}, "update_cpu_ms": {"p95": 5.0}, "each": [
        {"seen_share": 1.0, "carried": {"seen_share": 1.0, "mm": {"p50": 1.0}},
         "covered": {"seen_again_after_s": 0.1}}]}
    kept = tracking.bars([ball])
    assert failed(kept) == [] and kept["median_degrees"]["value"] is None
    assert failed(tracking.bars([ball, ball | {"degrees": {"p50": 2.5}}])) == ["median_degrees"]


def test_nothing_rebuilt_or_nothing_to_fall_is_no_figure():
    touching = physics.Contacts(0.0, 0.0, 0.0)
    item = physics.SettledObject("pile", "can", False, touching, touching, 2.0, 1.0, 0.0)
    for objects, changes in (([], (None, None)), ([item], (None, -0.5))):
        told = physics.report(objects, [1.0])
        assert (told["gap_mm"]["change"], told["chamfer_mm"]["change"]) == changes
        json.dumps(told, allow_nan=False)
        assert f"{len(objects)} objects" in physics.table({"pile": told})


def test_turns_about_an_axis_of_symmetry_do_not_count():
    pose, turned = np.eye(4), np.eye(4)
    turned[:3, :3] = Rotation.from_euler("zx", [90, 3], degrees=True).as_matrix()
    axes = np.eye(3)
    assert np.rad2deg(tracking.turn_error(turned, pose, np.empty((0, 3)))) > 80
    assert np.rad2deg(tracking.turn_error(turned, pose, axes[2:])) == pytest.approx(3, abs=0.01)
    assert np.isnan(tracking.turn_error(turned, pose, axes))
    shapes = {"can": trimesh.creation.cylinder(0.03, 0.1), "box": trimesh.creation.box([0.1, 0.07, 0.05]),
              "ball": trimesh.creation.icosphere(4, 0.05)}
    found = {name: tracking.symmetry_axes(PlacedObject(1, SimpleNamespace(mesh=mesh), pose))
             for name, mesh in shapes.items()}
    assert [len(found[name]) for name in shapes] == [1, 0, 3]
    assert abs(found["can"][0][2]) == pytest.approx(1, abs=0.01)
