"""Which engine `auto` takes: a GPU engine if one works here, else the CPU engine that was fastest when measured."""
from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import logging
import os
import time
from collections.abc import Collection
from typing import Any

import numpy as np

from . import cuda, golden
from .engine import (
    CPU_ENGINES,
    GPU_ENGINES,
    BuildOptions,
    Engine,
    EngineError,
    ModelFile,
    answers,
    available_engines,
    load_named,
)
from .engine_cache import EngineCache
from .processor import cpu_model, instructions
from .signature import Signature

# Engine and precision, in the order in which they were the fastest on most machines.
_CANDIDATES = (("openvino", "int8"), ("openvino", "bf16"), ("openvino", "fp32"), ("onnxruntime", "fp32"))
_ROUNDS = 7                  # runs of each engine that are timed
_SECONDS = 6.0               # for all of them together, after which the present round is the last
_NOTE = "cpu.json"
_VERSION = 2                 # of the engines here: what was noted of others does not count
# An engine that fails so is passed over; any other fault is for the user to mend.  MODEL_INVALID: its parser may
# lack what the model needs; if the model is broken, the CPU engine says so.
_PASSED_OVER = frozenset({"ENGINE_UNAVAILABLE", "ENGINE_NOT_BUILT", "ENGINE_BUILD_FAILED", "ENGINE_OUT_OF_MEMORY",
                          "ENGINE_INACCURATE", "ENGINE_FAILED", "MODEL_INVALID"})
_log = logging.getLogger(__name__)


def best(file: ModelFile, precision: str, threads: int, signature: Signature, options: BuildOptions) -> Engine:
    """The first GPU engine that works here, else the fastest CPU engine.  Raises EngineError."""
    unavailable = []
    for name in GPU_ENGINES if cuda.load_driver() else ():
        try:
            return load_named(name, file, precision, threads, signature, options)
        except EngineError as error:
            _pass_over(name, error)
            unavailable += [error.detail] * (error.reason == "ENGINE_UNAVAILABLE")
    if unavailable:         # who has such a GPU would else take the CPU's pace for that of the GPU
        _log.warning("this machine has NVIDIA's driver, and the CPU is used, as no engine for the GPU works "
                     "(sam3d doctor says more): %s", "; ".join(dict.fromkeys(unavailable)))
    return fastest_cpu(file, precision, threads, signature, options)


def _pass_over(name: str, error: EngineError) -> None:
    """Log why an engine is not taken.  Raises the error if the user has to fix it."""
    if error.reason not in _PASSED_OVER:
        raise error
    level = logging.DEBUG if error.reason == "ENGINE_UNAVAILABLE" else logging.WARNING
    _log.log(level, "engine %s is passed over: %s: %s", name, error.reason, error.detail)


def fastest_cpu(file: ModelFile, precision: str, threads: int, signature: Signature,
                options: BuildOptions, names: Collection[str] = tuple(CPU_ENGINES)) -> Engine:
    """The CPU engine, of those named, that was fastest on this machine; measured now, and noted, if it has not been.

    Raises EngineError.
    """
    wanted = [(name, arithmetic) for name, arithmetic in _CANDIDATES
              if name in names and name in available_engines() and precision in ("auto", arithmetic)]
    if not wanted:
        raise EngineError("ENGINE_UNAVAILABLE",
                          f"none of {', '.join(names)} is installed and computes in {precision}")

    def load(name: str, arithmetic: str) -> Engine:
        return load_named(name, file, arithmetic, threads, signature, options)

    if len(wanted) == 1:
        return load(*wanted[0])
    cache, key = EngineCache(options.folder), _situation(file, threads, wanted)
    choice = _noted(cache, key)
    if choice in wanted:
        try:
            return load(*choice)
        except EngineError as error:            # it did when it was noted: the fastest is another one now
            _pass_over(" ".join(choice), error)
    engines = _loaded(wanted, load)
    times = _times(file, engines, signature)
    fastest = min(times, key=times.__getitem__)
    for candidate, engine in engines.items():
        if candidate != fastest:
            engine.close()
    _note(cache, key, fastest, times)
    return engines[fastest]


def _loaded(wanted: list[tuple[str, str]], load: Any) -> dict[tuple[str, str], Engine]:
    """Those of the wanted engines that this processor can run.  Raises EngineError if none can."""
    engines, refusal = {}, None
    for candidate in wanted:
        try:
            engines[candidate] = load(*candidate)
        except EngineError as error:
            if error.reason == "MODEL_INVALID":         # for all of them
                raise
            _pass_over(" ".join(candidate), error)
            refusal = error
    if not engines:
        raise refusal
    return engines


def _times(file: ModelFile, engines: dict[tuple[str, str], Engine], signature: Signature) -> dict[Any, float]:
    """Seconds for one object, of the engines whose answers are those of float32.

    The least of several runs in turn, so that other work on the machine does not decide.
    Raises EngineError ENGINE_FAILED, ENGINE_OUT_OF_MEMORY.
    """
    exact = next((engine for candidate, engine in engines.items() if candidate[1] == "fp32"), None)
    accurate = {candidate: engine for candidate, engine in engines.items()
                if candidate[1] == "fp32" or exact is None or _agree(file, engine, exact)}
    inputs = {name: np.zeros(shape, np.float32)
              for name, shape in signature.input_shapes(batch=1, views=1).items()}
    for engine in accurate.values():
        answers(engine, inputs)
    times = dict.fromkeys(accurate, np.inf)
    started = time.perf_counter()
    for _ in range(_ROUNDS):
        for candidate, engine in accurate.items():
            before = time.perf_counter()
            answers(engine, inputs)
            times[candidate] = min(times[candidate], time.perf_counter() - before)
        if time.perf_counter() - started > _SECONDS:
            break
    return times


def _agree(file: ModelFile, engine: Engine, exact: Engine) -> bool:
    """Whether an engine passes the check against the model's golden outputs, or those of an `exact` one."""
    wanted = golden.read_golden(file) or golden.golden_of(answers(exact, golden.golden_inputs()))
    try:
        golden.check(engine, wanted)
    except EngineError as error:
        _log.warning("engine %s is passed over: %s", engine.name, error.detail)
        return False
    return True


def _situation(file: ModelFile, threads: int, wanted: list[tuple[str, str]]) -> str:
    """What the measurement depends on, as one digest."""
    versions = [_version(name) for name in available_engines()]
    facts = [_VERSION, file.sha256, threads, wanted, versions, cpu_model(), instructions(),
             len(os.sched_getaffinity(0))]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _version(name: str) -> str:
    """Version of a CPU engine's library; empty if it does not say."""
    try:
        return importlib.metadata.version(name)     # without importing it, which takes a while
    except importlib.metadata.PackageNotFoundError:
        # The distribution may have another name than the module, as onnxruntime-gpu has.
        with contextlib.suppress(ImportError, OSError):         # as `load_named` has it
            return str(getattr(importlib.import_module(CPU_ENGINES[name]), "__version__", ""))
        return ""


def _noted(cache: EngineCache, key: str) -> tuple[str, str] | None:
    try:
        entry = _notes(cache)[key]
        return entry["engine"], entry["precision"]
    except (KeyError, TypeError):
        return None


def _notes(cache: EngineCache) -> dict[str, Any]:
    try:
        notes = json.loads(cache.read_note(_NOTE) or "{}")
    except (ValueError, RecursionError, EngineError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _note(cache: EngineCache, key: str, fastest: tuple[str, str], times: dict[tuple[str, str], float]) -> None:
    entry = {"engine": fastest[0], "precision": fastest[1],
             "ms": {" ".join(candidate): round(1e3 * seconds, 2) for candidate, seconds in times.items()}}
    _log.info("fastest CPU engine: %s", entry)
    try:
        text = json.dumps(_notes(cache) | {key: entry}, indent=1)
    except RecursionError:                      # what some versions of Python read they cannot write
        text = json.dumps({key: entry}, indent=1)
    try:
        cache.write_note(_NOTE, text.encode())
    except EngineError as error:                # a machine without a writable home measures every time
        _log.warning("the measurement of CPU engines cannot be kept: %s", error.detail)
