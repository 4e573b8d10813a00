"""OpenVINO on the CPU: the default engine."""
from __future__ import annotations

import numpy as np
import openvino

from .engine import INPUT_NAME, EngineError, ModelFile, check_signature

_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoEngine:
    """An `Engine`.  One compiled network takes any batch size; the output array is copied out of OpenVINO's memory."""

    def __init__(self, model: ModelFile, precision: str = "auto", threads: int = 0):
        core = openvino.Core()
        bfloat16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "auto":
            precision = "bf16" if bfloat16 else "fp32"
        if precision == "bf16" and not bfloat16:
            raise EngineError("ENGINE_UNAVAILABLE", "this CPU does not compute in bfloat16: set precision to auto")
        try:
            network = core.read_model(model.data)
        except RuntimeError as error:
            raise EngineError("MODEL_INVALID", f"{model.path}: {str(error).strip().splitlines()[-1]}") from error
        check_signature(model, _ports(network.inputs), _ports(network.outputs))
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": _PRECISIONS[precision]}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        self._request = core.compile_model(network, "CPU", settings).create_infer_request()
        self.name = f"openvino {precision}"

    def infer(self, evidence: np.ndarray) -> np.ndarray:
        """See Engine.infer."""
        result = self._request.infer({INPUT_NAME: openvino.Tensor(np.ascontiguousarray(evidence), shared_memory=True)})
        return result[0].copy()

    def close(self) -> None:
        """See Engine.close."""
        del self._request


def _ports(ports: list) -> dict[str, tuple]:
    return {port.any_name: tuple(d.get_length() if d.is_static else 0 for d in port.partial_shape)[1:]
            for port in ports}
