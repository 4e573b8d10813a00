"""TensorRT and TensorRT-RTX on an NVIDIA GPU: built once per device, checked, kept in the engine cache.

Inputs go through page-locked memory.  Batches are filled up to 1, 2, 4, 8 or 16 objects, and for each of these sizes
copies and kernels are recorded into a CUDA graph the first time, so that later a run is one call.
"""
from __future__ import annotations

import contextlib
import logging
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from . import cuda, golden
from .engine import BuildOptions, EngineError, ModelFile, library_error
from .engine_cache import EngineCache, EngineKey
from .signature import Signature, shape_text
from .tensorrt_build import (
    MAX_BATCH,
    MAX_VIEWS,
    TENSORRT_PRECISIONS,
    Library,
    Plan,
    build_plan,
    builder_flags,
    load_library,
    make,
    make_logger,
    preview_features,
    profile_shapes,
    rtx_capability,
)

BUCKETS = (1, 2, 4, 8, 16)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Run:
    """What runs one batch size: a context with its shapes set, and the graph of its work (None: not recordable).

    config: of TensorRT-RTX's context, which does not keep it itself; freed after it
    """

    context: Any
    graph: int | None
    config: Any


class TensorRtEngine:
    """An `Engine`.  `infer` may be called from any thread, by one at a time.

    What it makes is freed when the device is closed, the last run first: its recorded graph, its context, the memory
    that this computes in; then the memory that all runs share, and the library's engine.
    kernels: what TensorRT-RTX compiled for this engine in earlier processes; keep_kernels: is given, when the engine is
    closed, what it has compiled besides
    Raises EngineError ENGINE_BUILD_FAILED if the plan does not load, ENGINE_OUT_OF_MEMORY, ENGINE_UNAVAILABLE;
    CudaError.
    """

    most_crops = MAX_BATCH
    first_runs = BUCKETS[::-1]

    def __init__(self, library: Library, plan: bytes, signature: Signature, precision: str, device: cuda.Device,
                 kernels: bytes = b"", keep_kernels: Callable[[bytes], None] = lambda kernels: None):
        self.name = f"{library.name} {precision}"
        self._library, self._signature, self._device = library, signature, device
        self._logger = make_logger(library)
        self._runtime = make(library, "Runtime", self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise library_error(library.name, f"the engine does not load: {self._logger.errors()}",
                                "ENGINE_BUILD_FAILED")
        self._kernels = None                       # of TensorRT-RTX, shared by the contexts
        self._kernels_kept, self._keep_kernels = kernels, keep_kernels
        device.at_close(self._release)
        self._runs: dict[tuple[int, int], _Run] = {}
        self._stream = device.new_stream()
        most = dict(batch=MAX_BATCH, views=MAX_VIEWS)
        shapes = signature.input_shapes(**most) | signature.output_shapes(**most)
        self._host = {name: device.pinned((int(np.prod(shape)),)) for name, shape in shapes.items()}
        for buffer in self._host.values():
            buffer[:] = 0                          # what fills a batch up is finite
        self._addresses = {name: device.allocate(buffer.nbytes) for name, buffer in self._host.items()}
        self._scratch, self._scratch_bytes = 0, 0

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See Engine.infer; up to MAX_VIEWS views.  Raises RuntimeError."""
        self._device.make_current()
        batch, views = inputs["crops"].shape[:2]
        if not 1 <= views <= MAX_VIEWS:
            raise RuntimeError(f"{views} views of an object, at most {MAX_VIEWS} are supported")
        wanted = self._signature.input_shapes(batch=batch, views=views)
        for name, shape in wanted.items():
            if inputs[name].shape != shape:
                raise RuntimeError(f"{name} is {shape_text(inputs[name].shape)} instead of {shape_text(shape)}")
        parts = [self._infer_part({name: array[start:start + MAX_BATCH] for name, array in inputs.items()}, views)
                 for start in range(0, batch, MAX_BATCH)]
        return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts])
                                                 for name in self._signature.outputs}

    def close(self) -> None:
        """See Engine.close."""
        self._device.close()

    def _release(self) -> None:
        """What is left of the library's objects, in a thread that the device is current in."""
        kernels = bytes(self._kernels.serialize() or b"") if self._kernels else b""
        if kernels not in (b"", self._kernels_kept):
            self._keep_kernels(kernels)
        self._kernels = self._engine = self._runtime = None

    def _infer_part(self, inputs: Mapping[str, np.ndarray], views: int) -> dict[str, np.ndarray]:
        count = len(inputs["crops"])
        bucket = next(size for size in BUCKETS if size >= count)
        lengths = dict(batch=bucket, views=views)
        for name, shape in self._signature.input_shapes(**lengths).items():
            self._staged(name, shape)[:count] = inputs[name]
        run = self._runs.get((bucket, views))
        if run is None:
            run = self._runs[bucket, views] = self._prepare(bucket, views)
        elif run.graph is None:
            self._enqueue(run.context, bucket, views)
        else:
            self._device.launch(run.graph, self._stream)
        self._device.synchronise(self._stream)
        return {name: self._staged(name, shape)[:count].copy()
                for name, shape in self._signature.output_shapes(**lengths).items()}

    def _staged(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return self._host[name][:int(np.prod(shape))].reshape(shape)

    def _prepare(self, bucket: int, views: int) -> _Run:
        """See _recorded."""
        try:
            return self._recorded(bucket, views)
        except BaseException as error:
            # The frames of what failed would else keep the context for as long as the error is there: beyond `close`,
            # and so beyond the engine and the device that it is part of.
            traceback.clear_frames(error.__traceback__)
            raise

    def _recorded(self, bucket: int, views: int) -> _Run:
        """Run a batch size for the first time, then record it.

        Each size has a context of its own, because a recorded graph is bound to its context's shapes.
        """
        context, config = self._new_context()
        for name, shape in self._signature.input_shapes(batch=bucket, views=views).items():
            if not context.set_input_shape(name, shape):
                raise RuntimeError(f"{name} cannot be {shape_text(shape)}: {self._logger.errors()}")
        for name, address in self._addresses.items():
            context.set_tensor_address(name, address)
        self._give_scratch(context)
        self._enqueue(context, bucket, views)      # allocates, and compiles where the library does so late
        self._device.synchronise(self._stream)
        self._device.at_close(partial(self._runs.pop, (bucket, views), None))
        try:
            graph = self._device.capture(self._stream, lambda: self._enqueue(context, bucket, views))
        except RuntimeError as error:
            _log.warning("%s runs without a CUDA graph for %d objects: %s", self.name, bucket, error)
            graph = None
        return _Run(context, graph, config)

    def _give_scratch(self, context: Any) -> None:
        """Give a context, whose shapes are set, the memory in which it computes; shared, since one runs at a time.

        Where the library tells it (see preview_features), not as much as for the largest shapes of the profile, most
        objects with most views: nobody asks for so many at a time, and they need several times as much.  A smaller
        piece stays: graphs that are recorded compute in it.
        """
        # 0: it could not be told
        needed = context.update_device_memory_size_for_shapes() or self._engine.device_memory_size_v2
        if needed > self._scratch_bytes:
            self._scratch, self._scratch_bytes = self._device.allocate(needed), needed
        context.set_device_memory(self._scratch, self._scratch_bytes)

    def _new_context(self) -> tuple[Any, Any]:
        """Context and config of a _Run.  Raises RuntimeError."""
        trt, config = self._library.module, None
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._library.rtx:
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            # Kernels for the shapes at hand at once, not in the background while a general one runs.
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            config.set_runtime_cache(self._shared_kernels(config))
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context(strategy)
        if context is None:
            raise RuntimeError(f"no execution context: {self._logger.errors()}")
        context.nvtx_verbosity = trt.ProfilingVerbosity.NONE       # what it says of layers at each run takes time
        return context, config

    def _shared_kernels(self, config: Any) -> Any:
        """TensorRT-RTX's cache of kernels: without it, each context would compile all of them again, for seconds."""
        if self._kernels is None:
            self._kernels = config.create_runtime_cache()
            if self._kernels_kept and not self._kernels.deserialize(self._kernels_kept):
                _log.info("%s: the kernels that were kept are not for this machine", self.name)
        return self._kernels

    def _enqueue(self, context: Any, bucket: int, views: int) -> None:
        """Put upload, kernels and download into the stream."""
        lengths = dict(batch=bucket, views=views)
        for name, shape in self._signature.input_shapes(**lengths).items():
            self._device.to_device(self._addresses[name], self._staged(name, shape), self._stream)
        if not context.execute_async_v3(self._stream):
            raise RuntimeError(self._logger.errors() or "the engine did not start")
        for name, shape in self._signature.output_shapes(**lengths).items():
            self._device.from_device(self._staged(name, shape), self._addresses[name], self._stream)


def open_device() -> cuda.Device:
    """The first CUDA device.  Raises EngineError ENGINE_UNAVAILABLE, ENGINE_OUT_OF_MEMORY."""
    driver = cuda.load_driver()
    if driver is None:
        raise EngineError("ENGINE_UNAVAILABLE", f"no NVIDIA driver: {cuda.LIBRARY} is not installed")
    try:
        return cuda.Device(driver)
    except cuda.CudaError as error:
        raise library_error("no usable NVIDIA GPU", str(error), "ENGINE_UNAVAILABLE") from error


def gpu_facts() -> dict[str, Any]:
    """What tells the first CUDA device from others, ready for JSON.  Raises EngineError as `open_device` does."""
    with contextlib.closing(open_device()) as device:
        return {"name": device.name, "capability": "{}.{}".format(*device.capability),
                "multiprocessors": device.multiprocessors, "memory_gib": round(device.memory / 2**30, 1),
                "cuda": device.cuda, "driver": " ".join(device.driver.split())}


def engine_key(library: Library, model: ModelFile, signature: Signature, precision: str,
               device: cuda.Device | None, capability: str = "") -> EngineKey:
    """Key of the engine for a device, or, without one, for any device of a compute capability."""
    if device:
        capability = "{}.{}".format(*device.capability)
    profile = "; ".join(f"{name} {'/'.join(map(shape_text, shapes))}"
                        for name, shapes in profile_shapes(signature).items())
    name = f"{device.name}, {device.multiprocessors} multiprocessors" if device else ""
    return EngineKey(model.sha256, library.version, device.cuda if device else "", device.driver if device else "",
                     name, capability, precision, profile,
                     " ".join(["strongly typed", "no TF32", *builder_flags(library), *preview_features(library)]))


def load_tensorrt(name: str, model: ModelFile, signature: Signature, precision: str,
                  options: BuildOptions) -> TensorRtEngine:
    """The engine from the cache; built, checked against the golden outputs and kept there if it is not.  One that the
    check refuses is not built again, unless options.must_keep.

    An engine that cannot be kept, because the disk is full or read-only, is returned all the same (said in the log),
    unless options.must_keep.
    Raises EngineError: MODEL_*, ENGINE_UNAVAILABLE, ENGINE_NOT_BUILT, ENGINE_BUILD_FAILED, ENGINE_OUT_OF_MEMORY,
    ENGINE_INACCURATE, ENGINE_FAILED, ENGINE_CACHE_UNSAFE; ENGINE_NOT_KEPT if it must be kept and cannot be.
    """
    precision = "fp16" if precision == "auto" else precision
    if precision not in TENSORRT_PRECISIONS:
        raise EngineError("ENGINE_UNAVAILABLE",
                          f"{name} computes in {', '.join(TENSORRT_PRECISIONS)}: set precision to auto")
    library = load_library(name)
    device = open_device()
    try:
        return _Loader(library, model, signature, precision, device, options).load()
    except RuntimeError as error:
        device.close()
        raise library_error(name, str(error), "ENGINE_BUILD_FAILED") from error
    except BaseException:
        device.close()
        raise


def build_ahead(name: str, model: ModelFile, signature: Signature, precision: str, capability: str,
                options: BuildOptions) -> EngineKey:
    """Build an engine for any device of a compute capability, as "8.6", and keep it unchecked, unless it is there;
    TensorRT-RTX only.

    A device that loads it checks it first.  Raises EngineError as `load_tensorrt` does for one that must be kept.
    """
    library = load_library(name)
    if not library.rtx:
        raise EngineError("ENGINE_UNAVAILABLE", f"{name} builds only on the GPU it is for: leave --capability out")
    cache, key = EngineCache(options.folder), engine_key(library, model, signature, precision, None, capability)
    with cache.locked(lambda: options.on_progress(0, "waiting for another build"), required=True):
        if cache.load(key) is None:
            started = time.monotonic()
            plan = build_plan(library, model, signature, precision, capability, on_progress=options.on_progress)
            cache.store(key, plan.data, _details(plan, started))
    return key


class _Loader:
    """One engine to be had, by one of three ways: from the cache, from an ahead-of-time build in it, or built."""

    def __init__(self, library: Library, model: ModelFile, signature: Signature, precision: str, device: cuda.Device,
                 options: BuildOptions):
        self.library, self.model, self.signature, self.precision = library, model, signature, precision
        self.device, self.options, self.cache = device, options, EngineCache(options.folder)
        self.key = engine_key(library, model, signature, precision, device)

    def load(self) -> TensorRtEngine:
        if self.library.rtx:
            rtx_capability(self.library, self.key.capability)       # first: else it would only be not built yet
        engine = self._cached()
        if not engine and not self.options.allow_build and not self._plan_ahead():
            raise self._not_built()                 # at once, even while another process builds it
        return engine or self._obtained()

    def _cached(self) -> TensorRtEngine | None:
        """Raises EngineError ENGINE_INACCURATE if it was built and refused, and is not asked for again by must_keep."""
        refusal = self.cache.refusal(self.key)
        if refusal and not self.options.must_keep:
            raise EngineError("ENGINE_INACCURATE", refusal)
        plan = self.cache.load(self.key)
        return self._opened(plan) if plan else None

    def _opened(self, plan: bytes) -> TensorRtEngine | None:
        """None if the plan does not load: it is built anew."""
        try:
            return self._engine(plan)
        except EngineError as error:
            if error.reason != "ENGINE_BUILD_FAILED":
                raise
            _log.warning("%s: %s", self.library.name, error.detail)
            return None

    def _engine(self, plan: bytes) -> TensorRtEngine:
        kernels = f"{self.key.digest}.kernels"

        def keep(data: bytes) -> None:
            try:
                self.cache.write_note(kernels, data)
            except EngineError as error:            # nothing that could end the program, which closes an engine
                _log.warning("kernels of %s cannot be kept for the next start: %s", self.library.name, error.detail)

        return TensorRtEngine(self.library, plan, self.signature, self.precision, self.device,
                              self.cache.read_note(kernels) if self.library.rtx else b"", keep)

    def _obtained(self) -> TensorRtEngine:
        """An engine that is new to this device: checked, then kept."""
        with self.cache.locked(lambda: self.options.on_progress(0, "waiting for another build"),
                               required=self.options.must_keep):
            engine = self._cached()                # built while this process waited
            if engine:
                return engine
            wanted = golden.reference(self.model)       # first: without it, a build is for nothing
            started = time.monotonic()
            # One that was refused, and is asked for again, is built here.
            ahead = None if self.cache.refusal(self.key) else self._built_ahead()
            if ahead:
                engine, plan = ahead
            else:
                plan = self._built()
                engine = self._engine(plan.data)
            self.options.on_progress(100, "comparing with the reference")
            try:
                found = golden.check(engine, wanted)
            except EngineError as error:
                if error.reason == "ENGINE_INACCURATE":
                    with _kept_if_possible("the check's result"):
                        self.cache.refuse(self.key, error.detail, _details(plan, started))
                raise
            with _kept_if_possible(engine.name, self.options.must_keep):
                self.cache.store(self.key, plan.data, _details(plan, started) | {"check": str(found)})
            return engine

    def _built_ahead(self) -> tuple[TensorRtEngine, Plan] | None:
        data = self._plan_ahead()
        engine = self._opened(data) if data else None
        return (engine, Plan(data, b"", {})) if data and engine else None

    def _plan_ahead(self) -> bytes | None:
        """The plan of an engine for any device of this one's compute capability."""
        return self.cache.load(engine_key(self.library, self.model, self.signature, self.precision, None,
                                          self.key.capability)) if self.library.rtx else None

    def _not_built(self) -> EngineError:
        return EngineError("ENGINE_NOT_BUILT", f"{self.library.version}, {self.precision}, for {self.device.name}")

    def _built(self) -> Plan:
        if not self.options.allow_build:
            raise self._not_built()
        timing = re.sub(r"[^\w.-]", "_", f"{self.library.version} {self.key.device}.timing")
        plan = build_plan(self.library, self.model, self.signature, self.precision,
                          self.key.capability if self.library.rtx else "", self.cache.read_note(timing),
                          self.options.on_progress)
        if plan.timing:
            with _kept_if_possible(timing):
                self.cache.write_note(timing, plan.timing)
        return plan


@contextlib.contextmanager
def _kept_if_possible(what: str, must_keep: bool = False) -> Iterator[None]:
    """A disk that is full or read-only costs time at the next start, no more, unless `must_keep`: the log says so."""
    try:
        yield
    except EngineError as error:
        if must_keep or error.reason != "ENGINE_NOT_KEPT":
            raise
        _log.warning("%s cannot be kept for the next start: %s", what, error.detail)


def _details(plan: Plan, started: float) -> dict[str, Any]:
    return {"build_seconds": round(time.monotonic() - started, 1), "convolutions": plan.convolutions}
