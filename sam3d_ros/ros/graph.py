"""What of ROS 2 works and is visible from here."""
from __future__ import annotations

import time

import rclpy
from rclpy.utilities import get_rmw_implementation_identifier


def rmw_name() -> str:
    """Name of the middleware that rclpy uses, such as rmw_fastrtps_cpp."""
    return get_rmw_implementation_identifier()


def visible_topics(seconds: float) -> dict[str, list[str]]:
    """Topics that have a publisher -> their types, after listening for `seconds` to the discovery traffic."""
    context = rclpy.Context()
    rclpy.init(context=context)
    try:
        node = rclpy.create_node("sam3d_doctor", context=context, enable_rosout=False, start_parameter_services=False)
        time.sleep(seconds)          # discovery runs in threads of the middleware, and nothing tells its end
        topics = {name: types for name, types in node.get_topic_names_and_types() if node.count_publishers(name)}
        node.destroy_node()
        return topics
    finally:
        rclpy.shutdown(context=context)
