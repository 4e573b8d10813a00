"""Which CPU engine `auto` takes, and what it notes."""
import importlib.metadata
import io
import json
import sys
import time

import numpy as np
import onnxruntime
import pytest
from student_graphs import student_model

from sam3d_ros.runtime import cuda, engine, golden, selection
from sam3d_ros.runtime.engine import BuildOptions, EngineError, load_engine
from sam3d_ros.runtime.signature import STUDENT


class Fake:
    """An engine that takes a given time; `wrong`: and answers something else."""

    def __init__(self, name, seconds, wrong=False):
        self.name, self.seconds, self.wrong, self.closed = name, seconds, wrong, False

    def infer(self, inputs):
        time.sleep(self.seconds)
        outputs = {name: np.ones(shape, np.float32)
                   for name, shape in STUDENT.output_shapes(batch=len(inputs["support"])).items()}
        outputs["distance"][:, :, :32] = -1
        if self.wrong:
            outputs["distance"][:, :, 32:40] = -1
        return outputs

    def close(self):
        self.closed = True


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Loads engines of given speeds: (name, precision) -> Fake or an error."""
    engines, loaded = {}, []
    model = tmp_path / "student.onnx"
    model.write_bytes(b"a model")

    def load_named(name, file, precision, threads, signature, options):
        loaded.append((name, precision))
        found = engines[name, precision]
        if isinstance(found, Exception):
            raise found
        return found

    def load(precision="auto", threads=0, name="auto"):
        loaded.clear()
        return load_engine(name, model, precision, threads, STUDENT, BuildOptions(folder=tmp_path / "cache"))

    monkeypatch.setattr(selection, "load_named", load_named)
    monkeypatch.setattr(selection, "available_engines", lambda: ["openvino", "onnxruntime"])
    monkeypatch.setattr(cuda, "load_driver", lambda: None)
    load.engines, load.loaded, load.folder, load.model = engines, loaded, tmp_path / "cache" / "engines", model
    engines |= {("openvino", "int8"): EngineError("ENGINE_UNAVAILABLE", "no ranges"),
                ("openvino", "bf16"): Fake("a", 0.006), ("openvino", "fp32"): Fake("b", 0.004),
                ("onnxruntime", "fp32"): Fake("c", 0.001)}
    return load


def test_the_fastest_is_taken_and_noted(machine):
    assert machine().name == "c"
    assert [engine.closed for engine in list(machine.engines.values())[1:]] == [True, True, False]
    (entry,) = json.loads((machine.folder / "cpu.json").read_text()).values()
    assert (entry["engine"], entry["precision"]) == ("onnxruntime", "fp32") and entry["ms"]["openvino fp32"] > 3
    assert machine().name == "c" and machine.loaded == [("onnxruntime", "fp32")]       # not measured again


def test_another_model_or_number_of_threads_is_measured_anew(machine):
    machine()
    machine.engines["onnxruntime", "fp32"].seconds = 0.02
    assert machine().name == "c"
    assert machine(threads=1).name == "b"
    machine.model.write_bytes(b"another model")
    assert machine().name == "b"


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_a_library_whose_distribution_has_another_name(machine, monkeypatch, name):
    """As where onnxruntime-gpu is installed instead of onnxruntime."""
    installed = importlib.metadata.version

    def version(name):
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert machine(name=name).name == "c" and len(machine.loaded) == 4
    assert machine(name=name).name == "c" and len(machine.loaded) == 1
    monkeypatch.setattr(onnxruntime, "__version__", "99.0")
    assert machine(name=name).name == "c" and len(machine.loaded) == 4       # another version is measured anew
    monkeypatch.delattr(onnxruntime, "__version__")
    assert machine(name=name).name == "c" and len(machine.loaded) == 4
    monkeypatch.setitem(sys.modules, "onnxruntime", None)                    # installed, and does not import
    machine.engines["onnxruntime", "fp32"] = EngineError("ENGINE_UNAVAILABLE", "onnxruntime: libfoo.so")
    assert machine(name=name).name == "b"


def test_an_inaccurate_engine_is_not_taken_however_fast(machine, caplog):
    machine.engines["openvino", "bf16"] = Fake("fast and wrong", 0.0, wrong=True)
    assert machine().name == "c"
    assert "fast and wrong is passed over" in caplog.text and "vIoU 0.8000" in caplog.text


def test_integers_are_taken_where_they_are_fast_and_right(machine):
    machine.engines["openvino", "int8"] = Fake("d", 0.0)
    assert machine().name == "d"
    machine.engines["openvino", "int8"] = Fake("d", 0.0, wrong=True)
    assert machine(threads=1).name == "c"


def test_what_this_processor_cannot_do_is_left_out(machine):
    machine.engines["openvino", "bf16"] = EngineError("ENGINE_UNAVAILABLE", "no bfloat16")
    assert machine().name == "c"
    machine.engines["openvino", "fp32"] = EngineError("MODEL_INVALID", "broken")
    with pytest.raises(EngineError, match="MODEL_INVALID"):
        machine(threads=3)


def test_what_does_not_load_any_more_is_measured_against(machine, caplog):
    """As after a library that it needs was removed, whose version the note does not have."""
    assert machine().name == "c"
    machine.engines["onnxruntime", "fp32"] = EngineError("ENGINE_UNAVAILABLE", "onnxruntime: libfoo.so")
    assert machine().name == "b"
    machine.engines["openvino", "fp32"] = EngineError("ENGINE_BUILD_FAILED", "openvino: it broke")
    assert machine().name == "a" and "openvino fp32 is passed over: ENGINE_BUILD_FAILED" in caplog.text
    assert machine().name == "a" and machine.loaded == [("openvino", "bf16")]       # noted
    machine.engines["openvino", "bf16"] = EngineError("ENGINE_BUILD_FAILED", "openvino: it broke, too")
    with pytest.raises(EngineError, match="libfoo"):
        machine()


@pytest.mark.parametrize(("said", "reason"), [("it broke", "ENGINE_FAILED"), ("Out of memory", "ENGINE_OUT_OF_MEMORY")])
def test_an_engine_that_loads_and_does_not_run_has_a_name(machine, monkeypatch, said, reason):
    def fail(inputs):
        raise RuntimeError(said)

    monkeypatch.setattr(machine.engines["onnxruntime", "fp32"], "infer", fail)
    with pytest.raises(EngineError, match=f"c: {said}") as error:
        machine()
    assert error.value.reason == reason


def test_a_wanted_precision(machine):
    assert machine("bf16").name == "a" and machine.loaded == [("openvino", "bf16")]
    with pytest.raises(EngineError) as error:
        machine("fp16")
    assert error.value.reason == "ENGINE_UNAVAILABLE" and "fp16" in error.value.detail


@pytest.mark.parametrize("text", ["", "[]", "{", '{"x": 1}', "null", pytest.param("[" * 100_000, id="deep list"),
                                  pytest.param('{"x":' * 100_000, id="deep object")])
def test_broken_notes_do_no_harm(machine, text):
    machine()
    (machine.folder / "cpu.json").write_text(text)
    assert machine().name == "c" and len(machine.loaded) == 4
    assert machine().name == "c" and len(machine.loaded) == 1            # noted again


def test_notes_that_are_read_but_cannot_be_written_are_not_kept(machine, monkeypatch):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with monkeypatch.context() as patch:
        patch.setattr(selection, "_notes", lambda cache: {"x": deep})
        assert machine().name == "c" and len(machine.loaded) == 4
    assert machine().name == "c" and len(machine.loaded) == 1


@pytest.mark.parametrize("choice", [{"engine": "tensorrt", "precision": "fp16"}, {"engine": "../x"}, 3])
def test_a_note_can_only_name_what_would_be_measured(machine, choice):
    machine()
    notes = json.loads((machine.folder / "cpu.json").read_text())
    (machine.folder / "cpu.json").write_text(json.dumps(dict.fromkeys(notes, choice)))
    assert machine().name == "c" and len(machine.loaded) == 4


def test_without_a_place_for_notes_it_is_measured_every_time(machine):
    machine.folder.parent.mkdir()
    machine.folder.write_text("in the way")
    assert machine().name == "c" and len(machine.loaded) == 4
    assert machine().name == "c" and len(machine.loaded) == 4


@pytest.mark.timeout(60)
def test_auto_on_this_machine(tmp_path):
    """At most 5 % slower than the fastest of those that may be chosen, by its own measurement."""
    model = tmp_path / "student.onnx"
    model.write_bytes(student_model().SerializeToString())
    chosen = load_engine("cpu", model, signature=STUDENT, options=BuildOptions(folder=tmp_path))
    (entry,) = json.loads((tmp_path / "engines" / "cpu.json").read_text()).values()
    assert chosen.name == f"{entry['engine']} {entry['precision']}"
    assert entry["ms"][chosen.name] <= 1.05 * min(entry["ms"].values())


def test_golden_outputs_are_kept_with_the_model_they_belong_to(tmp_path):
    path = tmp_path / "student.onnx"
    path.write_bytes(student_model().SerializeToString())
    model = engine.read_model(path)
    assert golden.read_golden(model) is None
    kept = golden.write_golden(model)
    found, wanted = golden.read_golden(model), golden.compute(model)
    np.testing.assert_array_equal(found.inside, wanted.inside)
    assert golden.deviation(found, wanted).accepted and kept.stat().st_size < 200_000
    path.write_bytes(student_model(seed=1).SerializeToString())
    assert golden.read_golden(engine.read_model(path)) is None
    array = io.BytesIO()
    np.save(array, wanted.layout)
    for content in (b"", b"no archive", array.getvalue(), kept.read_bytes()[:-50]):
        kept.write_bytes(content)
        assert golden.read_golden(model) is None
    content = {"version": 1, "model": np.array(model.sha256), "inside": np.packbits(wanted.inside),
               "layout": wanted.layout}
    np.savez(kept, **content)
    assert golden.read_golden(model) is not None
    for changed in ({"version": [1, 1]}, {"inside": wanted.inside[:1].astype(np.float32)}, {"layout": 1.0},
                    {"layout": wanted.layout[:3], "inside": np.packbits(wanted.inside[:3])}):
        np.savez(kept, **(content | changed))
        assert golden.read_golden(model) is None


def test_deviations():
    inputs = golden.golden_inputs()
    assert {name: array.shape for name, array in inputs.items()} == STUDENT.input_shapes(batch=4, views=2)
    assert inputs["views"][:, :, 10].tolist() == [[1, 0], [1, 1], [1, 0], [1, 1]]
    inside = np.zeros((1, 64, 64, 64), bool)
    inside[:, 10:50] = True
    layout = np.array([[0, 0, 1, 1, 0, 0, 0, 0, 0, -1.0]], np.float32)
    wanted = golden.Golden(inside, layout)
    assert golden.deviation(wanted, wanted).accepted
    fewer, turned, shifted = inside.copy(), layout.copy(), layout.copy()
    fewer[:, 49] = False
    turned[0, 3:6] = np.cos(0.05), np.sin(0.05), 0
    shifted[0, 7] = 0.02
    assert golden.deviation(golden.Golden(fewer, layout), wanted).iou == pytest.approx(39 / 40)
    assert golden.deviation(golden.Golden(inside, turned), wanted).turn == pytest.approx(np.rad2deg(0.05), abs=0.01)
    assert golden.deviation(golden.Golden(inside, shifted), wanted).shift == pytest.approx(0.02)
    for other in (golden.Golden(fewer, layout), golden.Golden(inside, turned), golden.Golden(inside, shifted),
                  golden.Golden(inside, layout * np.nan)):
        assert not golden.deviation(other, wanted).accepted
