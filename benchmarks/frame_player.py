"""Process: plays a frame folder as a camera and a detector would, every image stamped with the moment it is sent.

The messages are built once; what is measured behind it is not the player's work.  With --rough it plays badly: masks
are missing and their numbers shuffled, streams fall silent, the clock jumps, and an object is not there for a while.
"""
from __future__ import annotations

import argparse
import json
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from sam3d_ros.perception.folder import read_frame_folder
from sam3d_ros.perception.frame import Frame, Intrinsics
from sam3d_ros.ros.images import encode_image, stamp_message, to_array
from sam3d_ros.ros.memory import exempt_from_collection
from sam3d_ros.ros.qos import RESULTS

FRAME_ID = "camera_optical_frame"
STREAMS = ("image", "depth_image", "segmentation", "camera_info")
# Playing badly, seconds: without trouble at first, from one trouble to the next on average, of one at most, and of the
# clock's jumps.
CALM, TROUBLE_PERIOD, LONGEST_TROUBLE, MOST_JUMP = 8.0, 12.0, 6.0, 10.0
DROPPED = 0.2             # of the masks
# Seconds, least and most: from one time that an object is not there to the next, and how long each lasts.
GONE_PERIOD, GONE_SECONDS = (10.0, 20.0), (2.0, 4.0)
MASKS, MASK_LAG = "segmentation", 0.15    # seconds from an image to its masks where these are slow


class FramePlayer(Node):
    """Publishes image, depth_image (16UC1), camera_info and segmentation (mono16 labels), reliable."""

    def __init__(self, frame: Frame):
        super().__init__("frame_player")
        self._publishers = [self.create_publisher(kind, topic, RESULTS) for kind, topic in (
            (CameraInfo, "camera_info"), (Image, "depth_image"), (Image, MASKS), (Image, "image"))]
        self.clock_offset_ns = 0
        self.show(frame)

    def has_listeners(self) -> bool:
        """Whether every output is subscribed to."""
        return all(publisher.get_subscription_count() for publisher in self._publishers)

    def show(self, frame: Frame) -> None:
        """Play this frame from now on."""
        header = Header(frame_id=FRAME_ID)
        millimetres = np.rint(frame.depth * 1000).astype(np.uint16)
        self._masks = encode_image(frame.labels.astype(np.uint16), "mono16", header)
        self._messages = [camera_info(frame.intrinsics), encode_image(millimetres, "16UC1", header), self._masks,
                          encode_image(frame.colour, "rgb8", header)]

    def play(self, silent: str = "") -> int:
        """Send one complete set, but for the topic `silent`, with the stamp of now, ns, which is returned."""
        stamp_ns = time.time_ns() + self.clock_offset_ns
        for publisher, message in zip(self._publishers, self._messages, strict=True):
            if publisher.topic_name.rpartition("/")[2] != silent:
                message.header.stamp = stamp_message(stamp_ns)
                publisher.publish(message)
        return stamp_ns

    def play_masks(self, stamp_ns: int) -> None:
        """Send the masks of an image with that stamp."""
        self._masks.header.stamp = stamp_message(stamp_ns)
        self._publishers[2].publish(self._masks)

    def show_masks(self, labels: np.ndarray) -> None:
        """Replace the masks, (H, W) uint16."""
        self._masks.data = to_array("B", labels)


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
    parser.add_argument("--rough", type=int, metavar="SEED", help="play badly, in a way that the seed decides")
    parser.add_argument("--without", type=Path, nargs="+", default=[], metavar="FOLDER",
                        help="with --rough: frame folders of the same scene without one of its objects each")
    parser.add_argument("--masks-every", type=int, default=0, metavar="N",
                        help="masks of every so many images only, MASK_LAG late, as a slow detector gives them")
    parser.add_argument("--log", type=Path, help="with --rough: a JSON line for each image")
    args = parser.parse_args()
    rclpy.init()
    frame = read_frame_folder(args.folder)
    player = FramePlayer(frame)
    exempt_from_collection()            # a pause here would be taken for one of the node
    try:
        while not player.has_listeners():
            rclpy.spin_once(player, timeout_sec=0.05)
        if args.masks_every:
            _play_with_slow_masks(player, args.rate, args.masks_every)
        elif args.rough is None:
            _play(player, args.rate)
        else:
            without = [read_frame_folder(folder) for folder in args.without]
            play_badly(player, frame, without, args.rate, np.random.default_rng(args.rough), args.log)
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


def _play_with_slow_masks(player: FramePlayer, rate: float, every: int) -> None:
    """Play images on a fixed time grid, and the masks of one in so many MASK_LAG after it."""
    start, sent, due = time.monotonic(), 0, deque[tuple[float, int]]()
    while rclpy.ok():
        stamp_ns = player.play(silent=MASKS)
        if sent % every == 0:
            due.append((time.monotonic() + MASK_LAG, stamp_ns))
        sent += 1
        while (now := time.monotonic()) < start + sent / rate:
            if due and due[0][0] <= now:
                player.play_masks(due.popleft()[1])
            time.sleep(0.001)


def play_badly(player: FramePlayer, frame: Frame, without: Sequence[Frame], rate: float, rng: np.random.Generator,
               log: Path) -> None:
    """Play with what goes wrong on real robots.

    without: the same scene without one of its objects each, to be shown now and then; none: never
    log: a JSON line for each image: {"stamp_ns", "sent_ns": when its sending began, "shown": how many objects it shows,
    "whole": whether all streams have it}
    """
    picture, gone_until, trouble_until, silent = frame, 0.0, 0.0, ""
    next_trouble = time.monotonic() + CALM
    next_gone = time.monotonic() + rng.uniform(*GONE_PERIOD)
    with log.open("w") as file:
        while rclpy.ok():
            now = time.monotonic()
            if now >= next_trouble:
                next_trouble = now + rng.exponential(TROUBLE_PERIOD)
                kind = rng.choice(["silence", "stream", "clock"])
                if kind == "clock":
                    player.clock_offset_ns += int(rng.uniform(-MOST_JUMP, MOST_JUMP) * 1e9)
                else:
                    trouble_until = now + rng.uniform(0.3, LONGEST_TROUBLE)
                    silent = str(rng.choice(STREAMS)) if kind == "stream" else "all"
            if without and now >= next_gone:
                gone_until, next_gone = now + rng.uniform(*GONE_SECONDS), now + rng.uniform(*GONE_PERIOD)
                picture = without[rng.integers(len(without))]
                player.show(picture)
            elif picture is not frame and now >= gone_until:
                picture = frame
                player.show(picture)
            troubled = silent if now < trouble_until else ""
            if troubled != "all":
                labels = [instance.label for instance in picture.instances]
                numbers = np.zeros(max(labels) + 1, np.uint16)
                numbers[labels] = rng.permutation(len(labels)) + 1
                numbers[rng.permutation(labels)[:rng.binomial(len(labels), DROPPED)]] = 0
                player.show_masks(numbers[picture.labels])
                stamp_ns = player.play(troubled)
                print(json.dumps({"stamp_ns": stamp_ns, "sent_ns": stamp_ns - player.clock_offset_ns,
                                  "shown": len(labels), "whole": not troubled}), file=file, flush=True)
            time.sleep(max(0.0, now + 1 / rate - time.monotonic()))


if __name__ == "__main__":
    main()
