"""ONNX Runtime with CUDA as it is used here, against CUDA graphs: whether it then answers the same, and how fast.

It needs a GPU and onnxruntime-gpu, but not ROS; see docs/gpu.md.
"""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import numpy as np
import onnxruntime

from sam3d_ros.evaluation.environment import add_report, describe_environment, describe_model, report_path, write_report
from sam3d_ros.runtime import golden
from sam3d_ros.runtime.engine import DEFAULT_MODEL, MODEL_HELP, Engine, EngineError, ModelFile, load_engine, read_model
from sam3d_ros.runtime.onnxruntime_engine import PROVIDERS
from sam3d_ros.runtime.precision import typed
from sam3d_ros.runtime.signature import STUDENT
from sam3d_ros.runtime.tensorrt_engine import BUCKETS

ENGINE = "onnxruntime-cuda"
PRECISIONS = ("fp16", "fp32")
_WARM_UP = 4            # runs; ONNX Runtime records in one of them


class RecordedSession:
    """The network for one number of objects, one view of each; inputs and outputs stay at one place on the device.

    With a fixed number, no shape is left to be computed on the CPU, which a recording would leave out.
    Raises what ONNX Runtime raises, if it cannot record the network, too.
    """

    def __init__(self, graph: bytes, objects: int, provider: tuple[str, dict[str, str]], device: str = "cuda"):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        lengths = dict(batch=objects, views=1)
        for name, length in lengths.items():
            options.add_free_dimension_override_by_name(name, length)
        self._session = onnxruntime.InferenceSession(graph, options, providers=[provider], enable_fallback=0)
        if self._session.get_providers()[0] != provider[0]:
            raise RuntimeError(f"{provider[0]} does not work on this machine")
        self._binding = self._session.io_binding()
        self._inputs, self._outputs = (
            {name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, device, 0)
             for name, shape in shapes.items()}
            for shapes in (STUDENT.input_shapes(**lengths), STUDENT.output_shapes(**lengths)))
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As an engine's."""
        for name, value in self._inputs.items():
            value.update_inplace(inputs[name])
        self._session.run_with_iobinding(self._binding)
        return {name: value.numpy() for name, value in self._outputs.items()}


def some_inputs(objects: int, first: int) -> dict[str, np.ndarray]:
    """Golden inputs of one view, as many as wanted, beginning with the object of this index."""
    given = golden.golden_inputs()
    index = (first + np.arange(objects)) % len(given["crops"])
    return {name: np.ascontiguousarray(array[index] if name == "support" else array[index, :1])
            for name, array in given.items()}


def compared(engine: Engine, session: RecordedSession, objects: int, runs: int) -> dict[str, Any]:
    """Median milliseconds of both, and how far the session's answers are from the engine's, for inputs that it was not
    recorded with."""
    for _ in range(_WARM_UP):
        session.infer(some_inputs(objects, 0))
        engine.infer(some_inputs(objects, 0))
    others = some_inputs(objects, 1)
    found = golden.deviation(golden.golden_of(session.infer(others)), golden.golden_of(engine.infer(others)))
    return {"plain_ms": _median_ms(lambda: engine.infer(others), runs),
            "recorded_ms": _median_ms(lambda: session.infer(others), runs),
            "deviation": str(found), "accepted": bool(found.accepted)}


def measure(model: ModelFile, precision: str, runs: int) -> dict[str, Any]:
    """Number of objects -> figures, or what ONNX Runtime said.  Raises EngineError where the engine does not work."""
    provider, settings = PROVIDERS[ENGINE][0]
    report: dict[str, Any] = {}
    with closing(load_engine(ENGINE, model.path, precision)) as engine:
        for objects in BUCKETS:
            try:
                session = RecordedSession(typed(model, precision), objects,
                                          (provider, settings | {"enable_cuda_graph": "1"}))
                report[str(objects)] = compared(engine, session, objects, runs)
            except Exception as error:      # onnxruntime's own classes share no other base
                report[str(objects)] = {"fault": " ".join(str(error).split())}
    return report


def _median_ms(work: Callable[[], Any], runs: int) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return round(float(np.median(times)), 3)


def main() -> int:
    """Print and write the comparison; exit status 1 unless every number of objects could be recorded and is right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"{MODEL_HELP} (default: %(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="(default: %(default)s)")
    parser.add_argument("--runs", type=int, default=200, metavar="N", help="timed runs each (default: %(default)s)")
    add_report(parser, "onnxruntime_graphs")
    args = parser.parse_args()
    out = report_path(args)
    environment = describe_environment()
    try:
        model = describe_model(args.model)
        report = measure(read_model(args.model), args.precision, args.runs)
    except EngineError as error:
        parser.exit(1, f"{error.reason}: {error.detail}\n")
    for objects, figures in report.items():
        print(f"{objects:>2} objects: " + ", ".join(f"{name} {value}" for name, value in figures.items()))
    write_report(out, environment, {"benchmark": "onnxruntime_graphs", **model, "precision": args.precision,
                                    "objects": report})
    return 0 if all(figures.get("accepted") for figures in report.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
