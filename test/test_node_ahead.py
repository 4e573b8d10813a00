"""The node with a detector that lags: poses for images whose masks have not come."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy")

from node_rig import HeldPipeline, Rig, scene  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from sensor_msgs.msg import Image, PointCloud2  # noqa: E402
from test_node import POSITION  # noqa: E402

from sam3d_ros.ros.images import decode_pixels, stamp_ns  # noqa: E402
from sam3d_ros.ros.transforms import matrix_from_pose  # noqa: E402

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("ros")]

LAG, EVERY = 4, 3         # images


class Lagging:
    """Sends images to a rig, and the masks of every third, four images late, while `masks`."""

    def __init__(self, rig: Rig, **arguments: Any):
        self.rig = rig
        self.arguments = arguments
        self.masks = True
        self.masked: list[int] = []       # stamps of the masks that were sent
        self._due: list[tuple[int, Any]] = []
        self._count = 0

    def send(self) -> None:
        messages = scene(**self.arguments)
        masks = messages.pop("segmentation")
        newest = self.rig.send(messages)
        if self._count % EVERY == 0 and self.masks:
            self._due.append((newest + LAG * 40_000_000, masks))
        self._count += 1
        if self._due and self._due[0][0] <= newest:
            stamp, masks = self._due.pop(0)
            self.masked.append(stamp - LAG * 40_000_000)
            self.rig.send({"segmentation": masks}, self.masked[-1])
            self.rig.stamp = newest

    def stamps(self) -> list[int]:
        """Of the results."""
        return [stamp_ns(array.header.stamp) for array in self.rig.objects]

    def until_ahead(self) -> None:
        """Send until there are results for images without masks."""
        self.rig.send_until(self.send, lambda: len({*self.stamps()} - {*self.masked}) > 3)


def test_poses_come_for_images_without_masks():
    with Rig() as rig:
        camera = Lagging(rig)
        camera.until_ahead()
        rig.objects.clear()
        first = rig.stamp
        for _ in range(30):
            camera.send()
            rig.spin(0.04)
        rig.wait(lambda: camera.stamps()[-1] == rig.stamp)
        stamps = camera.stamps()
        assert stamps == sorted(stamps)
        assert len({stamp for stamp in stamps if stamp > first}) > 24        # of 30; masks came for 10, late
        for array in rig.objects:
            [found] = array.objects
            assert (found.id, found.status) == ("object_1", 0)
            np.testing.assert_allclose(matrix_from_pose(found.pose.pose)[:3, 3], POSITION, atol=3e-3)
        assert {*rig.codes()} == {"OK"}


def test_a_new_object_of_late_masks_appears_in_the_newest_image():
    with Rig(HeldPipeline()) as rig:
        camera = Lagging(rig)
        rig.pipeline.go_on.set()
        camera.until_ahead()
        rig.pipeline.go_on.clear()
        rig.pipeline.busy.clear()
        camera.arguments = {"two": True}
        rig.send_until(camera.send, rig.pipeline.busy.is_set)
        for _ in range(2 * EVERY + 1):                # images, and masks of some, while the object is rebuilt
            camera.send()
            rig.wait(lambda: camera.stamps()[-1] == rig.stamp)
        newest = rig.stamp
        assert all(len(array.objects) == 1 for array in rig.objects) and newest > max(camera.masked)
        rig.pipeline.go_on.set()
        rig.send_until(camera.send, lambda: len(rig.objects[-1].objects) == 2)
        first = next(stamp for stamp, array in zip(camera.stamps(), rig.objects, strict=True)
                     if len(array.objects) == 2)
        assert first >= newest
        rig.send_until(camera.send, lambda: len(rig.objects[-1].objects) == 2 and camera.stamps()[-1] > first)
        assert camera.stamps() == sorted(camera.stamps())
        assert {item.id for item in rig.objects[-1].objects} == {"object_1", "object_2"}
        assert all(item.status == 0 for item in rig.objects[-1].objects)


def test_switched_off_poses_come_with_the_masks():
    with Rig(follow_ahead=False) as rig:
        camera = Lagging(rig)
        rig.send_until(camera.send, lambda: len({*camera.stamps()}) > 5)
        assert {*camera.stamps()} <= {*camera.masked}
        rig.node.set_parameters([Parameter("follow_ahead", value=True)])
        camera.until_ahead()
        rig.node.set_parameters([Parameter("follow_ahead", value=False)])
        rig.spin(0.1)                                 # what was on its way
        rig.objects.clear()
        rig.send_until(camera.send, lambda: len({*camera.stamps()}) > 3)
        assert {*camera.stamps()} <= {*camera.masked}


def test_poses_go_on_when_masks_stop_which_is_diagnosed():
    with Rig(input_timeout=0.5) as rig:
        camera = Lagging(rig)
        camera.until_ahead()
        camera.masks = False
        rig.send_until(camera.send, lambda: rig.codes()[-1] == "MASK_MISSING")
        for _ in range(10):
            camera.send()
            rig.spin(0.04)
        rig.wait(lambda: camera.stamps()[-1] == rig.stamp)
        assert [(item.id, item.status) for item in rig.objects[-1].objects] == [("object_1", 0)]
        assert rig.codes()[-1] == "MASK_MISSING"


def test_what_masks_tell_is_published_with_them():
    """The points of each object, and the picture with the masks: in every third image, late, but for all of these."""
    with Rig() as rig:
        points, pictures = rig.collect(PointCloud2, "object_points"), rig.collect(Image, "debug/image")
        camera = Lagging(rig)
        camera.until_ahead()
        points.clear(), pictures.clear()
        rig.send_until(camera.send, lambda: len(points) > 4 and len(pictures) > 4)
        for message in (*points, *pictures):
            assert stamp_ns(message.header.stamp) in camera.masked
        assert {message.width for message in points} == {120}
        assert not np.array_equal(decode_pixels(pictures[-1]), decode_pixels(scene()["image"]))


def test_masks_that_keep_up_are_not_followed_ahead(monkeypatch: pytest.MonkeyPatch):
    with Rig() as rig:
        def fail(frame: Any) -> None:
            raise AssertionError(frame.stamp_ns)
        monkeypatch.setattr(rig.node._scene._ahead, "update", fail)
        rig.good()
        for _ in range(30):
            rig.send(scene())
            rig.spin(0.03)
        assert len(rig.objects) > 20
        assert {*rig.codes()} == {"OK"}


def test_a_node_that_is_cleared_while_it_is_ahead_begins_anew():
    with Rig() as rig:
        camera = Lagging(rig)
        camera.until_ahead()
        rig.node._scene.retire()
        rig.wait(lambda: not rig.objects[-1].objects)
        rig.send_until(camera.send, lambda: rig.objects[-1].objects)
        assert [item.id for item in rig.objects[-1].objects] == ["object_2"]
