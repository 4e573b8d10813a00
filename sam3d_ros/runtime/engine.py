"""One protocol for every neural network engine, and the choice among those that are installed."""
from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from .signature import STUDENT, Shape, Signature

MAX_MODEL_BYTES = 256 << 20
PRECISIONS = ("auto", "fp32", "bf16")

_WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
SHIPPED_MODELS = {name: _WEIGHTS / f"{name}.onnx" for name in ("base", "small")}


class EngineError(Exception):
    """A model or an engine cannot be used; `reason` is the name of a FaultCode."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class Engine(Protocol):
    """A loaded network.  `name` says engine and precision, as "openvino bf16"."""

    name: str

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of the network's signature for its inputs, by name, all float32; any batch size >= 1.

        The arrays returned are the caller's own.  Raises RuntimeError (or a subclass) if the engine fails.
        """

    def close(self) -> None:
        """Free the engine; `infer` must not be called afterwards."""


@dataclass(frozen=True)
class ModelFile:
    """An ONNX file read into memory: engines parse these bytes, so a graph cannot name other files to read."""

    path: Path
    data: bytes

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of the file."""
        return hashlib.sha256(self.data).hexdigest()


def read_model(path: str | Path) -> ModelFile:
    """Read an ONNX file, or a shipped model by its name.  Raises EngineError MODEL_MISSING or MODEL_INVALID."""
    path = SHIPPED_MODELS.get(str(path)) or Path(path)
    if not path.is_file():
        raise EngineError("MODEL_MISSING", str(path))
    if path.stat().st_size > MAX_MODEL_BYTES:
        raise EngineError("MODEL_INVALID", f"{path} is larger than {MAX_MODEL_BYTES >> 20} MiB")
    return ModelFile(path, path.read_bytes())


def check_signature(model: ModelFile, wanted: Signature, inputs: Mapping[str, Shape],
                    outputs: Mapping[str, Shape]) -> None:
    """Raise EngineError MODEL_MISMATCH unless a network's inputs and outputs are the wanted ones."""
    difference = wanted.difference(inputs, outputs)
    if difference:
        raise EngineError("MODEL_MISMATCH", f"{model.path}: {difference}")


# Fastest first, as measured on CPUs; name -> module that must be importable.
ENGINES = {"openvino": "openvino", "onnxruntime": "onnxruntime"}


def available_engines() -> list[str]:
    """Names of the engines whose library is installed, preferred ones first."""
    return [name for name, module in ENGINES.items() if importlib.util.find_spec(module)]


def load_engine(name: str = "auto", model: str | Path = "base", precision: str = "auto", threads: int = 0,
                signature: Signature = STUDENT) -> Engine:
    """Load a model of the given signature into an engine.

    name: "auto" (the first of `available_engines`) or one of ENGINES; precision: "auto" takes bfloat16 where the CPU
    computes in it, else float32; threads: 0 = all cores.
    Raises EngineError: MODEL_MISSING, MODEL_INVALID, MODEL_MISMATCH, ENGINE_UNAVAILABLE.
    """
    available = available_engines()
    if name == "auto":
        name = available[0] if available else "openvino"
    if name not in available:
        raise EngineError("ENGINE_UNAVAILABLE", f"{name} (installed: {', '.join(available) or 'none'})")
    file = read_model(model)
    if name == "openvino":
        from .openvino_engine import OpenVinoEngine

        return OpenVinoEngine(file, signature, precision, threads)
    from .onnxruntime_engine import OnnxRuntimeEngine

    return OnnxRuntimeEngine(file, signature, precision, threads)
