"""What goes out when, and to whom, on topics that stand in for ROS's."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")

from rclpy.task import Future  # noqa: E402
from std_msgs.msg import Header  # noqa: E402
from test_messages import HEADER, moveit_stand_in, placed, stand_in  # noqa: E402
from test_messages import hidden as hidden_object  # noqa: E402
from visualization_msgs.msg import Marker  # noqa: E402

from sam3d_ros.perception.frame import Frame, Intrinsics  # noqa: E402
from sam3d_ros.ros import outputs as module  # noqa: E402
from sam3d_ros.ros.images import stamp_message  # noqa: E402
from sam3d_ros.ros.messages import MESH_PERIOD, MeshMemory  # noqa: E402
from sam3d_ros.ros.parameters import Settings  # noqa: E402

FRAME = Frame(np.zeros((4, 4, 3), np.uint8), None, np.zeros((4, 4), np.int32), Intrinsics(4, 4, 4.0, 4.0, 2.0, 2.0),
              frame_id="camera")


class Topic:
    """A publisher; `listen` gives a list that fills as a subscriber's would."""

    def __init__(self, name: str):
        self.topic_name = name
        self.listeners: dict[int, list[Any]] = {}
        self._came = 0

    def listen(self) -> list[Any]:
        self._came += 1
        return self.listeners.setdefault(self._came, [])

    def leave(self, received: list[Any]) -> None:
        self.listeners = {gid: other for gid, other in self.listeners.items() if other is not received}

    def get_subscription_count(self) -> int:
        return len(self.listeners)

    def publish(self, message: Any) -> None:
        for received in self.listeners.values():
            received.append(message)


class Planner:
    """A client of get_planning_scene; `world`: names of what is in the scene, None: there is no service yet."""

    srv_type = SimpleNamespace(Request=SimpleNamespace)

    def __init__(self) -> None:
        self.world: list[str] | None = None
        self.requests: list[int] = []

    def service_is_ready(self) -> bool:
        return self.world is not None

    def call_async(self, request: Any) -> Future:
        self.requests.append(request.components.components)
        objects = [SimpleNamespace(id=name) for name in self.world]
        future = Future()
        future.set_result(SimpleNamespace(scene=SimpleNamespace(world=SimpleNamespace(collision_objects=objects))))
        return future


class Stage:
    """Outputs at a clock that only `publish` moves on; topics by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, namespace: str = "/", **parameters: Any):
        packages = {
            "moveit_msgs.msg": moveit_stand_in(), "moveit_msgs.srv": stand_in("GetPlanningScene"),
            "vision_msgs.msg": stand_in("Detection3DArray", "Detection3D", "BoundingBox3D", "ObjectHypothesis",
                                        "ObjectHypothesisWithPose")}
        monkeypatch.setattr(module, "optional", packages.get)
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.now = 1000.0
        self.topics: dict[str, Topic] = {}
        self.asked = 0
        self.planner = Planner()
        node = SimpleNamespace(
            get_namespace=lambda: namespace, create_client=lambda kind, name: self.planner,
            create_lifecycle_publisher=lambda kind, name, qos: self.topics.setdefault(name, Topic(name)),
            create_subscription=lambda *arguments: None, get_subscriptions_info_by_topic=self._subscribers)
        self.settings = Settings(publish_planning_scene=True, **parameters)
        self.outputs = module.Outputs(node, self.settings)

    def _subscribers(self, name: str) -> list[Any]:
        self.asked += 1
        return [SimpleNamespace(endpoint_gid=[gid]) for gid in self.topics[name].listeners]

    def publish(self, *ids: str, seconds: float = 1 / 30, hidden: str = "", header: Header = HEADER) -> Any:
        self.now += seconds
        objects = [hidden_object(identity) if identity in hidden else placed(identity) for identity in ids]
        return self.outputs.publish(objects, header, FRAME, self.settings, None)

    def until(self, ids: str, seconds: float, each: Callable[[], None] = lambda: None) -> None:
        for _ in range(round(seconds * 30)):
            self.publish(*ids)
            each()


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def meshes(received: list[Any]) -> list[str]:
    """The ids whose meshes came, for each message that had any."""
    return [found for array in received if (found := "".join(o.id for o in array.objects if len(o.vertices)))]


def operations(received: list[Any], place: str = "sam3d") -> str:
    """Of the planning scene: +a added, a moved, -a removed; names without `place`."""
    sign = {b"\0": "+", b"\1": "-", b"\3": ""}
    changes = [change for scene in received for change in scene.world.collision_objects]
    assert all(change.id.startswith(f"{place}/") for change in changes)
    return " ".join(sign[change.operation] + change.id.removeprefix(f"{place}/") for change in changes)


def test_a_subscriber_that_missed_a_mesh_has_it_a_few_seconds_later(stage: Stage):
    received = stage.topics["objects"].listen()
    memory = MeshMemory()
    stage.until("ab", 2.0)
    stage.publish("a", "b", "c")
    received.clear()                                  # its queue was full
    stage.until("abc", MESH_PERIOD + 0.1)
    assert all(array.objects[0].mesh_revision == 9 for array in received)
    assert {o.id for o in memory.complete(received[0]).objects} == set()
    assert [{o.id for o in memory.complete(array).objects} for array in received][-1] == {"a", "b", "c"}


@pytest.mark.parametrize("rate", [30, 1])
def test_meshes_are_sent_again_one_after_the_other(stage: Stage, rate: int):
    stage.publish(*"abcde")
    received = stage.topics["objects"].listen()
    stage.until("abcde", 2.0)                         # greeted
    received.clear()
    times: dict[str, list[float]] = {identity: [] for identity in "abcde"}
    for _ in range(20 * rate):
        stage.publish(*"abcde", seconds=1 / rate)
        for identity in "".join(meshes(received[-1:])):
            times[identity].append(stage.now)
    assert max(len(group) for group in meshes(received)) == 1
    for sent in times.values():
        assert len(sent) in (3, 4)
        assert max(np.diff(sent)) <= MESH_PERIOD + 1.01 / rate


def test_a_mesh_is_sent_anew_when_its_object_returns(stage: Stage):
    received = stage.topics["objects"].listen()
    memory = MeshMemory()
    stage.until("ab", 2.0)
    for array in received:
        memory.complete(array)
    received.clear()
    stage.publish("a")
    stage.publish("a", "b")
    assert meshes(received) == ["b"]
    assert [len(memory.complete(array).objects) for array in received] == [1, 2]


def test_a_subscriber_that_restarts_between_two_images_is_greeted(stage: Stage):
    objects = stage.topics["objects"]
    old = objects.listen()
    stage.until("a", 2.0)
    objects.leave(old)
    new = objects.listen()
    stage.until("a", 0.5)
    assert meshes(new) == ["a"]


def test_subscribers_are_asked_for_a_few_times_a_second(stage: Stage):
    stage.topics["objects"].listen()
    stage.until("a", 4.0)
    assert 4 <= stage.asked <= 4 * 6


def test_a_planner_that_comes_later_gets_every_obstacle(stage: Stage):
    scene = stage.topics["planning_scene"]
    stage.until("ab", 3.0)
    first = scene.listen()
    stage.publish("a", "b", hidden="b")
    assert operations(first).startswith("+a +b")
    stage.until("ab", 3.0)
    second = scene.listen()
    first.clear()
    stage.publish("b", "c")
    assert operations(second) == operations(first) == "-a +b +c"
    stage.until("bc", 0.9)
    second.clear()
    stage.until("bc", 0.4)                            # it has surely been matched by both sides
    assert "+b +c" in operations(second)
    second.clear()
    stage.until("bc", 3.0)
    assert "+" not in operations(second) and "b c" in operations(second)


def test_a_planner_that_restarts_gets_every_obstacle(stage: Stage):
    scene = stage.topics["planning_scene"]
    old = scene.listen()
    stage.until("ab", 3.0)
    scene.leave(old)
    new = scene.listen()
    stage.until("ab", 0.3)
    assert "+a +b" in operations(new)


@pytest.mark.parametrize(("namespace", "place"), [("/", "sam3d"), ("/left", "sam3d/left")])
def test_what_an_earlier_run_left_in_the_planning_scene_goes(monkeypatch: pytest.MonkeyPatch, namespace: str,
                                                             place: str):
    """And nothing else: neither other nodes' objects nor those that the user put there."""
    stage = Stage(monkeypatch, namespace)
    scene, planner = stage.topics["planning_scene"].listen(), stage.planner
    stage.until("a", 0.5)
    planner.world = [f"{place}/{name}" for name in ("a", "b", "other/a")] + ["a", "object_1", "sam3d_left/a", "sam/a"]
    scene.clear()
    stage.until("a", 0.1)
    assert operations(scene, place).startswith("-b a")
    assert planner.requests == [16]
    stage.until("a", 3.0)                             # once more, when it has surely been matched by both sides
    assert operations(scene, place).count("-b") == 2 and len(planner.requests) == 2


def test_header_and_pose_of_a_hidden_object_agree(stage: Stage):
    """In the camera frame its pose is that of the present moment, and of the last look in a frame that stands still."""
    [shown, still] = stage.publish("a", "b", hidden="b").objects
    assert (shown.header.stamp, still.header.stamp) == (HEADER.stamp, stamp_message(4_000_000_001))
    in_camera = Header(stamp=HEADER.stamp, frame_id="camera")
    assert [o.header for o in stage.publish("a", "b", hidden="b", header=in_camera).objects] == [in_camera] * 2


def test_markers_that_are_switched_off_go(stage: Stage):
    received = stage.topics["markers"].listen()
    stage.publish("a", "b")
    stage.settings = replace(stage.settings, publish_markers=False)
    stage.until("ab", 2.0)
    [shown, gone] = received
    assert {m.id for m in shown.markers} == {m.id for m in gone.markers if m.action == Marker.DELETE}


def test_clear_empties_every_topic(stage: Stage):
    received = {name: stage.topics[name].listen() for name in ("objects", "poses", "detections_3d", "planning_scene")}
    stage.until("ab", 3.0)
    for messages in received.values():
        messages.clear()
    stage.outputs.clear()
    assert operations(received.pop("planning_scene")) == "-a -b"
    for messages, field in zip(received.values(), ("objects", "poses", "detections"), strict=True):
        [empty] = messages
        assert (empty.header, len(getattr(empty, field))) == (HEADER, 0)
    stage.publish("a", "b")
    assert meshes(received["objects"]) == ["ab"]      # whoever took the empty array has forgotten the meshes


def test_clear_before_the_first_result_tells_nothing(stage: Stage):
    received = stage.topics["objects"].listen()
    stage.outputs.clear()
    assert received == []
