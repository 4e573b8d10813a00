"""ONNX Runtime on the CPU, which runs wherever there is a wheel, and on NVIDIA GPUs (package onnxruntime-gpu)."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime

from .engine import EngineError, ModelFile, check_signature
from .precision import typed
from .signature import Shape, Signature

# Name of the engine -> what computes, first one first, with its settings.  What is float32 stays so: TF32 would round
# coordinates to ten bits.  TensorRT's engines are not kept on disk by ONNX Runtime, which would load them unchecked.
_CPU = ("CPUExecutionProvider", {})
_CUDA = ("CUDAExecutionProvider", {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"})
_TENSORRT = ("TensorrtExecutionProvider", {"trt_engine_cache_enable": "0"})
PROVIDERS = {"onnxruntime": [_CPU], "onnxruntime-cuda": [_CUDA, _CPU], "onnxruntime-tensorrt": [_TENSORRT, _CUDA, _CPU]}
_PRECISIONS = {"onnxruntime": ("fp32",), "onnxruntime-cuda": ("fp16", "fp32"),
               "onnxruntime-tensorrt": ("fp16", "fp32")}


class OnnxRuntimeEngine:
    """An `Engine`; name: one of PROVIDERS; float32 on the CPU, elsewhere convolutions in float16 unless told not to."""

    most_crops = 8

    def __init__(self, model: ModelFile, signature: Signature, precision: str = "auto", threads: int = 0,
                 name: str = "onnxruntime"):
        precision = _PRECISIONS[name][0] if precision == "auto" else precision
        if precision not in _PRECISIONS[name]:
            raise EngineError("ENGINE_UNAVAILABLE",
                              f"{name} computes in {' or '.join(_PRECISIONS[name])}: set precision to auto")
        wanted = PROVIDERS[name][0][0]
        if wanted not in onnxruntime.get_available_providers():
            raise EngineError("ENGINE_UNAVAILABLE", f"{name}: this onnxruntime has no {wanted}")
        graph = typed(model, precision)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Otherwise idle worker threads spin and take the cores that marching cubes needs next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=PROVIDERS[name])
        except Exception as error:  # onnxruntime raises classes of its own that share no base but Exception
            raise EngineError("MODEL_INVALID", f"{model.path}: {str(error).strip().splitlines()[-1]}") from error
        if self._session.get_providers()[0] != wanted:      # it falls back without a word
            raise EngineError("ENGINE_UNAVAILABLE", f"{name}: {wanted} does not work on this machine")
        check_signature(model, signature, _shapes(self._session.get_inputs()), _shapes(self._session.get_outputs()))
        self._outputs = list(signature.outputs)
        self.name = f"{name} {precision}"

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See Engine.infer."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))

    def close(self) -> None:
        """See Engine.close."""
        del self._session


def _shapes(tensors: list) -> dict[str, Shape]:
    """Shapes by name; ONNX Runtime gives axes of any length a name, or None."""
    return {tensor.name: tuple(axis if isinstance(axis, int) else None for axis in tensor.shape) for tensor in tensors}
