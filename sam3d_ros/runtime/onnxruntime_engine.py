"""ONNX Runtime on the CPU: runs wherever there is a wheel."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime

from .engine import EngineError, ModelFile, check_signature
from .signature import Shape, Signature


class OnnxRuntimeEngine:
    """An `Engine` in float32."""

    def __init__(self, model: ModelFile, signature: Signature, precision: str = "auto", threads: int = 0):
        if precision == "bf16":
            raise EngineError("ENGINE_UNAVAILABLE", "onnxruntime computes in float32 on CPUs: set precision to auto")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Otherwise idle worker threads spin and take the cores that marching cubes needs next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(model.data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own that share no base but Exception
            raise EngineError("MODEL_INVALID", f"{model.path}: {str(error).strip().splitlines()[-1]}") from error
        check_signature(model, signature, _shapes(self._session.get_inputs()), _shapes(self._session.get_outputs()))
        self._outputs = list(signature.outputs)
        self.name = "onnxruntime fp32"

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See Engine.infer."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))

    def close(self) -> None:
        """See Engine.close."""
        del self._session


def _shapes(tensors: list) -> dict[str, Shape]:
    """Shapes by name; ONNX Runtime gives axes of any length a name, or None."""
    return {tensor.name: tuple(axis if isinstance(axis, int) else None for axis in tensor.shape) for tensor in tensors}
