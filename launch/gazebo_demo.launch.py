"""Gazebo (Harmonic) with a table of objects and a camera, the bridge to ROS, and sam3d_node.

    ros2 launch sam3d_ros gazebo_demo.launch.py
    ros2 launch sam3d_ros gazebo_demo.launch.py headless:=true rviz:=true

Needs ros_gz_sim, ros_gz_bridge and tf2_ros.
"""
from __future__ import annotations

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PythonExpression
from launch_ros.actions import Node

# Of the camera's link in config/gazebo_demo.sdf: x, y, z (metres), roll, pitch, yaw (radians).
CAMERA_POSE = (0.65, 0.0, 0.5, 0.0, 0.6557, 3.14159265)
# From a link (x forward) to its optical frame (z forward, x right).
OPTICAL = (0.0, 0.0, 0.0, -1.57079633, 0.0, -1.57079633)


def generate_launch_description() -> LaunchDescription:
    share = Path(get_package_share_directory("sam3d_ros"))
    gazebo = Path(get_package_share_directory("ros_gz_sim"), "launch", "gz_sim.launch.py")
    world = share / "config" / "gazebo_demo.sdf"
    headless = PythonExpression(["'-s --headless-rendering ' if '", LaunchConfiguration("headless"),
                                 "' == 'true' else ''"])
    return LaunchDescription([
        DeclareLaunchArgument("headless", default_value="false", choices=("true", "false"),
                              description="Gazebo without a window"),
        DeclareLaunchArgument("rviz", default_value="false", choices=("true", "false"), description="also start RViz"),
        IncludeLaunchDescription(PythonLaunchDescriptionSource(str(gazebo)),
                                 launch_arguments={"gz_args": [headless, f"-r {world}"]}.items()),
        Node(package="ros_gz_bridge", executable="parameter_bridge", output="screen",
             parameters=[{"config_file": str(share / "config" / "gazebo_bridge.yaml"), "use_sim_time": True}]),
        static_transform("world", "camera_link", CAMERA_POSE),
        static_transform("camera_link", "camera_optical_frame", OPTICAL),
        IncludeLaunchDescription(PythonLaunchDescriptionSource(str(share / "launch" / "sam3d.launch.py")),
                                 launch_arguments={"preset": "gazebo", "target_frame": "world",
                                                   "rviz": LaunchConfiguration("rviz")}.items()),
    ])


def static_transform(parent: str, child: str, pose: tuple[float, ...]) -> Node:
    """Publisher of a fixed transform; pose: x, y, z, roll, pitch, yaw."""
    names = ("--x", "--y", "--z", "--roll", "--pitch", "--yaw")
    arguments = [text for name, value in zip(names, pose, strict=True) for text in (name, str(value))]
    return Node(package="tf2_ros", executable="static_transform_publisher", parameters=[{"use_sim_time": True}],
                arguments=[*arguments, "--frame-id", parent, "--child-frame-id", child])
