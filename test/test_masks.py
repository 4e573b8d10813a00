"""Instance masks of all formats, and what is wrong with some."""
from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from caught import fault_of

from sam3d_ros.perception import masks
from sam3d_ros.perception.faults import Fault, FaultCode
from sam3d_ros.perception.frame import Instance
from sam3d_ros.perception.masks import Detection


def blocks(**areas: tuple[slice, slice]) -> np.ndarray:
    """(40, 60) labels with label n in the area given as l<n>."""
    labels = np.zeros((40, 60), np.int32)
    for name, area in areas.items():
        labels[area] = int(name[1:])
    return labels


TWO = blocks(l3=(slice(5, 15), slice(5, 15)), l8=(slice(20, 38), slice(30, 50)))


def test_binary_and_integer_labels():
    np.testing.assert_array_equal(masks.binary_labels(np.array([[0, 255], [1, 0]], np.uint8)), [[0, 1], [1, 0]])
    np.testing.assert_array_equal(masks.integer_labels(np.array([[-1, 0], [3, 70000]], np.int32)), [[0, 0], [3, 70000]])


def test_gazebo_labels():
    pixels = np.array([[[5, 5, 5], [0, 0, 0]]], np.uint8)
    np.testing.assert_array_equal(masks.gz_semantic_labels(pixels), [[5, 0]])
    # R = 44, G = 1: instance 300; B = 2: class 2.  Class 0 is background whatever the instance.
    pixels = np.array([[[44, 1, 2], [44, 1, 0]]], np.uint8)
    labels = masks.gz_panoptic_labels(pixels)
    np.testing.assert_array_equal(labels, [[2 * 65536 + 300, 0]])
    renumbered, old = masks.renumber(labels)
    np.testing.assert_array_equal(renumbered, [[1, 0]])
    assert old == [2 * 65536 + 300]


def test_nearest_neighbour_resize_makes_no_new_labels_and_keeps_places():
    small = np.zeros((20, 30), np.int32)
    small[5:10, 15:20] = 9
    large = masks.resize_nearest(small, 40, 60)
    assert set(np.unique(large)) == {0, 9}
    np.testing.assert_array_equal(masks.bounding_box(large == 9), [30, 10, 40, 20])
    np.testing.assert_array_equal(masks.resize_nearest(large, 20, 30), small)


def test_resize_refuses_another_aspect_ratio_but_not_rounding():
    assert masks.resize_nearest(np.zeros((160, 213)), 480, 640).shape == (480, 640)
    assert fault_of(masks.resize_nearest, np.zeros((640, 640)), 480, 640) == FaultCode.MASK_SIZE_MISMATCH
    assert fault_of(masks.resize_nearest, np.zeros((0, 0)), 480, 640) == FaultCode.MASK_SIZE_MISMATCH


def test_polygon_and_box():
    polygon = masks.fill_polygon(np.array([[10, 5], [20, 5], [20, 15], [10, 15]]), 40, 60)
    np.testing.assert_array_equal(masks.bounding_box(polygon), [10, 5, 21, 16])
    assert polygon.sum() == 11 * 11
    assert not masks.fill_polygon(np.array([[10, 5], [20, 5]]), 40, 60).any()
    box = masks.fill_box(np.array([-5, 30, 10, 100]), 40, 60)
    np.testing.assert_array_equal(masks.bounding_box(box), [0, 30, 10, 40])
    for outside in ([70, 5, 80, 10], [-9, 5, -3, 10], [5, -9, 10, -3]):
        assert not masks.fill_box(np.array(outside), 40, 60).any()


def test_the_smaller_mask_lies_on_top():
    small, large = np.zeros((40, 60), bool), np.zeros((40, 60), bool)
    small[10:14, 10:14], large[5:30, 5:30] = True, True
    for stack in ([small, large], [large, small]):
        labels = masks.stack_labels(stack, 40, 60)
        assert labels[12, 12] == [m is small for m in stack].index(True) + 1
        assert (labels == labels[12, 12]).sum() == 16


def test_areas():
    assert masks.label_areas(TWO) == {3: 100, 8: 360}


def test_detections_are_matched_by_overlap():
    instances = [Instance(3), Instance(8)]
    detections = [Detection(np.array([29, 19, 51, 39]), "cup", 0.9, "a"), Detection(np.array([0, 20, 9, 30]), "box")]
    found = masks.with_detections(TWO, instances, detections)
    assert found == (Instance(3), Instance(8, "cup", 0.9, "a"))
    assert masks.box_overlap(np.array([0, 0, 2, 2]), np.array([1, 1, 3, 3])) == pytest.approx(1 / 7)


def test_a_mask_without_a_pixel_does_not_spoil_those_beside_it():
    mask = np.zeros((20, 20), bool)
    mask[5:9, 5:9] = True
    labels = masks.stack_labels([mask, mask], 20, 20)             # found twice: the one covers the other
    found = masks.with_detections(labels, (Instance(1), Instance(2)), [Detection(np.array([5, 5, 9, 9.0]), "cup")])
    assert sorted(instance.class_id for instance in found) == ["", "cup"]


def test_a_class_that_is_not_wanted_may_cover_the_image():
    labels = np.ones((100, 100), np.int32)
    labels[40:45, 40:45] = 2
    found = masks.select(labels, (Instance(1, "floor"), Instance(2, "cup")), 16, frozenset({"cup"}))
    assert [instance.label for instance in found.instances] == [2]


def test_select_keeps_the_largest_in_the_order_of_labels():
    labels = blocks(l1=(slice(0, 2), slice(0, 2)), l4=(slice(10, 20), slice(10, 20)), l2=(slice(30, 38), slice(30, 38)))
    chosen = masks.select(labels, [Instance(label) for label in (1, 4, 2, 99)], 2)
    assert [i.label for i in chosen.instances] == [2, 4]
    assert chosen.absent == (Instance(99),)
    assert [fault.code for fault in chosen.warnings] == [FaultCode.TOO_MANY_OBJECTS]
    assert chosen.labels is labels


def test_select_by_class():
    instances = [Instance(3, "cup"), Instance(8, "box")]
    assert masks.select(TWO, instances, 9, frozenset({"box"})).instances == (Instance(8, "box"),)
    assert fault_of(masks.select, TWO, instances, 9, frozenset({"bowl"})) == FaultCode.MASK_EMPTY


def test_select_faults():
    assert fault_of(masks.select, np.zeros((4, 4), np.int32), [], 9) == FaultCode.MASK_EMPTY
    assert fault_of(masks.select, np.ones((4, 4), np.int32), [Instance(1)], 9) == FaultCode.MASK_ALL_FOREGROUND
    nearly = np.ones((10, 10), np.int32)
    nearly[0, :4] = 0
    assert fault_of(masks.select, nearly, [Instance(1)], 9) == FaultCode.MASK_ALL_FOREGROUND
    nearly[0, :5] = 0
    assert masks.select(nearly, [Instance(1)], 9).instances == (Instance(1),)


# Messages

def decode(message, detections=None, **settings):
    pytest.importorskip("sensor_msgs")
    from sam3d_ros.ros.parameters import Settings
    from sam3d_ros.ros.segmentation import decode_segmentation
    return decode_segmentation(message, detections, 40, 60, Settings(**settings))


def mask_image(pixels: np.ndarray, encoding: str):
    pytest.importorskip("sensor_msgs")
    from std_msgs.msg import Header

    from sam3d_ros.ros.images import encode_image
    return encode_image(pixels, encoding, Header())


@pytest.mark.parametrize(("encoding", "dtype"), [("mono8", np.uint8), ("16UC1", np.uint16), ("32SC1", np.int32)])
def test_label_images(encoding: str, dtype: type):
    segmentation = decode(mask_image(TWO.astype(dtype), encoding))
    np.testing.assert_array_equal(segmentation.labels, TWO)
    assert segmentation.instances == (Instance(3), Instance(8))


def test_large_labels_are_renumbered():
    segmentation = decode(mask_image(np.where(TWO == 8, 2_000_000_000, TWO).astype(np.int32), "32SC1"))
    np.testing.assert_array_equal(segmentation.labels, np.where(TWO == 8, 2, np.where(TWO == 3, 1, 0)))
    assert [i.number for i in segmentation.instances] == [3, 2_000_000_000]
    assert [i.detector_id for i in segmentation.instances] == ["", ""]


def test_large_labels_keep_their_numbers_beside_a_detection():
    detections = SimpleNamespace(detections=[
        detection_2d(40, 29, 20, 18, hypothesis("cup", 0.7), identity="t5")])
    large = np.where(TWO == 8, 2_000_000_000, TWO).astype(np.int32)
    cup = decode(mask_image(large, "32SC1"), detections).instances[1]
    assert (cup.number, cup.class_id, cup.detector_id) == (2_000_000_000, "cup", "t5")


def test_one_large_mask_over_the_image_is_named_by_its_number():
    with pytest.raises(Fault, match="label 70000 has 100%"):
        decode(mask_image(np.full((40, 60), 70000, np.int32), "32SC1"))


# Goals

def chosen(segmentation: masks.Segmentation, **goal) -> list[int]:
    """Numbers of the instances that a goal means."""
    pytest.importorskip("rclpy")
    from sam3d_ros.action import Reconstruct
    from sam3d_ros.ros.goal_masks import choose
    return [i.number for i in choose(Reconstruct.Goal(**goal), segmentation, 40, 60, 9).instances]


def panoptic(labels: np.ndarray) -> masks.Segmentation:
    """Masks of Gazebo's panoptic camera: instance 5 of the class that `labels` gives."""
    pixels = np.stack([(labels > 0) * 5, labels * 0, labels], axis=2).astype(np.uint8)
    return decode(mask_image(pixels, "rgb8"), mask_format="gz_panoptic")


def test_a_goal_gives_labels_as_they_are_published():
    from geometry_msgs.msg import Point
    third, eighth = 3 * 65536 + 5, 8 * 65536 + 5
    assert chosen(panoptic(TWO), labels=[eighth]) == [eighth]
    points = [Point(x=40.0, y=30.0), Point(x=7.0, y=7.0)]
    assert chosen(panoptic(TWO), labels=[eighth], points=points) == [eighth, third]
    assert chosen(panoptic(np.where(TWO == 8, TWO, 0)), labels=[eighth]) == [eighth]


def test_a_goal_for_another_label_is_told_the_published_ones():
    with pytest.raises(Fault) as caught:
        chosen(panoptic(TWO), labels=[1, 2])
    assert caught.value.code == FaultCode.MASK_EMPTY
    assert caught.value.detail == f"no object with label 1, 2 in this image; there are {3 * 65536 + 5}, {8 * 65536 + 5}"


def test_a_goal_at_an_object_of_an_unwanted_class_is_refused():
    from geometry_msgs.msg import Point
    semantic = np.repeat(TWO[:, :, None].astype(np.uint8), 3, axis=2)
    segmentation = decode(mask_image(semantic, "rgb8"), mask_format="gz_semantic", classes="3")
    assert chosen(segmentation, points=[Point(x=7.0, y=7.0)]) == [3]
    with pytest.raises(Fault, match=r"pixel \(40, 30\)"):
        chosen(segmentation, points=[Point(x=40.0, y=30.0)])
    for x, y in ((7.0, np.nan), (np.inf, 7.0), (-0.6, 7.0), (59.5, 7.0), (7.0, 39.5)):
        assert fault_of(lambda x=x, y=y: chosen(segmentation, points=[Point(x=x, y=y)])) == FaultCode.MASK_EMPTY


def test_binary_image_is_one_object():
    segmentation = decode(mask_image((TWO > 0).astype(np.uint8) * 255, "mono8"), mask_format="binary")
    assert segmentation.instances == (Instance(1),)
    assert (segmentation.labels == 1).sum() == 460


def test_gazebo_images_carry_classes():
    semantic = np.repeat(TWO[:, :, None].astype(np.uint8), 3, axis=2)
    assert [i.class_id for i in decode(mask_image(semantic, "rgb8"), mask_format="gz_semantic").instances] == ["3", "8"]
    panoptic = np.stack([TWO > 0, TWO * 0, TWO], axis=2).astype(np.uint8)
    segmentation = decode(mask_image(panoptic, "rgb8"), mask_format="gz_panoptic")
    assert [i.class_id for i in segmentation.instances] == ["3", "8"]
    assert [i.label for i in segmentation.instances] == [1, 2]


def test_wrong_encoding_for_the_format():
    message = mask_image(np.zeros((40, 60, 3), np.uint8), "rgb8")
    assert fault_of(decode, message) == FaultCode.MASK_ENCODING_UNKNOWN


def hypothesis(class_id: str, score: float):
    return SimpleNamespace(hypothesis=SimpleNamespace(class_id=class_id, score=score))


def detection_2d(x: float, y: float, width: float, height: float, *results, identity: str = ""):
    centre = SimpleNamespace(position=SimpleNamespace(x=x, y=y))
    return SimpleNamespace(bbox=SimpleNamespace(center=centre, size_x=width, size_y=height), results=results,
                           id=identity)


def test_detections_name_the_masks():
    detections = SimpleNamespace(detections=[
        detection_2d(40, 29, 20, 18, hypothesis("mug", 0.2), hypothesis("cup", 0.7), identity="t5")])
    segmentation = decode(mask_image(TWO.astype(np.uint8), "mono8"), detections)
    assert segmentation.instances == (Instance(3), Instance(8, "cup", 0.7, "t5"))


def test_boxes_alone_are_marked():
    detections = SimpleNamespace(detections=[detection_2d(40, 29, 20, 18, hypothesis("cup", 0.7))])
    segmentation = decode(None, detections, mask_format="boxes")
    assert segmentation.instances == (Instance(1, "cup", 0.7, is_box=True),)
    np.testing.assert_array_equal(segmentation.labels > 0, TWO == 8)


def test_yolo_polygons_are_filled_and_scaled():
    corners = [SimpleNamespace(x=x, y=y) for x, y in ((60.0, 40.0), (98.0, 40.0), (98.0, 74.0), (60.0, 74.0))]
    mask = SimpleNamespace(height=80, width=120, data=corners)
    empty = SimpleNamespace(height=80, width=120, data=[])
    detections = [SimpleNamespace(class_name="none", score=0.5, id="", mask=empty),
                  SimpleNamespace(class_name="cup", score=0.8, id="4", mask=mask)]
    segmentation = decode(SimpleNamespace(detections=detections), mask_format="yolo_msgs")
    assert segmentation.instances == (Instance(1, "cup", 0.8, "4"),)
    np.testing.assert_array_equal(masks.bounding_box(segmentation.labels == 1), [30, 20, 49, 37])


def yolo(*polygons: list[tuple[float, float]], height: int = 80, width: int = 120):
    """yolo_msgs/DetectionArray with objects "0", "1", ..."""
    return SimpleNamespace(detections=[SimpleNamespace(class_name=str(number), score=0.8, id="", mask=SimpleNamespace(
        height=height, width=width, data=[SimpleNamespace(x=x, y=y) for x, y in corners]))
        for number, corners in enumerate(polygons)])


SQUARE = [(60.0, 40.0), (98.0, 40.0), (98.0, 74.0), (60.0, 74.0)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_a_polygon_that_is_none_is_left_out_and_named(value):
    broken = [*SQUARE[:3], (60.0, value)]
    segmentation = decode(yolo(broken, SQUARE), mask_format="yolo_msgs")
    assert segmentation.instances == (Instance(1, "1", 0.8),)
    np.testing.assert_array_equal(masks.bounding_box(segmentation.labels == 1), [30, 20, 49, 37])
    [warning] = segmentation.warnings
    assert warning.code is FaultCode.MASK_INVALID and "'0'" in warning.detail
    assert fault_of(lambda: decode(yolo(broken), mask_format="yolo_msgs")) == FaultCode.MASK_INVALID


@pytest.mark.parametrize(("height", "width"), [(80_000, 120_000), (0, 0), (-80, -120), (80, 80)])
def test_a_polygon_of_a_mask_of_no_size_for_the_image(height, width):
    message = yolo(SQUARE, height=height, width=width)          # the first would take 10 GB
    assert fault_of(lambda: decode(message, mask_format="yolo_msgs")) == FaultCode.MASK_SIZE_MISMATCH


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_a_box_that_is_none_is_left_out_and_names_no_mask(value):
    detections = SimpleNamespace(detections=[detection_2d(value, 29, 20, 18, hypothesis("mug", 0.9)),
                                             detection_2d(40, 29, 20, 18, hypothesis("cup", 0.7))])
    segmentation = decode(None, detections, mask_format="boxes")
    assert segmentation.instances == (Instance(1, "cup", 0.7, is_box=True),)
    np.testing.assert_array_equal(segmentation.labels > 0, TWO == 8)
    assert [warning.code for warning in segmentation.warnings] == [FaultCode.MASK_INVALID]
    named = decode(mask_image(TWO.astype(np.uint8), "mono8"), detections)
    assert named.instances == (Instance(3), Instance(8, "cup", 0.7))
    assert [warning.code for warning in named.warnings] == [FaultCode.MASK_INVALID]


def test_what_only_broken_detections_leave_is_an_image_without_masks():
    pytest.importorskip("sensor_msgs")
    from sensor_msgs.msg import Image

    from sam3d_ros.ros.frames import decode_masks_or_none
    from sam3d_ros.ros.parameters import Settings
    from sam3d_ros.ros.synchroniser import DETECTIONS, IMAGE
    messages = {IMAGE: Image(height=40, width=60),
                DETECTIONS: SimpleNamespace(detections=[detection_2d(np.nan, 29, 20, 18)])}
    found = decode_masks_or_none(SimpleNamespace(messages=messages), Settings(mask_format="boxes"))
    assert found.instances == () and not found.labels.any()
    assert [warning.code for warning in found.warnings] == [FaultCode.MASK_INVALID]


def tensor_list(stack: np.ndarray, data_type: int = 2):
    tensor = SimpleNamespace(data_type=data_type, shape=SimpleNamespace(dims=list(stack.shape)), data=stack.tobytes())
    return SimpleNamespace(tensors=[tensor])


def test_isaac_tensor():
    stack = np.stack([TWO == 3, TWO == 8]).astype(np.uint8)[:, None]
    segmentation = decode(tensor_list(stack), mask_format="isaac_tensor")
    np.testing.assert_array_equal(segmentation.labels, np.where(TWO == 3, 1, np.where(TWO == 8, 2, 0)))
    short = tensor_list(stack)
    short.tensors[0].data = short.tensors[0].data[:-1]
    overflowing = tensor_list(stack)
    overflowing.tensors[0].shape.dims = [2 ** 32 - 1, 1, 2 ** 31, 2]         # 0 elements in 64 bits
    for message, code in ((tensor_list(stack, 9), FaultCode.MASK_ENCODING_UNKNOWN), (short, FaultCode.MASK_TRUNCATED),
                          (overflowing, FaultCode.MASK_TRUNCATED),
                          (SimpleNamespace(tensors=[]), FaultCode.MASK_TRUNCATED)):
        assert fault_of(lambda bad: decode(bad, mask_format="isaac_tensor"), message) == code


def test_every_tensor_counts_towards_the_memory_of_waiting_masks():
    pytest.importorskip("sensor_msgs")
    from sam3d_ros.ros.frames import message_bytes

    two = tensor_list(np.zeros((3, 1, 48, 64), np.uint8))
    two.tensors += tensor_list(np.zeros((1, 1, 48, 64), np.uint8)).tensors
    assert message_bytes(two) == 4 * 48 * 64
    assert message_bytes(SimpleNamespace(data=b"123")) == 3
    assert message_bytes(SimpleNamespace(tensors=[])) == message_bytes(SimpleNamespace()) == 0
