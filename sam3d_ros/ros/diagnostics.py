"""/diagnostics: one status that names the present fault and says what to do."""
from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from ..perception.faults import Fault, FaultCode

# Faults that are warnings: results are right, if fewer, or the next input may be good again.  All others are errors.
_WARNINGS = frozenset({
    FaultCode.MASK_EMPTY, FaultCode.TOO_MANY_OBJECTS, FaultCode.TOO_FEW_POINTS, FaultCode.SHAPE_NOT_FOUND,
    FaultCode.OBJECT_TOO_LARGE, FaultCode.MASK_SCATTERED, FaultCode.MASK_INVALID,
    FaultCode.FRAME_ID_MISSING, FaultCode.DEPTH_SHIFTED, FaultCode.MASKS_SHIFTED, FaultCode.STAMP_OUT_OF_ORDER,
    FaultCode.CLOCK_JUMPED_BACK,
})
# The code, in place of a fault's name, while a set-up goes on that takes long.
CONFIGURING = "CONFIGURING"
# Sources of one camera's faults: its messages; and its images, with their masks and ahead of them.
INPUTS, IMAGES = ("input", "stamps"), ("frame", "ahead")


def level(fault: Fault | None) -> bytes:
    """DiagnosticStatus level of a fault; None: OK."""
    if fault is None:
        return DiagnosticStatus.OK
    return DiagnosticStatus.WARN if fault.code in _WARNINGS else DiagnosticStatus.ERROR


class Diagnostics:
    """Publishes the worst fault of each period, and a new one at once.  May be called from any thread.

    node: publishes on /diagnostics and logs
    task: what the node does; the status is named after both
    period: seconds
    values: gives the figures to add, name -> text
    """

    def __init__(self, node: Node, task: str, period: float, values: Callable[[], Mapping[str, str]]):
        self._node = node
        self._task = task
        self._values = values
        self._lock = threading.Lock()
        self._faults: dict[str, Fault] = {}      # source -> its present fault
        self._since_tick: list[Fault] = []       # one of each code
        self._published: FaultCode | None = None
        self._last_sent: dict[FaultCode, float] = {}
        self._period = period
        self._announced = (-1, "")
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # Not by ROS time: a paused simulation must not silence it.
        self._timer = node.create_timer(period, self.tick, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def set_period(self, period: float) -> None:
        """Change the period, seconds."""
        self._period = period
        self._timer.timer_period_ns = int(period * 1e9)

    def report(self, source: str, fault: Fault | None) -> None:
        """State of one source of faults, which holds until the source reports again; None: all is well."""
        with self._lock:
            if fault is None:
                self._faults.pop(source, None)
                return
            fault = fault.without_traceback()
            self._faults[source] = fault
            if all(fault.code != earlier.code for earlier in self._since_tick):
                self._since_tick.append(fault)
            if self._is_news(fault):
                self._send(fault)

    def announce(self, percent: int, what: str) -> None:
        """Say at once how far a set-up is that takes minutes, in which nothing else is published."""
        with self._lock:
            if (percent, what) == self._announced or not self._node.context.ok():
                return
            self._announced = (percent, what)
            text = f"{CONFIGURING}: {percent} %, {what}"
            self._node.get_logger().info(text)
            self._publish(DiagnosticStatus.WARN, text, {"code": CONFIGURING, "progress": str(percent)})

    def tick(self) -> None:
        """Publish the worst fault since the last call, or that all is well."""
        with self._lock:
            faults = [*self._faults.values(), *self._since_tick]
            self._since_tick = []
            self._send(max(faults, key=level, default=None))

    def _is_news(self, fault: Fault) -> bool:
        # Not more than once a period for each name, so that two faults in turn do not flood the topic.
        return fault.code != self._published and time.monotonic() - self._last_sent.get(fault.code, 0.0) > self._period

    def _send(self, fault: Fault | None) -> None:
        if not self._node.context.ok():  # ROS is shutting down: nobody is to be told any more
            return
        code = fault.code if fault else None
        if code != self._published:
            self._log(fault)
        self._published = code
        if code:
            self._last_sent[code] = time.monotonic()
        values = {"code": code.name if code else "OK"}
        if fault:
            values |= {"detail": fault.detail, "advice": fault.code.advice}
        if others := [str(other) for other in self._faults.values() if str(other) != str(fault)]:
            values["also"] = "; ".join(others)
        self._publish(level(fault), str(fault) if fault else "OK", values)

    def _publish(self, severity: bytes, text: str, values: dict[str, str]) -> None:
        name = self._node.get_fully_qualified_name()
        status = DiagnosticStatus(level=severity, name=f"{name.lstrip('/')}: {self._task}", hardware_id="sam3d_ros",
                                  message=text)
        status.values = [KeyValue(key=key, value=value) for key, value in (values | self._values()).items()]
        message = DiagnosticArray(status=[status])
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)

    def _log(self, fault: Fault | None) -> None:
        logger = self._node.get_logger()
        if fault is None:
            logger.info("all is well again")
        elif level(fault) == DiagnosticStatus.WARN:
            logger.warning(str(fault))
        else:
            logger.error(str(fault))


class CameraDiagnostics(Diagnostics):
    """Diagnostics of a node whose cameras have faults of their own; with several, a fault says which camera it is of.

    cameras: gives their namespaces; other arguments as of `Diagnostics`
    """

    def __init__(self, node: Node, task: str, period: float, values: Callable[[], Mapping[str, str]],
                 cameras: Callable[[], Sequence[str]]):
        super().__init__(node, task, period, values)
        self._cameras = cameras

    def report(self, source: str, fault: Fault | None, camera: str = "") -> None:
        """As `Diagnostics.report`; camera: namespace of the one whose source it is, empty if it is not a camera's."""
        if fault and camera and len(self._cameras()) > 1:
            fault = Fault(fault.code, f"camera {camera}: {fault.detail}".removesuffix(": "))
        super().report(f"{source} {camera}".strip(), fault)

    def forget(self, sources: Sequence[str], camera: str) -> None:
        """Forget the faults of some sources of a camera."""
        for source in sources:
            self.report(source, None, camera)
