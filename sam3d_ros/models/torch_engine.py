"""The student in plain PyTorch: the reference that other engines are compared with."""
from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from ..runtime.engine import EngineError, ModelFile, check_signature, library_error, parsed
from ..runtime.signature import Shape, Signature
from .folded import student_from_onnx

_TYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine:
    """An `Engine`, on the GPU if PyTorch sees one: its name then begins with "torch-cuda".

    It is what others are compared with, so that its float32 is float32: on a GPU, PyTorch would else round what it
    convolves to ten bits (TF32).  That, and threads (0 leaves them as they are), are settings of the whole process.
    """

    most_crops = 8
    first_runs = (most_crops,)

    def __init__(self, model: ModelFile, signature: Signature, precision: str = "auto", threads: int = 0):
        precision = "fp32" if precision == "auto" else precision
        if precision not in _TYPES:
            raise EngineError("ENGINE_UNAVAILABLE", f"torch computes in {', '.join(_TYPES)}: set precision to auto")
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        graph = parsed(model).graph
        check_signature(model, signature, _shapes(graph.input), _shapes(graph.output))
        try:
            network = student_from_onnx(model.data)
        except (KeyError, RuntimeError) as error:
            raise EngineError("MODEL_INVALID", f"{model.path} is not an exported student: {error}") from error
        try:
            self._network = network.to(self._device)
        except RuntimeError as error:
            raise library_error("torch", str(error), "ENGINE_FAILED") from error
        if self._device == "cuda":
            without_tf32()
        if threads:
            torch.set_num_threads(threads)
        self._type = _TYPES[precision]
        self._inputs, self._outputs = tuple(signature.inputs), tuple(signature.outputs)
        self.name = f"{'torch-cuda' if self._device == 'cuda' else 'torch'} {precision}"

    @torch.inference_mode()
    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See Engine.infer."""
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[name])).to(self._device) for name in self._inputs]
        with torch.autocast(self._device, self._type, enabled=self._type is not None):
            outputs = self._network(*tensors)
        return {name: tensor.float().cpu().numpy() for name, tensor in zip(self._outputs, outputs, strict=True)}

    def close(self) -> None:
        """See Engine.close."""
        del self._network


def without_tf32() -> None:
    """Let PyTorch compute in float32 on a GPU what is float32; of the whole process."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def bfloat16_product(side: int) -> Callable[[], Tensor]:
    """The product of two square matrices in bfloat16, of which the processor's rate can be told."""
    matrix = torch.ones(side, side, dtype=torch.bfloat16)
    return lambda: matrix @ matrix


def _shapes(values: list) -> dict[str, Shape]:
    return {value.name: tuple(axis.dim_value if axis.HasField("dim_value") else None
                              for axis in value.type.tensor_type.shape.dim) for value in values}
