"""Goals of the action `reconstruct`."""
from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")

from action_msgs.msg import GoalStatus  # noqa: E402
from geometry_msgs.msg import Point  # noqa: E402
from node_rig import FOCAL, HEIGHT, OBJECT, WIDTH, BlockPipeline, HeldPipeline, RefusingPipeline, Rig, scene  # noqa: E402
from rclpy.action import ActionClient  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from sensor_msgs.msg import RegionOfInterest  # noqa: E402
from stand_ins import provide_tf2_ros  # noqa: E402
from test_node import SIDES, send_side, two_cameras  # noqa: E402

from sam3d_ros.action import Reconstruct  # noqa: E402
from sam3d_ros.msg import ObjectMeshArray  # noqa: E402
from sam3d_ros.nodes.sam3d_node import SUCCESS  # noqa: E402
from sam3d_ros.perception.pipeline import PipelineResult  # noqa: E402
from sam3d_ros.ros.images import stamp_message, stamp_ns  # noqa: E402
from sam3d_ros.ros.transforms import matrix_from_pose  # noqa: E402

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("ros")]

# Mean pixels of the scene's objects 7 and 8, and what these are at 0.8 m.
COLUMN, ROW = 45.5, 30.5
POSITION, BESIDE = (np.array([(column - WIDTH / 2) / FOCAL * OBJECT, (row - HEIGHT / 2) / FOCAL * OBJECT, OBJECT])
                    for column, row in ((COLUMN, ROW), (15.5, 10.5)))
two_objects = functools.partial(scene, two=True)


class Goal:
    """One goal, sent and followed."""

    def __init__(self, rig: Rig, goal: Reconstruct.Goal):
        self.rig = rig
        self.stages: list[str] = []
        self.client = ActionClient(rig.outside, Reconstruct, "reconstruct")
        rig.wait(self.client.server_is_ready)
        future = self.client.send_goal_async(goal, lambda message: self.stages.append(message.feedback.stage))
        rig.wait(future.done)
        self.handle = future.result()

    def result(self, messages: Callable[[], dict[str, Any]] | None = scene) -> Any:
        """Status and result; while waiting, frames are sent."""
        future = self.handle.get_result_async()
        self.rig.send_until(lambda: self.rig.send(messages()) if messages else None, future.done)
        self.client.destroy()
        return future.result()


@pytest.fixture
def on_demand() -> Iterator[Rig]:
    with Rig(BlockPipeline(delay=0.05), enabled=False, input_timeout=1.0) as rig:
        yield rig


def test_a_goal_to_a_camera_with_the_frame_of_another_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch):
    with two_cameras(monkeypatch, target_frame="base", input_timeout=1.0) as rig:
        def send() -> None:
            for side in SIDES:
                rig.send({f"{side}/{name}": message for name, message in scene().items()})
        rig.send_until(send, lambda: "PARAMETER_INVALID" in rig.codes())
        future = (goal := Goal(rig, Reconstruct.Goal())).handle.get_result_async()
        rig.send_until(send, future.done)
        goal.client.destroy()
        assert not future.result().result.success and "share the frame" in future.result().result.message


def test_goal_for_everything(on_demand: Rig):
    goal = Goal(on_demand, Reconstruct.Goal())
    response = goal.result()
    assert response.status == GoalStatus.STATUS_SUCCEEDED
    assert response.result.success
    assert len(response.result.objects.objects) == 1
    assert goal.stages == ["WAITING", "EVIDENCE", "INFERENCE", "SURFACE", "DONE"]


@pytest.mark.parametrize("goal", [
    Reconstruct.Goal(labels=[7]),
    Reconstruct.Goal(points=[Point(x=COLUMN, y=ROW)]),
    Reconstruct.Goal(boxes=[RegionOfInterest(x_offset=40, y_offset=26, width=12, height=10)]),
], ids=["label", "point", "box"])
def test_goal_for_one_object(on_demand: Rig, goal: Reconstruct.Goal):
    response = Goal(on_demand, goal).result()
    assert response.status == GoalStatus.STATUS_SUCCEEDED
    [found] = response.result.objects.objects
    np.testing.assert_allclose(matrix_from_pose(found.pose.pose)[:3, 3], POSITION, atol=3e-3)
    assert len(found.vertices) == 24
    assert found.status == (1 if goal.boxes else 0)


@pytest.mark.parametrize(("goal", "words"), [
    (Reconstruct.Goal(labels=[8]), ("MASK_EMPTY", "8")),
    (Reconstruct.Goal(points=[Point(x=3.0, y=4.0)]), ("MASK_EMPTY", "(3, 4)")),
], ids=["label", "point"])
def test_goal_for_nothing_is_aborted_by_name(on_demand: Rig, goal: Reconstruct.Goal, words: tuple[str, str]):
    response = Goal(on_demand, goal).result()
    assert response.status == GoalStatus.STATUS_ABORTED
    assert not response.result.success
    assert all(word in response.result.message for word in words)


def test_goal_without_images_is_aborted_by_name(on_demand: Rig):
    response = Goal(on_demand, Reconstruct.Goal()).result(messages=None)
    assert response.status == GoalStatus.STATUS_ABORTED
    assert "IMAGE_MISSING" in response.result.message


def test_goal_can_be_cancelled(on_demand: Rig):
    goal = Goal(on_demand, Reconstruct.Goal())
    on_demand.wait(lambda: goal.stages == ["WAITING"])
    cancelled = goal.handle.cancel_goal_async()
    on_demand.wait(cancelled.done)
    response = goal.result(messages=None)
    assert (response.status, response.result.message) == (GoalStatus.STATUS_CANCELED, "cancelled")


@pytest.mark.parametrize("are_begun", [False, True], ids=["without an image", "at work"])
def test_goals_of_a_node_that_is_deactivated_are_aborted_by_name(are_begun: bool):
    with Rig(HeldPipeline(), enabled=False, input_timeout=20.0) as rig:
        goals = [Goal(rig, Reconstruct.Goal()) for _ in range(2)]
        if are_begun:                                 # the first is; the second waits for its end
            rig.send_until(lambda: rig.send(scene()), rig.pipeline.busy.is_set)
        assert rig.node.trigger_deactivate() == SUCCESS
        rig.pipeline.go_on.set()
        for goal in goals:
            response = goal.result(messages=None)
            assert response.status == GoalStatus.STATUS_ABORTED and not response.result.success
            assert "deactivated" in response.result.message


def test_goal_is_rejected_while_inactive():
    with Rig(activate=False) as rig:
        assert not Goal(rig, Reconstruct.Goal()).handle.accepted


def places(objects: ObjectMeshArray) -> dict[str, np.ndarray]:
    """Id -> (3,) metres."""
    return {item.id: matrix_from_pose(item.pose.pose)[:3, 3] for item in objects.objects}


def test_goals_for_one_object_after_the_other(on_demand: Rig):
    """Each answers for its own; what is known of the other stays, and is published with it."""
    found = {}
    for label in (7, 8, 7, 8):
        response = Goal(on_demand, Reconstruct.Goal(labels=[label])).result(two_objects)
        [(identity, place)] = places(response.result.objects).items()
        assert found.setdefault(label, identity) == identity
        np.testing.assert_allclose(place, POSITION if label == 7 else BESIDE, atol=3e-3)
    assert found[7] != found[8]
    on_demand.wait(lambda: len(on_demand.objects) == 4)
    assert [len(array.objects) for array in on_demand.objects] == [1, 2, 2, 2]
    assert all(item.status == 0 for array in on_demand.objects for item in array.objects)


def test_goals_for_one_box_after_the_other_keep_what_was_found(on_demand: Rig):
    """Seconds apart; nobody looked for the first in the image of the second, and the depth shows it."""
    for x, y in ((40, 26), (10, 6)):
        on_demand.stamp += 5_000_000_000
        on_demand.send(two_objects())
        on_demand.wait(lambda: (latest := on_demand.node._cameras[0].synchroniser.latest)
                       and latest.stamp_ns == on_demand.stamp)
        box = Reconstruct.Goal(boxes=[RegionOfInterest(x_offset=x, y_offset=y, width=12, height=10)])
        assert Goal(on_demand, box).result(two_objects).status == GoalStatus.STATUS_SUCCEEDED
    on_demand.wait(lambda: len(on_demand.objects) == 2)
    assert [len(array.objects) for array in on_demand.objects] == [1, 2]


def test_a_goal_among_images_that_are_worked_on():
    with Rig(BlockPipeline(delay=0.3)) as rig:
        rig.send_until(lambda: rig.send(two_objects()), lambda: rig.objects and len(rig.objects[-1].objects) == 2)
        known = places(rig.objects[-1])
        before = len(rig.objects)
        response = Goal(rig, Reconstruct.Goal(labels=[7])).result(two_objects)
        rig.send(two_objects())
        rig.spin(0.2)
        [(identity, place)] = places(response.result.objects).items()
        np.testing.assert_allclose(place, known[identity], atol=3e-3)
        for array in rig.objects[before:]:
            assert {item.id: item.status for item in array.objects} == dict.fromkeys(known, 0)
        stamps = [stamp_ns(array.header.stamp) for array in rig.objects]
        assert stamps == sorted(stamps)


def test_a_goal_while_the_camera_moves_answers_in_the_target_frame(monkeypatch: pytest.MonkeyPatch):
    """5 cm/s to the right, looking down from 1 m, so that the object stays in view; the pipeline takes a second."""
    provide_tf2_ros(monkeypatch)
    with Rig(BlockPipeline(delay=1.0), target_frame="base", enabled=False) as rig:
        start = rig.stamp
        for seconds in (0, 20):
            rig.set_transform(np.array([[1, 0, 0, 0.05 * seconds], [0, -1, 0, 0], [0, 0, -1, 1.0], [0, 0, 0, 1]]),
                              seconds)

        def picture() -> dict[str, Any]:
            return scene(shift=round(0.05 * (rig.stamp + 40_000_000 - start) / 1e9 * FOCAL / OBJECT))
        for enabled in (False, True):
            rig.node.set_parameters([Parameter("enabled", value=enabled)])
            response = Goal(rig, Reconstruct.Goal(labels=[7])).result(picture)
            [place] = places(response.result.objects).values()
            np.testing.assert_allclose(place, [POSITION[0], -POSITION[1], 1.0 - OBJECT], atol=0.01)


def test_a_goal_that_comes_to_nothing_is_aborted_by_name():
    with Rig(RefusingPipeline(7), enabled=False) as rig:
        response = Goal(rig, Reconstruct.Goal(labels=[7])).result(two_objects)
        assert response.status == GoalStatus.STATUS_ABORTED and not response.result.success
        assert "TOO_FEW_POINTS: label 7" in response.result.message
        response = Goal(rig, Reconstruct.Goal(labels=[7, 8])).result(two_objects)
        assert response.status == GoalStatus.STATUS_SUCCEEDED and "TOO_FEW_POINTS: label 7" in response.result.message
        [place] = places(response.result.objects).values()
        np.testing.assert_allclose(place, BESIDE, atol=3e-3)


class Guessing(BlockPipeline):
    """Stands in for shapes from colour alone, a metre away."""

    def run(self, frame: Any, earlier: Any, on_stage: Any, others: Any) -> PipelineResult:
        assert frame.depth is None
        return super().run(replace(frame, depth=np.ones(frame.labels.shape, np.float32)), earlier, on_stage, others)


def test_what_a_goal_finds_without_depth_is_seen():
    with Rig(Guessing(), activate=False, use_depth=False, enabled=False) as rig:
        rig.outside.destroy_publisher(rig.publishers.pop("depth_image"))
        assert rig.node.trigger_configure() == rig.node.trigger_activate() == SUCCESS
        rig.wait(lambda: all(p.get_subscription_count() for p in rig.publishers.values()))

        def picture() -> dict[str, Any]:
            return {name: message for name, message in scene().items() if name != "depth_image"}
        [found] = Goal(rig, Reconstruct.Goal(labels=[7])).result(picture).result.objects.objects
        assert found.status == 0 and found.visible_fraction == pytest.approx(0.4)


def test_masks_and_goals_that_come_after_a_goal_for_a_box_do_not_take_the_objects_back(monkeypatch: pytest.MonkeyPatch):
    """A box in the newest image, whose masks have not come; another camera's image; then the masks of an older one."""
    with two_cameras(monkeypatch, target_frame="base", input_timeout=10.0) as rig:
        messages, left = scene(), rig.node._cameras[0].synchroniser
        masks = messages.pop("segmentation")
        stamps = [send_side(rig, "left", messages) for _ in range(3)]
        rig.wait(lambda: (newest := left.newest(left.without_masks)) and newest.stamp_ns == stamps[-1])
        box = Reconstruct.Goal(boxes=[RegionOfInterest(x_offset=40, y_offset=26, width=12, height=10)])
        [found] = Goal(rig, box).result(messages=None).result.objects.objects
        send_side(rig, "right", scene())
        rig.wait(lambda: rig.objects[-1].header.stamp == stamp_message(rig.stamp))
        send_side(rig, "left", {"segmentation": masks}, stamps[0])
        rig.spin(0.3)
        for goal in (None, Reconstruct.Goal(labels=[7])):
            if goal:
                response = Goal(rig, goal).result(messages=None)
                assert response.status == GoalStatus.STATUS_SUCCEEDED
                assert [item.id for item in response.result.objects.objects] == [found.id]
            assert rig.node._scene._tracker._newest_ns["left"] == stamps[-1]


def test_a_goal_for_a_box_does_not_overtake_the_masks():
    """They come three images late."""
    with Rig(BlockPipeline(delay=0.05)) as rig:
        late: list[tuple[int, Any]] = []

        def send() -> None:
            messages = scene()
            masks = messages.pop("segmentation")
            late.append((rig.send(messages), masks))
            if len(late) > 3:
                stamp, masks = late.pop(0)
                newest = rig.stamp
                rig.send({"segmentation": masks}, stamp)
                rig.stamp = newest
        rig.send_until(send, lambda: rig.objects and rig.objects[-1].objects)
        box = Reconstruct.Goal(boxes=[RegionOfInterest(x_offset=40, y_offset=26, width=12, height=10)])
        goal = Goal(rig, box)
        future = goal.handle.get_result_async()
        rig.send_until(send, future.done)
        assert future.result().status == GoalStatus.STATUS_SUCCEEDED
        before = len(rig.objects)
        rig.send_until(send, lambda: len(rig.objects) > before + 3)
        stamps = [stamp_ns(array.header.stamp) for array in rig.objects]
        assert stamps == sorted(stamps)
        assert {item.id for array in rig.objects for item in array.objects} == {"object_1"}
