"""Processes that carry nodes: environment, liveness, clean stop."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sam3d_ros.ros.processes import NodeProcess, ProcessEnded, fastdds_profile, ros_arguments, ros_environment

pytestmark = pytest.mark.timeout(60)


def module(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> str:
    """Name of a module with this text that a child process can run."""
    (folder / "child_module.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    return "child_module"


def test_environment_lets_the_child_set_its_own_loader_path(monkeypatch):
    monkeypatch.setenv("_ROS_WHEELS_BOOTSTRAP_COMPLETE", "1")
    assert "_ROS_WHEELS_BOOTSTRAP_COMPLETE" not in ros_environment()


def test_environment_names_the_shared_memory_profile(monkeypatch):
    monkeypatch.delenv("FASTRTPS_DEFAULT_PROFILES_FILE", raising=False)
    profile = Path(ros_environment()["FASTRTPS_DEFAULT_PROFILES_FILE"])
    assert profile == fastdds_profile()
    assert "<type>SHM</type>" in profile.read_text()


def test_what_the_user_has_set_is_kept(monkeypatch):
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", "/mine.xml")
    monkeypatch.setenv("AMENT_PREFIX_PATH", "/opt/mine")
    environment = ros_environment()
    assert environment["FASTRTPS_DEFAULT_PROFILES_FILE"] == "/mine.xml"
    assert environment["AMENT_PREFIX_PATH"] == "/opt/mine"


def test_parameters_are_written_as_yaml():
    parameters = {"rate": 30.0, "n": 3, "on": True, "frame": "it's", "names": ["a", "b"]}
    arguments = ros_arguments(parameters, {"image": "/rgb"})
    assert arguments == ["--ros-args", "-p", "rate:=30.0", "-p", "n:=3", "-p", "on:=true", "-p", "frame:='it''s'",
                         "-p", "names:=['a', 'b']", "-r", "image:=/rgb"]
    assert ros_arguments({}, {}) == []


@pytest.mark.parametrize(("arguments", "reason"), [
    (["--params-file", "absent.yaml"], "'--params-file absent.yaml'. Error: Error opening YAML file"),
    (["--params-file", "broken.yaml"], "'--params-file broken.yaml'. Error: "),
    (["--log-level", "loud"], "'--log-level loud'. Error: Argument does not use a valid severity level"),
    (["--no-such-option"], "--no-such-option")])
def test_ros_arguments_that_cannot_be_read_are_named(tmp_path, arguments, reason):
    (tmp_path / "broken.yaml").write_text("a: [")
    run = subprocess.run([sys.executable, "-m", "sam3d_ros.nodes.tabletop_segmenter", "--ros-args", *arguments],
                         cwd=tmp_path, env=ros_environment(), capture_output=True, text=True, check=False)
    assert run.returncode == 1
    last = run.stderr.splitlines()[-1]
    assert last.startswith("sam3d_ros: error: ROS arguments: ") and reason in last
    assert "Traceback" not in run.stderr and "/rcl/" not in last


def test_process_that_fails_is_reported_with_the_end_of_its_log(tmp_path, monkeypatch):
    name = module(tmp_path, monkeypatch, "raise SystemExit('no camera')")
    with NodeProcess(name, log=tmp_path / "log") as process:
        with pytest.raises(ProcessEnded, match="status 1(.|\n)*no camera"):
            process.wait(20)
        with pytest.raises(ProcessEnded):
            process.check_alive()


def test_stop_is_an_interrupt_first(tmp_path, monkeypatch):
    text = "import time\nprint('up')\ntry:\n  time.sleep(60)\nexcept KeyboardInterrupt:\n  print('clean end')"
    process = NodeProcess(module(tmp_path, monkeypatch, text), log=tmp_path / "log")
    wait_for_text(tmp_path / "log", "up", process)
    assert process.stop() == 0
    assert "clean end" in (tmp_path / "log").read_text()


def test_process_that_ignores_the_interrupt_is_killed(tmp_path, monkeypatch):
    text = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(60)"
    process = NodeProcess(module(tmp_path, monkeypatch, text), log=tmp_path / "log")
    wait_for_text(tmp_path / "log", "up", process)
    assert process.stop(timeout=0.2) == -signal.SIGKILL


# In a process of its own: SIGINT is for all that a process has loaded.
INTERRUPTED_START = """
import signal
from contextlib import ExitStack
from sam3d_ros.ros.processes import NodeProcess, interrupt_deferred

started = []
try:
    with ExitStack() as stack:
        with interrupt_deferred():
            for _ in range(2):
                started.append(NodeProcess("child_module"))
                signal.raise_signal(signal.SIGINT)
                stack.enter_context(started[-1])
        print("the interrupt was lost")
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print(*(process.pid for process in started))
"""


def test_an_interrupt_while_processes_are_started_leaves_none_behind(tmp_path, monkeypatch):
    module(tmp_path, monkeypatch, "import time\ntime.sleep(60)")
    run = subprocess.run([sys.executable, "-c", INTERRUPTED_START], capture_output=True, text=True, check=True)
    pids = [int(word) for word in run.stdout.split()]
    assert len(pids) == 2
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def wait_for_text(log: Path, text: str, process: NodeProcess) -> None:
    while text not in log.read_text():      # bounded by the test's timeout
        process.check_alive()
        time.sleep(0.02)
