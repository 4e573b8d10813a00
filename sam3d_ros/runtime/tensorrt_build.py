"""From an ONNX model to a serialised TensorRT engine; `tensorrt` 10.3 to 11 and `tensorrt_rtx` from 1.4 on alike.

Networks are strongly typed: the graph says in which precision each layer computes (see precision.py), and the library
keeps to it or fails.  TensorRT tries kernels out on the GPU at hand.  TensorRT-RTX compiles for a device that need not
be there, and picks kernels on it when it first runs.
"""
from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from .engine import EngineError, ModelFile, check_signature, import_library, library_error
from .precision import typed
from .signature import Shape, Signature

TENSORRT_PRECISIONS = ("fp16", "fp32", "int8")
MAX_BATCH = 16           # objects in one run
MAX_VIEWS = 8            # views of each
_log = logging.getLogger(__name__)

# Percent done, and what is being done.
Progress = Callable[[int, str], None]


@dataclass(frozen=True)
class Library:
    """A Python module with TensorRT's interface; `rtx`: TensorRT-RTX, which builds for devices that are not there."""

    name: str
    module: ModuleType | Any
    rtx: bool

    @property
    def version(self) -> str:
        """As "tensorrt 10.3.0.26"."""
        return f"{self.name} {self.module.__version__}"


# Engines here -> the first version of their library that has all that is called.
_OLDEST = {"tensorrt": (10, 3), "tensorrt-rtx": (1, 4)}
NAMES = tuple(_OLDEST)


def load_library(name: str) -> Library:
    """Import a library of NAMES.  Raises EngineError ENGINE_UNAVAILABLE, also if it is too old."""
    try:
        library = Library(name, import_library(name), rtx=name == "tensorrt-rtx")
    except (ImportError, OSError) as error:
        raise EngineError("ENGINE_UNAVAILABLE", f"{name}: {error}") from error
    major, minor = _OLDEST[name]
    if tuple(map(int, library.module.__version__.split(".")[:2])) < (major, minor):
        raise EngineError("ENGINE_UNAVAILABLE", f"{library.version} is older than {major}.{minor}")
    return library


@dataclass(frozen=True)
class Plan:
    """A serialised engine; timing: the timing cache after the build; convolutions: data type -> how many."""

    data: bytes
    timing: bytes
    convolutions: dict[str, int]


def make_logger(library: Library) -> Any:
    """The library's messages go to Python's logging; `errors` gives its last ones since it was called before, in one
    line: the cause comes first, and often another of no news after it.
    """
    trt = library.module

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: deque[str] = deque(maxlen=3)

        def errors(self) -> str:
            said = "; ".join(dict.fromkeys(" ".join(error.split()) for error in self._errors))
            self._errors.clear()
            return said

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self._errors.append(message)
                _log.error("%s: %s", library.name, message)
            elif severity == trt.ILogger.WARNING:
                _log.debug("%s: %s", library.name, message)

    return Logger()


def make(library: Library, kind: str, logger: Any) -> Any:
    """A "Builder" or a "Runtime" of the library.  Raises EngineError ENGINE_UNAVAILABLE if it cannot use the device."""
    try:
        return getattr(library.module, kind)(logger)
    except (TypeError, RuntimeError) as error:      # how a constructor in C++ that gives nothing is answered
        raise EngineError("ENGINE_UNAVAILABLE", f"{library.name}: {logger.errors() or error}") from error


def profile_shapes(signature: Signature, most_objects: int = MAX_BATCH) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Smallest, best and largest shape of each input: one object of one view is what is most often wanted."""
    least = signature.input_shapes(batch=1, views=1)
    most = signature.input_shapes(batch=most_objects, views=MAX_VIEWS)
    return {name: (least[name], least[name], most[name]) for name in signature.inputs}


def builder_flags(library: Library) -> list[str]:
    """Names of the builder's flags to set; TF32 is switched off besides: what is float32 here is so for a reason."""
    # CUDA graphs of TensorRT-RTX need all memory to come from outside.
    return ["REQUIRE_USER_ALLOCATION"] if library.rtx else []


def preview_features(library: Library) -> list[str]:
    """Names of the preview features to switch on; those of TensorRT-RTX are on."""
    # A context then needs the memory for the shapes at hand, and not for the largest of the profile.
    resize = "RUNTIME_ACTIVATION_RESIZE_10_10"          # since TensorRT 10.10
    return [resize] if not library.rtx and hasattr(library.module.PreviewFeature, resize) else []


def build_plan(library: Library, model: ModelFile, signature: Signature, precision: str, capability: str = "",
               timing: bytes = b"", on_progress: Progress = lambda percent, what: None) -> Plan:
    """Build an engine.

    precision: one of TENSORRT_PRECISIONS; capability: of the device it is for, as "8.6", which only TensorRT-RTX can
    choose (empty: the device that is there); timing: cache of an earlier build; on_progress: called by other threads,
    too
    Raises EngineError: MODEL_INVALID, MODEL_MISMATCH, ENGINE_UNAVAILABLE, ENGINE_BUILD_FAILED, ENGINE_OUT_OF_MEMORY.
    What on_progress raises, and a KeyboardInterrupt, ends the build after its present step, and is passed on.
    """
    trt, logger = library.module, make_logger(library)
    builder = make(library, "Builder", logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(library, logger, network, model, typed(model, precision, signed=True))
    check_signature(model, signature, _shapes(network, network.num_inputs, network.get_input),
                    _shapes(network, network.num_outputs, network.get_output))
    convolutions = _convolution_types(trt, network)
    if precision == "fp16" and not convolutions.get("HALF"):
        raise EngineError("ENGINE_BUILD_FAILED", f"{library.name} computes no convolution in float16: {convolutions}")

    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name, shapes in profile_shapes(signature).items():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED      # layers can be inspected
    for flag in builder_flags(library):
        config.set_flag(getattr(trt.BuilderFlag, flag))
    for feature in preview_features(library):
        config.set_preview_feature(getattr(trt.PreviewFeature, feature), True)
    if library.rtx:
        config.num_compute_capabilities = 1
        config.set_compute_capability(rtx_capability(library, capability), 0)
    else:
        cache = config.create_timing_cache(timing)
        # None: it is damaged; False: it was made on another device of this name
        if cache is None or not config.set_timing_cache(cache, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)
    monitor = config.progress_monitor = _monitor(trt, on_progress)
    plan = _interruptible(lambda: builder.build_serialized_network(network, config), monitor)
    if plan is None:
        raise library_error(library.name, logger.errors(), "ENGINE_BUILD_FAILED")
    on_progress(100, "built")
    return Plan(bytes(plan), b"" if library.rtx else bytes(config.get_timing_cache().serialize()), convolutions)


def _parse(library: Library, logger: Any, network: Any, model: ModelFile, data: bytes) -> None:
    parser = library.module.OnnxParser(network, logger)
    if not parser.parse(data):
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise EngineError("MODEL_INVALID", f"{model.path}: {library.name} cannot use it: "
                                           f"{'; '.join(errors) or logger.errors()}")


def _shapes(network: Any, count: int, get: Callable[[int], Any]) -> dict[str, Shape]:
    tensors = [get(index) for index in range(count)]
    return {tensor.name: tuple(axis if axis >= 0 else None for axis in tensor.shape) for tensor in tensors}


def _convolution_types(trt: Any, network: Any) -> dict[str, int]:
    """How many convolutions compute in each data type."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return dict(Counter(layer.get_output(0).dtype.name for layer in layers if layer.type == trt.LayerType.CONVOLUTION))


def rtx_capability(library: Library, capability: str) -> Any:
    """TensorRT-RTX's value for a compute capability, as "8.6"; empty: for that of the device that is there.

    Raises EngineError ENGINE_UNAVAILABLE if it builds nothing for it, as for the H100 and Jetsons.
    """
    name = f"SM{capability.replace('.', '')}" if capability else "CURRENT"
    value = getattr(library.module.ComputeCapability, name, None)
    if value is None:
        raise EngineError("ENGINE_UNAVAILABLE", f"{library.name} does not build for compute capability {capability}")
    return value


def _interruptible(build: Callable[[], Any], monitor: Any) -> Any:
    """What `build` returns; a thread of its own calls it, so that this one hears signals while the library works.

    Raises what is raised here, once the monitor has stopped the build, and what on_progress raised.
    """
    outcome: Future[Any] = Future()

    def work() -> None:
        if outcome.set_running_or_notify_cancel():
            try:
                outcome.set_result(build())
            except BaseException as error:
                outcome.set_exception(error)

    try:
        threading.Thread(target=work, name="build").start()
        wait([outcome])
    except BaseException:
        monitor.stopped = True
        outcome.cancel()                # if it has not begun
        while not outcome.done():       # however often Ctrl-C is pressed: a process that ends under the library aborts
            with contextlib.suppress(KeyboardInterrupt):
                wait([outcome])
        raise
    if monitor.failure:
        raise monitor.failure
    return outcome.result()


def _monitor(trt: Any, on_progress: Progress) -> Any:
    """The library's nested phases as one percentage, which never falls.

    stopped: the build is to end; failure: what on_progress raised, which the library would keep to itself
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped, self.failure = False, None
            self._lock = threading.Lock()              # the library may have several threads
            self._phases: dict[str, tuple[str | None, int]] = {}       # name -> phase it is part of, its steps
            self._done: dict[str, float] = {}                          # name -> steps done
            self._percent = -1

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            with self._lock:
                self._phases[phase], self._done[phase] = (parent, max(steps, 1)), 0.0

        def step_complete(self, phase: str, step: int) -> bool:
            with self._lock:
                self._done[phase] = step + 1.0
                try:
                    self._report(phase)
                except BaseException as error:
                    self.stopped, self.failure = True, error
            return not self.stopped

        def phase_finish(self, phase: str) -> None:
            with self._lock:
                self._phases.pop(phase, None)

        def _report(self, phase: str) -> None:
            what, share = phase, 0.0
            name: str | None = phase
            while name in self._phases:
                parent, steps = self._phases[name]
                share = min(1.0, (self._done[name] + share) / steps)
                name = parent
            percent = min(99, int(100 * share))
            if percent > self._percent:
                self._percent = percent
                on_progress(percent, what)

    return Monitor()
