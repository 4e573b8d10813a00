"""Writes the wanted precision into a model's graph, for engines that take it from there."""
from __future__ import annotations

from .engine import EngineError, ModelFile, last_line, parsed
from .graph import PrecisionError
from .half import with_half_convolutions
from .int8 import FEW_WEIGHT_STEPS, WEIGHT_STEPS, with_int8_convolutions
from .processor import sums_bytes_exactly


def typed(model: ModelFile, precision: str, signed: bool = False) -> bytes:
    """The model's bytes; its convolutions in float16 or in int8 if precision is "fp16" or "int8".

    signed: int8 as TensorRT wants it, see with_int8_convolutions, and what is not int8 in float16; else it is for this
    machine's processor
    Raises EngineError ENGINE_UNAVAILABLE if it cannot be computed so, MODEL_INVALID if it is no model or not whole.
    """
    parsed(model)
    try:
        if precision == "int8":
            if signed:
                return with_half_convolutions(with_int8_convolutions(model.data, signed=True))
            steps = WEIGHT_STEPS if sums_bytes_exactly() else FEW_WEIGHT_STEPS
            return with_int8_convolutions(model.data, weight_steps=steps)
        return with_half_convolutions(model.data) if precision == "fp16" else model.data
    except PrecisionError as error:
        raise EngineError("ENGINE_UNAVAILABLE", f"{model.path} in {precision}: {error}") from error
    except Exception as error:      # what onnx raises on a broken graph shares no base
        raise EngineError("MODEL_INVALID", f"{model.path}: {last_line(error)}") from error
