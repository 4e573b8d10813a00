"""Frame folders: what is read, what is refused, what is written."""
from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import trimesh
from made_objects import BOX_CORNERS, BOX_SIDES, made_object
from PIL import Image

from sam3d_ros.perception.faults import Fault, FaultCode
from sam3d_ros.perception.folder import read_frame_folder, write_frame_folder, write_objects
from sam3d_ros.perception.frame import Frame, Instance, Intrinsics
from sam3d_ros.perception.objects import ReconstructedObject, Status

INTRINSICS = Intrinsics(6, 4, 100.5, 101.0, 2.5, 1.25)


def make_frame() -> Frame:
    generator = np.random.default_rng(0)
    depth = np.full((4, 6), 0.7321, np.float32)
    depth[0, 0] = 0.0
    labels = np.zeros((4, 6), np.int32)
    labels[1, 1:3], labels[2, 3] = 1, 300
    colour = generator.integers(0, 256, (4, 6, 3), np.uint8)
    return Frame(colour, depth, labels, INTRINSICS, (Instance(1, "mug"), Instance(300, "bowl")))


def make_object(label: int = 3) -> ReconstructedObject:
    pose = np.eye(4)
    pose[:3, 3] = 0.1, -0.2, 0.8
    return made_object(BOX_CORNERS * [0.1, 0.2, 0.3], BOX_SIDES, pose, label=label, class_id="box", score=0.5,
                       size=np.array([0.1, 0.2, 0.3]), vertex_rgba=np.full((8, 4), (10, 20, 30, 255), np.uint8),
                       scale_std=0.02)


@pytest.fixture
def folder(tmp_path):
    write_frame_folder(tmp_path / "frame", make_frame())
    return tmp_path / "frame"


def edit_json(path, **changes):
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def refusal(folder) -> str:
    with pytest.raises(Fault) as info:
        read_frame_folder(folder)
    assert info.value.code is FaultCode.FRAME_FOLDER_INVALID
    assert "\n" not in str(info.value)
    return info.value.detail


def test_round_trip(folder):
    frame, written = read_frame_folder(folder), make_frame()
    np.testing.assert_array_equal(frame.colour, written.colour)
    np.testing.assert_array_equal(frame.labels, written.labels)
    np.testing.assert_allclose(frame.depth, written.depth, atol=0.5e-4 + 1e-7)
    assert frame.depth.dtype == np.float32 and frame.labels.dtype == np.int32 and frame.colour.dtype == np.uint8
    assert frame.depth[0, 0] == 0
    assert frame.intrinsics == INTRINSICS and isinstance(frame.intrinsics.width, int)
    assert frame.instances == written.instances


def test_depth_may_be_absent(folder):
    (folder / "depth.png").unlink()
    assert read_frame_folder(folder).depth is None
    edit_json(folder / "camera.json", depth_unit_m=...)
    assert read_frame_folder(folder).depth is None


def test_writing_without_depth_removes_earlier_depth(folder):
    frame = make_frame()
    write_frame_folder(folder, Frame(frame.colour, None, frame.labels, frame.intrinsics, frame.instances))
    assert read_frame_folder(folder).depth is None


def test_depth_beyond_sixteen_bits_is_no_reading(tmp_path):
    frame = make_frame()
    frame.depth[3, 3] = 10.0
    write_frame_folder(tmp_path, frame, depth_unit_m=0.0001)
    assert read_frame_folder(tmp_path).depth[3, 3] == 0


def test_eight_bit_masks_are_read(folder):
    Image.fromarray(np.eye(4, 6, dtype=np.uint8)).save(folder / "masks.png")
    assert read_frame_folder(folder).labels.sum() == 4


def test_every_label_is_an_instance(folder):
    (folder / "labels.json").write_text('{"1": "mug", "7": "hidden"}')
    assert read_frame_folder(folder).instances == (Instance(1, "mug"), Instance(7, "hidden"), Instance(300, ""))


def test_class_names_may_be_absent(folder):
    (folder / "labels.json").unlink()
    assert read_frame_folder(folder).instances == (Instance(1, ""), Instance(300, ""))


def test_saturated_depth_is_no_reading(folder):
    Image.fromarray(np.full((4, 6), 65535, np.uint16)).save(folder / "depth.png")
    assert not read_frame_folder(folder).depth.any()


@pytest.mark.parametrize("name", ["color.png", "camera.json", "masks.png"])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert refusal(folder).endswith(f"{name} is missing")


@pytest.mark.parametrize("name", ["color.png", "depth.png", "camera.json", "masks.png", "labels.json"])
def test_dangling_link_is_named(folder, name):
    (folder / name).unlink()
    (folder / name).symlink_to("elsewhere")
    assert refusal(folder).endswith(f"{name} is a link to a missing file")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("name", ["color.png", "depth.png", "camera.json", "masks.png", "labels.json"])
def test_what_is_no_file_is_named(folder, name, make):
    (folder / name).unlink()
    make(folder / name)
    assert refusal(folder).endswith(f"{name} is not a regular file")


def test_not_a_folder(tmp_path):
    assert "not a folder" in refusal(tmp_path / "absent")


def test_a_folder_of_frame_folders_is_told_from_a_frame_folder(folder):
    assert refusal(folder.parent).endswith(f"holds some: give these, {folder.parent}/*")


@pytest.mark.parametrize("name", ["color.png", "depth.png", "masks.png"])
def test_size_mismatch(folder, name):
    with Image.open(folder / name) as image:
        image.resize((12, 8)).save(folder / name)
    assert f"{name} is 12 x 8, but camera.json says 6 x 4" in refusal(folder)


@pytest.mark.parametrize("name", ["color.png", "depth.png", "masks.png"])
def test_wrong_kind_of_png(folder, name):
    Image.new("RGBA", (6, 4)).save(folder / name)
    assert f"{name} has Pillow mode RGBA" in refusal(folder)


@pytest.mark.parametrize("name", ["color.png", "depth.png", "masks.png"])
def test_truncated_or_foreign_png(folder, name):
    whole = (folder / name).read_bytes()
    for content in [b"", b"no picture", whole[:20], whole[:45], whole[: len(whole) // 2]]:
        (folder / name).write_bytes(content)
        assert f"{name} cannot be read" in refusal(folder)
    Image.new("RGB", (6, 4)).save(folder / name, format="JPEG")
    assert f"{name} cannot be read" in refusal(folder)


def test_damaged_png_is_refused_or_read_but_never_crashes(folder):
    whole = (folder / "depth.png").read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[generator.integers(len(whole))] = generator.integers(256)
        (folder / "depth.png").write_bytes(damaged)
        try:
            read_frame_folder(folder)
        except Fault as fault:
            assert fault.code is FaultCode.FRAME_FOLDER_INVALID


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_masks_of_few_bits_are_refused_rather_than_read_as_other_labels(folder):
    with Image.open(folder / "masks.png") as image:
        (width, height) = image.size
    rows = b"".join(b"\0" + bytes([0x12] * ((width + 1) // 2)) for _ in range(height))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 4, 0, 0, 0, 0))
    (folder / "masks.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) +
                                       chunk(b"IEND", b""))
    assert "fewer than 8 bits" in refusal(folder)


@pytest.mark.parametrize("name", ["color.png", "depth.png", "masks.png"])
def test_a_broken_chunk_behind_the_pixels_is_named(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-12] + chunk(b"iCCP", b"") + content[-12:])
    assert "cannot be read" in refusal(folder)


def test_decompression_bomb_is_refused_by_its_header(folder):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    (folder / "color.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")))
    refusal(folder)
    edit_json(folder / "camera.json", width=60000, height=60000)
    assert "pixels; at most" in refusal(folder)


def test_the_camera_s_place_in_the_world_is_kept(folder, tmp_path):
    frame = read_frame_folder(folder)
    assert frame.world_from_camera is None and frame.support_height is None
    pose = np.array([[1.0, 0, 0, 0.2], [0, 0, 1, -0.3], [0, -1, 0, 1.25], [0, 0, 0, 1]])
    write_frame_folder(tmp_path / "copy", replace(frame, world_from_camera=pose, support_height=0.75))
    again = read_frame_folder(tmp_path / "copy")
    np.testing.assert_array_equal(again.world_from_camera, pose)
    assert again.support_height == 0.75


@pytest.mark.parametrize(("changes", "message"), [
    ({"fx": ...}, "lacks fx"),
    ({"depth_unit_m": ...}, "lacks depth_unit_m"),
    ({"depth_unit_m": -0.001}, "depth_unit_m = -0.001, which must be positive"),
    ({"depth_unit_m": 1e300}, "depth_unit_m = 1e+300, which is not within 1e-06 to 1 m"),
    ({"depth_unit_m": 1e-9}, "depth_unit_m = 1e-09, which is not within 1e-06 to 1 m"),
    ({"fy": 0}, "fy = 0, which must be positive"),
    ({"cx": "3"}, "cx that is not a finite number"),
    ({"cx": True}, "cx that is not a finite number"),
    ({"cy": float("nan")}, "cy that is not a finite number"),
    ({"fx": 10**400}, "fx that is not a finite number"),
    ({"width": 6.5}, "not a whole number"),
    ({"support_height": "low"}, "support_height that is not a finite number"),
    ({"world_from_camera": [[1, 0], [0, 1]]}, "not a rigid 4 x 4 transform"),
    ({"world_from_camera": (2 * np.eye(4)).tolist()}, "not a rigid 4 x 4 transform"),
    ({"world_from_camera": [["a"] * 4] * 4}, "not a rigid 4 x 4 transform"),
])
def test_wrong_camera(folder, changes, message):
    edit_json(folder / "camera.json", **changes)
    assert message in refusal(folder)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "[" * 100_000, "\xff", " " * (2**20 + 1)])
def test_wrong_json(folder, content):
    (folder / "camera.json").write_text(content, encoding="latin-1")
    assert "camera.json" in refusal(folder)


@pytest.mark.parametrize("key", ["mug", "0", "-1", "1.5", "65536", "\u0663", "9" * 5000])
def test_wrong_label(folder, key):
    (folder / "labels.json").write_text(json.dumps({key: "mug"}))
    assert "not an instance label" in refusal(folder)


def test_class_name_must_be_a_string(folder):
    (folder / "labels.json").write_text('{"1": null}')
    assert "not a string" in refusal(folder)


def test_objects_json_has_exactly_the_documented_keys(tmp_path):
    write_objects(tmp_path, [make_object()], ["box-1"], 12.5)
    (entry,) = json.loads((tmp_path / "objects.json").read_text())
    pose = entry.pop("pose_object_to_camera")
    assert np.array(pose).shape == (4, 4) and np.array(pose)[:3, 3] == pytest.approx([0.1, -0.2, 0.8])
    assert entry == {"label": 3, "id": "box-1", "class_id": "box", "score": 0.5, "size": [0.1, 0.2, 0.3],
                     "scale_source": "DEPTH", "scale_std": 0.02, "visible_fraction": 0.4, "status": "OK",
                     "mesh": "object_3.ply", "latency_ms": 12.5}


def test_a_doubtful_object_is_marked(tmp_path):
    write_objects(tmp_path, [replace(make_object(), status=Status.LOW_QUALITY)], ["box-1"], 12.5)
    assert json.loads((tmp_path / "objects.json").read_text())[0]["status"] == "LOW_QUALITY"


def test_ply_is_a_watertight_coloured_mesh_in_metres(tmp_path):
    write_objects(tmp_path, [make_object()], ["box-1"], 12.5)
    mesh = trimesh.load(tmp_path / "object_3.ply", force="mesh")
    assert mesh.is_watertight and mesh.volume == pytest.approx(0.1 * 0.2 * 0.3, rel=1e-5)
    assert mesh.extents == pytest.approx([0.1, 0.2, 0.3], rel=1e-6)
    assert (mesh.visual.vertex_colors == (10, 20, 30, 255)).all()


def test_an_earlier_result_does_not_remain(tmp_path):
    write_objects(tmp_path, [make_object(1), make_object(2)], ["a", "b"], 1.0)
    for mine in ("notes.txt", "object_gt.ply"):
        (tmp_path / mine).write_text("mine")
    write_objects(tmp_path, [make_object(2)], ["b"], 1.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "object_2.ply", "object_gt.ply",
                                                                "objects.json"]


def test_no_objects_give_an_empty_list(tmp_path):
    shutil.rmtree(tmp_path)
    write_objects(tmp_path, [], [], 1.0)
    assert json.loads((tmp_path / "objects.json").read_text()) == []
