"""The Gazebo world, its bridge and launch file fit together; Gazebo's segmentation images, byte by byte."""
from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from recorded import Recorded

from sam3d_ros.perception.faults import Fault, FaultCode

ROOT = Path(__file__).resolve().parents[1]
WORLD = ROOT / "config" / "gazebo_demo.sdf"


@pytest.fixture
def launch_file(monkeypatch) -> ModuleType:
    """launch/gazebo_demo.launch.py, imported with stand-ins."""
    for name in ("launch", "launch.actions", "launch.launch_description_sources", "launch.substitutions", "launch_ros",
                 "launch_ros.actions"):
        module = ModuleType(name)
        module.__getattr__ = lambda attribute: Recorded
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("gazebo_demo_launch", ROOT / "launch" / "gazebo_demo.launch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "get_package_share_directory", lambda package: str(
        ROOT if package == "sam3d_ros" else Path("/share") / package))
    return module


def test_world_is_valid_sdf():
    name = ctypes.util.find_library("sdformat12") or ctypes.util.find_library("sdformat14")
    if name is None:
        pytest.skip("libsdformat is not installed (Debian: libsdformat12-12, sdformat-sdf)")
    assert ctypes.CDLL(name).cmdCheck(str(WORLD).encode()) == 0


def test_sensors_publish_what_the_bridge_and_the_preset_name():
    sensors = {sensor.get("type"): sensor for sensor in ElementTree.parse(WORLD).iter("sensor")}
    rgbd, segmentation = sensors["rgbd_camera"], sensors["segmentation"]
    published = {f"/{rgbd.findtext('topic')}/{leaf}" for leaf in ("image", "depth_image", "camera_info")}
    published |= {f"/{segmentation.findtext('topic')}/labels_map", "/clock"}
    bridge = yaml.safe_load((ROOT / "config" / "gazebo_bridge.yaml").read_text())
    assert {entry["gz_topic_name"] for entry in bridge} == published
    assert {entry["ros_topic_name"] for entry in bridge} == published
    assert {entry["direction"] for entry in bridge} == {"GZ_TO_ROS"}
    preset = yaml.safe_load((ROOT / "config" / "gazebo.yaml").read_text())
    assert set(preset["launch"]["ros__parameters"]["topics"].values()) <= published
    assert segmentation.findtext("camera/segmentation_type") == "panoptic"
    assert preset["/**/sam3d_node"]["ros__parameters"]["mask_format"] == "gz_panoptic"
    for field in ("gz_frame_id", "update_rate", "camera/horizontal_fov", "camera/image/width", "camera/image/height"):
        assert rgbd.findtext(field) == segmentation.findtext(field)


def test_every_object_has_its_own_label_and_stands_on_the_table():
    models = [model for model in ElementTree.parse(WORLD).iter("model") if model.find("plugin/label") is not None]
    labels = [int(model.findtext("plugin/label")) for model in models]
    assert sorted(labels) == list(range(1, len(models) + 1))
    for model in models:
        height = float(model.findtext("pose").split()[2])
        collision = model.find("link/collision/geometry")
        half = {"box": lambda g: float(g.findtext("box/size").split()[2]) / 2,
                "cylinder": lambda g: float(g.findtext("cylinder/length")) / 2,
                "sphere": lambda g: float(g.findtext("sphere/radius"))}[collision[0].tag](collision)
        assert height == pytest.approx(half)


def test_launch_file_starts_what_belongs_together(launch_file):
    description = launch_file.generate_launch_description()
    actions = description.arguments[0]
    nodes = [action for action in actions if "executable" in action.keywords]
    assert [node.keywords["package"] for node in nodes] == ["ros_gz_bridge", "tf2_ros", "tf2_ros"]
    assert Path(nodes[0].keywords["parameters"][0]["config_file"]).exists()
    includes = [dict(action.keywords["launch_arguments"]) for action in actions
                if "launch_arguments" in action.keywords]
    assert includes[1]["preset"] == "gazebo" and includes[1]["target_frame"] == "world"
    pose = next(model for model in ElementTree.parse(WORLD).iter("model") if model.get("name") == "camera")
    assert tuple(map(float, pose.findtext("pose").split())) == pytest.approx(launch_file.CAMERA_POSE)
    frames = {node.keywords["arguments"][-1] for node in nodes[1:]}
    assert ElementTree.parse(WORLD).find(".//gz_frame_id").text in frames


def message(rows: list[list[tuple[int, int, int]]], padding: int = 0):
    """sensor_msgs/Image rgb8 of the pixels (R, G, B), each row followed by bytes that are not pixels."""
    images = pytest.importorskip("sensor_msgs.msg")
    data = b"".join(bytes(value for pixel in row for value in pixel) + b"\xee" * padding for row in rows)
    width = len(rows[0])
    return images.Image(height=len(rows), width=width, encoding="rgb8", step=3 * width + padding, data=data)


def decoded(image, mask_format: str):
    from sam3d_ros.ros.parameters import Settings
    from sam3d_ros.ros.segmentation import decode_segmentation
    return decode_segmentation(image, None, image.height, image.width, Settings(mask_format=mask_format))


@pytest.mark.parametrize("padding", [0, 5])
def test_panoptic_bytes(padding: int):
    # B is the class, R + 256 G the instance; class 0 is background, also where an instance is given.
    image = message([[(0, 0, 0), (1, 0, 7), (1, 0, 7), (9, 9, 0)],
                     [(44, 1, 7), (1, 0, 3), (44, 1, 7), (255, 255, 255)]], padding)
    found = decoded(image, "gz_panoptic")
    np.testing.assert_array_equal(found.labels, [[0, 2, 2, 0], [3, 1, 3, 4]])
    assert [instance.class_id for instance in found.instances] == ["3", "7", "7", "255"]


@pytest.mark.parametrize("padding", [0, 7])
def test_semantic_bytes(padding: int):
    image = message([[(0, 0, 0), (4, 4, 4)], [(200, 200, 200), (4, 4, 4)]], padding)
    found = decoded(image, "gz_semantic")
    np.testing.assert_array_equal(found.labels, [[0, 4], [200, 4]])
    assert [instance.class_id for instance in found.instances] == ["4", "200"]


def test_cut_off_bytes_are_named():
    image = message([[(0, 0, 0), (1, 0, 7)]])
    image.data = image.data[:-1]
    with pytest.raises(Fault) as caught:
        decoded(image, "gz_panoptic")
    assert caught.value.code == FaultCode.MASK_TRUNCATED
