"""Stand-ins for packages of a full ROS 2 installation; tests use the real ones where they are installed."""
from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped
from rclpy.time import Time
from scipy.spatial.transform import Rotation, Slerp
from std_msgs.msg import Header

from sam3d_ros.ros.images import stamp_message, stamp_ns
from sam3d_ros.ros.optional import optional
from sam3d_ros.ros.transforms import matrix_from_transform, transform_from_matrix


class TransformException(Exception):
    """Base of tf2's errors."""


class Buffer:
    """tf2_ros.Buffer for one edge, parent <- child, interpolated between its samples."""

    def __init__(self) -> None:
        self._samples: list[TransformStamped] = []

    def set_transform(self, transform: TransformStamped, authority: str) -> None:
        self._samples = sorted([*self._samples, transform], key=lambda t: stamp_ns(t.header.stamp))

    def clear(self) -> None:
        self._samples.clear()

    def lookup_transform(self, target: str, source: str, time: Time) -> TransformStamped:
        known = [s for s in self._samples if (s.header.frame_id, s.child_frame_id) == (target, source)]
        if not known:
            raise TransformException(f'"{target}" passed to lookupTransform argument target_frame does not exist.')
        stamps = np.array([stamp_ns(s.header.stamp) for s in known])
        at = time.nanoseconds or int(stamps[-1])
        if not stamps[0] <= at <= stamps[-1]:
            raise TransformException("Lookup would require extrapolation.")
        matrices = [matrix_from_transform(s.transform) for s in known]
        header = Header(stamp=stamp_message(at), frame_id=target)
        result = TransformStamped(header=header, child_frame_id=source, transform=known[0].transform)
        if len(known) > 1:
            times, moment = (stamps - stamps[0]) / 1e9, (at - stamps[0]) / 1e9
            matrix = np.eye(4)
            matrix[:3, :3] = Slerp(times, Rotation.from_matrix([m[:3, :3] for m in matrices]))(moment).as_matrix()
            matrix[:3, 3] = [np.interp(moment, times, [m[i, 3] for m in matrices]) for i in range(3)]
            result.transform = transform_from_matrix(matrix)
        return result


class TransformListener:
    """tf2_ros.TransformListener without the topics: tests fill the buffer."""

    def __init__(self, buffer: Buffer, node: Any) -> None:
        pass

    def unregister(self) -> None:
        pass


class TransformBroadcaster:
    """tf2_ros.TransformBroadcaster that keeps what it would send."""

    def __init__(self, node: Any) -> None:
        self.pub_tf = None
        self.sent: list[TransformStamped] = []

    def sendTransform(self, transforms: list[TransformStamped]) -> None:  # noqa: N802 (tf2's name)
        self.sent += transforms


def provide_tf2_ros(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `import tf2_ros` work for one test."""
    if optional("tf2_ros") is None:
        module = ModuleType("tf2_ros")
        for stand_in in (TransformException, Buffer, TransformListener, TransformBroadcaster):
            setattr(module, stand_in.__name__, stand_in)
        monkeypatch.setitem(sys.modules, "tf2_ros", module)
