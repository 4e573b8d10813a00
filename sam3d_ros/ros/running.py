"""Running a node as a program: until SIGINT, whenever it comes, and out of it without a traceback."""
from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence

import rclpy
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node

from ..perception.faults import Fault, FaultCode
from .parameters import RCLError

UnknownROSArgsError = rclpy_implementation.UnknownROSArgsError

# How often the main loop looks for an early SIGINT, seconds.
_SIGNAL_PERIOD = 1.0


def run_node(make: Callable[[], Node], arguments: Sequence[str] | None = None,
             start: Callable[[Node], None] = lambda node: None) -> int:
    """Make a node, start it and spin it until SIGINT or SIGTERM; the program's exit status.

    ROS arguments that cannot be read, and a parameter that `make` refuses (ValueError, rclpy's InvalidParameter...
    exceptions), end in one line and status 1.
    """
    interrupted = threading.Event()
    # rclpy's own handler, once installed, ends the spinning and then calls this one; Python's would raise anywhere.
    signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        rclpy.init(args=arguments)
    except (RCLError, UnknownROSArgsError) as error:     # such as a parameter file that does not exist, or is no YAML
        reason = str(error).split(", at /")[0]      # without the place in rcl's source
        print(f"sam3d_ros: error: ROS arguments: {' '.join(reason.split())}", file=sys.stderr)
        return 1
    executor = SingleThreadedExecutor()
    node = None
    try:
        if not interrupted.is_set():
            try:
                node = make()
            except (ValueError, InvalidParameterTypeException, InvalidParameterValueException) as error:
                if not rclpy.ok():     # rclpy has ValueErrors of its own for a context that is shut down
                    raise
                print(f"sam3d_ros: error: {error}", file=sys.stderr)
                return 1
            executor.add_node(node)
            start(node)
        # Not spin(): Python may run the handler of a signal that came before rclpy's was installed only now.
        while not interrupted.is_set():
            executor.spin_once(timeout_sec=_SIGNAL_PERIOD)
    except ExternalShutdownException:
        pass
    except Exception:
        if rclpy.ok():
            raise
        # Any call into ROS fails once it is shut down: the end that SIGINT asked for.
    finally:
        if node is not None:
            node.destroy_node()
        executor.shutdown()
        rclpy.try_shutdown()
    return 0


def log_exception(node: Node, error: Exception) -> None:
    """Log what a node's thread stumbled over, unless ROS is shutting down: then every call into it fails."""
    if node.context.ok():
        node.get_logger().error("".join(traceback.format_exception(error)))


def fault_of(node: Node, error: Exception) -> Fault:
    """What to tell of an exception; one that no Fault stands for is logged with its traceback."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, ModuleNotFoundError):
        return Fault(FaultCode.PACKAGE_MISSING, str(error))
    log_exception(node, error)
    return Fault(FaultCode.INTERNAL_ERROR, repr(error))
