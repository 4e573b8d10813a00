"""Instance masks from depth alone, and the node around it."""
from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from scipy import ndimage
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from sam3d_ros.nodes.tabletop_segmenter import PARAMETERS, TabletopSegmenter
from sam3d_ros.perception.faults import Fault, FaultCode
from sam3d_ros.perception.folder import read_frame_folder
from sam3d_ros.perception.frame import Intrinsics
from sam3d_ros.perception.plane import fit_support_plane
from sam3d_ros.perception.tabletop import TabletopConfig, segment_tabletop
from sam3d_ros.ros.images import encode_image, stamp_message
from sam3d_ros.ros.processes import NodeProcess, ProcessEnded

INTRINSICS = Intrinsics(640, 480, 600.0, 600.0, 319.5, 239.5)
# Centre on the table (x, y) and size (x, y, height), metres, the one that looks largest first.
BOXES = [((0.02, 0.0), (0.12, 0.08, 0.20)), ((-0.2, 0.05), (0.10, 0.06, 0.12)), ((0.22, -0.05), (0.06, 0.06, 0.05))]
DATA = Path(os.environ.get("SAM3D_DATA", Path(__file__).parents[2] / "shared" / "data"))


def table_from_camera(tilt: float, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Rotation and camera position of a camera that looks at the origin of a table (z up), `tilt` rad below level."""
    forward = np.array([0, np.cos(tilt), -np.sin(tilt)])
    right = np.array([1.0, 0, 0])
    return np.stack([right, np.cross(forward, right), forward], axis=1), -distance * forward


def render(boxes: list, tilt: float = 0.8, distance: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """Depth (H, W) float32 and true labels of a 1.0 x 0.8 m table with boxes on it, nothing behind."""
    rotation, origin = table_from_camera(tilt, distance)
    rows, columns = np.mgrid[:INTRINSICS.height, :INTRINSICS.width]
    rays = np.stack([(columns - INTRINSICS.cx) / INTRINSICS.fx, (rows - INTRINSICS.cy) / INTRINSICS.fy,
                     np.ones(rows.shape)], axis=-1) @ rotation.T
    depth = np.full(rows.shape, np.inf)
    labels = np.zeros(rows.shape, int)
    slab = [((0.0, 0.0), (1.0, 0.8, -0.02))]
    for label, ((x, y), (dx, dy, height)) in enumerate(slab + boxes):
        corners = np.array([[x - dx / 2, y - dy / 2, min(0, height)], [x + dx / 2, y + dy / 2, max(0, height)]])
        with np.errstate(divide="ignore"):
            times = (corners[:, None, None] - origin) / rays
        enter, leave = times.min(axis=0).max(axis=-1), times.max(axis=0).min(axis=-1)
        hit = (enter < leave) & (enter < depth)
        depth[hit], labels[hit] = enter[hit], label
    depth[np.isinf(depth)] = 0
    return depth.astype(np.float32), labels


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


@pytest.mark.parametrize("tilt", [0.5, 0.8, 1.3])
def test_boxes_on_a_tilted_table(tilt):
    depth, truth = render(BOXES, tilt)
    depth += np.random.default_rng(0).normal(0, 0.001, depth.shape).astype(np.float32) * (depth > 0)
    labels = segment_tabletop(depth, INTRINSICS)
    assert labels.dtype == np.uint16 and labels.max() == len(BOXES)
    sizes = np.bincount(labels.ravel())[1:]
    assert (np.diff(sizes) <= 0).all()
    for label in range(1, len(BOXES) + 1):
        assert max(iou(labels == found, truth == label) for found in (1, 2, 3)) > 0.9


@pytest.mark.parametrize(("distance", "is_part"), [(0.7, True), (1.4, False)])
def test_what_counts_as_part_of_an_object_is_higher_from_afar(distance, is_part):
    """A box on a plate that is 8 mm high, of which a camera does not know from 1.4 m whether it is noise."""
    depth, truth = render([((0.0, 0.0), (0.1, 0.1, 0.1)), ((0.0, 0.0), (0.2, 0.2, 0.008))], 1.3, distance)
    labels = segment_tabletop(depth, INTRINSICS, TabletopConfig(max_distance=2.0))
    assert labels.max() == 1 and (labels[truth == 1] == 1).mean() > 0.95
    assert ((labels[truth == 2] == 1).mean() > 0.9) == is_part and ((labels[truth == 2] == 1).mean() < 0.2) != is_part


def test_the_plane_has_the_true_normal_and_distance():
    depth, _ = render([], tilt=0.8, distance=0.8)
    rows, columns = np.nonzero(depth)
    points = np.stack([(columns - INTRINSICS.cx) / INTRINSICS.fx, (rows - INTRINSICS.cy) / INTRINSICS.fy,
                       np.ones(len(rows))], axis=1) * depth[rows, columns, None]
    plane = fit_support_plane(points.astype(np.float32), 0.005)
    np.testing.assert_allclose(plane, [0, -np.cos(0.8), -np.sin(0.8), 0.8 * np.sin(0.8)], atol=1e-3)


def test_the_table_is_the_plane_and_not_the_floor_that_shows_more():
    rng = np.random.default_rng(0)
    table = np.column_stack([rng.uniform(-0.3, 0.3, (1500, 2)), np.full(1500, 0.8)])
    floor = np.column_stack([rng.uniform(-1, 1, (2500, 2)), np.full(2500, 1.6)])
    plane = fit_support_plane(np.concatenate([table, floor]).astype(np.float32), 0.005)
    np.testing.assert_allclose(plane, [0, 0, -1, 0.8], atol=1e-3)


def test_the_same_depth_gives_the_same_labels():
    depth, _ = render(BOXES)
    np.testing.assert_array_equal(segment_tabletop(depth, INTRINSICS), segment_tabletop(depth, INTRINSICS))


def test_an_empty_table_gives_an_empty_mask():
    depth, _ = render([])
    assert not segment_tabletop(depth, INTRINSICS).any()


def test_flying_pixels_are_no_object():
    depth, _ = render([])
    generator = np.random.default_rng(0)
    rows, columns = generator.integers(50, 400, 3000), generator.integers(100, 540, 3000)
    depth[rows, columns] *= generator.uniform(0.6, 0.95, 3000).astype(np.float32)
    assert not segment_tabletop(depth, INTRINSICS).any()


def test_a_flying_pixel_without_readings_around_it_is_none_of_an_object():
    """The camera gives no depth along the edges of an object, but for a mix of near and far here and there."""
    depth, truth = render(BOXES[:1])
    rim = ndimage.binary_dilation(truth == 1, iterations=4) & ~ndimage.binary_erosion(truth == 1, iterations=2)
    spoilt = np.where(rim, 0, depth)
    rows, columns = np.nonzero(ndimage.binary_dilation(truth == 1, iterations=2) & (truth == 0))
    here = (rows % 3 == 0) & (columns % 3 == 0)
    spoilt[rows[here], columns[here]] = depth[rows[here], columns[here]] - np.float32(0.03)
    np.testing.assert_array_equal(segment_tabletop(spoilt, INTRINSICS), segment_tabletop(np.where(rim, 0, depth),
                                                                                        INTRINSICS))


@pytest.mark.parametrize(("every_row", "every_column"), [(2, 1), (1, 2), (2, 2), (3, 3)])
def test_depth_that_fills_its_image_in_part(every_row, every_column):
    depth, truth = render(BOXES)
    sparse = np.zeros_like(depth)
    sparse[::every_row, ::every_column] = depth[::every_row, ::every_column]
    labels = segment_tabletop(sparse, INTRINSICS)
    assert labels.max() == len(BOXES)
    for label in range(1, len(BOXES) + 1):
        assert max(iou(labels == found, truth == label) for found in (1, 2, 3)) > 0.9


def test_a_hole_in_the_depth_belongs_to_the_object_around_it():
    depth, truth = render(BOXES[:1])
    rows, columns = np.nonzero(truth == 1)
    centre = int(rows.mean()), int(columns.mean())
    depth[centre[0] - 8:centre[0] + 8, centre[1] - 8:centre[1] + 8] = 0
    assert segment_tabletop(depth, INTRINSICS)[centre] == 1


def test_what_stands_beside_the_table_is_no_object():
    depth, truth = render([*BOXES[:1], ((0.0, 0.75), (0.3, 0.1, 0.2))])
    labels = segment_tabletop(depth, INTRINSICS, TabletopConfig(max_distance=3.0))
    assert (truth == 2).any() and not labels[truth == 2].any()
    assert labels.max() == 1


def test_limits_on_the_size_of_objects():
    depth, _ = render(BOXES)
    assert segment_tabletop(depth, INTRINSICS, TabletopConfig(max_size=0.2)).max() == 2
    assert segment_tabletop(depth, INTRINSICS, TabletopConfig(min_object_height=0.06)).max() == 2
    assert segment_tabletop(depth, INTRINSICS, TabletopConfig(min_pixels=100_000)).max() == 0


@pytest.mark.parametrize("value", [np.nan, 0.0, np.inf, -1.0, 9.0])
def test_depth_without_a_usable_reading(value):
    with pytest.raises(Fault) as info:
        segment_tabletop(np.full((480, 640), value, np.float32), INTRINSICS)
    assert info.value.code is FaultCode.DEPTH_EMPTY


def test_no_plane():
    depth = np.zeros((480, 640), np.float32)
    depth[100:103, 100:103] = 0.5
    cloud = np.random.default_rng(0).uniform(0.3, 1.4, (480, 640)).astype(np.float32)
    for image in (depth, cloud):
        with pytest.raises(Fault) as info:
            segment_tabletop(image, INTRINSICS)
        assert info.value.code is FaultCode.SUPPORT_PLANE_NOT_FOUND


@pytest.mark.skipif(not (DATA / "frames").is_dir(), reason=f"no frames in {DATA} (set SAM3D_DATA)")
def test_real_frames():
    overlaps = []
    for folder in sorted((DATA / "frames").iterdir()):
        frame = read_frame_folder(folder)
        labels = segment_tabletop(frame.depth, frame.intrinsics)
        found = range(1, labels.max() + 1)
        overlaps += [max(iou(labels == label, frame.labels == instance.label) for label in found)
                     for instance in frame.instances]
    assert len(overlaps) == 13
    assert np.mean(overlaps) > 0.75 and sum(overlap > 0.5 for overlap in overlaps) >= 12


class Setting:
    """The node in a ROS context of its own, with a camera's publishers and a listener; a context manager."""

    def __init__(self, **parameters):
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        self.segmenter = TabletopSegmenter(context=self._context, parameter_overrides=overrides)
        self._camera = rclpy.create_node("camera", context=self._context)
        self._depth = self._camera.create_publisher(Image, "depth_image", qos_profile_sensor_data)
        self._info = self._camera.create_publisher(CameraInfo, "camera_info", qos_profile_sensor_data)
        self.masks: list[Image] = []
        self.faults: list[str] = []
        self._camera.create_subscription(Image, "segmentation", self.masks.append, 10)
        self._camera.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.segmenter)
        self._executor.add_node(self._camera)

    def publish(self, depth: np.ndarray, encoding: str, stamp_ns: int, with_info: bool = True) -> None:
        header = Header(stamp=stamp_message(stamp_ns), frame_id="camera_optical")
        if with_info:
            k = [INTRINSICS.fx, 0.0, INTRINSICS.cx, 0.0, INTRINSICS.fy, INTRINSICS.cy, 0.0, 0.0, 1.0]
            p = [*k[:3], 0.0, *k[3:6], 0.0, *k[6:], 0.0]
            self._info.publish(CameraInfo(header=header, width=INTRINSICS.width, height=INTRINSICS.height, k=k, p=p))
        self._depth.publish(encode_image(depth, encoding, header))

    def until(self, condition, publish=lambda: None, seconds: float = 20.0) -> None:
        """Spin, publishing anew every 0.2 s (discovery takes a moment), until `condition()`."""
        deadline, due = time.monotonic() + seconds, 0.0
        while not condition():
            assert time.monotonic() < deadline, f"{len(self.masks)} masks, diagnostics {self.faults[-3:]}"
            if time.monotonic() >= due:
                publish()
                due = time.monotonic() + 0.2
            self._executor.spin_once(timeout_sec=0.05)

    def is_visible(self, topic: str) -> bool:
        return bool(self._camera.count_publishers(topic))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        self.faults += [value.value for status in message.status for value in status.values if value.key == "code"]

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._executor.shutdown()
        self.segmenter.destroy_node()
        self._camera.destroy_node()
        rclpy.shutdown(context=self._context)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_the_node_labels_an_image_with_its_own_stamp_and_frame(encoding):
    depth, truth = render(BOXES)
    pixels = depth if encoding == "32FC1" else np.rint(depth * 1000).astype(np.uint16)
    with Setting() as setting:
        setting.until(lambda: setting.masks, lambda: setting.publish(pixels, encoding, 5_000_000_007))
        mask = setting.masks[0]
    assert mask.encoding == "16UC1"
    assert (mask.header.stamp.sec, mask.header.stamp.nanosec, mask.header.frame_id) == (5, 7, "camera_optical")
    labels = np.frombuffer(mask.data, np.uint16).reshape(mask.height, mask.width)
    assert iou(labels == 1, truth == 1) > 0.9


@pytest.mark.timeout(60)
def test_the_node_names_faults_and_recovers():
    depth, _ = render(BOXES)
    with Setting() as setting:
        publish = setting.publish
        setting.until(lambda: "CAMERA_INFO_MISSING" in setting.faults, lambda: publish(depth, "32FC1", 1, False))
        setting.until(lambda: "DEPTH_EMPTY" in setting.faults, lambda: publish(depth * np.nan, "32FC1", 2))
        wall = np.random.default_rng(0).uniform(0.3, 1.4, depth.shape).astype(np.float32)
        setting.until(lambda: "SUPPORT_PLANE_NOT_FOUND" in setting.faults, lambda: publish(wall, "32FC1", 3))
        setting.until(lambda: "CAMERA_INFO_SIZE_MISMATCH" in setting.faults, lambda: publish(depth[::2], "32FC1", 4))
        assert not setting.masks
        setting.until(lambda: setting.masks and setting.faults[-1] == "OK", lambda: publish(depth, "32FC1", 5))


@pytest.mark.timeout(60)
def test_parameters_reach_the_segmentation():
    depth, _ = render(BOXES)
    with Setting(min_pixels=100_000) as setting:
        setting.until(lambda: setting.masks, lambda: setting.publish(depth, "32FC1", 1))
        assert not any(setting.masks[0].data)


@pytest.mark.timeout(60)
def test_a_wrong_parameter_is_named():
    context = rclpy.Context()
    rclpy.init(context=context)
    try:
        with pytest.raises(rclpy.exceptions.InvalidParameterValueException, match="max_distance"):
            TabletopSegmenter(context=context, parameter_overrides=[Parameter("max_distance", value=-1.0)])
    finally:
        rclpy.shutdown(context=context)


def test_every_setting_is_a_parameter():
    assert set(PARAMETERS) == set(TabletopConfig.__dataclass_fields__)


@pytest.mark.timeout(60)
def test_the_process_ends_cleanly_and_refuses_a_wrong_parameter(tmp_path):
    module, log = "sam3d_ros.nodes.tabletop_segmenter", tmp_path / "log"
    with NodeProcess(module, parameters={"gap": -1.0}, log=log) as process:
        with pytest.raises(ProcessEnded, match="status 1"):
            process.wait(30)
    assert "gap" in log.read_text()
    with Setting() as setting, NodeProcess(module, remappings={"__ns": "/other"}) as process:
        setting.until(lambda: setting.is_visible("/other/segmentation"))
        assert process.stop() == 0
