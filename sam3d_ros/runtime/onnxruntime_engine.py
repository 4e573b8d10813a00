"""ONNX Runtime on the CPU, which runs wherever there is a wheel, and on NVIDIA GPUs (package onnxruntime-gpu)."""
from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping

import numpy as np
import onnxruntime

from .engine import EngineError, ModelFile, check_signature, last_line, library_error
from .precision import typed
from .signature import Shape, Signature
from .tensorrt_build import profile_shapes

# Name of the engine -> what computes, first one first, with its settings.  In CUDA what is float32 stays so: TF32 would
# round coordinates to ten bits.  TensorRT's engines are not kept on disk by ONNX Runtime, which would load them
# unchecked; without trt_fp16_enable it computes each layer as the graph says.
_CPU = ("CPUExecutionProvider", {})
_CUDA = ("CUDAExecutionProvider", {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"})
_TENSORRT = ("TensorrtExecutionProvider", {"trt_engine_cache_enable": "0"})
PROVIDERS = {"onnxruntime": [_CPU], "onnxruntime-cuda": [_CUDA, _CPU], "onnxruntime-tensorrt": [_TENSORRT, _CUDA, _CPU]}
_PRECISIONS = {"onnxruntime": ("fp32",), "onnxruntime-cuda": ("fp16", "fp32"),
               "onnxruntime-tensorrt": ("fp16", "fp32")}
_MOST_CROPS = 8
_INVALID = frozenset({"InvalidGraph", "InvalidProtobuf"})     # its errors about the file, whoever computes
_LACKING = "Please install TensorRT libraries"                # said before anything is built


class OnnxRuntimeEngine:
    """An `Engine`; name: one of PROVIDERS; float32 on the CPU, elsewhere convolutions in float16 unless told not to.

    allow_build: for "onnxruntime-tensorrt", which builds its engine whenever it is loaded
    """

    most_crops = _MOST_CROPS

    def __init__(self, model: ModelFile, signature: Signature, precision: str = "auto", threads: int = 0,
                 name: str = "onnxruntime", allow_build: bool = True):
        precision = _PRECISIONS[name][0] if precision == "auto" else precision
        if precision not in _PRECISIONS[name]:
            raise EngineError("ENGINE_UNAVAILABLE",
                              f"{name} computes in {' or '.join(_PRECISIONS[name])}: set precision to auto")
        wanted = PROVIDERS[name][0][0]
        if wanted not in onnxruntime.get_available_providers():
            raise EngineError("ENGINE_UNAVAILABLE", f"{name}: this onnxruntime has no {wanted}")
        if wanted == _TENSORRT[0] and not allow_build:
            raise EngineError("ENGINE_NOT_BUILT", f"{name} keeps no engine, and builds one whenever it is loaded; "
                                                  "tensorrt and tensorrt-rtx keep theirs")
        if wanted != _CPU[0]:
            _load_cuda()        # not of a build without CUDA, some versions of which warn of that each time
        graph = typed(model, precision)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Otherwise idle worker threads spin and take the cores that marching cubes needs next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = [(provider, settings | (_profile(signature) if provider == _TENSORRT[0] else {}))
                     for provider, settings in PROVIDERS[name]]
        try:
            # Without fallback: else it says on stdout that a GPU does not work, and goes on without.
            self._session = onnxruntime.InferenceSession(graph, options, providers=providers, enable_fallback=0)
        except Exception as error:  # onnxruntime raises classes of its own that share no base but Exception
            said = last_line(error)
            if wanted == _CPU[0] or type(error).__name__ in _INVALID:
                raise EngineError("MODEL_INVALID", f"{model.path}: {said}") from error
            raise library_error(name, said, "ENGINE_UNAVAILABLE" if _LACKING in said else "ENGINE_BUILD_FAILED") \
                from error
        self._session.disable_fallback()        # older versions do not know the argument
        if self._session.get_providers()[0] != wanted:      # it falls back without a word
            raise EngineError("ENGINE_UNAVAILABLE", f"{name}: {wanted} does not work on this machine")
        check_signature(model, signature, _shapes(self._session.get_inputs()), _shapes(self._session.get_outputs()))
        self._outputs = list(signature.outputs)
        self.name = f"{name} {precision}"
        # On a GPU, cuDNN tries out its algorithms anew for each number of objects.
        self.first_runs = (_MOST_CROPS,) if wanted == _CPU[0] else tuple(range(_MOST_CROPS, 0, -1))

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See Engine.infer."""
        objects = len(next(iter(inputs.values())))
        parts = [self._run({name: array[start:start + _MOST_CROPS] for name, array in inputs.items()})
                 for start in range(0, objects, _MOST_CROPS)]
        return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts])
                                                 for name in self._outputs}

    def _run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))
        except Exception as error:      # see above
            raise RuntimeError(str(error).strip()) from error

    def close(self) -> None:
        """See Engine.close."""
        del self._session


def _load_cuda() -> None:
    """Load CUDA's libraries from where pip puts them; ONNX Runtime does not look there by itself."""
    if hasattr(onnxruntime, "preload_dlls"):                    # since 1.21
        with contextlib.redirect_stdout(sys.stderr):            # it prints which ones there are not
            onnxruntime.preload_dlls()


def _profile(signature: Signature) -> dict[str, str]:
    """Settings by which TensorRT builds one engine for all shapes at once; else it builds a new one, for minutes,
    whenever more objects or views come than ever before.
    """
    shapes = profile_shapes(signature, _MOST_CROPS)
    return {f"trt_profile_{kind}_shapes": ",".join(f"{name}:{'x'.join(map(str, sizes[index]))}"
                                                   for name, sizes in shapes.items())
            for index, kind in enumerate(("min", "opt", "max"))}


def _shapes(tensors: list) -> dict[str, Shape]:
    """Shapes by name; ONNX Runtime gives axes of any length a name, or None."""
    return {tensor.name: tuple(axis if isinstance(axis, int) else None for axis in tensor.shape) for tensor in tensors}
