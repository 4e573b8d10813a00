"""The TensorRT engine, every branch of it, on stand-ins for the driver and the library."""
import dataclasses
import errno
import json
import os
import signal
import sys
import threading
import time
import weakref
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from fake_gpu import NOT_SUPPORTED, OUT_OF_MEMORY, SCRATCH, FakeCuda, fake_tensorrt
from own_process import in_own_process
from student_graphs import student_inputs, student_model

from sam3d_ros import cli, doctor_checks, engine_cli
from sam3d_ros.perception.faults import Fault, FaultCode
from sam3d_ros.perception.pipeline import Pipeline, PipelineConfig
from sam3d_ros.runtime import cuda, golden, tensorrt_engine
from sam3d_ros.runtime.engine import BuildOptions, EngineError, load_engine, read_model
from sam3d_ros.runtime.engine_cache import EngineCache
from sam3d_ros.runtime.signature import STUDENT, Signature
from sam3d_ros.runtime.tensorrt_build import MAX_VIEWS


@pytest.fixture(scope="module")
def model_bytes():
    return student_model().SerializeToString()


@pytest.fixture(scope="module", autouse=True)
def one_golden_object():
    """The check of every engine on one object of one view: quicker."""
    inputs = {name: array[:1, :1] if name != "support" else array[:1] for name, array in golden.golden_inputs().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(golden, "golden_inputs", lambda: inputs)
        yield


@pytest.fixture(scope="module")
def golden_outputs(model_bytes, one_golden_object, tmp_path_factory):
    path = tmp_path_factory.mktemp("golden") / "student.onnx"
    path.write_bytes(model_bytes)
    return golden.compute(read_model(path))


class Machine:
    """A machine with a fake GPU and both libraries, a model, and an empty cache."""

    def __init__(self, tmp_path, monkeypatch, model_bytes):
        self.monkeypatch = monkeypatch
        self.model = tmp_path / "student.onnx"
        self.model.write_bytes(model_bytes)
        self.folder = tmp_path / "cache"
        self.progress = []
        self.install(FakeCuda())

    def install(self, driver, version="10.3.0"):
        """Another driver or version of the libraries."""
        self.cuda = driver
        self.trt, self.rtx = fake_tensorrt(driver, "tensorrt", version), fake_tensorrt(driver, "tensorrt_rtx", version)
        self.monkeypatch.setattr(cuda, "load_driver", lambda: driver)
        self.monkeypatch.setitem(sys.modules, "tensorrt", self.trt)
        self.monkeypatch.setitem(sys.modules, "tensorrt_rtx", self.rtx)

    def load(self, name="tensorrt", precision="auto", allow_build=True, signature=STUDENT):
        options = BuildOptions(allow_build, self.folder, lambda percent, what: self.progress.append((percent, what)))
        return load_engine(name, self.model, precision, signature=signature, options=options)

    def key(self):
        """Key of the float16 engine of this machine."""
        return tensorrt_engine.engine_key(tensorrt_engine.load_library("tensorrt"), read_model(self.model), STUDENT,
                                          "fp16", cuda.Device(self.cuda))

    def refusal(self, **arguments):
        """Reason and detail of the refusal to load."""
        with pytest.raises(EngineError) as error:
            self.load(**arguments)
        if self.cuda is not None:
            assert not self.cuda.in_use
        return error.value.reason, error.value.detail


@pytest.fixture
def machine(tmp_path, monkeypatch, model_bytes, golden_outputs):
    monkeypatch.setattr(golden, "reference", lambda model: golden_outputs)
    return Machine(tmp_path, monkeypatch, model_bytes)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp16", 0.01)])
def test_numbers_in_any_batch_size(machine, name, precision, tolerance):
    exact = load_engine("onnxruntime", machine.model, "fp32", signature=STUDENT)
    engine = machine.load(name, precision)
    assert engine.name == f"{name} {precision}"
    for batch, views in ((1, 1), (2, 2), (1, 1), (17, 1), (2, 2)):
        inputs = student_inputs(batch, views, seed=batch)
        found, wanted = engine.infer(inputs), exact.infer(inputs)
        for key, shape in STUDENT.output_shapes(batch=batch).items():
            assert found[key].shape == shape and found[key].dtype == np.float32
            np.testing.assert_allclose(found[key], wanted[key], atol=tolerance)
    engine.close()
    assert not machine.cuda.in_use


def test_one_recorded_graph_for_each_bucket(machine):
    engine = machine.load()
    before = machine.cuda.calls.get("cuGraphLaunch", 0)
    contexts = len(machine.trt.contexts)
    results = [engine.infer(student_inputs(batch, 2)) for batch in (1, 3, 5, 12)]
    assert len(machine.trt.contexts) - contexts == 4                  # buckets 1, 4, 8, 16
    assert machine.cuda.calls.get("cuGraphLaunch", 0) == before       # the first run of each is its warm-up
    kept = [result["distance"].copy() for result in results]
    for batch in (2, 4, 7, 16, 1, 3, 5, 12):
        engine.infer(student_inputs(batch, 2, seed=batch))
    assert len(machine.trt.contexts) - contexts == 5                  # and 2
    assert machine.cuda.calls["cuGraphLaunch"] == before + 7
    for result, distance in zip(results, kept, strict=True):
        np.testing.assert_array_equal(result["distance"], distance)   # results are the caller's own


@pytest.mark.parametrize("function", ["cuStreamBeginCapture_v2", "cuGraphInstantiateWithFlags"])
def test_runs_without_graphs_where_none_can_be_recorded(machine, function, caplog):
    machine.cuda.fail[function] = NOT_SUPPORTED
    engine = machine.load()
    first, second = engine.infer(student_inputs()), engine.infer(student_inputs())
    np.testing.assert_array_equal(first["distance"], second["distance"])
    assert "runs without a CUDA graph" in caplog.text and "cuGraphLaunch" not in machine.cuda.calls


def test_runs_without_graphs_where_the_driver_is_too_old_for_them(machine, caplog):
    machine.cuda.missing.add("cuGraphInstantiateWithFlags")         # of CUDA 11.4
    engine = machine.load()
    assert engine.infer(student_inputs())["layout"].shape == (1, 10)
    assert "runs without a CUDA graph for 1 objects: cuGraphInstantiateWithFlags: this driver is too old" in caplog.text
    engine.close()
    assert not machine.cuda.in_use


def test_kernels_are_compiled_once_and_kept(machine, caplog):
    engine = machine.load("tensorrt-rtx")
    engine.infer(student_inputs(2))
    assert machine.rtx.compiled == ["any", "1x1", "2x1"]            # contexts share them; 1x1 is the check's
    engine.close()
    for batch in (2, 4):
        engine = machine.load("tensorrt-rtx")
        engine.infer(student_inputs(batch))
        machine.cuda.current = None                                # as in another thread
        engine.close()
    assert machine.rtx.compiled == ["any", "1x1", "2x1", "4x1"]
    (kernels,) = (machine.folder / "engines").glob("*.kernels")
    assert kernels.read_bytes() == b"10.3.0 1x1 2x1 4x1 any"
    kernels.write_bytes(b"another version")
    engine = machine.load("tensorrt-rtx")
    engine.infer(student_inputs(1))
    assert machine.rtx.compiled[4:] == ["any", "1x1"]
    kernels.parent.chmod(0o770)
    engine.close()                                                 # no place to keep them: said in the log
    assert "kernels of tensorrt-rtx cannot be kept" in caplog.text and not machine.cuda.in_use
    kernels.parent.chmod(0o700)
    machine.load().close()
    EngineCache(machine.folder).remove()
    assert not list(kernels.parent.glob("*.kernels"))


def living(library):
    """The contexts that have not been freed."""
    return [context for reference in library.contexts if (context := reference())]


def scratch_bytes(library):
    """Memory that contexts compute in, each piece counted once."""
    return sum({context.scratch: context.scratch_bytes for context in living(library)}.values())


@pytest.mark.parametrize(("name", "version"), [("tensorrt", "10.10.0"), ("tensorrt", "11.4.0"),
                                               ("tensorrt-rtx", "1.4.0")])
def test_memory_to_compute_in_is_what_the_largest_run_needs(machine, name, version):
    """Not that of most objects with most views at once, which the profile allows."""
    machine.install(FakeCuda(), version)
    engine = machine.load(name)
    library = machine.trt if name == "tensorrt" else machine.rtx
    engine.infer(student_inputs(16))
    largest = living(library)[-1].scratch_bytes
    assert largest == 16 * SCRATCH
    before = scratch_bytes(library)
    for batch, views in ((1, 1), (2, 8), (4, 3), (8, 2)):
        engine.infer(student_inputs(batch, views))
    assert scratch_bytes(library) == before <= 2 * largest
    library.no_size = True
    engine.infer(student_inputs(8))
    assert living(library)[-1].scratch_bytes == 16 * MAX_VIEWS * SCRATCH


def test_memory_to_compute_in_of_a_library_that_tells_only_the_most(machine):
    engine = machine.load()                     # TensorRT 10.3
    for batch in (1, 2, 16):
        engine.infer(student_inputs(batch))
    assert scratch_bytes(machine.trt) == 16 * MAX_VIEWS * SCRATCH


def test_an_engine_built_for_another_use_of_memory_is_another_one(machine):
    machine.install(FakeCuda(), "10.10.0")
    assert machine.key().flags == "strongly typed no TF32 RUNTIME_ACTIVATION_RESIZE_10_10"
    machine.install(FakeCuda(), "10.3.0")
    assert machine.key().flags == "strongly typed no TF32"


def test_a_recording_that_fails_midway_is_freed(machine, caplog):
    synchronise = machine.cuda._cuStreamSynchronize

    def fail_next(stream):
        machine.trt.execute_error = "not permitted while capturing"
        return synchronise(stream)

    engine = machine.load()
    machine.cuda._cuStreamSynchronize = fail_next              # after the first run of a size, before its recording
    assert engine.infer(student_inputs(2))["layout"].shape == (2, 10)
    assert "runs without a CUDA graph for 2 objects: not permitted" in caplog.text
    engine.close()
    assert not machine.cuda.in_use


def test_graphs_are_freed_before_their_contexts_and_contexts_before_memory(machine):
    machine.install(FakeCuda(), "10.10.0")              # with which more objects take more memory
    engine = machine.load()
    for batch in (2, 16, 4):
        engine.infer(student_inputs(batch))
    assert len({context.scratch for context in living(machine.trt)}) == 3
    seen = defaultdict(list)
    looks = {"cuGraphExecDestroy": lambda graph: len(machine.cuda.graphs) - len(living(machine.trt)),
             "cuMemFree_v2": lambda memory: memory.value in {context.scratch for context in living(machine.trt)},
             "cuStreamDestroy_v2": lambda stream: (len(living(machine.trt)), engine._engine is not None),
             "cuDevicePrimaryCtxRelease_v2": lambda device: engine._engine is not None}
    for function, look in looks.items():
        def watched(*arguments, function=function, look=look):
            seen[function].append(look(*arguments))
            return getattr(type(machine.cuda), "_" + function)(machine.cuda, *arguments)

        setattr(machine.cuda, "_" + function, watched)
    engine.close()
    buffers = len(STUDENT.inputs) + len(STUDENT.outputs) + 3
    assert seen == {"cuGraphExecDestroy": [0] * 4, "cuMemFree_v2": [False] * buffers,
                    "cuStreamDestroy_v2": [(0, True)], "cuDevicePrimaryCtxRelease_v2": [False]}


@pytest.mark.parametrize("said", ["out of memory", "illegal memory access"])
def test_a_context_whose_first_run_failed_is_freed_before_its_device(machine, said):
    """Though the error, which knows where it came from, is still there."""
    machine.trt.execute_error = said
    machine.refusal()
    assert machine.trt.freed_in == [1]
    machine.trt.execute_error = ""
    engine = machine.load()
    machine.trt.execute_error = said
    with pytest.raises(RuntimeError, match=said) as error:
        engine.infer(student_inputs(2))
    engine.close()
    assert machine.trt.freed_in == [1, 1, 1] and not living(machine.trt), error


def test_runs_that_fail_leave_nothing(machine):
    """However many: a camera goes on sending images."""
    engine, configs, make = machine.load("tensorrt-rtx"), weakref.WeakSet(), machine.rtx.RuntimeConfig

    def made():
        configs.add(config := make())
        return config

    machine.rtx.RuntimeConfig = made
    for trouble in ("execute_error", "no_context"):
        setattr(machine.rtx, trouble, "it broke")
        for _ in range(3):
            with pytest.raises(RuntimeError):
                engine.infer(student_inputs(2))
        setattr(machine.rtx, trouble, "")
    assert not configs


def test_no_number_of_objects_is_new_after_the_first_runs(machine):
    engine = machine.load("tensorrt-rtx")
    for count in engine.first_runs:
        engine.infer(student_inputs(count))
    before = len(machine.rtx.contexts), list(machine.rtx.compiled), len(machine.cuda.buffers)
    for count in range(1, engine.most_crops + 1):
        engine.infer(student_inputs(count))
    assert before == (len(machine.rtx.contexts), machine.rtx.compiled, len(machine.cuda.buffers))


def test_memory_stays_the_same(machine):
    engine = machine.load()
    sizes = []
    for _ in range(3):
        for batch in (1, 2, 4):
            engine.infer(student_inputs(batch))
        sizes.append((len(machine.cuda.buffers), len(machine.cuda.graphs), len(machine.trt.contexts)))
    assert sizes[0] == sizes[1] == sizes[2]


def test_another_thread_may_infer(machine):
    engine = machine.load()
    before, results = machine.cuda.calls["cuCtxSetCurrent"], []
    thread = threading.Thread(target=lambda: results.append(engine.infer(student_inputs())))
    thread.start()
    thread.join()
    assert machine.cuda.calls["cuCtxSetCurrent"] == before + 1
    np.testing.assert_array_equal(results[0]["layout"], engine.infer(student_inputs())["layout"])


def test_failures_while_running_are_runtime_errors(machine):
    engine = machine.load()
    with pytest.raises(RuntimeError, match="9 views"):
        engine.infer(student_inputs(1, MAX_VIEWS + 1))
    with pytest.raises(RuntimeError, match="support is 2 x 5 instead of 1 x 5"):
        engine.infer(student_inputs(1) | {"support": np.zeros((2, 5), np.float32)})
    machine.trt.execute_error = "illegal memory access"
    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine.infer(student_inputs(2))
    machine.trt.execute_error, machine.trt.no_context = "", True
    with pytest.raises(RuntimeError, match="no memory for a context"):
        engine.infer(student_inputs(8))
    machine.trt.no_context = False
    machine.cuda.fail["cuGraphLaunch"] = 700
    with pytest.raises(RuntimeError, match="cuGraphLaunch: error 700"):
        engine.infer(student_inputs(1))


def test_built_once_then_taken_from_the_cache(machine):
    machine.load().close()
    assert machine.trt.builds == 1
    percents = [percent for percent, what in machine.progress]
    assert percents == sorted(percents) and percents[0] < 60 and percents[-1] == 100
    machine.load(allow_build=False).close()
    assert machine.trt.builds == 1
    machine.load(precision="fp32").close()
    assert machine.trt.builds == 2
    (sidecar, _) = [json.loads(file.read_text()) for file in sorted((machine.folder / "engines").glob("*.json"))]
    assert sidecar["key"]["library"] == "tensorrt 10.3.0" and sidecar["key"]["device"] == "Fake GPU, 28 multiprocessors"
    assert sidecar["key"]["cuda"] == "12.6" and sidecar["key"]["capability"] == "8.6"
    assert "crops 1 x 1 x 6 x 96 x 96" in sidecar["key"]["profile"] and "vIoU" in sidecar["check"]


def full_disk(machine):
    def fail(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    machine.monkeypatch.setattr(os, "fsync", fail)


def file_in_the_way(machine):
    machine.folder.write_text("")


@pytest.mark.parametrize("trouble", [full_disk, file_in_the_way])
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx", "auto"])
def test_an_engine_that_cannot_be_kept_is_used(machine, name, trouble, caplog):
    trouble(machine)
    engine = machine.load(name)
    assert engine.name == f"{'tensorrt' if name == 'auto' else name} fp16"
    assert machine.trt.builds + machine.rtx.builds == 1
    assert engine.infer(student_inputs())["layout"].shape == (1, 10)
    engine.close()
    assert f"{engine.name} cannot be kept" in caplog.text
    machine.load(name).close()
    assert machine.trt.builds + machine.rtx.builds == 2
    assert machine.refusal(name="tensorrt", allow_build=False)[0] == "ENGINE_NOT_BUILT"


def test_an_engine_for_other_devices_that_cannot_be_kept_is_an_error(machine):
    file_in_the_way(machine)
    with pytest.raises(EngineError, match="File exists") as error:
        tensorrt_engine.build_ahead("tensorrt-rtx", read_model(machine.model), STUDENT, "fp16", "8.6",
                                    BuildOptions(folder=machine.folder))
    assert error.value.reason == "ENGINE_NOT_KEPT" and machine.rtx.builds == 0


def test_what_fails_besides_the_cache_is_not_taken_for_it(machine, capsys):
    """As where what reads the progress of the command has ended."""
    def broken(*arguments):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    machine.monkeypatch.setattr(engine_cli.ProgressLine, "__call__", broken)
    assert cli.main(["engine", "--cache", str(machine.folder), "build", "--model", str(machine.model)]) == 1
    assert "ENGINE_NOT_KEPT" not in capsys.readouterr().err
    machine.monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(Fault) as fault:
        Pipeline.from_config(PipelineConfig(str(machine.model), "tensorrt", build_only=True))
    assert fault.value.code is FaultCode.MODEL_INVALID


@pytest.mark.parametrize(("trouble", "builds", "said"), [
    (full_disk, 1, "No space left on device"),
    (file_in_the_way, 0, "File exists")])
def test_the_command_that_builds_says_so_if_there_is_no_engine_to_use_later(machine, trouble, builds, said, capsys):
    command = ["engine", "--cache", str(machine.folder), "build", "--model", str(machine.model)]
    trouble(machine)
    assert cli.main(command) == 1
    output = capsys.readouterr()
    assert output.out == "" and f"ENGINE_NOT_KEPT: {machine.folder / 'engines'}: {said}" in output.err
    assert machine.trt.builds == builds and not machine.cuda.in_use
    machine.monkeypatch.setenv("SAM3D_CACHE", str(machine.folder))
    for engine in ("tensorrt", "auto"):                         # as the node asks with build_only
        with pytest.raises(Fault, match=said) as fault:
            Pipeline.from_config(PipelineConfig(str(machine.model), engine, build_only=True))
        assert fault.value.code is FaultCode.ENGINE_NOT_KEPT


def test_progress_is_said_once(capsys):
    show = engine_cli.ProgressLine()
    for percent, what in ((0, "waiting"), (0, "waiting"), (0, "parsing"), (0, "waiting")):
        show(percent, what)
    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == ["waiting", "parsing", "waiting"]


def test_the_command_that_builds(machine, capsys):
    command = ["engine", "--cache", str(machine.folder), "build", "--model", str(machine.model)]
    for _ in range(2):
        assert cli.main(command) == 0 and capsys.readouterr().out == "tensorrt fp16 is ready\n"
    assert machine.trt.builds == 1
    assert cli.main([*command, "--engine", "tensorrt-rtx", "--precision", "fp32"]) == 0
    assert capsys.readouterr().out == "tensorrt-rtx fp32 is ready\n"
    machine.monkeypatch.setitem(sys.modules, "tensorrt", None)              # the only one that is installed
    assert cli.main(command) == 0 and capsys.readouterr().out == "tensorrt-rtx fp16 is ready\n"
    machine.monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert cli.main(command) == 1 and "ENGINE_UNAVAILABLE: tensorrt: " in capsys.readouterr().err


def test_engines_are_verified_on_this_machine(machine, capsys):
    machine.load().close()
    machine.load("tensorrt-rtx").close()
    verify = ["engine", "--cache", str(machine.folder), "verify", "--model", str(machine.model)]

    def verified(status):
        assert cli.main(verify) == status
        return capsys.readouterr().out

    assert "2 engines" in verified(0)
    machine.trt.offset = 0.4
    assert "1 of them unusable" in verified(1)
    machine.trt.offset, machine.trt.execute_error = 0.0, "illegal memory access"
    assert "tensorrt fp16: illegal memory access" in verified(1)
    with machine.monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", None)               # not installed any more: nobody asks its engine
        assert ", 0 of them unusable" in verified(0)
    machine.cuda.fail["cuInit"] = 100
    assert "none was asked for answers: no usable NVIDIA GPU: cuInit: error 100" in verified(0)
    assert not machine.cuda.in_use


def test_a_cache_that_becomes_unsafe_while_an_engine_is_built_is_refused(machine):
    checked = golden.check

    def check(engine, wanted):
        (machine.folder / "engines").chmod(0o770)
        return checked(engine, wanted)

    machine.monkeypatch.setattr(golden, "check", check)
    assert machine.refusal()[0] == "ENGINE_CACHE_UNSAFE"


def test_what_is_not_built_is_named(machine):
    reason, detail = machine.refusal(allow_build=False)
    assert reason == "ENGINE_NOT_BUILT" and "tensorrt 10.3.0, fp16, for Fake GPU" in detail


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_what_is_not_built_is_named_at_once(machine, name):
    """Not when another process, which is building it, has done so."""
    with EngineCache(machine.folder).locked():
        assert machine.refusal(name=name, allow_build=False)[0] == "ENGINE_NOT_BUILT"


@pytest.mark.parametrize("change", [
    dict(version="10.4.0"), dict(version="11.4.0"),
    dict(driver=FakeCuda(driver=13000)), dict(driver=FakeCuda(name="Other GPU")),
    dict(driver=FakeCuda(capability=(8, 9))), dict(driver=FakeCuda(multiprocessors=8))])
def test_any_other_version_or_device_is_another_engine(machine, change):
    machine.load().close()
    machine.install(**{"driver": machine.cuda} | change)
    assert machine.refusal(allow_build=False)[0] == "ENGINE_NOT_BUILT"
    machine.load().close()
    assert machine.trt.builds == 1


def test_another_model_is_another_engine(machine):
    machine.load().close()
    machine.model.write_bytes(student_model(seed=1).SerializeToString())
    assert machine.refusal(allow_build=False)[0] == "ENGINE_NOT_BUILT"


def test_an_engine_that_does_not_load_is_rebuilt(machine, caplog):
    machine.load().close()
    engine_file, = (machine.folder / "engines").glob("*.engine")
    key = machine.key()
    EngineCache(machine.folder).store(key, b"fake plan 9.9.9", {})        # whole, ours, but of another library
    machine.cuda.buffers.clear()
    machine.load().close()
    assert machine.trt.builds == 2 and "does not load: the plan is of another version" in caplog.text
    machine.load(allow_build=False).close()
    assert machine.trt.builds == 2 and engine_file.exists()


def test_a_damaged_engine_is_rebuilt(machine, caplog):
    machine.load().close()
    engine_file, = (machine.folder / "engines").glob("*.engine")
    engine_file.write_bytes(engine_file.read_bytes()[:-100])
    assert machine.refusal(allow_build=False)[0] == "ENGINE_NOT_BUILT"
    machine.load().close()
    assert machine.trt.builds == 2 and "is not loaded: it has" in caplog.text


def test_build_failures_are_named(machine):
    machine.trt.build_error = "Could not find any implementation for node conv_3"
    assert machine.refusal() == ("ENGINE_BUILD_FAILED", f"tensorrt: {machine.trt.build_error}")
    machine.trt.build_error = "Requested size was 8 GiB. OutOfMemory"
    assert machine.refusal()[0] == "ENGINE_OUT_OF_MEMORY"
    machine.trt.build_error, machine.trt.load_error = "", "internal error"
    assert machine.refusal() == ("ENGINE_BUILD_FAILED", "tensorrt: the engine does not load: internal error")
    machine.trt.load_error, machine.trt.parse_error = "", "no importer for operator GridSample3D"
    reason, detail = machine.refusal()
    assert reason == "MODEL_INVALID" and "no importer for operator GridSample3D" in detail
    machine.trt.parse_error, machine.trt.half_as_float = "", True
    assert machine.refusal() == ("ENGINE_BUILD_FAILED",
                                 "tensorrt computes no convolution in float16: {'FLOAT': 17}")
    machine.trt.half_as_float = False
    assert not list((machine.folder / "engines").glob("*.engine"))


def test_the_cause_of_a_failure_is_said_and_not_only_what_followed(machine):
    """Nor what an earlier failure was."""
    engine = machine.load()
    for cause in ("no kernel image", "unspecified launch failure"):
        machine.trt.execute_error = f"{cause}\ncannot run"
        with pytest.raises(RuntimeError) as error:
            engine.infer(student_inputs(2))
        assert str(error.value) == f"{cause}; cannot run"


def test_an_engine_that_loads_and_does_not_run_is_named(machine):
    machine.trt.no_context = True
    assert machine.refusal() == ("ENGINE_FAILED",
                                 "tensorrt fp16: no execution context: no memory for a context")
    machine.trt.no_context, machine.trt.execute_error = False, "Out of memory: 2 GiB"
    assert machine.refusal()[0] == "ENGINE_OUT_OF_MEMORY"
    machine.trt.execute_error = ""
    made = machine.cuda._cuStreamCreate

    def make_and_break(*arguments):
        made(*arguments)
        machine.trt.execute_error = "illegal memory access"
        for function in ("cuMemFree_v2", "cuMemFreeHost", "cuStreamDestroy_v2"):
            machine.cuda.fail[function] = 700

    machine.cuda._cuStreamCreate = make_and_break
    with pytest.raises(EngineError, match="illegal memory access"):      # and not what the driver says of freeing it
        machine.load()


def test_a_library_that_cannot_use_the_device_is_unavailable(machine):
    machine.load().close()

    def nothing(logger):
        logger.log(machine.trt.ILogger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("factory function returned nullptr")

    machine.monkeypatch.setattr(machine.trt, "Runtime", nothing)
    assert machine.refusal() == ("ENGINE_UNAVAILABLE", "tensorrt: CUDA initialization failure with error: 35")


def test_what_the_listener_raises_ends_the_build(machine, capfd):
    def stop(percent, what):
        raise LookupError(f"enough at {percent} %")

    options = BuildOptions(folder=machine.folder, on_progress=stop)
    with pytest.raises(LookupError, match="enough at 50 %"):
        load_engine("tensorrt", machine.model, signature=STUDENT, options=options)
    assert machine.trt.builds == 0 and not machine.cuda.in_use and "Exception caught" not in capfd.readouterr().err


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("name", "times"), [("tensorrt", 1), ("auto", 1), ("tensorrt", 5)])
@in_own_process
def test_ctrl_c_ends_the_build(machine, name, times, capfd, caplog):
    """And the library has ended, too, however often it is pressed."""
    machine.trt.step_seconds = 1.0
    started = []

    def interrupt(percent, what):
        if not started:
            started.append(time.monotonic())
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)

    options = BuildOptions(folder=machine.folder, on_progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_engine(name, machine.model, signature=STUDENT, options=options)
    assert "Build canceled by user" in caplog.text
    assert time.monotonic() - started[0] < 2.5                      # its present step, not all four
    assert machine.trt.builds == machine.rtx.builds == 0 and not machine.cuda.in_use
    assert "Exception caught" not in capfd.readouterr().err
    machine.trt.step_seconds = 0.0
    machine.load().close()                                          # the cache is not held any more


def test_out_of_device_memory(machine):
    machine.cuda.memory = 64 << 20
    reason, detail = machine.refusal()
    assert reason == "ENGINE_OUT_OF_MEMORY" and "CUDA_ERROR_OUT_OF_MEMORY" in detail
    machine.cuda.memory = 8 << 30
    machine.cuda.fail["cuStreamCreate"] = OUT_OF_MEMORY
    assert machine.refusal()[0] == "ENGINE_OUT_OF_MEMORY"
    machine.cuda.fail["cuStreamCreate"] = 999
    assert machine.refusal() == ("ENGINE_BUILD_FAILED", "tensorrt: cuStreamCreate: error 999")
    machine.cuda.fail = {"cuDevicePrimaryCtxRetain": OUT_OF_MEMORY}         # others have all of it
    assert machine.refusal()[0] == "ENGINE_OUT_OF_MEMORY"


def test_an_inaccurate_engine_is_refused_with_its_figures(machine):
    machine.trt.offset = 0.4                # voxels
    reason, detail = machine.refusal()
    assert reason == "ENGINE_INACCURATE" and "tensorrt fp16: vIoU 0.9" in detail and "at least 0.99" in detail
    machine.trt.offset, machine.trt.nan = 0.0, True
    reason, detail = machine.refusal(precision="fp32")
    assert reason == "ENGINE_INACCURATE" and "distance, log_std, colour, layout not finite" in detail
    assert not list((machine.folder / "engines").glob("*.engine"))


def test_an_inaccurate_engine_is_not_built_again(machine, capsys):
    """Until it is asked for by name."""
    def said(*action):
        return cli.main(["engine", "--cache", str(machine.folder), *action]), capsys.readouterr()

    machine.trt.offset = 0.4
    refusal = machine.refusal()
    for allow_build in (True, False):
        assert machine.refusal(allow_build=allow_build) == refusal
    machine.load("auto").close()
    assert machine.trt.builds == machine.rtx.builds == 1
    (status, output), verified = said("list"), said("verify", "--model", str(machine.model))
    assert status == 0 and f", refused: {refusal[1]}\n" in output.out and "2 engines" in output.out
    assert verified[0] == 1 and verified[1].out.count("BAD") == 1

    status, output = said("build", "--model", str(machine.model))
    assert status == 1 and f"ENGINE_INACCURATE: {refusal[1]}" in output.err and machine.trt.builds == 2
    machine.trt.offset = 0.0
    assert machine.refusal() == refusal
    assert said("build", "--model", str(machine.model))[0] == 0
    machine.load(allow_build=False).close()

    machine.trt.offset = 0.4
    machine.refusal(precision="fp32")
    assert "1 engines deleted" in said("clear", "--damaged")[1].out
    machine.trt.offset = 0.0
    machine.load(precision="fp32").close()
    assert machine.trt.builds == 5


def test_who_waited_for_an_inaccurate_engine_does_not_build_it_again(machine):
    machine.trt.offset, seen = 0.4, []
    refusal = machine.refusal()[1]

    def not_yet(cache, key, refusal=EngineCache.refusal):
        seen.append(key)
        return refusal(cache, key) if len(seen) > 1 else ""

    machine.monkeypatch.setattr(EngineCache, "refusal", not_yet)
    assert machine.refusal()[1] == refusal and machine.trt.builds == 1


def test_a_refusal_that_cannot_be_kept_is_one_all_the_same(machine, caplog):
    full_disk(machine)
    machine.trt.offset = 0.4
    for _ in range(2):
        assert machine.refusal()[0] == "ENGINE_INACCURATE"
    assert machine.trt.builds == 2 and "the check's result cannot be kept" in caplog.text


def test_a_gpu_that_tensorrt_rtx_does_not_know(machine):
    """Whether it may build or not: the command that builds would be of no use."""
    machine.install(FakeCuda("NVIDIA H100", (9, 0)))
    for allow_build in (False, True):
        assert machine.refusal(name="tensorrt-rtx", allow_build=allow_build) == (
            "ENGINE_UNAVAILABLE", "tensorrt-rtx does not build for compute capability 9.0")
    assert machine.rtx.builds == 0


def test_machines_without_gpu(machine):
    assert machine.refusal(precision="bf16")[0] == "ENGINE_UNAVAILABLE"
    machine.cuda.fail["cuInit"] = 100
    assert machine.refusal() == ("ENGINE_UNAVAILABLE", "no usable NVIDIA GPU: cuInit: error 100")
    machine.monkeypatch.setattr(cuda, "load_driver", lambda: None)
    reason, detail = machine.refusal()
    assert reason == "ENGINE_UNAVAILABLE" and "libcuda.so.1" in detail
    assert machine.load("auto", "fp32").name in ("openvino fp32", "onnxruntime fp32")
    machine.monkeypatch.setattr(cuda, "load_driver", lambda: machine.cuda)
    machine.monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(None))
    del machine.cuda.fail["cuInit"]
    assert machine.refusal() == ("ENGINE_UNAVAILABLE", "tensorrt: CUDA initialization failure with error: 35")


def test_auto_takes_the_gpu_and_passes_over_what_fails(machine, caplog):
    engine = machine.load("auto")
    assert engine.name == "tensorrt fp16"
    engine.close()
    machine.trt.load_error = "internal error"
    engine = machine.load("auto")
    assert engine.name == "tensorrt-rtx fp16"
    engine.close()
    assert "engine tensorrt is passed over: ENGINE_BUILD_FAILED" in caplog.text
    machine.trt.load_error, machine.trt.execute_error = "", "unspecified launch failure"
    machine.load("auto", "fp32").close()
    assert "engine tensorrt is passed over: ENGINE_FAILED: tensorrt fp32: unspecified" in caplog.text
    machine.trt.execute_error, machine.trt.parse_error = "", "no importer for operator GridSample"
    machine.load("auto", "fp32").close()
    assert "engine tensorrt is passed over: MODEL_INVALID" in caplog.text
    machine.trt.parse_error = ""
    assert machine.load("cpu", "fp32").name in ("openvino fp32", "onnxruntime fp32")
    (machine.folder / "engines").chmod(0o777)
    assert machine.refusal(name="auto")[0] == "ENGINE_CACHE_UNSAFE"           # not passed over: an attack, maybe


def test_a_library_that_is_too_old_is_passed_over(machine, caplog):
    """As that of JetPack 6.0."""
    machine.install(FakeCuda(), "8.6.2")
    machine.monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt(machine.cuda, "tensorrt_rtx", "1.3.0"))
    assert machine.refusal() == ("ENGINE_UNAVAILABLE", "tensorrt 8.6.2 is older than 10.3")
    assert machine.load("auto", "fp32").name in ("openvino fp32", "onnxruntime fp32")
    assert "tensorrt 8.6.2 is older than 10.3; tensorrt-rtx 1.3.0 is older than 1.4; " in caplog.text
    check = doctor_checks._gpu_engine_check("tensorrt")
    assert check.state == doctor_checks.GAP and "8.6.2 is older than 10.3" in check.detail
    assert check.advice == "docs/gpu.md says what it needs"


def test_auto_says_why_a_gpu_is_not_used(machine, caplog):
    """As where the driver is too old, and the other libraries are not installed."""
    machine.monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(None))
    machine.monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    machine.load("auto", "fp32").close()
    (record,) = [record for record in caplog.records if "the CPU is used" in record.message]
    assert record.levelname == "WARNING"
    assert "tensorrt: CUDA initialization failure with error: 35; tensorrt-rtx is not installed; " in record.message
    caplog.clear()
    machine.monkeypatch.setattr(cuda, "load_driver", lambda: None)          # nothing to be missed
    machine.load("auto", "fp32").close()
    assert "the CPU is used" not in caplog.text


def test_without_anything_to_compare_with_nothing_is_built(machine):
    machine.monkeypatch.setattr(golden, "reference", golden.compute)
    machine.monkeypatch.setattr(golden, "available_engines", list)
    reason, detail = machine.refusal()
    assert reason == "ENGINE_UNAVAILABLE" and "student.golden.npz" in detail and "openvino, onnxruntime" in detail
    assert machine.trt.builds == 0


def test_another_signature_is_refused(machine):
    assert machine.refusal(signature=Signature({"evidence_v1": ("batch", 3)}, STUDENT.outputs))[0] == "MODEL_MISMATCH"


def test_built_ahead_of_time_and_checked_on_the_device(machine):
    model, options = read_model(machine.model), BuildOptions(folder=machine.folder)
    for _ in range(2):
        key = tensorrt_engine.build_ahead("tensorrt-rtx", model, STUDENT, "fp16", "8.6", options)
    assert key.device == key.driver == key.cuda == "" and machine.rtx.builds == 1
    machine.load("tensorrt-rtx", allow_build=False).close()
    assert machine.rtx.builds == 1
    assert len(EngineCache(machine.folder).entries()) == 2            # and the one that was checked here
    machine.install(FakeCuda(capability=(8, 9)))
    assert machine.refusal(name="tensorrt-rtx", allow_build=False)[0] == "ENGINE_NOT_BUILT"
    with pytest.raises(EngineError) as error:
        tensorrt_engine.build_ahead("tensorrt-rtx", model, STUDENT, "fp16", "9.9", options)
    assert error.value.reason == "ENGINE_UNAVAILABLE" and "9.9" in error.value.detail
    with pytest.raises(EngineError) as error:
        tensorrt_engine.build_ahead("tensorrt", model, STUDENT, "fp16", "8.6", options)
    assert "only on the GPU" in error.value.detail


def test_an_engine_built_ahead_is_refused_if_it_is_inaccurate_here(machine):
    model, options = read_model(machine.model), BuildOptions(folder=machine.folder)
    tensorrt_engine.build_ahead("tensorrt-rtx", model, STUDENT, "fp16", "8.6", options)
    machine.rtx.offset = 1.0
    for _ in range(2):
        assert machine.refusal(name="tensorrt-rtx")[0] == "ENGINE_INACCURATE"
    ahead, here = sorted(EngineCache(machine.folder).entries(), key=lambda entry: entry.key.device)
    assert not ahead.problem and "vIoU" in here.problem and machine.rtx.builds == 1
    machine.rtx.offset = 0.0
    assert cli.main(["engine", "--cache", str(machine.folder), "build", "--model", str(machine.model),
                     "--engine", "tensorrt-rtx"]) == 0
    assert machine.rtx.builds == 2                                    # on this device
    machine.load("tensorrt-rtx", allow_build=False).close()


def test_one_process_builds_while_another_waits(machine):
    cache, progress, engines = EngineCache(machine.folder), machine.progress, []
    with cache.locked():
        thread = threading.Thread(target=lambda: engines.append(machine.load()))
        thread.start()
        for _ in range(100):
            if (0, "waiting for another build") in progress:
                break
            thread.join(0.1)
        assert not engines and machine.trt.builds == 0
    thread.join(30)
    assert engines[0].name == "tensorrt fp16" and machine.trt.builds == 1


def test_who_deletes_engines_while_one_is_built_is_told_why_it_takes_long(machine, capsys):
    cache, statuses = EngineCache(machine.folder), []
    command = ["engine", "--cache", str(machine.folder), "clear"]
    thread = threading.Thread(target=lambda: statuses.append(cli.main(command)))
    with cache.locked():
        thread.start()
        thread.join(1.0)
        assert not statuses
    thread.join(30)
    assert statuses == [0] and capsys.readouterr().err.count("waiting for a build to end") == 1


def test_names_in_the_cache_are_safe_to_print(machine, capsys):
    machine.load().close()
    sidecar, = (machine.folder / "engines").glob("*.json")
    details = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps(details | {"check": "\ud800\x1b[2J"}))
    assert cli.main(["engine", "--cache", str(machine.folder), "list"]) == 0
    assert "??[2J" in capsys.readouterr().out


def test_timing_cache_grows(machine):
    machine.load().close()
    machine.load(precision="fp32").close()
    timing, = (machine.folder / "engines").glob("*.timing")
    assert timing.read_bytes() == b"tt" and "Fake_GPU" in timing.name
    for useless in (b"other device of this name", b"damaged"):
        timing.write_bytes(useless)
        EngineCache(machine.folder).remove(lambda entry: True)
        machine.load().close()
        assert timing.read_bytes() == b"t"


@pytest.mark.parametrize("precision", ["fp16", "fp32", "int8"])
def test_a_model_cannot_name_other_files(machine, precision):
    """Nor have TensorRT read them, which takes absolute paths, too."""
    onnx.save(onnx.load(machine.model), machine.model, save_as_external_data=True, location="weights.bin",
              size_threshold=0)
    machine.monkeypatch.chdir(machine.model.parent)
    reason, detail = machine.refusal(precision=precision)
    assert reason == "MODEL_INVALID" and detail.endswith(" is stored in another file") and machine.trt.builds == 0


def test_a_weight_too_large_for_half(machine):
    proto = onnx.load(machine.model)
    weight = next(w for w in proto.graph.initializer if len(w.dims) == 5)
    array = onnx.numpy_helper.to_array(weight).copy()
    array.flat[0] = 1e6
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    machine.model.write_bytes(proto.SerializeToString())
    reason, detail = machine.refusal()
    assert reason == "ENGINE_UNAVAILABLE" and "too large for float16: 1e+06" in detail


@pytest.mark.parametrize(("text", "driver"), [("NVRM version: 540.4\nGCC\n", "NVRM version: 540.4"), ("", "")])
def test_the_driver_is_what_its_file_says(machine, tmp_path, text, driver):
    (tmp_path / "version").write_text(text)
    machine.monkeypatch.setattr(cuda, "_VERSION_FILES", (tmp_path / "none", tmp_path / "version"))
    assert machine.key().driver == driver


def test_every_field_of_the_key_counts(machine):
    key = machine.key()
    digests = {key.digest} | {dataclasses.replace(key, **{field.name: "other"}).digest
                              for field in dataclasses.fields(key)}
    assert len(digests) == 1 + len(dataclasses.fields(key))
