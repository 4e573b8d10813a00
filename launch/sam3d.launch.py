"""Starts sam3d_node and, as wanted, a detector, the simulated camera and RViz.

    ros2 launch sam3d_ros sam3d.launch.py preset:=realsense detector:=tabletop
    ros2 launch sam3d_ros sam3d.launch.py --show-args

A preset (config/<preset>.yaml) holds the camera's topic names and the nodes' parameters. Each has its argument here;
what is given on the command line wins over the detector's choice, and that over the preset. Arguments that this file
does not know are passed on to the detector's own launch file.
"""
from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import yaml
from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    GroupAction,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    SetEnvironmentVariable,
)
from launch.launch_description_entity import LaunchDescriptionEntity
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import LifecycleNode, Node, SetRemap

PACKAGE = "sam3d_ros"
PRESETS = ("none", "realsense", "zed", "gazebo", "isaac", "simulated")
TOPICS = ("image", "depth_image", "camera_info", "segmentation", "detections")


class Detector(NamedTuple):
    """A source of masks.

    mask_format, topics: what it publishes, and where
    package, launch_file: what starts it ("": a node of this package, or nothing)
    image_argument: its launch argument for the image's topic; remapped: its input topics that have no argument
    """

    mask_format: str
    topics: dict[str, str]
    package: str = ""
    launch_file: str = ""
    image_argument: str = ""
    remapped: tuple[str, ...] = ()


DETECTORS = {
    "none": Detector("", {}),
    "tabletop": Detector("labels", {"segmentation": "tabletop/segmentation"}),
    "yolo": Detector("yolo_msgs", {"segmentation": "/yolo/tracking"}, "yolo_bringup", "yolo.launch.py",
                     image_argument="input_image_topic"),
    # SAM cuts out what it is prompted with: boxes from any detector on /detectnet/detections.
    "isaac_sam": Detector("isaac_tensor", {"segmentation": "/segment_anything/raw_segmentation_mask",
                                           "detections": "/detectnet/detections"},
                          "isaac_ros_segment_anything", "isaac_ros_segment_anything_triton.launch.py",
                          remapped=("image", "camera_info")),
}

ARGUMENTS = (
    DeclareLaunchArgument("preset", default_value="none", choices=PRESETS,
                          description="camera: config/<preset>.yaml; simulated also starts the camera"),
    DeclareLaunchArgument("params_file", default_value="", description="parameter file, read after the preset's"),
    *(DeclareLaunchArgument(topic, default_value="", description=f"topic name of {topic} (empty: the preset's)")
      for topic in TOPICS),
    DeclareLaunchArgument("mask_format", default_value="", description="of the segmentation (empty: the detector's)"),
    DeclareLaunchArgument("target_frame", default_value="", description="frame of the results (empty: the preset's)"),
    DeclareLaunchArgument("detector", default_value="none", choices=tuple(DETECTORS),
                          description="what makes the masks; none: something else publishes them"),
    DeclareLaunchArgument("namespace", default_value="", description="of this package's nodes"),
    DeclareLaunchArgument("use_sim_time", default_value="", choices=("", "true", "false"),
                          description="take the time from /clock (empty: the preset's)"),
    DeclareLaunchArgument("autostart", default_value="", choices=("", "true", "false"),
                          description="false: a lifecycle manager brings the node up (empty: the preset's)"),
    DeclareLaunchArgument("rviz", default_value="false", choices=("true", "false"), description="also start RViz"),
    DeclareLaunchArgument("log_level", default_value="info", description="of this package's nodes"),
)


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=launch_setup)])


def launch_setup(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The actions that the arguments in `context` ask for."""
    argument = {declared.name: context.launch_configurations[declared.name] for declared in ARGUMENTS}

    def flag(name: str) -> dict[str, bool]:
        return {name: argument[name] == "true"} if argument[name] else {}

    config = Path(get_package_share_directory(PACKAGE), "config")
    preset_file = config / f"{argument['preset']}.yaml"
    preset = read_preset(preset_file)
    detector = DETECTORS[argument["detector"]]
    topics = {topic: argument[topic] or detector.topics.get(topic) or preset["topics"].get(topic) or topic
              for topic in TOPICS}
    topics |= {topic: name for topic, name in preset["topics"].items() if topic not in TOPICS}     # results

    files = [str(preset_file)] * preset_file.exists() + own_file(argument["params_file"])
    common = flag("use_sim_time")
    node = {"package": PACKAGE, "namespace": argument["namespace"], "output": "screen",
            "ros_arguments": ["--log-level", argument["log_level"]]}
    chosen = {"mask_format": argument["mask_format"] or detector.mask_format, "target_frame": argument["target_frame"]}
    overrides = {name: value for name, value in chosen.items() if value} | flag("autostart")

    profile = fast_dds_profile(config)
    sam3d_node = LifecycleNode(executable="sam3d_node", name="sam3d_node", parameters=[*files, common | overrides],
                               remappings=list(topics.items()), **node)
    actions = [*profile, sam3d_node]
    if argument["preset"] == "simulated":
        # Its true masks stay beside those of a detector.
        images = [(topic, name) for topic, name in topics.items() if topic not in detector.topics]
        clock = {"publish_clock": True} if argument["use_sim_time"] == "true" else common
        actions.append(Node(executable="simulated_camera", name="simulated_camera", parameters=[*files, clock],
                            remappings=images, **node))
    if argument["detector"] == "tabletop":
        actions.append(Node(executable="tabletop_segmenter", name="tabletop_segmenter", parameters=[*files, common],
                            remappings=list(topics.items()), **node))
    elif detector.package:
        absolute = {topic: absolute_name(name, argument["namespace"]) for topic, name in topics.items()}
        actions.append(include_detector(argument["detector"], absolute, profile, context))
    if argument["rviz"] == "true":
        frame = argument["target_frame"] or preset["fixed_frame"]
        actions.append(Node(package="rviz2", executable="rviz2", namespace=argument["namespace"],
                            arguments=["-d", str(config / "sam3d.rviz"), *(["-f", frame] if frame else [])],
                            parameters=[*files, common], remappings=list(topics.items())))
    return actions


def read_preset(file: Path) -> dict:
    """The section `launch` of a preset: topics (name -> the name used there) and fixed_frame (for RViz)."""
    preset = {"topics": {}, "fixed_frame": ""}
    if file.exists():
        preset |= yaml.safe_load(file.read_text())["launch"]["ros__parameters"]
    return preset


def own_file(name: str) -> list[str]:
    """The user's parameter file, which launch would leave out with a warning if it does not exist."""
    if not name:
        return []
    path = Path(name).expanduser()
    if not path.is_file():
        raise RuntimeError(f"params_file:={name} does not exist")
    return [str(path)]


def absolute_name(topic: str, namespace: str) -> str:
    """A topic's name as our nodes expand it; a detector has a namespace of its own."""
    return topic if topic.startswith("/") else f"/{namespace.strip('/')}/{topic}".replace("//", "/")


def fast_dds_profile(config: Path) -> list[LaunchDescriptionEntity]:
    """Shared memory large enough for images, unless the user has a profile of their own."""
    variable = "FASTRTPS_DEFAULT_PROFILES_FILE"
    if variable in os.environ:
        return [LogInfo(msg=f"{variable} is set: {os.environ[variable]} is used in place of {PACKAGE}'s profile")]
    return [SetEnvironmentVariable(variable, str(config / "fastdds_shm.xml"))]


def include_detector(name: str, topics: dict[str, str], profile: list[LaunchDescriptionEntity],
                     context: LaunchContext) -> GroupAction:
    """The detector's own launch file, fed with our image, and with the arguments that are not ours."""
    detector = DETECTORS[name]
    try:
        share = get_package_share_directory(detector.package)
    except PackageNotFoundError:
        raise RuntimeError(f"detector:={name} needs the ROS package {detector.package}, which is not installed or not "
                           "sourced; detector:=tabletop needs none") from None
    ours = {declared.name for declared in ARGUMENTS}
    passed_on = {key: value for key, value in context.launch_configurations.items() if key not in ours}
    if detector.image_argument:
        passed_on.setdefault(detector.image_argument, topics["image"])
    return GroupAction(
        [
            *profile,
            *(SetRemap(topic, topics[topic]) for topic in detector.remapped),
            IncludeLaunchDescription(PythonLaunchDescriptionSource(str(Path(share, "launch", detector.launch_file)))),
        ],
        forwarding=False,
        launch_configurations=passed_on,
    )
