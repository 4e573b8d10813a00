"""One run of the real node between a camera process and a receiving process."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.harness import DEPTH_UNIT_M, START_TIMEOUT, read_records, wait_until
from benchmarks.result_recorder import ready_file
from sam3d_ros.perception.folder import write_frame_folder
from sam3d_ros.perception.frame import Frame
from sam3d_ros.perception.pipeline import PipelineConfig
from sam3d_ros.ros.processes import NodeProcess, ProcessEnded, interrupt_deferred

NODE_MODULE = "sam3d_ros.nodes.sam3d_node"


@dataclass(frozen=True)
class Result:
    """One ObjectMeshArray as it was received.

    stamp_ns: of the image; latency_ms: from there to its callback in the receiving process; processing_ms: the node's
    own work around the pipeline on it; objects, vertices: in the message; fresh: objects that are not HIDDEN;
    engine: the node's, with its precision, as it had said by then
    """

    stamp_ns: int
    latency_ms: float
    processing_ms: float
    objects: int
    vertices: int
    fresh: int = 0
    engine: str = ""


class NodeRun:
    """Node, receiver and camera as three processes, in that order; a context manager that stops them.

    folder: for the input, the logs and the records; config: of the node's pipeline
    frame: what the camera sees, again and again; rate: images per second
    reconstruct_always: each result is a reconstruction, not known objects that are followed
    rough: seed of a camera that plays badly; None: a good one; without: frames of the same scene without one of its
    objects each, which a bad camera shows now and then; masks_every: masks come for one in so many images, and
    late; 0: for all, at once; parameters: of the node, beside the pipeline's
    """

    def __init__(self, folder: Path, config: PipelineConfig, frame: Frame, rate: float,
                 reconstruct_always: bool = False, rough: int | None = None, without: Sequence[Frame] = (),
                 masks_every: int = 0, parameters: Mapping[str, Any] = MappingProxyType({})):
        self._folder = folder
        self.camera_log = folder / "camera.jsonl"
        self._camera_options = [] if rough is None else ["--rough", str(rough), "--log", str(self.camera_log)]
        self._without = {folder / f"frame_without_{number}": frame for number, frame in enumerate(without)}
        self._camera_options += ["--without", *map(str, self._without)] if without else []
        self._camera_options += ["--masks-every", str(masks_every)]
        self._parameters = asdict(config) | parameters      # the node's parameters of the pipeline have the same names
        self._recorder_options = ["--times"]
        if reconstruct_always:
            self._parameters |= {"reconstruct_hz": 100.0}
            self._recorder_options += ["--clear"]
        self._records = folder / "results.jsonl"
        self._frame = frame
        self._rate = rate
        self._stack = ExitStack()
        self._processes: list[NodeProcess] = []

    def __enter__(self) -> NodeRun:
        for place, frame in {self._folder / "frame": self._frame, **self._without}.items():
            write_frame_folder(place, frame, DEPTH_UNIT_M)
        with self._stack as stack:
            self.node = self._start(stack, NODE_MODULE, parameters=self._parameters)
            self._start(stack, "benchmarks.result_recorder", str(self._records), *self._recorder_options)
            wait_until(ready_file(self._records).exists, self._processes, START_TIMEOUT, "active node")
            self._start(stack, "benchmarks.frame_player", str(self._folder / "frame"), "--rate", str(self._rate),
                        *self._camera_options)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def restart_node(self) -> None:
        """End the node's process as Ctrl-C does, and start it anew; ProcessEnded if it ends badly."""
        self._processes.remove(self.node)
        status = self.node.stop()
        if status != 0:
            raise ProcessEnded(f"the node ended with status {status} on SIGINT")
        self.node = self._start(self._stack, NODE_MODULE, parameters=self._parameters)

    def check_alive(self) -> None:
        """Raise ProcessEnded if one of the processes has ended."""
        for process in self._processes:
            process.check_alive()

    def wait_for_results(self, count: int, timeout: float) -> list[Result]:
        """The first `count` results; RuntimeError if one of them does not hold all objects of the scene."""
        wait_until(lambda: len(self.results()) >= count, self._processes, timeout, f"result number {count}")
        results = self.results()[:count]
        wanted = len(self._frame.instances)
        incomplete = sum(result.objects != wanted for result in results)
        if incomplete:
            raise RuntimeError(f"{incomplete} of {count} results do not hold the scene's {wanted} objects")
        return results

    def results(self) -> list[Result]:
        """All results so far, oldest first."""
        return [Result(record["stamp_ns"], (record["received_ns"] - record["stamp_ns"]) / 1e6, record["processing_ms"],
                       record["objects"], record["vertices"], record["fresh"], record["engine"])
                for record in read_records(self._records)]

    def _start(self, stack: ExitStack, module: str, *arguments: str, **options: Any) -> NodeProcess:
        log = self._folder / f"{module.rpartition('.')[2]}.log"
        with interrupt_deferred():
            process = stack.enter_context(NodeProcess(module, *arguments, log=log, **options))
        self._processes.append(process)
        return process
