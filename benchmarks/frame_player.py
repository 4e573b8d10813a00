"""Process: plays a frame folder as a camera and a detector would, every image stamped with the moment it is sent.

The messages are built once; what is measured behind it is not the player's work.
"""
from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from sam3d_ros.perception.folder import read_frame_folder
from sam3d_ros.perception.frame import Frame, Intrinsics
from sam3d_ros.ros.images import encode_image, stamp_message
from sam3d_ros.ros.qos import RESULTS

FRAME_ID = "camera_optical_frame"


class FramePlayer(Node):
    """Publishes image, depth_image (16UC1), camera_info and segmentation (mono16 labels), reliable."""

    def __init__(self, frame: Frame):
        super().__init__("frame_player")
        header = Header(frame_id=FRAME_ID)
        millimetres = np.rint(frame.depth * 1000).astype(np.uint16)
        self._outputs = [
            (self.create_publisher(CameraInfo, "camera_info", RESULTS), camera_info(frame.intrinsics)),
            (self.create_publisher(Image, "depth_image", RESULTS), encode_image(millimetres, "16UC1", header)),
            (self.create_publisher(Image, "segmentation", RESULTS),
             encode_image(frame.labels.astype(np.uint16), "mono16", header)),
            (self.create_publisher(Image, "image", RESULTS), encode_image(frame.colour, "rgb8", header)),
        ]

    def has_listeners(self) -> bool:
        """Whether every output is subscribed to."""
        return all(publisher.get_subscription_count() for publisher, _ in self._outputs)

    def play(self) -> None:
        """Send one complete set with the stamp of now."""
        stamp = stamp_message(time.time_ns())
        for publisher, message in self._outputs:
            message.header.stamp = stamp
            publisher.publish(message)


def camera_info(camera: Intrinsics) -> CameraInfo:
    """Message of a pinhole camera without distortion."""
    k = [camera.fx, 0.0, camera.cx, 0.0, camera.fy, camera.cy, 0.0, 0.0, 1.0]
    p = [camera.fx, 0.0, camera.cx, 0.0, 0.0, camera.fy, camera.cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return CameraInfo(header=Header(frame_id=FRAME_ID), width=camera.width, height=camera.height,
                      distortion_model="plumb_bob", d=[0.0] * 5, k=k, p=p)


def main() -> None:
    """Wait for listeners, then play at a fixed rate until SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rate", type=float, default=30.0, help="images per second")
    args = parser.parse_args()
    rclpy.init()
    player = FramePlayer(read_frame_folder(args.folder))
    try:
        while not player.has_listeners():
            rclpy.spin_once(player, timeout_sec=0.05)
        _play(player, args.rate)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()


def _play(player: FramePlayer, rate: float) -> None:
    """Play on a fixed time grid, so that a late image does not delay those after it."""
    start, sent = time.monotonic(), 0
    while rclpy.ok():
        player.play()
        sent += 1
        time.sleep(max(0.0, start + sent / rate - time.monotonic()))


if __name__ == "__main__":
    main()
