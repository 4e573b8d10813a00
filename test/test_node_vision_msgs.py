"""The node where vision_msgs is installed: detections in and out."""
from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("rclpy")
vision_msgs = pytest.importorskip("vision_msgs.msg", reason="needs vision_msgs, which is not among the wheels of PyPI")

from node_rig import Rig, scene  # noqa: E402
from std_msgs.msg import Header  # noqa: E402

from sam3d_ros.msg import ObjectMesh  # noqa: E402

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("ros")]

TYPES = {"detections": vision_msgs.Detection2DArray}


def detections() -> Any:
    """The detector's message for the scene's object: columns 40 to 51, rows 26 to 35."""
    hypothesis = vision_msgs.ObjectHypothesis(class_id="cup", score=0.75)
    found = vision_msgs.Detection2D(id="track_4", results=[vision_msgs.ObjectHypothesisWithPose(hypothesis=hypothesis)])
    found.bbox.center.position.x, found.bbox.center.position.y = 46.0, 31.0
    found.bbox.size_x, found.bbox.size_y = 12.0, 10.0
    return vision_msgs.Detection2DArray(header=Header(frame_id="camera"), detections=[found])


def test_detections_name_the_objects_and_come_out_in_3d():
    with Rig(types=TYPES) as rig:
        received = rig.collect(vision_msgs.Detection3DArray, "detections_3d")
        rig.send_until(lambda: rig.send(scene() | {"detections": detections()}),
                       lambda: received and rig.objects and rig.objects[-1].objects[0].class_id == "cup")
        mesh = rig.objects[-1].objects[0]
        assert mesh.score == 0.75
        [found] = received[-1].detections
        assert found.results[0].hypothesis.class_id == "cup"
        assert found.bbox.center == found.results[0].pose.pose == mesh.pose.pose
        assert found.bbox.size == mesh.size


def test_masks_are_used_without_detections():
    with Rig(types=TYPES) as rig:
        assert rig.good().objects[0].class_id == ""


def test_boxes_alone_are_marked():
    with Rig(types=TYPES, mask_format="boxes", activate=False) as rig:
        rig.outside.destroy_publisher(rig.publishers.pop("segmentation"))
        rig.node.trigger_configure()
        rig.node.trigger_activate()

        def send() -> None:
            messages = scene() | {"detections": detections()}
            del messages["segmentation"]
            rig.send(messages)
        rig.send_until(send, lambda: rig.objects)
        [mesh] = rig.objects[-1].objects
        assert (mesh.class_id, mesh.status) == ("cup", ObjectMesh.STATUS_LOW_QUALITY)
