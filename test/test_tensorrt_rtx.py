"""Ahead-of-time builds by the real TensorRT-RTX; they need no GPU."""
import os
import re
import signal
from collections import defaultdict
from pathlib import Path

import onnx
import pytest
from own_process import in_own_process
from student_graphs import student_model

from sam3d_ros import cli
from sam3d_ros.runtime import tensorrt_build
from sam3d_ros.runtime.engine import EngineError, ModelFile
from sam3d_ros.runtime.engine_cache import EngineCache
from sam3d_ros.runtime.int8 import activation_ranges
from sam3d_ros.runtime.signature import STUDENT
from sam3d_ros.runtime.tensorrt_build import build_plan, load_library

pytest.importorskip("tensorrt_rtx")
WEIGHTS = Path(tensorrt_build.__file__).parents[1] / "weights"


@pytest.fixture(scope="module")
def library():
    return load_library("tensorrt-rtx")


@pytest.fixture(scope="module")
def model():
    return ModelFile(Path("student.onnx"), student_model(width=4, evidence=64).SerializeToString())


class Listener:
    """Layers of the finished engine, read from what the builder says at its most talkative."""

    def __init__(self, monkeypatch):
        self.lines = []
        make = tensorrt_build.make_logger

        def listening(lib):
            logger = make(lib)
            original = type(logger).log

            def log(this, severity, message):
                self.lines.append(message)
                original(this, severity, message)

            type(logger).log = log
            return logger

        monkeypatch.setattr(tensorrt_build, "make_logger", listening)

    def convolution_types(self):
        """Data type -> how many of the engine's convolutions take their input in it."""
        found = defaultdict(int)
        for line in "\n".join(self.lines).splitlines():
            match = re.search(r"LayerType: correlation, Inputs: \[ \{ Name: .*?Datatype: (\w+)", line)
            if match:
                found[match[1]] += 1
        return dict(found)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("capability", ["8.6", "8.9", "12.0"])
def test_builds_in_float16_without_falling_back(library, model, capability, monkeypatch):
    listener = Listener(monkeypatch)
    plan = build_plan(library, model, STUDENT, "fp16", capability)
    assert len(plan.data) > 100_000 and plan.convolutions == {"HALF": 14, "FLOAT": 3}
    engine = listener.convolution_types()
    assert engine["Half"] >= 13 and engine["Float"] <= 3


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["base", "small"])
def test_shipped_models_build(library, name):
    path = WEIGHTS / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"no model {name} is shipped yet")
    for capability in ("8.6", "8.9", "12.0"):
        plan = build_plan(library, ModelFile(path, path.read_bytes()), STUDENT, "fp16", capability)
        assert plan.convolutions["HALF"] > plan.convolutions["FLOAT"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("capability", ["8.6", "8.9", "12.0"])
def test_builds_in_int8_without_falling_back(library, capability, monkeypatch):
    listener, path = Listener(monkeypatch), WEIGHTS / "small.onnx"
    model = ModelFile(path, path.read_bytes())
    build_plan(library, model, STUDENT, "int8", capability)
    found = listener.convolution_types()
    assert found["Int8"] == len(activation_ranges(onnx.load_model_from_string(model.data)))
    assert found["Half"] > found["Int8"] and found["Float"] <= 2          # the heads


def test_what_it_cannot_build_is_named(library, model):
    with pytest.raises(EngineError, match="compute capability 9.0"):
        build_plan(library, model, STUDENT, "fp16", "9.0")
    for data in (b"", b"no model", model.data[:1000]):
        with pytest.raises(EngineError) as error:
            build_plan(library, ModelFile(Path("x.onnx"), data), STUDENT, "fp32", "8.6")
        assert error.value.reason in ("MODEL_INVALID", "MODEL_MISMATCH")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("error", [KeyboardInterrupt, LookupError])
@in_own_process
def test_a_build_is_ended(library, model, error, capfd):
    """By Ctrl-C, and by what the listener raises."""
    started = []

    def end(percent, what):
        started.append(percent)
        if len(started) == 1 and error is KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGINT)
        elif error is LookupError:
            raise error("enough")

    with pytest.raises(error):
        build_plan(library, model, STUDENT, "fp16", "8.6", on_progress=end)
    assert started[-1] < 60 and "Exception caught" not in capfd.readouterr().err


@pytest.mark.timeout(120)
def test_command_line(tmp_path, capsys):
    path = tmp_path / "student.onnx"
    path.write_bytes(student_model().SerializeToString())
    engine = ["engine", "--cache", str(tmp_path)]
    assert cli.main([*engine, "build", "--engine", "tensorrt-rtx", "--model", str(path), "--capability", "8.6",
                     "--capability", "12.0"]) == 0
    output = capsys.readouterr()
    assert output.out.count("tensorrt-rtx") == 2 and "100 %" in output.err
    assert cli.main([*engine, "list"]) == 0
    assert "any GPU (12.0)" in capsys.readouterr().out
    assert cli.main([*engine, "verify"]) == 0
    file = next((tmp_path / "engines").glob("*.engine"))
    file.write_bytes(file.read_bytes()[:-1])
    assert cli.main([*engine, "verify"]) == 1
    assert "BAD" in capsys.readouterr().out
    assert cli.main([*engine, "clear", "--damaged"]) == 0 and len(EngineCache(tmp_path).entries()) == 1
    assert cli.main([*engine, "clear"]) == 0 and not EngineCache(tmp_path).entries()
    (tmp_path / "engines").chmod(0o777)
    assert cli.main([*engine, "list"]) == 1
    assert "ENGINE_CACHE_UNSAFE" in capsys.readouterr().err
