"""Quality of service of the subscriptions and publishers."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from rclpy.topic_endpoint_info import TopicEndpointInfo

# Results: every one arrives, and a slow subscriber holds up only the last few.
RESULTS = QoSProfile(depth=5, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.RELIABLE)
# Images wait in the node's own history; this queue only bridges the time in which the executor is busy.
_INPUT_DEPTH = 10


def _input_qos(reliability: str, publishers: Sequence[TopicEndpointInfo]) -> QoSProfile:
    """QoS for an input topic with the given publishers.

    reliability: "reliable", "best_effort" or "auto".  A reliable subscription hears nothing from a best-effort
    publisher, and a best-effort one loses most large images on Fast DDS's default transport: so auto takes reliable
    unless a publisher offers only best effort.  A camera_info that is published once (transient local) is asked for,
    too.
    """
    if reliability == "auto":
        best_effort = any(p.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT for p in publishers)
    else:
        best_effort = reliability == "best_effort"
    latched = bool(publishers) and not best_effort and \
        all(p.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for p in publishers)
    return QoSProfile(
        depth=_INPUT_DEPTH, history=HistoryPolicy.KEEP_LAST,
        reliability=ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE)


def adapted_subscription(node: Node, present: Subscription | None, message_type: type, topic: str,
                         callback: Callable[[Any], None], reliability: str = "auto") -> Subscription:
    """Subscription to `topic` with the QoS that its publishers now ask for: `present`, or a new one in its place."""
    name = present.topic_name if present else node.resolve_topic_name(topic)
    wanted = _input_qos(reliability, node.get_publishers_info_by_topic(name))
    if present:
        had = present.qos_profile
        if (had.reliability, had.durability) == (wanted.reliability, wanted.durability):
            return present
        node.destroy_subscription(present)
    return node.create_subscription(message_type, topic, callback, wanted)
