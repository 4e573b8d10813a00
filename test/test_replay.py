"""`sam3d replay` on small bags of both storages, written and read back with rosbags."""
from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made_objects import made_object
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from sam3d_ros import cli, replay
from sam3d_ros.perception.faults import Fault, FaultCode
from sam3d_ros.perception.frame import Frame, check_frame
from sam3d_ros.perception.objects import Mesh, ReconstructedObject, Rejection
from sam3d_ros.perception.pipeline import PipelineResult
from sam3d_ros.replay import Topic, choose_topics
from sam3d_ros.ros.frames import input_types
from sam3d_ros.ros.parameters import Settings

STORE = get_typestore(Stores.ROS2_JAZZY)
HEIGHT, WIDTH = 12, 16
PERIOD_NS = 100_000_000
START_NS = 1_700_000_000_000_000_000
PLUGINS = {"sqlite3": StoragePlugin.SQLITE3, "mcap": StoragePlugin.MCAP}
TOPICS = {"image": "/camera/color/image_raw", "depth_image": "/camera/aligned_depth_to_color/image_raw",
          "camera_info": "/camera/color/camera_info", "segmentation": "/detector/mask"}


def message(kind: str, **fields):
    return STORE.types[kind](**fields)


def header(stamp_ns: int):
    stamp = message("builtin_interfaces/msg/Time", sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return message("std_msgs/msg/Header", stamp=stamp, frame_id="camera_optical")


def image(stamp_ns: int, encoding: str, pixels: np.ndarray):
    data = np.ascontiguousarray(pixels).view(np.uint8).ravel()
    return message("sensor_msgs/msg/Image", header=header(stamp_ns), height=HEIGHT, width=WIDTH, encoding=encoding,
                   is_bigendian=0, step=data.size // HEIGHT, data=data)


def camera_info(stamp_ns: int):
    region = message("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    k = np.array([20.0, 0, 7.5, 0, 21.0, 5.5, 0, 0, 1])
    return message("sensor_msgs/msg/CameraInfo", header=header(stamp_ns), height=HEIGHT, width=WIDTH,
                   distortion_model="plumb_bob", d=np.zeros(5), k=k, r=np.eye(3).ravel(),
                   p=np.hstack([k.reshape(3, 3), np.zeros((3, 1))]).ravel(), binning_x=0, binning_y=0, roi=region)


def images_of(index: int) -> dict:
    """The messages of one moment: the depth is 0.5 m + 10 mm per index, the mask has the labels 3 and 7."""
    stamp = START_NS + index * PERIOD_NS
    labels = np.zeros((HEIGHT, WIDTH), np.uint16)
    labels[2:6, 2:7], labels[7:11, 8:14] = 3, 7
    return {
        "camera_info": camera_info(stamp),
        "image": image(stamp, "bgr8", np.full((HEIGHT, WIDTH, 3), (1, 2, 200), np.uint8)),
        "depth_image": image(stamp, "16UC1", np.full((HEIGHT, WIDTH), 500 + 10 * index, np.uint16)),
        "segmentation": image(stamp, "16UC1", labels),
    }


def write_bag(path: Path, storage: str, moments: list[dict], mask_lag_ns: int = 250_000_000) -> Path:
    """A bag in which the masks come later than what they belong to, as with a slow detector."""
    records = []
    for moment in moments:
        for stream, item in moment.items():
            stamp = item.header.stamp
            arrival = stamp.sec * 10**9 + stamp.nanosec + (mask_lag_ns if stream == "segmentation" else 1000)
            records.append((arrival, stream, item))
    with Writer(path, version=9, storage_plugin=PLUGINS[storage]) as writer:
        kinds = {stream: item.__msgtype__ for _, stream, item in records}
        connections = {stream: writer.add_connection(TOPICS[stream], kind, typestore=STORE)
                       for stream, kind in sorted(kinds.items())}
        for arrival, stream, item in sorted(records, key=lambda record: record[0]):
            writer.write(connections[stream], arrival, STORE.serialize_cdr(item, item.__msgtype__))
    return path


class FakePipeline:
    """Gives each instance a tetrahedron at its mean depth, rejects those of up to 16 pixels, remembers the frames."""

    engine_name = "fake"

    def __init__(self):
        self.frames: list[Frame] = []

    def run(self, frame: Frame, earlier: dict | None = None, on_stage: None = None,
            others: Sequence[Mesh] = ()) -> PipelineResult:
        check_frame(frame)
        self.frames.append(frame)
        kept = [instance for instance in frame.instances if (frame.labels == instance.label).sum() > 16]
        rejections = tuple(Rejection(instance.label, Fault(FaultCode.TOO_FEW_POINTS, f"label {instance.label}"))
                           for instance in frame.instances if instance not in kept)
        return PipelineResult([tetrahedron(frame, instance.label) for instance in kept], rejections, {})

    def close(self) -> None:
        pass


VERTICES = np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.2, 0], [0, 0, 0.3]], np.float32)
TRIANGLES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.uint32)


def tetrahedron(frame: Frame, label: int) -> ReconstructedObject:
    pose = np.eye(4)
    pose[:3, 3] = label * 0.1, 0, frame.depth[frame.labels == label].mean()
    return made_object(VERTICES, TRIANGLES, pose, label=label, size=np.array([0.1, 0.2, 0.3]))


@pytest.fixture
def pipeline(monkeypatch) -> FakePipeline:
    fake = FakePipeline()
    monkeypatch.setattr(replay, "Pipeline", SimpleNamespace(from_config=lambda config: fake))
    return fake


def read(path: Path) -> dict[str, list]:
    """Topic -> (time, message) of a bag, with the types that it defines itself."""
    found: dict[str, list] = {}
    with AnyReader([path]) as reader:
        for connection, time_ns, data in reader.messages():
            found.setdefault(connection.topic, []).append((time_ns, reader.deserialize(data, connection.msgtype)))
    return found


@pytest.mark.parametrize("storage", PLUGINS)
def test_results_of_every_set(tmp_path, pipeline, storage):
    bag = write_bag(tmp_path / "bag", storage, [images_of(index) for index in range(5)])
    assert cli.main(["replay", str(bag), "-o", str(tmp_path / "out")]) == 0
    assert list((tmp_path / "out").glob({"sqlite3": "*.db3", "mcap": "*.mcap"}[storage]))
    found = read(tmp_path / "out")
    assert set(found) == {"/objects", "/poses"}
    assert len(found["/objects"]) == len(found["/poses"]) == 5
    for index, (time_ns, array) in enumerate(found["/objects"]):
        stamp = START_NS + index * PERIOD_NS
        assert time_ns == stamp + 250_000_000                     # when the set was complete
        assert array.header.stamp.sec * 10**9 + array.header.stamp.nanosec == stamp
        assert array.header.frame_id == "camera_optical"
        assert [item.id for item in array.objects] == ["object_1", "object_2"]
        for item in array.objects:
            np.testing.assert_array_equal(item.vertices.reshape(-1, 3), VERTICES)
            np.testing.assert_array_equal(item.triangles.reshape(-1, 3), TRIANGLES)
            assert item.pose.pose.position.z == pytest.approx(0.5 + 0.01 * index)
            assert item.mesh_revision == index + 1
        poses = found["/poses"][index][1].poses
        assert [pose.position.z for pose in poses] == [item.pose.pose.position.z for item in array.objects]


@pytest.mark.parametrize("storage", PLUGINS)
def test_a_single_storage_file_is_read(tmp_path, pipeline, storage):
    bag = write_bag(tmp_path / "bag", storage, [images_of(0)])
    (file,) = [path for path in bag.iterdir() if path.suffix in (".db3", ".mcap")]
    assert cli.main(["replay", str(file), "-o", str(tmp_path / "out")]) == 0
    assert len(read(tmp_path / "out")["/objects"]) == 1
    assert list((tmp_path / "out").glob(f"*{file.suffix}"))


def test_the_frames_are_what_the_node_would_see(tmp_path, pipeline):
    write_bag(tmp_path / "bag", "mcap", [images_of(0)])
    cli.main(["replay", str(tmp_path / "bag"), "-o", str(tmp_path / "out")])
    (frame,) = pipeline.frames
    assert (frame.colour == (200, 2, 1)).all()
    assert (frame.depth == 0.5).all()
    assert frame.intrinsics.fy == 21.0
    assert frame.intrinsics.cx == 7.5
    assert [instance.label for instance in frame.instances] == [3, 7]
    assert frame.stamp_ns == START_NS
    assert frame.frame_id == "camera_optical"


def test_images_before_the_first_camera_info_count(tmp_path, pipeline):
    moments = [images_of(0), images_of(1)]
    del moments[0]["camera_info"]
    write_bag(tmp_path / "bag", "mcap", moments, mask_lag_ns=2000)
    cli.main(["replay", str(tmp_path / "bag"), "-o", str(tmp_path / "out")])
    assert len(read(tmp_path / "out")["/objects"]) == 2


def test_other_storage_and_input_copied(tmp_path, pipeline):
    bag = write_bag(tmp_path / "bag", "sqlite3", [images_of(index) for index in range(2)])
    assert cli.main(["replay", str(bag), "-o", str(tmp_path / "out"), "--storage", "mcap", "--keep-input"]) == 0
    assert list((tmp_path / "out").glob("*.mcap"))
    found, source = read(tmp_path / "out"), read(bag)
    assert set(found) == {"/objects", "/poses", *source}
    for topic, items in source.items():
        assert [time_ns for time_ns, _ in found[topic]] == [time_ns for time_ns, _ in items]
    np.testing.assert_array_equal(found[TOPICS["depth_image"]][1][1].data, source[TOPICS["depth_image"]][1][1].data)


def test_the_same_bag_gives_the_same_results(tmp_path, pipeline):
    bag = write_bag(tmp_path / "bag", "mcap", [images_of(index) for index in range(3)])
    for name in ("first", "second"):
        cli.main(["replay", str(bag), "-o", str(tmp_path / name / "out")])
    first, second = (read(tmp_path / name / "out") for name in ("first", "second"))
    assert repr(first) == repr(second)


def test_faults_of_single_sets_are_counted_and_the_rest_goes_on(tmp_path, pipeline, capsys):
    moments = [images_of(index) for index in range(4)]
    moments[1]["depth_image"].data[:] = 0                                       # DEPTH_EMPTY
    moments[2]["segmentation"].data[:] = 0                                      # no object
    moments[3]["segmentation"].data.view(np.uint16).reshape(HEIGHT, WIDTH)[:4] = 0    # label 3 is too small
    write_bag(tmp_path / "bag", "mcap", moments)
    assert cli.main(["replay", str(tmp_path / "bag"), "-o", str(tmp_path / "out")]) == 0
    error = capsys.readouterr().err
    assert "1 times, first: DEPTH_EMPTY" in error
    assert "TOO_FEW_POINTS: label 3" in error
    # What is not seen is remembered, and marked.
    hidden = [[item.status == 2 for item in array.objects] for _, array in read(tmp_path / "out")["/objects"]]
    assert hidden == [[False, False], [True, True], [True, False]]
    assert [len(array.poses) for _, array in read(tmp_path / "out")["/poses"]] == [2, 0, 1]


def failure(tmp_path, capsys, bag: Path, *options: str) -> str:
    """The line on stderr of a replay that must fail and leave nothing behind."""
    assert cli.main(["replay", str(bag), "-o", str(tmp_path / "out"), *options]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("sam3d: error: ")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
    return lines[-1]


def test_a_bag_without_a_complete_set(tmp_path, pipeline, capsys):
    moments = [images_of(index) for index in range(3)]
    for moment in moments:
        moment["depth_image"].header.stamp.nanosec += 50_000_000
    bag = write_bag(tmp_path / "bag", "mcap", moments)
    assert "STAMPS_DO_NOT_MATCH" in failure(tmp_path, capsys, bag)
    assert cli.main(["replay", str(bag), "-o", str(tmp_path / "out"), "--slop", "0.06"]) == 0


@pytest.mark.parametrize("storage", PLUGINS)
def test_truncated_and_foreign_files(tmp_path, pipeline, capsys, storage):
    bag = write_bag(tmp_path / "bag", storage, [images_of(index) for index in range(3)])
    (file,) = [path for path in bag.iterdir() if path.suffix in (".db3", ".mcap")]
    whole = file.read_bytes()
    for content in (b"", b"no bag", whole[:50], whole[:len(whole) // 2]):
        file.write_bytes(content)
        assert "BAG_UNREADABLE" in failure(tmp_path, capsys, bag)
        assert "BAG_UNREADABLE" in failure(tmp_path, capsys, file)
    (bag / "metadata.yaml").write_text("rosbag2_bagfile_information: [")
    assert "BAG_UNREADABLE" in failure(tmp_path, capsys, bag)


@pytest.mark.parametrize("storage", PLUGINS)
def test_a_bag_without_metadata_is_read_by_its_file(tmp_path, pipeline, capsys, storage):
    """As the recorder leaves it where it is killed."""
    bag = write_bag(tmp_path / "bag", storage, [images_of(index) for index in range(2)])
    (bag / "metadata.yaml").unlink()
    [file] = bag.iterdir()
    told = failure(tmp_path, capsys, bag)
    assert f"{bag} has no metadata.yaml, as after a recording that was cut off: give {file} (" in told
    assert cli.main(["replay", str(file), "-o", str(tmp_path / "out")]) == 0
    assert len(read(tmp_path / "out")["/objects"]) == 2


def test_absent_bag_and_wrong_message(tmp_path, pipeline, capsys):
    assert "BAG_UNREADABLE" in failure(tmp_path, capsys, tmp_path / "absent")
    bag = write_bag(tmp_path / "bag", "sqlite3", [images_of(0)])
    (file,) = bag.glob("*.db3")
    with sqlite3.connect(file) as database:
        database.execute("update messages set data = x'0001000001'")
    database.close()
    assert "BAG_UNREADABLE" in failure(tmp_path, capsys, bag)


def test_nothing_is_overwritten(tmp_path, pipeline, capsys):
    bag = write_bag(tmp_path / "bag", "mcap", [images_of(0)])
    (tmp_path / "out").mkdir()
    assert cli.main(["replay", str(bag), "-o", str(tmp_path / "out")]) == 1
    assert "exists already" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_unclear_topics_are_listed(tmp_path, pipeline, capsys):
    moment = images_of(0)
    bag = write_bag(tmp_path / "bag", "mcap", [moment])
    line = failure(tmp_path, capsys, bag, "--image", "/camera/color/imgae_raw")
    assert "BAG_TOPICS_UNCLEAR" in line
    assert "/camera/color/image_raw (sensor_msgs/msg/Image, bgr8)" in line


@pytest.mark.parametrize("stream", ["segmentation", "depth_image"])
def test_a_stream_that_the_bag_lacks_is_named(tmp_path, pipeline, capsys, stream):
    moments = [images_of(index) for index in range(2)]
    for moment in moments:
        del moment[stream]
    line = failure(tmp_path, capsys, write_bag(tmp_path / "bag", "mcap", moments))
    assert "BAG_TOPICS_UNCLEAR: no topic for segmentation" in line


def test_masks_are_made_from_depth_for_a_bag_without(tmp_path, pipeline, monkeypatch, capsys):
    """A camera 0.6 m above a table; on it, 0.1 m high, two boxes of 60 x 60 and 60 x 40 pixels, then none."""
    monkeypatch.setitem(globals(), "HEIGHT", 240)
    monkeypatch.setitem(globals(), "WIDTH", 320)
    moments = []
    for index in range(2):
        stamp = START_NS + index * PERIOD_NS
        depth = np.full((240, 320), 600, np.uint16)
        if index == 0:
            depth[90:150, 60:120], depth[90:150, 200:240] = 500, 500
        info = camera_info(stamp)
        info.k[[0, 2, 4, 5]] = info.p[[0, 2, 5, 6]] = 300, 159.5, 300, 119.5
        moments.append({"camera_info": info, "depth_image": image(stamp, "16UC1", depth),
                        "image": image(stamp, "rgb8", np.full((240, 320, 3), 90, np.uint8))})
    bag = write_bag(tmp_path / "bag", "mcap", moments)
    assert "--tabletop makes them" in failure(tmp_path, capsys, bag)
    assert "leave out --segmentation" in failure(tmp_path, capsys, bag, "--tabletop", "--segmentation", "/masks")
    assert "leave out --segmentation" in failure(tmp_path, capsys, bag, "--tabletop", "--mask-format", "binary")
    assert cli.main(["replay", str(bag), "-o", str(tmp_path / "out"), "--tabletop"]) == 0
    (frame,) = pipeline.frames
    assert [instance.label for instance in frame.instances] == [1, 2]
    for label, columns in ((1, slice(60, 120)), (2, slice(200, 240))):
        rows_of, columns_of = np.nonzero(frame.labels == label)
        assert abs(rows_of.mean() - 119.5) < 1 and abs(columns_of.mean() - (columns.start + columns.stop - 1) / 2) < 1
        assert len(rows_of) == pytest.approx(60 * (columns.stop - columns.start), rel=0.1)
    found = read(tmp_path / "out")
    assert [len(array.poses) for _, array in found["/poses"]] == [2, 0]
    assert "1 times, first: MASK_EMPTY: nothing stands apart" in capsys.readouterr().err


def test_a_grey_image_is_found(tmp_path, pipeline):
    moment = images_of(0)
    moment["image"] = image(START_NS, "mono8", np.full((HEIGHT, WIDTH), 90, np.uint8))
    bag = write_bag(tmp_path / "bag", "mcap", [moment])
    assert cli.main(["replay", str(bag), "-o", str(tmp_path / "out")]) == 0
    assert (pipeline.frames[0].colour == 90).all()


def test_the_default_output_is_named_after_the_bag(tmp_path, pipeline, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bag = write_bag(tmp_path / "run_1.5", "mcap", [images_of(0)])
    assert cli.main(["replay", "run_1.5"]) == 0
    (file,) = bag.glob("*.mcap")
    assert cli.main(["replay", str(file.rename(tmp_path / "run_2.5.mcap"))]) == 0
    assert {path.name for path in tmp_path.glob("*_sam3d")} == {"run_1.5_sam3d", "run_2.5_sam3d"}


@pytest.mark.parametrize("slop", ["nan", "-1", "1.5", "wide"])
def test_a_slop_that_the_node_would_refuse_is_wrong_usage(slop, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["replay", "bag", "--slop", slop])
    assert exit_info.value.code == 2
    assert f"--slop: '{slop}' is not a number from 0 to 1" in capsys.readouterr().err


IMAGE_TYPE, INFO_TYPE = "sensor_msgs/msg/Image", "sensor_msgs/msg/CameraInfo"
NODE_INPUT = [Topic("/image", IMAGE_TYPE, "rgb8"), Topic("/depth_image", IMAGE_TYPE, "16UC1"),
              Topic("/camera_info", INFO_TYPE), Topic("/segmentation", IMAGE_TYPE, "mono16")]


@pytest.mark.parametrize(("topics", "given", "expected"), [
    (NODE_INPUT, {}, ["/image", "/camera_info", "/depth_image", "/segmentation"]),
    ([*NODE_INPUT, Topic("/other/image_raw", IMAGE_TYPE, "rgb8"), Topic("/other/camera_info", INFO_TYPE)], {},
     ["/image", "/camera_info", "/depth_image", "/segmentation"]),
    ([*NODE_INPUT, Topic("/other/image_raw", IMAGE_TYPE, "rgb8"), Topic("/other/camera_info", INFO_TYPE)],
     {"image": "/other/image_raw"}, ["/other/image_raw", "/other/camera_info", "/depth_image", "/segmentation"]),
    ([*NODE_INPUT[:3], Topic("/a/mask", IMAGE_TYPE, "mono8"), Topic("/b/mask", IMAGE_TYPE, "mono8")], {}, None),
    ([*NODE_INPUT[:3], Topic("/a/mask", IMAGE_TYPE, "mono8"), Topic("/b/mask", IMAGE_TYPE, "mono8")],
     {"segmentation": "/b/mask"}, ["/image", "/camera_info", "/depth_image", "/b/mask"]),
    (NODE_INPUT[:2], {}, None),
    (NODE_INPUT[:3], {}, None),                                                             # no masks
    ([*NODE_INPUT[:1], *NODE_INPUT[2:]], {}, None),                                         # no depth: 16-bit masks
    (NODE_INPUT, {"depth_image": "/segmentation", "segmentation": "/segmentation"}, None),
    ([Topic("/image", IMAGE_TYPE, "mono8"), *NODE_INPUT[1:]], {},
     ["/image", "/camera_info", "/depth_image", "/segmentation"]),
    ([*NODE_INPUT, Topic("/infra/image", IMAGE_TYPE, "mono8")], {"segmentation": "/segmentation"},
     ["/image", "/camera_info", "/depth_image", "/segmentation"]),
    (NODE_INPUT, {"depth_image": "/camera_info"}, None),
    ([], {}, None),
    *(([Topic("/camera/image_raw", IMAGE_TYPE, encoding), *NODE_INPUT[1:3], Topic("/a/mask", IMAGE_TYPE, "mono8")], {},
       ["/camera/image_raw", "/camera_info", "/depth_image", "/a/mask"])
      for encoding in ("8UC3", "bayer_rggb8", "yuv422", "yuv422_yuy2", "uyvy", "nv21")),
    ([*NODE_INPUT[:3], Topic("/debug", IMAGE_TYPE, "rgb8")], {}, None),                     # no masks, but an image
    ([*NODE_INPUT[:3], Topic("/debug", IMAGE_TYPE, "rgb8"), Topic("/a/mask", IMAGE_TYPE, "8UC1")], {},
     ["/image", "/camera_info", "/depth_image", "/a/mask"]),
])
def test_choice_of_topics(topics, given, expected):
    classes = input_types(Settings(), with_detections=False)
    if expected is None:
        with pytest.raises(Fault) as info:
            choose_topics(topics, classes, given, "labels")
        assert info.value.code is FaultCode.BAG_TOPICS_UNCLEAR
    else:
        assert choose_topics(topics, classes, given, "labels") == dict(zip(classes, expected, strict=True))
