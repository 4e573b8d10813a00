"""Makes instance masks from depth alone, for those who have no detector: what stands apart on a table, floor or shelf.

Reads depth_image and camera_info, publishes segmentation (16UC1 instance labels, 0 = background) with the stamp and
frame of the depth image; labels go by size, 1 being the object with most pixels. An image without objects gives a mask
without labels; an image that cannot be used gives none, and a named fault on /diagnostics.
"""
from __future__ import annotations

import dataclasses
import functools
import sys
import time
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, Image

from ..perception.faults import Fault, FaultCode
from ..perception.tabletop import TabletopConfig, segment_tabletop
from ..ros.diagnostics import Diagnostics
from ..ros.images import decode_camera_info, decode_depth, encode_image
from ..ros.qos import RESULTS, adapted_subscription
from ..ros.running import log_exception, run_node
from ..ros.worker import Worker

PERIOD = 1.0             # seconds between diagnostics, and between looks at the publishers' QoS
SILENCE = 5.0            # seconds without depth until it counts as missing
# Fields of TabletopConfig -> meaning and range
PARAMETERS = {
    "min_height": ("height above the plane where an object begins, at 1 m; grows with the square of the distance [m]",
                   0.001, 0.1),
    "max_height": ("height above the plane where an object ends [m]", 0.01, 3.0),
    "plane_tolerance": ("distance from the plane, at 1 m, within which a point belongs to it [m]", 0.001, 0.1),
    "max_distance": ("depth beyond this is ignored [m]", 0.1, 20.0),
    "voxel": ("edge of the grid in which points are clustered [m]", 0.001, 0.05),
    "gap": ("objects closer than this become one [m]", 0.001, 0.2),
    "min_object_height": ("an object stands out of the plane by this at least [m]", 0.001, 1.0),
    "min_pixels": ("an object has this many pixels at least", 10, 1_000_000),
    "max_size": ("diagonal of an object's bounding box at most [m]", 0.01, 5.0),
}


class TabletopSegmenter(Node):
    """The node. Raises rclpy's InvalidParameter... exceptions, which name the parameter, for a wrong value."""

    def __init__(self, **node_arguments: Any):
        super().__init__("tabletop_segmenter", **node_arguments)
        defaults = dataclasses.asdict(TabletopConfig())
        self._config = TabletopConfig(**{name: self._parameter(name, defaults[name], *about)
                                         for name, about in PARAMETERS.items()})
        max_rate = self._parameter("max_rate", 10.0, "images segmented per second at most [Hz]", 0.1, 1000.0)
        about = ParameterDescriptor(read_only=True, description="P of camera_info describes the image; false: K does, "
                                                                "and D must be zero")
        self._is_rectified = self.declare_parameter("image_is_rectified", True, about).value
        self._camera_info: CameraInfo | None = None
        self._depth_arrived = time.monotonic()
        self._figures = {"objects": "0", "processing_ms": "0"}
        self._publisher = self.create_publisher(Image, "segmentation", RESULTS)
        self._diagnostics = Diagnostics(self, "segmentation", PERIOD, lambda: self._figures)
        self._depth_input: Subscription | None = None
        self._camera_input: Subscription | None = None
        self._watch()
        self.create_timer(PERIOD, self._watch, clock=Clock(clock_type=ClockType.STEADY_TIME))
        # Last: its thread would outlive a constructor that fails.
        self._worker = Worker(self._process, lambda: 1 / max_rate)

    def destroy_node(self) -> None:
        """Stop the worker, then destroy the node."""
        self._worker.stop()
        super().destroy_node()

    def _parameter(self, name: str, default: float | int, description: str, low: float, high: float) -> float | int:
        descriptor = ParameterDescriptor(description=description, read_only=True)
        if isinstance(default, int):
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
        else:
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high, step=0.0)]
        return self.declare_parameter(name, default, descriptor).value

    def _watch(self) -> None:
        """Subscribe as the publishers' QoS asks for, and notice that no depth comes."""
        self._depth_input = adapted_subscription(self, self._depth_input, Image, "depth_image", self._on_depth)
        self._camera_input = adapted_subscription(self, self._camera_input, CameraInfo, "camera_info",
                                                  functools.partial(setattr, self, "_camera_info"))
        silent = time.monotonic() - self._depth_arrived
        self._diagnostics.report("input", Fault(FaultCode.DEPTH_MISSING, f"for {silent:.1f} s")
                                 if silent > SILENCE else None)

    def _on_depth(self, message: Image) -> None:
        self._depth_arrived = time.monotonic()
        self._worker.put(message)

    def _process(self, message: Image) -> None:
        """Segment one image; in the worker's thread."""
        try:
            self._segment(message)
        except Fault as fault:
            self._diagnostics.report("image", fault)
        except Exception as error:
            log_exception(self, error)
            self._diagnostics.report("image", Fault(FaultCode.INTERNAL_ERROR, repr(error)))
        else:
            self._diagnostics.report("image", None)

    def _segment(self, message: Image) -> None:
        started = time.monotonic()
        if self._camera_info is None:
            raise Fault(FaultCode.CAMERA_INFO_MISSING)
        depth = decode_depth(message)
        intrinsics = decode_camera_info(self._camera_info, message.width, message.height, self._is_rectified)
        labels = segment_tabletop(depth, intrinsics, self._config)
        self._publisher.publish(encode_image(labels, "16UC1", message.header))
        self._figures = {"objects": str(labels.max()), "processing_ms": f"{(time.monotonic() - started) * 1e3:.1f}"}


def main() -> int:
    """Run the node until it is interrupted; the exit status."""
    return run_node(TabletopSegmenter)


if __name__ == "__main__":
    sys.exit(main())
