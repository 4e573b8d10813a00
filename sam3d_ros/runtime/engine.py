"""One protocol for every neural network engine, and the choice among those that are installed."""
from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .signature import STUDENT, Shape, Signature

if TYPE_CHECKING:
    import onnx

MAX_MODEL_BYTES = 256 << 20
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")

_WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
SHIPPED_MODELS = {name: _WEIGHTS / f"{name}.onnx" for name in ("base", "small")}
DEFAULT_MODEL = "small"
MODEL_HELP = "base or small, the models that are shipped, or the path of an ONNX student"


class EngineError(Exception):
    """A model or an engine cannot be used; `reason` is the name of a FaultCode."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


# In what libraries and the driver say; the last one is ONNX Runtime's.
_OUT_OF_MEMORY = ("out of memory", "outofmemory", "out_of_memory", "failed to allocate memory")


def library_error(name: str, message: str, reason: str) -> EngineError:
    """The error for what the library of an engine, or the driver, said: of this reason, or ENGINE_OUT_OF_MEMORY."""
    if any(text in message.lower() for text in _OUT_OF_MEMORY):
        reason = "ENGINE_OUT_OF_MEMORY"
    return EngineError(reason, f"{name}: {message or 'no reason given'}")


def last_line(error: Exception) -> str:
    """The last line of what an error says, where its cause stands; its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


class Engine(Protocol):
    """A loaded network.

    name: engine and precision, as "openvino bf16"
    most_crops: views, of all objects together, to give it at a time: with more it takes memory and is hardly faster
    first_runs: numbers of objects, the largest first, to run once each at the start: afterwards no run with one view of
    each object has to compile, record or allocate anything
    """

    name: str
    most_crops: int
    first_runs: tuple[int, ...]

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of the network's signature for its inputs, by name, all float32; any batch size >= 1.

        The arrays returned are the caller's own.  Raises RuntimeError (or a subclass) if the engine fails.
        """

    def close(self) -> None:
        """Free the engine; `infer` must not be called afterwards."""


def answers(engine: Engine, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What an engine infers while it is loaded.  Raises EngineError ENGINE_FAILED, ENGINE_OUT_OF_MEMORY."""
    try:
        return engine.infer(inputs)
    except RuntimeError as error:
        raise library_error(engine.name, str(error), "ENGINE_FAILED") from error


@dataclass(frozen=True)
class ModelFile:
    """An ONNX file read into memory, whole: engines parse these bytes, after `parsed`."""

    path: Path
    data: bytes

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of the file."""
        return hashlib.sha256(self.data).hexdigest()


def read_model(path: str | Path) -> ModelFile:
    """Read an ONNX file, or a shipped model by its name.  Raises EngineError MODEL_MISSING or MODEL_INVALID."""
    path = SHIPPED_MODELS.get(str(path)) or Path(path)
    try:
        if not path.is_file():
            raise EngineError("MODEL_MISSING", str(path))
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise EngineError("MODEL_INVALID", f"{path} is larger than {MAX_MODEL_BYTES >> 20} MiB")
        return ModelFile(path, path.read_bytes())
    except OSError as error:        # not allowed to read it; a name that is too long; a broken disk
        raise EngineError("MODEL_INVALID", f"{path}: {error.strerror or error}") from error


def parsed(model: ModelFile) -> onnx.ModelProto:
    """The network of a model file.

    Raises EngineError MODEL_INVALID if it is in another format, which some engines read as well, or if it names other
    files to read weights from: these may be any of the user's, and engines in the cache are known by this file alone.
    """
    import onnx  # here: whoever only chooses an engine need not load it
    try:
        proto = onnx.load_model_from_string(model.data)
    except Exception as error:      # protobuf's own
        raise EngineError("MODEL_INVALID", f"{model.path} is not in the ONNX format: {last_line(error)}") from error
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise EngineError("MODEL_INVALID", f"{model.path}: {tensor.name or 'a constant'} is stored in another file")
    return proto


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """All tensors in a message of ONNX: weights, and constants in nodes, those of functions and inner graphs, too."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(part)


def check_signature(model: ModelFile, wanted: Signature, inputs: Mapping[str, Shape],
                    outputs: Mapping[str, Shape]) -> None:
    """Raise EngineError MODEL_MISMATCH, MODEL_INVALID unless a network's inputs and outputs are the wanted ones."""
    difference = wanted.difference(inputs, outputs) or _other_types(model, wanted)
    if difference:
        raise EngineError("MODEL_MISMATCH", f"{model.path}: {difference}")


def _other_types(model: ModelFile, wanted: Signature) -> str:
    """Which inputs and outputs are not float32, as after a conversion to float16; one line, empty if all are.

    Raises EngineError MODEL_INVALID as `parsed` does.
    """
    import onnx  # here, too
    graph = parsed(model).graph
    types = {value.name: onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
             for value in (*graph.input, *graph.output) if value.name in wanted.inputs | wanted.outputs}
    return "; ".join(f"{name} is {kind} instead of FLOAT" for name, kind in types.items() if kind != "FLOAT")


# Engines on the CPU and on an NVIDIA GPU: name -> module that must be importable.  GPU engines in the order in which
# `auto` tries them: made for the device, made for its family, general.
CPU_ENGINES = {"openvino": "openvino", "onnxruntime": "onnxruntime"}
GPU_ENGINES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx", "onnxruntime-tensorrt": "onnxruntime",
               "onnxruntime-cuda": "onnxruntime"}
REFERENCE_ENGINES = {"torch": "torch"}        # to compare with; `auto` never takes it
ENGINES = CPU_ENGINES | GPU_ENGINES | REFERENCE_ENGINES
ENGINE_CHOICES = ("auto", "cpu", *ENGINES)


@dataclass(frozen=True)
class BuildOptions:
    """How engines that are built for a device may be had.

    allow_build: build one that is not in the cache, which takes minutes; folder: of the cache, None: the user's;
    on_progress: called with percent done and what is being done, by any thread; what it raises ends the build, and is
    passed on; must_keep: it is built for later use: one that cannot be kept is an error (ENGINE_NOT_KEPT), not a
    warning, and one that was refused as inaccurate is tried again
    """

    allow_build: bool = True
    folder: Path | None = None
    on_progress: Callable[[int, str], None] = lambda percent, what: None
    must_keep: bool = False


def import_library(name: str) -> ModuleType:
    """The library of one of ENGINES.  Raises ImportError; OSError if a shared library that it needs is missing."""
    module = importlib.import_module(ENGINES[name])
    if getattr(module, "__file__", None) is None:       # Python takes a folder without code for a package
        raise ImportError(f"only parts of {ENGINES[name]} are left, as of two packages that share its files when one "
                          "of them is uninstalled")
    return module


def available_engines() -> list[str]:
    """Names of the CPU engines whose library is installed, preferred ones first."""
    return [name for name, module in CPU_ENGINES.items() if importlib.util.find_spec(module)]


def load_engine(name: str = "auto", model: str | Path = DEFAULT_MODEL, precision: str = "auto", threads: int = 0,
                signature: Signature = STUDENT, options: BuildOptions = BuildOptions()) -> Engine:
    """Load a model of the given signature into an engine.

    name: one of ENGINE_CHOICES; "auto": a GPU engine if one works here, else "cpu": the fastest CPU engine, as measured
    once on this machine; precision: "auto" takes what is fastest and passes the check against float32; threads: of the
    CPU, 0 = all cores; options: for engines that are built for their device
    Raises EngineError: MODEL_MISSING, MODEL_INVALID, MODEL_MISMATCH, ENGINE_*.
    """
    from . import selection  # which loads engines through this function

    file = read_model(model)
    if name == "auto":
        return selection.best(file, precision, threads, signature, options)
    if name == "cpu" or name in CPU_ENGINES:
        wanted = CPU_ENGINES if name == "cpu" else (name,)
        return selection.fastest_cpu(file, precision, threads, signature, options, wanted)
    return load_named(name, file, precision, threads, signature, options)


def load_named(name: str, file: ModelFile, precision: str, threads: int, signature: Signature,
               options: BuildOptions) -> Engine:
    """Load a model into the engine of this name, one of ENGINES.  Raises EngineError."""
    if name not in ENGINES:
        raise EngineError("ENGINE_UNAVAILABLE", f"there is no engine {name}, but {', '.join(ENGINES)}")
    if not importlib.util.find_spec(ENGINES[name]):
        raise EngineError("ENGINE_UNAVAILABLE", f"{name} is not installed")
    try:
        import_library(name)
    except (ImportError, OSError) as error:
        raise EngineError("ENGINE_UNAVAILABLE", f"{name}: {error}") from error
    if name == "openvino":
        from .openvino_engine import OpenVinoEngine

        return OpenVinoEngine(file, signature, precision, threads)
    if name == "onnxruntime":
        from .onnxruntime_engine import OnnxRuntimeEngine

        return OnnxRuntimeEngine(file, signature, precision, threads)
    if name == "torch":
        from ..models.torch_engine import TorchEngine

        return TorchEngine(file, signature, precision, threads)
    if name.startswith("onnxruntime"):
        from .onnxruntime_engine import OnnxRuntimeEngine

        options.on_progress(0, f"{name} is made ready")
        may_build = options.allow_build and not options.must_keep       # it keeps nothing
        return _checked(OnnxRuntimeEngine(file, signature, precision, threads, name, may_build), file)
    from .tensorrt_engine import load_tensorrt

    return load_tensorrt(name, file, signature, precision, options)


def _checked(engine: Engine, file: ModelFile) -> Engine:
    """The engine, if its answers are those of float32 on the CPU.  Raises EngineError ENGINE_INACCURATE."""
    from . import golden

    try:
        golden.check(engine, golden.reference(file))
    except BaseException:
        engine.close()
        raise
    return engine
