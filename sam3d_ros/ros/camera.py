"""One camera's input topics, matched in time."""
from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from rclpy.node import Node
from rclpy.qos import ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import Image

from ..perception.faults import Fault, FaultCode
from .frames import message_bytes, type_name
from .images import stamp_ns
from .parameters import Settings
from .qos import adapted_subscription
from .synchroniser import IMAGE, Match, Synchroniser


class CameraInput:
    """Subscriptions and synchroniser of one camera.

    namespace: before its topic names, or empty; types: stream -> message class; optional: streams that may be missing
    on_match: called for every message, with the complete set that it ended, if any; on_fault: for wrong stamps
    """

    def __init__(self, node: Node, namespace: str, types: Mapping[str, type], optional: Collection[str],
                 settings: Settings, on_match: Callable[[CameraInput, Match | None], None],
                 on_fault: Callable[[CameraInput, Fault], None]):
        self.namespace = namespace
        self.synchroniser = Synchroniser([s for s in types if s not in optional], [s for s in types if s in optional],
                                         slop_ns=int(settings.sync_slop * 1e9), history_ns=int(settings.history * 1e9),
                                         max_bytes=settings.history_bytes)
        self._node = node
        self._types = types
        self._reliability = settings.reliability
        self._on_match = on_match
        self._on_fault = on_fault
        self._subscriptions: dict[str, Subscription] = {}
        self.synchroniser.start()
        self.subscribe()

    @property
    def frame_id(self) -> str | None:
        """Of its newest complete set; None before there is one."""
        latest = self.synchroniser.latest
        return latest.messages[IMAGE].header.frame_id if latest else None

    def subscribe(self) -> None:
        """Subscribe to all streams, or subscribe anew where the publishers' QoS asks for it."""
        for stream, kind in self._types.items():
            topic = f"{self.namespace}/{stream}" if self.namespace else stream
            self._subscriptions[stream] = adapted_subscription(
                self._node, self._subscriptions.get(stream), kind, topic,
                functools.partial(self._on_message, stream), self._reliability if kind is Image else "auto")

    def fault(self, timeout: float, now: float | None = None) -> Fault | None:
        """Why there has been no complete set for `timeout` seconds, or None.

        An input that is published, but as another type of message or less reliably than wanted, so that it is not
        received, comes first.
        """
        fault = self.synchroniser.fault(timeout, now)
        if fault is None or not (reasons := [*self._mismatches()]):
            return fault
        return Fault(fault.code, "; ".join([*reasons, fault.detail]))

    def _mismatches(self) -> Iterator[str]:
        for stream, subscription in self._subscriptions.items():
            if self.synchroniser.status[stream].arrival is None:
                topic, wanted = subscription.topic_name, type_name(self._types[stream])
                publishers = self._node.get_publishers_info_by_topic(topic)
                published = {publisher.topic_type for publisher in publishers}
                offered = {publisher.qos_profile.reliability for publisher in publishers}
                if published and wanted not in published:
                    yield f"{topic} is published as {', '.join(sorted(published))}, not as {wanted}"
                elif self._reliability == "reliable" and offered == {ReliabilityPolicy.BEST_EFFORT}:
                    yield f"{topic} is published best effort, and parameter reliability is reliable: set it to auto"

    def destroy(self) -> None:
        """Release the subscriptions."""
        for subscription in self._subscriptions.values():
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def _on_message(self, stream: str, message: Any) -> None:
        try:
            match = self.synchroniser.add(stream, stamp_ns(message.header.stamp), message, message_bytes(message))
        except Fault as fault:
            self._on_fault(self, fault)
        else:
            self._on_match(self, match)


def shared_frame(camera: CameraInput, cameras: Iterable[CameraInput]) -> Fault | None:
    """The fault that another camera's images have the same frame_id as this one's; None if that is not so."""
    twins = [other.namespace for other in cameras if camera.frame_id and other.frame_id == camera.frame_id]
    return Fault(FaultCode.PARAMETER_INVALID, f"parameter cameras: {' and '.join(twins)} share the frame "
                 f"'{camera.frame_id}', so that nothing tells where each is") if len(twins) > 1 else None
