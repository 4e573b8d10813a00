"""Scenes for simulators: what is written is what was seen, and simulators take it."""
from __future__ import annotations

import ctypes
import ctypes.util
import json
import re
import resource
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import mujoco
import numpy as np
import pytest
import trimesh

from sam3d_ros import cli
from sam3d_ros.perception.faults import Fault, FaultCode
from sam3d_ros.perception.folder import write_ply
from sam3d_ros.scene.export import WRITERS, write_mjcf
from sam3d_ros.scene.layout import Scene, read_scene

# x right, y down, z forward: looks down at 45 degrees from 0.6 m.
CAMERA_FROM_WORLD = np.array([[1, 0, 0, 0], [0, -np.sqrt(0.5), -np.sqrt(0.5), 0], [0, np.sqrt(0.5), -np.sqrt(0.5), 0.6],
                              [0, 0, 0, 1.0]])
CAMERA = "camera_optical_frame"
SHAPES = {1: trimesh.creation.box([0.06, 0.05, 0.12]), 2: trimesh.creation.cylinder(0.03, 0.1),
          3: trimesh.creation.box([0.08, 0.04, 0.04])}
PLACES = {1: [-0.1, 0, 0.062], 2: [0.05, 0.04, 0.049], 3: [0.05, -0.1, 0.02]}


@pytest.fixture
def result(tmp_path) -> Path:
    """What `sam3d reconstruct` writes for three objects on a table, two of them off by 1 or 2 mm."""
    entries = []
    for label, mesh in SHAPES.items():
        pose = np.eye(4)
        pose[:3, 3] = PLACES[label]
        write_ply(tmp_path / f"object_{label}.ply", mesh.vertices, mesh.faces,
                  np.tile(np.uint8([200, 40 * label, 30, 255]), (len(mesh.vertices), 1)))
        entries.append({"label": label, "id": str(label), "class_id": f"kind {label}/&", "mesh": f"object_{label}.ply",
                        "pose_object_to_camera": (CAMERA_FROM_WORLD @ pose).tolist()})
    (tmp_path / "objects.json").write_text(json.dumps(entries))
    return tmp_path


@pytest.fixture
def scene_folder(result, tmp_path, capsys) -> Path:
    """The scene in all formats."""
    out = tmp_path / "scene"
    assert cli.main(["export-scene", str(result), "-o", str(out), "--format", "sdf", "mjcf", "gltf", "usd"]) == 0
    return out


def test_layout(result):
    scene = read_scene(result, density=500)
    assert [item.name for item in scene.objects] == ["kind_1_1", "kind_2_2", "kind_3_3"]
    box = scene.objects[0]
    assert box.mass == pytest.approx(500 * 0.06 * 0.05 * 0.12)
    assert box.inertia[2, 2] == pytest.approx(box.mass * (0.06 ** 2 + 0.05 ** 2) / 12)
    heights = [item.world_from_object[2, 3] - item.mesh.extents[2] / 2 for item in scene.objects]
    np.testing.assert_allclose(heights, 0, atol=3e-4)                     # settled
    between = scene.objects[1].world_from_object[:2, 3] - box.world_from_object[:2, 3]
    np.testing.assert_allclose(between, [0.15, 0.04], atol=1e-3)
    np.testing.assert_allclose(scene.world_from_camera[:3, :3], CAMERA_FROM_WORLD[:3, :3].T, atol=1e-6)
    seen = read_scene(result / "objects.json", as_seen=True)
    assert np.ptp([item.world_from_object[2, 3] - item.mesh.extents[2] / 2 for item in seen.objects]) > 2e-3


def moved(result: Path, label: int, place: list[float]) -> None:
    """Put an object of a result elsewhere: where its middle is, world frame, metres."""
    rows = json.loads((result / "objects.json").read_text())
    row = next(row for row in rows if row["label"] == label)
    row["pose_object_to_camera"] = (CAMERA_FROM_WORLD @ trimesh.transformations.translation_matrix(place)).tolist()
    (result / "objects.json").write_text(json.dumps(rows))


def pose_in_world(name: str, folder: Path, kind: str) -> np.ndarray:
    """Pose, (4, 4), that a file of one format gives the camera or an object."""
    if kind == "sdf":
        text = ElementTree.parse(folder / "scene.sdf").find(f"world/*[@name='{name}']/pose").text
        x, y, z, *angles = map(float, text.split())
        pose = trimesh.transformations.euler_matrix(*angles, "sxyz")
        pose[:3, 3] = x, y, z
    elif kind == "mjcf":
        model = mujoco.MjModel.from_xml_path(str(folder / "scene.xml"))
        found = model.site(name) if name == CAMERA else model.body(name)
        pose = trimesh.transformations.quaternion_matrix(found.quat)
        pose[:3, 3] = found.pos
    elif kind == "gltf":
        z_up = trimesh.transformations.rotation_matrix(np.pi / 2, [1, 0, 0])
        pose = z_up @ trimesh.load(folder / "scene.glb").graph[name][0]
    else:
        rows = (folder / "scene.usda").read_text().split(f'"{name}"')[1].split("transform = (")[1].splitlines()[0]
        pose = np.array(re.findall(r"[-+.\de]+", rows), float).reshape(4, 4).T
    return pose


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_tells_where_the_camera_was(result, scene_folder, kind):
    np.testing.assert_allclose(pose_in_world(CAMERA, scene_folder, kind), read_scene(result).world_from_camera,
                               atol=1e-6)


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_tells_where_a_tilted_object_lies(result, kind):
    item = read_scene(result, max_pieces=1).objects[0]
    pose = trimesh.transformations.euler_matrix(0.5, -0.8, 1.3)
    pose[:3, 3] = 0.1, -0.2, 0.3
    WRITERS[kind](Scene((replace(item, world_from_object=pose),), np.eye(4)), result)
    np.testing.assert_allclose(pose_in_world(item.name, result, kind), pose, atol=1e-6)


def mass_properties(name: str, folder: Path, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Centre of mass (3,) and inertia (3, 3) that a file of one format gives an object, in its own frame."""
    if kind == "sdf":
        inertial = ElementTree.parse(folder / "scene.sdf").find(f"world/model[@name='{name}']/link/inertial")
        centre = np.array(inertial.findtext("pose").split()[:3], float)
        xx, xy, xz, yy, yz, zz = (float(inertial.findtext(f"inertia/i{axes}")) for axes in
                                  ("xx", "xy", "xz", "yy", "yz", "zz"))
        return centre, np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    if kind == "mjcf":
        body = mujoco.MjModel.from_xml_path(str(folder / "scene.xml")).body(name)
        centre, moments, axes = body.ipos, body.inertia, body.iquat
    else:
        text = (folder / "scene.usda").read_text().split(f'"{name}"')[1]
        centre, moments, axes = (np.array(re.search(rf"physics:{key} = \((.*?)\)", text)[1].split(", "), float)
                                 for key in ("centerOfMass", "diagonalInertia", "principalAxes"))
    rotation = trimesh.transformations.quaternion_matrix(axes)[:3, :3]
    return centre, rotation @ np.diag(moments) @ rotation.T


@pytest.mark.parametrize("kind", ["sdf", "mjcf", "usd"])
def test_mass_properties_of_a_lopsided_object(result, kind):
    item = read_scene(result, max_pieces=1).objects[0]
    centre = np.array([0.01, -0.02, 0.03])
    for angles in np.random.default_rng(2).uniform(-3, 3, (6, 3)):      # eigenvectors of either handedness
        axes = trimesh.transformations.euler_matrix(*angles)[:3, :3]
        inertia = axes @ np.diag([1e-3, 1.5e-3, 2e-3]) @ axes.T
        WRITERS[kind](Scene((replace(item, centre_of_mass=centre, inertia=inertia),), np.eye(4)), result)
        found = mass_properties(item.name, result, kind)
        np.testing.assert_allclose(found[0], centre, atol=1e-7)
        np.testing.assert_allclose(found[1], inertia, atol=1e-8)


@pytest.mark.parametrize(("place", "said"), [
    ([0.05, -0.1, 0.12], "kind_3_3 floats 100 mm above what is below it"),
    ([0.05, -0.1, -0.02], "kind_3_3 is 40 mm inside the table or another object"),
    ([-0.049, 0, 0.143], "kind_3_3 does not stand firmly")])
def test_what_cannot_be_put_at_rest_is_said(result, place, said, capsys):
    assert cli.main(["export-scene", str(result), "-o", str(result / "scene"), "--pieces", "1"]) == 0
    assert not capsys.readouterr().err
    moved(result, 3, place)
    assert cli.main(["export-scene", str(result), "-o", str(result / "scene"), "--pieces", "1"]) == 0
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == [f"sam3d: {said}"]
    assert cli.main(["export-scene", str(result), "-o", str(result / "scene"), "--pieces", "1", "--as-seen"]) == 0
    assert not capsys.readouterr().err


def test_what_is_marked_in_the_result_is_said(result, capsys):
    rows = json.loads((result / "objects.json").read_text())
    rows[0]["status"], rows[1]["status"] = "OK", "LOW_QUALITY"
    (result / "objects.json").write_text(json.dumps(rows))
    for options in ([], ["--as-seen"]):
        assert cli.main(["export-scene", str(result), "-o", str(result / "scene"), "--pieces", "1", *options]) == 0
        assert [line.split(":")[1] for line in capsys.readouterr().err.splitlines()] \
            == [" kind_2_2 is marked LOW_QUALITY in the result"]


def test_sdf_is_valid(scene_folder):
    name = ctypes.util.find_library("sdformat12") or ctypes.util.find_library("sdformat14")
    if name is None:
        pytest.skip("libsdformat is not installed (Debian: libsdformat12-12, sdformat-sdf)")
    assert ctypes.CDLL(name).cmdCheck(str(scene_folder / "scene.sdf").encode()) == 0
    for line in (scene_folder / "scene.sdf").read_text().splitlines():
        if "<uri>" in line:
            assert (scene_folder / line.strip().removeprefix("<uri>").removesuffix("</uri>")).exists()


def test_mjcf_stays_put(scene_folder):
    model = mujoco.MjModel.from_xml_path(str(scene_folder / "scene.xml"))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    before = data.xpos.copy()
    while data.time < 1.0:
        mujoco.mj_step(model, data)
    assert np.abs(data.xpos - before).max() < 2e-3
    assert model.body("kind_1_1").mass == pytest.approx(300 * 0.06 * 0.05 * 0.12, rel=1e-4)


def test_mjcf_is_for_mujoco_3_2_too(scene_folder):
    root = ElementTree.parse(scene_folder / "scene.xml").getroot()
    # Later versions know more attributes of a mesh, and put more than one contact under it without being asked.
    assert {key for mesh in root.iter("mesh") for key in mesh.attrib} == {"name", "file"}
    assert root.find("option/flag").get("multiccd") == "enable"


def test_the_table_reaches_under_all_objects(result):
    moved(result, 1, [-1.9, 0, 0.06])
    scene = read_scene(result, max_pieces=1)
    corners = np.concatenate([trimesh.transform_points(item.mesh.vertices, item.world_from_object)
                              for item in scene.objects])
    size = [float(number) for number in
            ElementTree.parse(WRITERS["sdf"](scene, result)).findtext(".//model[@name='support']//size").split()]
    assert np.all(np.abs(corners[:, :2]) < np.array(size[:2]) / 2 - 0.1)
    (scale,) = re.findall(r"xformOp:scale = \((.*)\)", WRITERS["usd"](scene, result).read_text())
    assert [float(number) for number in scale.split(",")] == pytest.approx(size)
    model = mujoco.MjModel.from_xml_path(str(write_mjcf(scene, result)))
    assert 2 * model.geom("support").size == pytest.approx(size)
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, 500)
    assert data.xpos[1:, 2].min() > 0


def test_gltf_is_upright_and_coloured(scene_folder):
    loaded = trimesh.load(scene_folder / "scene.glb")
    assert set(loaded.geometry) == {"kind_1_1", "kind_2_2", "kind_3_3"}
    assert loaded.bounds[:, 1] == pytest.approx([0, 0.12], abs=1e-3)       # +Y is up
    # Intensities, not the image's sRGB, which is (200, 80, 30): 255 * ((200 / 255 + 0.055) / 1.055) ** 2.4 = 147.
    looks = loaded.geometry["kind_2_2"].visual
    np.testing.assert_array_equal(np.unique(looks.vertex_attributes["color"], axis=0), [[147, 20, 3, 255]])
    assert looks.material.metallicFactor == 0


def test_usd_colours_are_intensities(scene_folder):
    colours = re.findall(r"displayColor = \[\((.*?)\)", (scene_folder / "scene.usda").read_text())
    assert [float(number) for number in colours[1].split(",")] == pytest.approx([0.5776, 0.0802, 0.0130], abs=1e-4)


def test_usd_collides_with_shapes_alone(scene_folder):
    prims = re.findall(r'def (\w+) "\w+"(.*)', (scene_folder / "scene.usda").read_text())
    # The parser of UsdPhysics warns of a collider that is no shape.
    assert [kind for kind, schemas in prims if "PhysicsCollisionAPI" in schemas] == ["Cube", "Mesh", "Mesh", "Mesh"]


def test_usd_is_balanced_and_parses_where_usd_is_installed(scene_folder):
    text = (scene_folder / "scene.usda").read_text()
    assert text.count("{") == text.count("}") and text.count("(") == text.count(")")
    usd = pytest.importorskip("pxr.Usd")
    stage = usd.Stage.Open(str(scene_folder / "scene.usda"))
    assert stage.GetPrimAtPath("/World/kind_1_1/mesh").IsValid()


def test_a_scene_does_not_stay_beside_the_meshes_of_another_one(result, tmp_path):
    out = str(tmp_path / "scene")
    assert cli.main(["export-scene", str(result), "-o", out, "--format", "sdf", "mjcf"]) == 0
    assert {path.name for path in (tmp_path / "scene").iterdir()} == {"meshes", "scene.sdf", "scene.xml"}
    assert cli.main(["export-scene", str(result), "-o", out, "--format", "mjcf", "--as-seen"]) == 0
    assert {path.name for path in (tmp_path / "scene").iterdir()} == {"meshes", "scene.xml"}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_leaves_no_scene_rather_than_a_broken_one(result, kind):
    scene = read_scene(result, max_pieces=1)
    earlier = WRITERS[kind](scene, result)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))          # bytes: a mesh of eight corners has less
    try:
        with pytest.raises(OSError, match="too large"):
            WRITERS[kind](scene, result)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not earlier.exists()
    assert WRITERS[kind](scene, result) == earlier and earlier.stat().st_size > 600


@pytest.mark.parametrize("change", [
    lambda rows: rows.clear(), lambda rows: rows[0].update(mesh="../object_1.ply"),
    lambda rows: rows[0].update(mesh="absent.ply"), lambda rows: rows[0].update(pose_object_to_camera=[[1]]),
    lambda rows: rows[0].update(pose_object_to_camera=(2 * np.eye(4)).tolist()), lambda rows: rows[0].pop("label"),
    lambda rows: rows[0].update(label=2), lambda rows: rows[0].update(mesh=5), lambda rows: rows[0].update(mesh=""),
    lambda rows: rows[0].update(mesh=".."), lambda rows: rows[0].update(label=-1),
    lambda rows: rows[0].update(label=float("inf")),
    lambda rows: rows[0].update(pose_object_to_camera=np.diag([-1.0, 1, 1, 1]).tolist()),
    lambda rows: rows[0].update(pose_object_to_camera=[*rows[0]["pose_object_to_camera"][:3], [5, 5, 5, 5]]),
    lambda rows: [row.update(pose_object_to_camera=np.diag([1, sign, sign, 1.0]).tolist())
                  for row, sign in zip(rows, (1, -1, 1), strict=True)]])
def test_broken_results_are_named(result, change):
    rows = json.loads((result / "objects.json").read_text())
    change(rows)
    (result / "objects.json").write_text(json.dumps(rows))
    with pytest.raises(Fault) as caught:
        read_scene(result)
    assert caught.value.code == FaultCode.RESULT_INVALID


@pytest.mark.parametrize("change", [
    lambda data: data[:100], lambda data: b"", lambda data: b"hello", lambda data: data[:-200],
    lambda data: data[:-4] + b"\xff\xff\xff\x7f", lambda data: data[:-4] + b"\xff\xff\xff\xff",
    lambda data: data.replace(b"element vertex 8", b"element vertex 99999999999"),
    lambda data: data.replace(b"end_header\n", b"end_header\n" + np.full(3, np.nan, np.float32).tobytes(), 1)])
def test_broken_meshes_are_named(result, change):
    file = result / "object_1.ply"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(Fault, match="object_1.ply") as caught:
        read_scene(result)
    assert caught.value.code == FaultCode.RESULT_INVALID


def test_a_name_from_a_result_cannot_steer_the_terminal(result, capsys):
    rows = json.loads((result / "objects.json").read_text())
    rows[0]["mesh"] = "\x1b[31mred\n.ply"
    (result / "objects.json").write_text(json.dumps(rows))
    assert cli.main(["export-scene", str(result)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "\x1b" not in line and "?[31mred .ply" in line


@pytest.mark.parametrize("options", [
    ["--density", "0"], ["--density", "-5"], ["--density", "nan"], ["--density", "inf"], ["--density", "heavy"],
    ["--pieces", "0"], ["--pieces", "-1"], ["--pieces", "1.5"]])
def test_what_simulators_would_refuse_is_wrong_usage(result, options, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["export-scene", str(result), "-o", str(result / "scene"), *options])
    assert exit_info.value.code == 2
    assert f"argument {options[0]}: '{options[1]}' is not" in capsys.readouterr().err
    assert not (result / "scene").exists()


@pytest.mark.parametrize(("class_ids", "names"), [
    (["003_cracker_box", "005", "Käse\n\x1b[31m"], ["object_003_cracker_box_1", "object_005_2", "K_se_31m_3"]),
    (["kind", "kind_1", "kind_1_2"], ["kind_1", "kind_1_2", "kind_1_2_3"]),
    (["", "x" * 300, "x" * 59 + "__y"], ["object_1", "x" * 60 + "_2", "x" * 59 + "_3"])])
def test_names_are_identifiers_and_unlike_each_other(result, class_ids, names):
    rows = json.loads((result / "objects.json").read_text())
    for row, class_id in zip(rows, class_ids, strict=True):
        row["class_id"] = class_id
    (result / "objects.json").write_text(json.dumps(rows))
    assert cli.main(["export-scene", str(result), "-o", str(result / "scene"), "--format", *WRITERS]) == 0
    model = mujoco.MjModel.from_xml_path(str(result / "scene" / "scene.xml"))
    assert [model.body(number).name for number in range(1, 4)] == names
    assert model.mesh(names[0]).vertnum[0] >= 8 and model.nmesh == 6           # of each the mesh and one piece
    usd = re.findall(r'def Xform "(.*?)"', (result / "scene" / "scene.usda").read_text())
    assert usd == ["World", "support", CAMERA, *names]
    assert all(re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) for name in usd)
    assert set(trimesh.load(result / "scene" / "scene.glb").geometry) == set(names)


def test_a_piece_is_not_named_like_another_object(result):
    item, other = read_scene(result).objects[:2]
    cut = replace(item, name="kind_1", pieces=item.pieces * 3)
    file = write_mjcf(Scene((cut, replace(other, name="kind_1_2")), np.eye(4)), result)
    model = mujoco.MjModel.from_xml_path(str(file))
    assert model.nmesh == 6
    assert np.ptp(trimesh.load(result / "meshes" / "kind_1_2.obj").vertices, axis=0) == pytest.approx(
        np.ptp(other.mesh.vertices, axis=0), abs=1e-6)


def test_no_result_is_named(tmp_path, capsys):
    assert cli.main(["export-scene", str(tmp_path)]) == 1
    assert f"RESULT_INVALID: {tmp_path}/objects.json: is no file" in capsys.readouterr().err
