"""Start, stop and failure of the node."""
from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("rclpy")

from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState  # noqa: E402
from node_rig import HeldPipeline, Rig, scene  # noqa: E402
from rclpy.action import ActionClient  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from stand_ins import provide_tf2_ros  # noqa: E402

from sam3d_ros.action import Reconstruct  # noqa: E402
from sam3d_ros.nodes.sam3d_node import FAILURE, SUCCESS, load_pipeline  # noqa: E402
from sam3d_ros.perception.faults import Fault, FaultCode  # noqa: E402
from sam3d_ros.perception.pipeline import Pipeline  # noqa: E402
from sam3d_ros.ros.optional import optional  # noqa: E402

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("ros")]


def cycle(rig: Rig) -> None:
    assert rig.node.trigger_configure() == SUCCESS
    assert rig.node.trigger_activate() == SUCCESS
    rig.spin(0.02)
    assert rig.node.trigger_deactivate() == SUCCESS
    assert rig.node.trigger_cleanup() == SUCCESS
    rig.pipeline.closed = False


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_fifty_loops_leak_nothing(monkeypatch: pytest.MonkeyPatch):
    provide_tf2_ros(monkeypatch)
    with Rig(activate=False, target_frame="base") as rig:
        def held() -> tuple[int, ...]:
            gc.collect()
            node = rig.node
            entities = (node.publishers, node.subscriptions, node.timers, node.services, node.waitables,
                        node._managed_entities)
            return (threading.active_count(), *(len([*kind]) for kind in entities))
        for _ in range(5):
            cycle(rig)
        before, objects, memory = held(), len(gc.get_objects()), resident_bytes()
        for _ in range(50):
            cycle(rig)
        rig.diagnostics.clear()
        assert held() == before
        assert len(gc.get_objects()) - objects < 500
        assert resident_bytes() - memory < 20e6
        assert rig.node.trigger_configure() == SUCCESS
        assert rig.node.trigger_activate() == SUCCESS


def test_deactivate_during_inference_publishes_nothing():
    with Rig(HeldPipeline()) as rig:
        rig.send_until(lambda: rig.send(scene()), rig.pipeline.busy.is_set)
        assert rig.node.trigger_deactivate() == SUCCESS
        assert rig.node.trigger_activate() == SUCCESS  # at once: the old result must not come out of the new activation
        rig.pipeline.go_on.set()
        rig.spin(0.3)
        assert rig.objects == []
        assert rig.good().objects
        assert rig.node.trigger_deactivate() == SUCCESS
        assert rig.node.trigger_cleanup() == SUCCESS
        assert rig.pipeline.closed


def test_an_id_names_one_object_only_even_if_the_node_was_cleaned_up():
    with Rig() as rig:
        assert [item.id for item in rig.good().objects] == ["object_1"]
        rig.node.trigger_deactivate()
        rig.wait(lambda: not rig.objects[-1].objects)
        rig.node.trigger_cleanup()
        rig.pipeline.closed = False
        rig.node.trigger_configure()
        rig.node.trigger_activate()
        assert [item.id for item in rig.good().objects] == ["object_2"]


def test_shutdown_while_active():
    with Rig() as rig:
        rig.good()
        assert rig.node.trigger_shutdown() == SUCCESS
        assert rig.pipeline.closed


def test_inactive_node_takes_no_input():
    with Rig() as rig:
        rig.good()
        assert rig.node.trigger_deactivate() == SUCCESS
        rig.wait(lambda: not any(p.get_subscription_count() for p in rig.publishers.values()))


# name -> parameters that cannot be configured, words of the diagnostic
REFUSED = {
    "choice": ({"mask_format": "guess"}, ("PARAMETER_INVALID", "mask_format", "guess", "labels")),
    "range": ({"max_faces": 1}, ("PARAMETER_INVALID", "max_faces")),
    "type": ({"sync_slop": "short"}, ("PARAMETER_INVALID", "sync_slop")),
}
if optional("yolo_msgs") is None:
    REFUSED["package"] = ({"mask_format": "yolo_msgs"}, ("PARAMETER_INVALID", "mask_format", "yolo_msgs"))
if optional("moveit_msgs") is None:
    REFUSED["planning scene"] = ({"publish_planning_scene": True}, ("PARAMETER_INVALID", "publish_planning_scene"))
if optional("tf2_ros") is None:
    REFUSED["tf"] = ({"target_frame": "base"}, ("TF_MISSING", "tf2_ros"))


@pytest.mark.parametrize(("parameters", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_wrong_parameters_are_named_and_can_be_mended(parameters: dict[str, Any], words: tuple[str, ...]):
    with Rig(activate=False, **parameters) as rig:
        assert rig.node.trigger_configure() == FAILURE
        rig.wait(lambda: words[0] in rig.codes())
        message = rig.diagnostics[-1].status[0].message
        assert all(word in message for word in words)
        [(name, _)] = parameters.items()
        default = {"mask_format": "labels", "max_faces": 5000, "sync_slop": 0.01, "target_frame": "",
                   "publish_planning_scene": False}[name]
        assert rig.node.set_parameters([Parameter(name, value=default)])[0].successful
        assert rig.node.trigger_configure() == SUCCESS
        rig.wait(lambda: rig.codes()[-1:] == ["OK"])


def broken_models(folder: Path) -> dict[str, Path]:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "other",
                              [helper.make_tensor_value_info("x", kind, [1, 3])],
                              [helper.make_tensor_value_info("y", kind, [1, 3])])
    other = folder / "other.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(other))
    truncated = folder / "truncated.onnx"
    truncated.write_bytes(other.read_bytes()[:-20])
    return {"MODEL_MISSING": folder / "missing.onnx", "MODEL_INVALID": truncated, "MODEL_MISMATCH": other}


@pytest.mark.parametrize("code", ["MODEL_MISSING", "MODEL_INVALID", "MODEL_MISMATCH"])
def test_bad_model_file_is_named(tmp_path: Path, code: str):
    path = broken_models(tmp_path)[code]
    with Rig(activate=False, model=str(path)) as rig:
        rig.node._load = load_pipeline
        assert rig.node.trigger_configure() == FAILURE
        rig.wait(lambda: code in rig.codes())
        assert path.name in rig.diagnostics[-1].status[0].message


def test_a_python_package_that_is_missing_is_named():
    def load(settings: Any) -> None:
        raise ModuleNotFoundError("No module named 'open3d'", name="open3d")
    with Rig(activate=False) as rig:
        rig.node._load = load
        assert rig.node.trigger_configure() == FAILURE
        rig.wait(lambda: "PACKAGE_MISSING" in rig.codes())
        assert all(word in rig.diagnostics[-1].status[0].message for word in ("open3d", "sam3d doctor"))


# SIGINT

PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(0))  # as the node's module does when it is run
from node_rig import BlockPipeline
from sam3d_ros.nodes.sam3d_node import main

class Telling(BlockPipeline):
    def run(self, frame, earlier, on_stage, others):
        print("inference", flush=True)
        time.sleep(0.5)
        return super().run(frame, earlier, on_stage, others)

def load(settings):
    print("loading", flush=True)
    time.sleep(0.5)
    return Telling()

print("importing is done", flush=True)
sys.exit(main(sys.argv, load))
"""

# The signal comes just before a part of the node is made.
INTERRUPTED = """
import os, signal, sys, time, rclpy
from sam3d_ros.nodes import sam3d_node
from sam3d_ros.ros import goals

def interrupted(holder, name):
    make = getattr(holder, name)
    def make_late(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        while rclpy.ok():
            time.sleep(0.01)
        return make(*args, **kwargs)
    setattr(holder, name, make_late)

interrupted(sam3d_node.Sam3dNode if sys.argv[1].startswith("create") else goals, sys.argv[1])
sys.exit(sam3d_node.main(sys.argv))
"""


@pytest.mark.parametrize("part", ["create_publisher", "create_service", "create_timer", "ActionServer"])
def test_sigint_while_the_node_is_made_ends_the_process_cleanly(part: str):
    made = subprocess.run([sys.executable, "-c", INTERRUPTED, part], capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr
    assert "error" not in made.stderr and "Traceback" not in made.stderr


@contextmanager
def program(namespace: str, *arguments: str) -> Iterator[list[str]]:
    """The node in a process of its own, and the lines that it prints; it must end cleanly after a SIGINT."""
    command = [sys.executable, "-c", PROGRAM, "--ros-args", "-r", f"__ns:=/{namespace}", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "_ROS_WHEELS_BOOTSTRAP_COMPLETE"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")))
    reader.start()
    try:
        yield lines
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0, "".join(lines)
    finally:
        process.kill()
        reader.join()
        process.stdout.close()
    assert "Traceback" not in "".join(lines)


@pytest.mark.parametrize("moment", ["importing is done", "loading", "configured", "inference"])
def test_sigint_ends_the_process_cleanly(moment: str):
    with Rig(activate=False) as rig, program(rig.namespace) as lines:
        rig.send_until(lambda: rig.send(scene()), lambda: any(moment in line for line in lines), timeout=60)


@pytest.mark.parametrize("moment", ["waiting", "inference"])
def test_sigint_with_a_goal_ends_the_process_cleanly(moment: str):
    with Rig(activate=False) as rig:
        inputs = {name: publisher.msg_type for name, publisher in rig.publishers.items()}
        rig.publishers = {name: rig.outside.create_publisher(kind, f"own/{name}", 10) for name, kind in inputs.items()}
        with program(f"{rig.namespace}/own", "-p", "enabled:=false", "-p", "input_timeout:=60.0") as lines:
            client = ActionClient(rig.outside, Reconstruct, "own/reconstruct")
            rig.wait(lambda: any("configured" in line for line in lines) and client.server_is_ready(), timeout=60)
            sent = client.send_goal_async(Reconstruct.Goal())
            rig.wait(sent.done)
            assert sent.result().accepted
            if moment == "inference":
                rig.send_until(lambda: rig.send(scene()), lambda: any(moment in line for line in lines))
        client.destroy()


def test_real_pipeline_in_the_node():
    """A ball on a table, with the shipped model."""
    with Rig(activate=False) as rig:
        rig.node._load = load_pipeline
        assert rig.node.trigger_configure() == SUCCESS
        assert rig.node.trigger_activate() == SUCCESS
        rig.wait(lambda: all(p.get_subscription_count() for p in rig.publishers.values()))
        [found] = rig.good().objects
        assert found.watertight
        assert 0.7 < found.pose.pose.position.z < 1.0
        assert np.all([0.01 < s < 0.5 for s in (found.size.x, found.size.y, found.size.z)])
    gc.unfreeze()                                     # what the node exempts is of no concern to other tests


def test_a_pipeline_that_fails_to_warm_up_is_closed(monkeypatch: pytest.MonkeyPatch):
    class Failing(HeldPipeline):
        def warm_up(self) -> None:
            raise Fault(FaultCode.ENGINE_FAILED)
    failing = Failing()
    monkeypatch.setattr(Pipeline, "from_config", lambda config, on_progress: failing)
    with Rig(activate=False) as rig:
        rig.node._load = load_pipeline
        assert rig.node.trigger_configure() == FAILURE
        rig.wait(lambda: "ENGINE_FAILED" in rig.codes())
    assert failing.closed


def test_an_impossible_transition_is_refused():
    with Rig(activate=False) as rig:
        client = rig.outside.create_client(ChangeState, "sam3d_node/change_state")
        rig.wait(client.service_is_ready)
        for transition in (Transition.TRANSITION_ACTIVATE, 99):
            future = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
            rig.wait(future.done)
            assert not future.result().success
        future = client.call_async(ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE)))
        rig.wait(future.done)
        assert future.result().success
