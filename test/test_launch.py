"""The launch file and its presets: with stand-ins for launch and launch_ros, and by `ros2 launch` where installed."""
from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import rclpy
import yaml
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rclpy.node import Node
from recorded import Recorded

from sam3d_ros.ros.parameters import Settings

ROOT = Path(__file__).resolve().parents[1]
LAUNCH_FILE = ROOT / "launch" / "sam3d.launch.py"
PRESETS = ("realsense", "zed", "gazebo", "isaac", "simulated")


def stand_ins() -> dict[str, type]:
    """Classes of launch and launch_ros -> a recording class of the same name."""
    names = ("DeclareLaunchArgument", "GroupAction", "IncludeLaunchDescription", "LogInfo", "OpaqueFunction",
             "SetEnvironmentVariable", "PythonLaunchDescriptionSource", "LaunchDescription", "LaunchContext",
             "LaunchDescriptionEntity", "LifecycleNode", "Node", "SetRemap")
    classes = {name: type(name, (Recorded,), {}) for name in names}
    classes["DeclareLaunchArgument"].name = property(lambda self: self.arguments[0])
    return classes


@pytest.fixture
def launch_module(monkeypatch) -> ModuleType:
    """The launch file, imported with stand-ins, as it is in the source tree."""
    classes = stand_ins()
    for name in ("launch", "launch.actions", "launch.launch_description_entity", "launch.launch_description_sources",
                 "launch_ros", "launch_ros.actions"):
        module = ModuleType(name)
        vars(module).update(classes)
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("sam3d_launch", LAUNCH_FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "get_package_share_directory", fake_share_directory(module))
    monkeypatch.delenv("FASTRTPS_DEFAULT_PROFILES_FILE", raising=False)
    return module


def fake_share_directory(module: ModuleType):
    def share_directory(package: str) -> str:
        if package != "sam3d_ros":
            raise module.PackageNotFoundError(package)
        return str(ROOT)
    return share_directory


def launched(module: ModuleType, **arguments: str) -> list[Recorded]:
    """The actions that the launch file gives for these arguments, and any others with their defaults."""
    defaults = {declared.name: declared.keywords["default_value"] for declared in module.ARGUMENTS}
    return module.launch_setup(SimpleNamespace(launch_configurations=defaults | arguments))


def node(actions: list[Recorded], executable: str) -> Recorded:
    [found] = [action for action in actions if action.keywords.get("executable") == executable]
    return found


def executables(actions: list[Recorded]) -> list[str]:
    return [action.keywords["executable"] for action in actions if "executable" in action.keywords]


def test_without_arguments_the_node_runs_alone_on_its_own_topic_names(launch_module):
    actions = launched(launch_module)
    assert executables(actions) == ["sam3d_node"]
    sam3d_node = node(actions, "sam3d_node")
    assert all(topic == name for topic, name in sam3d_node.keywords["remappings"])
    assert sam3d_node.keywords["parameters"] == [{}]


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_gives_topics_and_parameter_file(launch_module, preset):
    file = ROOT / "config" / f"{preset}.yaml"
    topics = yaml.safe_load(file.read_text())["launch"]["ros__parameters"].get("topics", {})
    sam3d_node = node(launched(launch_module, preset=preset), "sam3d_node")
    assert sam3d_node.keywords["parameters"][0] == str(file)
    assert topics.items() <= dict(sam3d_node.keywords["remappings"]).items()


def test_simulated_preset_starts_the_camera(launch_module):
    assert executables(launched(launch_module, preset="simulated")) == ["sam3d_node", "simulated_camera"]


@pytest.mark.parametrize(("use_sim_time", "common", "camera"), [
    ("", {}, {}),
    ("false", {"use_sim_time": False}, {"use_sim_time": False}),
    ("true", {"use_sim_time": True}, {"publish_clock": True}),
])
def test_simulated_camera_is_the_clock_of_simulated_time(launch_module, use_sim_time, common, camera):
    actions = launched(launch_module, preset="simulated", use_sim_time=use_sim_time)
    assert node(actions, "sam3d_node").keywords["parameters"][-1] == common
    assert node(actions, "simulated_camera").keywords["parameters"][-1] == camera


def test_argument_wins_over_detector_and_detector_over_preset(launch_module):
    def segmentation(**arguments: str) -> tuple[str, str | None]:
        sam3d_node = node(launched(launch_module, preset="gazebo", **arguments), "sam3d_node")
        return dict(sam3d_node.keywords["remappings"])["segmentation"], \
            sam3d_node.keywords["parameters"][-1].get("mask_format")

    assert segmentation() == ("/segmentation/labels_map", None)
    assert segmentation(detector="tabletop") == ("tabletop/segmentation", "labels")
    assert segmentation(detector="tabletop", segmentation="/mine", mask_format="binary") == ("/mine", "binary")


def test_tabletop_segmenter_and_simulated_camera_do_not_publish_on_one_topic(launch_module):
    actions = launched(launch_module, preset="simulated", detector="tabletop")
    wanted = dict(node(actions, "sam3d_node").keywords["remappings"])["segmentation"]
    assert dict(node(actions, "tabletop_segmenter").keywords["remappings"])["segmentation"] == wanted
    assert "segmentation" not in dict(node(actions, "simulated_camera").keywords["remappings"])


def test_own_parameter_file_comes_after_the_preset_and_arguments_after_both(launch_module, tmp_path, monkeypatch):
    mine = tmp_path / "mine.yaml"
    mine.touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    actions = launched(launch_module, preset="realsense", params_file="~/mine.yaml", target_frame="base_link",
                       use_sim_time="true", autostart="false", namespace="robot1", log_level="debug")
    keywords = node(actions, "sam3d_node").keywords
    assert keywords["parameters"][1:] == [str(mine), {"use_sim_time": True, "autostart": False,
                                                      "target_frame": "base_link"}]
    assert keywords["namespace"] == "robot1"
    assert keywords["ros_arguments"] == ["--log-level", "debug"]


def test_a_parameter_file_that_does_not_exist_is_named(launch_module):
    with pytest.raises(RuntimeError, match="params_file:=/mine.yaml does not exist"):
        launched(launch_module, params_file="/mine.yaml")


@pytest.mark.parametrize(("detector", "package"), [
    ("yolo", "yolo_bringup"),
    ("isaac_sam", "isaac_ros_segment_anything"),
])
def test_detector_that_is_not_installed_is_named(launch_module, detector, package):
    with pytest.raises(RuntimeError, match=f"detector:={detector} needs the ROS package {package}"):
        launched(launch_module, detector=detector)


def test_detector_gets_our_image_and_only_arguments_that_are_not_ours(launch_module, monkeypatch):
    monkeypatch.setattr(launch_module, "get_package_share_directory", lambda package: str(ROOT))
    actions = launched(launch_module, preset="realsense", detector="yolo", rviz="true", device="cpu")
    [group] = [action for action in actions if type(action).__name__ == "GroupAction"]
    assert group.keywords["launch_configurations"] == {
        "device": "cpu", "input_image_topic": "/camera/camera/color/image_raw"}
    assert group.keywords["forwarding"] is False


@pytest.mark.parametrize(("namespace", "wanted"), [("", "/image"), ("robot1", "/robot1/image"), ("/a/b", "/a/b/image")])
def test_detector_gets_a_name_that_its_own_namespace_does_not_change(launch_module, monkeypatch, namespace, wanted):
    monkeypatch.setattr(launch_module, "get_package_share_directory", lambda package: str(ROOT))
    actions = launched(launch_module, preset="simulated", detector="yolo", namespace=namespace)
    [group] = [action for action in actions if type(action).__name__ == "GroupAction"]
    assert group.keywords["launch_configurations"] == {"input_image_topic": wanted}


def test_shared_memory_profile_is_set_unless_the_user_has_one(launch_module, monkeypatch):
    variable = "FASTRTPS_DEFAULT_PROFILES_FILE"
    assert launched(launch_module)[0].arguments == (variable, str(ROOT / "config" / "fastdds_shm.xml"))
    monkeypatch.setenv(variable, "/mine.xml")
    assert type(launched(launch_module)[0]).__name__ == "LogInfo"


def test_rviz_takes_the_frame_of_the_results(launch_module):
    def arguments(**more: str) -> list[str]:
        return node(launched(launch_module, rviz="true", **more), "rviz2").keywords["arguments"]

    assert arguments()[2:] == []
    assert arguments(preset="realsense")[2:] == ["-f", "camera_link"]
    assert arguments(preset="realsense", target_frame="base_link")[2:] == ["-f", "base_link"]


def test_rviz_keeps_the_time_of_the_preset(launch_module):
    """With the wall's time beside a simulation's stamps, RViz takes all transforms for old."""
    [file, given] = node(launched(launch_module, preset="gazebo", rviz="true"), "rviz2").keywords["parameters"]
    assert given == {}
    context = rclpy.Context()
    rclpy.init(context=context, args=["--ros-args", "--params-file", file])
    try:
        rviz = Node("rviz2", context=context)
        assert rviz.get_parameter("use_sim_time").value is True
        rviz.destroy_node()
    finally:
        rclpy.shutdown(context=context)


def test_every_argument_is_documented(launch_module):
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "launch.md").read_text()))
    assert {declared.name for declared in launch_module.ARGUMENTS} <= documented


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("namespace", ["", "robot1"])
def test_preset_is_a_parameter_file_whose_values_the_node_takes(preset, namespace):
    file = ROOT / "config" / f"{preset}.yaml"
    [section] = [value for key, value in yaml.safe_load(file.read_text()).items() if key.endswith("sam3d_node")]
    values = section["ros__parameters"]
    choices = {field.name: field.metadata["choices"] for field in dataclasses.fields(Settings)}
    assert all(value in choices[name] for name, value in values.items() if choices[name])
    context = rclpy.Context()
    rclpy.init(context=context, args=["--ros-args", "--params-file", str(file)])
    try:
        reader = Node("sam3d_node", namespace=namespace, context=context,
                      automatically_declare_parameters_from_overrides=True)
        assert {name: reader.get_parameter(name).value for name in values} == values
        assert reader.get_parameter("use_sim_time").value == (preset == "gazebo")
        reader.destroy_node()
    finally:
        rclpy.shutdown(context=context)


@pytest.fixture
def launch_process() -> Iterator[subprocess.Popen]:
    """`ros2 launch` of the installed launch file, with the simulated camera."""
    if shutil.which("ros2") is None:
        pytest.skip("ros2 launch is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "_ROS_WHEELS_BOOTSTRAP_COMPLETE"}
    process = subprocess.Popen(["ros2", "launch", "sam3d_ros", "sam3d.launch.py", "preset:=simulated"], env=environment,
                               stdin=subprocess.DEVNULL, start_new_session=True)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.timeout(150)
def test_ros2_launch_brings_the_node_up_and_ends_on_sigint(launch_process):
    context = rclpy.Context()
    rclpy.init(context=context)
    try:
        observer = Node("observer", context=context)
        client = observer.create_client(GetState, "/sam3d_node/get_state")
        executor = rclpy.executors.SingleThreadedExecutor(context=context)
        executor.add_node(observer)
        deadline, state = time.monotonic() + 90, State.PRIMARY_STATE_UNKNOWN
        while state != State.PRIMARY_STATE_ACTIVE:
            assert time.monotonic() < deadline, f"the node is not active but in state {state}"
            assert launch_process.poll() is None
            if client.wait_for_service(1.0):
                future = client.call_async(GetState.Request())
                executor.spin_until_future_complete(future, timeout_sec=5.0)
                state = future.result().current_state.id if future.done() else state
        observer.destroy_node()
    finally:
        rclpy.shutdown(context=context)
    launch_process.send_signal(signal.SIGINT)
    assert launch_process.wait(30) == 0
