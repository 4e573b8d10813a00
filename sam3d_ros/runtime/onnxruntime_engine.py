"""ONNX Runtime on the CPU: runs wherever there is a wheel."""
from __future__ import annotations

import numpy as np
import onnxruntime

from .engine import INPUT_NAME, EngineError, ModelFile, check_signature


class OnnxRuntimeEngine:
    """An `Engine` in float32."""

    def __init__(self, model: ModelFile, precision: str = "auto", threads: int = 0):
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
        check_signature(model, {i.name: tuple(i.shape)[1:] for i in self._session.get_inputs()},
                        {o.name: tuple(o.shape)[1:] for o in self._session.get_outputs()})
        self.name = "onnxruntime fp32"

    def infer(self, evidence: np.ndarray) -> np.ndarray:
        """See Engine.infer."""
        return self._session.run(None, {INPUT_NAME: evidence})[0]

    def close(self) -> None:
        """See Engine.close."""
        del self._session
