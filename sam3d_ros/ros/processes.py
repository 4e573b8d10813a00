"""Nodes as processes of their own: started with the environment they need, watched, and stopped cleanly."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# Seconds from SIGINT until the process is killed.
STOP_TIMEOUT = 10.0

# Domains of graphs of their own; above 101 their ports clash with those the system gives away.
_DOMAINS = range(50, 100)

# Set by the ROS wheels of PyPI in a process whose loader path is complete; a child that inherits it would not complete
# its own.
_BOOTSTRAP_GUARD = "_ROS_WHEELS_BOOTSTRAP_COMPLETE"
_PROFILE = Path("config", "fastdds_shm.xml")

# A parameter's value, as the command line can carry it.
ParameterValue = bool | int | float | str | list


class ProcessEnded(RuntimeError):
    """A process that should be running has ended, or did not end as it should."""


def fastdds_profile() -> Path:
    """Fast DDS profile with shared memory large enough for images; from the source tree, else where it is installed.

    Raises FileNotFoundError if it is in neither place.
    """
    source = Path(__file__).parents[2] / _PROFILE
    if source.exists():
        return source
    prefixes = [*filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)), sys.prefix]
    for prefix in prefixes:
        installed = Path(prefix) / "share" / "sam3d_ros" / _PROFILE
        if installed.exists():
            return installed
    raise FileNotFoundError(f"{_PROFILE} is neither in the source tree nor under share/sam3d_ros of {prefixes}")


def ros_environment() -> dict[str, str]:
    """Environment for a process that uses ROS: this one's, with what is missing filled in.

    A FASTRTPS_DEFAULT_PROFILES_FILE or AMENT_PREFIX_PATH that the user has set is kept.
    """
    environment = {name: value for name, value in os.environ.items() if name != _BOOTSTRAP_GUARD}
    environment.setdefault("AMENT_PREFIX_PATH", sys.prefix)
    if "FASTRTPS_DEFAULT_PROFILES_FILE" not in environment:  # looked up only if needed: it may not be installed
        environment["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(fastdds_profile())
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def private_graph() -> dict[str, str]:
    """Environment, to be set before the middleware is loaded, for a ROS graph of this process and its children alone:
    neither robots on the network nor nodes on this machine hear what is published in it."""
    return {"ROS_DOMAIN_ID": str(_DOMAINS[os.getpid() % len(_DOMAINS)]), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}


def ros_arguments(parameters: Mapping[str, ParameterValue], remappings: Mapping[str, str]) -> list[str]:
    """Command line part that sets a node's parameters and remaps its names; empty if there is nothing to set."""
    arguments = [part for name, value in parameters.items() for part in ("-p", f"{name}:={_yaml(value)}")]
    arguments += [part for name, target in remappings.items() for part in ("-r", f"{name}:={target}")]
    return ["--ros-args", *arguments] if arguments else []


class NodeProcess:
    """A Python module that runs as a process of its own; a context manager that stops it at the end.

    module: run as `python -m module`
    arguments: of the command line, before the ROS ones
    parameters, remappings: set with --ros-args
    log: file that its output goes to; None: the output of this process
    """

    def __init__(self, module: str, *arguments: str, parameters: Mapping[str, ParameterValue] | None = None,
                 remappings: Mapping[str, str] | None = None, log: Path | None = None):
        self.module = module
        self.log = log
        command = [sys.executable, "-m", module, *arguments, *ros_arguments(parameters or {}, remappings or {})]
        output = log.open("wb") if log else None
        # A session of its own, so that Ctrl-C at the terminal reaches it once, through stop().
        self._process = subprocess.Popen(command, env=ros_environment(), stdout=output, stderr=output,
                                         stdin=subprocess.DEVNULL, start_new_session=True)
        if output:
            output.close()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def check_alive(self) -> None:
        """Raise ProcessEnded, with the end of its log, if the process has ended."""
        status = self._process.poll()
        if status is not None:
            raise ProcessEnded(f"{self.module} ended with status {status}{self._log_tail()}")

    def wait(self, timeout: float) -> None:
        """Wait until the process ends by itself; ProcessEnded if it fails or takes more than `timeout` seconds."""
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ProcessEnded(f"{self.module} did not end within {timeout:g} s{self._log_tail()}") from None
        if status != 0:
            raise ProcessEnded(f"{self.module} ended with status {status}{self._log_tail()}")

    def stop(self, timeout: float = STOP_TIMEOUT) -> int:
        """Ask the process to end (SIGINT), kill it after `timeout` seconds; returns its exit status (-9: killed)."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._process.wait()

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _log_tail(self, lines: int = 20) -> str:
        if self.log is None:
            return ""
        tail = self.log.read_text(errors="replace").splitlines()[-lines:]
        return f"; the end of {self.log}:\n" + "\n".join(tail)


@contextmanager
def interrupt_deferred() -> Iterator[list[bool]]:
    """Keep Ctrl-C back until the end of the block; in the main thread only.  Gives a list that is empty until it came.

    For starting processes: one that it came upon between its start and the `with` that ends it would go on for ever.
    And for what calls into many libraries: Python raises it wherever it is, also where an exception is lost.
    """
    came: list[bool] = []
    handler = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


def _yaml(value: ParameterValue) -> str:
    """A parameter's value as ROS reads it from the command line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, list):
        return "[" + ", ".join(_yaml(item) for item in value) + "]"
    return repr(value)
