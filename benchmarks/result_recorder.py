"""Process: receives ObjectMeshArray as a planner would, and writes one JSON line for each: when, and of which image."""
from __future__ import annotations

import argparse
import json
import time
from collections import deque
from pathlib import Path
from typing import TextIO

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from std_msgs.msg import Float64
from std_srvs.srv import Trigger

from sam3d_ros.msg import ObjectMeshArray
from sam3d_ros.perception.objects import Status
from sam3d_ros.ros.images import stamp_ns
from sam3d_ros.ros.memory import exempt_from_collection
from sam3d_ros.ros.qos import RESULTS

TOPIC, TIMES_TOPIC = "objects", "debug/processing_ms"


def ready_file(path: Path) -> Path:
    """File that tells that the recorder of `path` hears its publishers."""
    return path.with_suffix(".ready")


class ResultRecorder(Node):
    """Writes {"received_ns", "stamp_ns", "objects", "vertices", "fresh", "engine"} for each message on `objects`.

    "fresh" counts the objects that are not HIDDEN: the node says that the image shows them.
    "engine" is what the node last said on /diagnostics; empty before that.
    with_times: also "processing_ms", as the node tells it. The node sends one time after each result and both topics
    are reliable, so that the n-th time is that of the n-th result.
    clear: make the node forget all objects after each mesh, so that every result is a reconstruction; others, of poses
    alone, are not written
    """

    def __init__(self, file: TextIO, with_times: bool, clear: bool = False):
        super().__init__("result_recorder")
        self._file = file
        self._clear = self.create_client(Trigger, "clear") if clear else None
        self._topics = [TOPIC, TIMES_TOPIC] if with_times else [TOPIC]
        self._waiting: deque[dict] = deque()
        self._newest_ns = 0
        self._engine = ""
        self._on_result = self._waiting.append if with_times else self._write
        self.create_subscription(DiagnosticArray, "/diagnostics", self._receive_diagnostics, 10)
        self.create_subscription(ObjectMeshArray, TOPIC, self._receive, RESULTS)
        if with_times:
            self.create_subscription(Float64, TIMES_TOPIC, self._receive_time, RESULTS)

    def has_publishers(self) -> bool:
        """Whether every topic is published."""
        return all(self.count_publishers(topic) for topic in self._topics)

    def _receive(self, message: ObjectMeshArray) -> None:
        received_ns, at_ns = time.time_ns(), stamp_ns(message.header.stamp)
        if not message.objects and at_ns == self._newest_ns:
            return                       # the last result is taken back: no image and no time belongs to that
        self._newest_ns = at_ns
        vertices = sum(len(item.vertices) // 3 for item in message.objects)
        fresh = sum(item.status != Status.HIDDEN for item in message.objects)
        if self._clear:
            if not vertices:
                self._skip_next_time()
                return
            self._clear.call_async(Trigger.Request())
        self._on_result({"received_ns": received_ns, "stamp_ns": at_ns,
                         "objects": len(message.objects), "vertices": vertices, "fresh": fresh})

    def _skip_next_time(self) -> None:
        """Of a result that is not written."""
        if len(self._topics) > 1:
            self._waiting.append({})

    def _receive_time(self, message: Float64) -> None:
        record = self._waiting.popleft()
        if record:
            self._write(record | {"processing_ms": message.data})

    def _receive_diagnostics(self, message: DiagnosticArray) -> None:
        for pair in (pair for status in message.status for pair in status.values if pair.key == "engine"):
            self._engine = pair.value

    def _write(self, record: dict) -> None:
        print(json.dumps(record | {"engine": self._engine}), file=self._file, flush=True)


def main() -> None:
    """Create FILE.ready once the topics are published, and record to FILE until SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--times", action="store_true", help="also record the node's processing times")
    parser.add_argument("--clear", action="store_true", help="have every image reconstructed, and record only meshes")
    args = parser.parse_args()
    rclpy.init()
    try:
        _record(args.file, args.times, args.clear)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()


def _record(path: Path, with_times: bool, clear: bool) -> None:
    with path.open("w") as file:
        recorder = ResultRecorder(file, with_times, clear)
        while not recorder.has_publishers():
            rclpy.spin_once(recorder, timeout_sec=0.05)
        exempt_from_collection()            # a pause here would be taken for one of the node
        ready_file(path).touch()
        rclpy.spin(recorder)


if __name__ == "__main__":
    main()
