"""OpenVINO on the CPU: the default engine."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import openvino

from .engine import EngineError, ModelFile, check_signature, last_line, library_error
from .precision import typed
from .signature import Shape, Signature

# Precision -> what layers are computed in that the graph does not say, and the capability of the processor for it.
_PRECISIONS = {"fp32": ("f32", "FP32"), "bf16": ("bf16", "BF16"), "int8": ("f32", "INT8")}


class OpenVinoEngine:
    """An `Engine`.  One compiled network takes any batch size; the outputs are copied out of OpenVINO's memory."""

    most_crops = 8           # 270 MiB
    first_runs = (most_crops,)

    def __init__(self, model: ModelFile, signature: Signature, precision: str, threads: int = 0):
        core = openvino.Core()
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision not in _PRECISIONS or _PRECISIONS[precision][1] not in capabilities:
            raise EngineError("ENGINE_UNAVAILABLE", f"this CPU does not compute in {precision}: set precision to auto")
        graph = typed(model, precision)
        try:
            network = core.read_model(graph)
        except RuntimeError as error:
            raise EngineError("MODEL_INVALID", f"{model.path}: {last_line(error)}") from error
        check_signature(model, signature, _shapes(network.inputs), _shapes(network.outputs))
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": _PRECISIONS[precision][0]}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._request = core.compile_model(network, "CPU", settings).create_infer_request()
        except RuntimeError as error:
            raise library_error("openvino", str(error).strip(), "ENGINE_BUILD_FAILED") from error
        self._outputs = tuple(signature.outputs)
        self.name = f"openvino {precision}"

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See Engine.infer."""
        self._request.infer({name: openvino.Tensor(np.ascontiguousarray(array), shared_memory=True)
                             for name, array in inputs.items()})
        return {name: self._request.get_tensor(name).data.copy() for name in self._outputs}

    def close(self) -> None:
        """See Engine.close."""
        del self._request


def _shapes(ports: list) -> dict[str, Shape]:
    return {port.any_name: tuple(axis.get_length() if axis.is_static else None for axis in port.partial_shape)
            for port in ports}
