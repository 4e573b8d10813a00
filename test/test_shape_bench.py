"""`sam3d bench shape`: its scenes, its perturbations and its figures, on cases whose answer is known."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image
from scipy import ndimage

from sam3d_ros.evaluation import frames, normalised, perturbations, pictures, scenes, shape, shape_report
from sam3d_ros.evaluation.alignment import icp, rotation_angle_deg, similarity
from sam3d_ros.evaluation.calibration import reliability, vertex_errors
from sam3d_ros.evaluation.colour import colour_errors, lab_distance
from sam3d_ros.evaluation.metrics import compare
from sam3d_ros.perception.folder import write_objects
from sam3d_ros.perception.frame import Frame, Instance, Intrinsics, back_project
from sam3d_ros.perception.objects import ReconstructedObject, ScaleSource, Status
from sam3d_ros.perception.pipeline import PipelineResult

DATA = Path(os.environ.get("SAM3D_DATA", Path(__file__).parents[2] / "shared" / "data"))
JUDGE = DATA.parent / "judge" / "evaluate.py"
RED, BLUE = (200, 40, 40), (40, 60, 200)


def moved(mesh: trimesh.Trimesh, *, turn_deg: float = 0.0, scale: float = 1.0, shift=(0, 0, 0)) -> trimesh.Trimesh:
    transform = trimesh.transformations.rotation_matrix(np.deg2rad(turn_deg), [0, 0, 1])
    transform[:3, :3] *= scale
    transform[:3, 3] = shift
    return mesh.copy().apply_transform(transform)


BOX = trimesh.creation.box((0.12, 0.08, 0.05))
BALL = trimesh.creation.icosphere(4, 0.05)


# ----------------------------------------------------------------------------------------------------- alignment

def test_icp_undoes_a_small_motion_and_similarity_a_scale_too():
    assert rotation_angle_deg(icp(moved(BOX, turn_deg=6, shift=(0.003, 0, 0)), BOX)) == pytest.approx(6, abs=0.5)
    predicted = moved(BOX, turn_deg=4, scale=2.5, shift=(0.3, 0, 0))
    assert compare(predicted.apply_transform(similarity(predicted, BOX)), BOX).volume_iou > 0.95


def test_rotation_left_after_icp_is_the_rotation_that_was_wrong():
    assert compare(moved(BOX, turn_deg=8), BOX).icp_rotation_deg == pytest.approx(8, abs=0.5)
    assert compare(moved(BALL, shift=(0.01, 0, 0)), BALL).icp_rotation_deg < 3       # a ball has no rotation


def test_normalised_protocol_ignores_scale_and_place_but_not_shape():
    same = normalised.compare_normalised(moved(BOX, scale=3, shift=(1, 0, 0)), BOX)
    assert same.volume_iou > 0.95 and same.chamfer < 0.01 and same.f1_001 > 0.8
    other = normalised.compare_normalised(BALL, BOX)
    assert other.volume_iou < 0.7 and other.chamfer > 0.1


def test_earth_movers_distance_of_a_shift_is_the_shift():
    unit = trimesh.creation.icosphere(3, 1.0)
    assert normalised.earth_movers_distance(moved(unit, shift=(0.5, 0, 0)), unit) == pytest.approx(0.5, abs=0.03)
    assert normalised.earth_movers_distance(unit, unit) < 0.12


# ------------------------------------------------------------------------------------------------- perturbations

CAMERA = Intrinsics(80, 60, 100.0, 100.0, 39.5, 29.5)


@pytest.fixture
def two_squares() -> Frame:
    """Two squares of 20 pixels, at 0.5 m, 10 pixels apart, before a wall at 0.8 m."""
    labels = np.zeros((60, 80), np.int32)
    labels[20:40, 10:30], labels[20:40, 40:60] = 1, 2
    depth = np.where(labels > 0, 0.5, 0.8).astype(np.float32)
    return Frame(np.full((60, 80, 3), 90, np.uint8), depth, labels, CAMERA, (Instance(1), Instance(2)))


def test_holes_take_the_stated_share_of_every_object_and_nothing_else(two_squares):
    spoiled = perturbations.with_holes(two_squares)
    lost = (spoiled.depth == 0) & (two_squares.depth > 0)
    for label in (1, 2):
        assert lost[two_squares.labels == label].mean() == pytest.approx(0.2, abs=0.01)
    assert not lost[two_squares.labels == 0].any()
    assert ndimage.label(lost)[1] < 12                                          # blobs, not single pixels
    assert np.array_equal(spoiled.depth, perturbations.with_holes(two_squares).depth)


def test_edges_are_blanked_on_both_sides_and_nowhere_else(two_squares):
    blank = perturbations.with_blank_edges(two_squares).depth == 0
    own = two_squares.labels == 1
    outline = ndimage.binary_dilation(own, np.ones((3, 3))) & ~ndimage.binary_erosion(own, np.ones((3, 3)))
    assert np.array_equal(blank[:, :35], outline[:, :35])


def test_masks_shrink_and_grow_by_the_stated_pixels(two_squares):
    eroded = perturbations.with_eroded_masks(two_squares).labels
    assert (eroded == 1).sum() == (eroded == 2).sum() == 12 * 12
    dilated = perturbations.with_dilated_masks(two_squares).labels
    assert dilated[30, 10 - 4] == 1 and dilated[30, 10 - 5] == 0
    assert np.array_equal(dilated[20:40, 10:30], np.ones((20, 20)))             # objects keep their own pixels


def test_masks_that_grow_into_each_other_meet_halfway(two_squares):
    labels = perturbations.with_dilated_masks(two_squares, 8).labels
    assert labels[30, 33] == 1 and labels[30, 36] == 2


def test_own_pixels_are_all_that_is_left(two_squares):
    alone = perturbations.own_pixels_only(two_squares, 2)
    assert np.array_equal(alone.depth > 0, two_squares.labels == 2)
    assert np.array_equal(alone.labels > 0, two_squares.labels == 2)
    assert [instance.label for instance in alone.instances] == [2]
    assert np.ptp(perturbations.without_colour(two_squares).colour) == 0


# --------------------------------------------------------------------------------------------------- uncertainty

def test_true_sigmas_are_calibrated_and_wrong_ones_are_not():
    rng = np.random.default_rng(0)
    std = rng.uniform(0.001, 0.01, 40_000)
    error = np.abs(rng.normal(size=len(std)) * std)
    told = reliability(std, error)
    assert told["within_1_sigma"] == pytest.approx(0.683, abs=0.01)
    assert told["within_2_sigma"] == pytest.approx(0.954, abs=0.01)
    assert told["half_ratio"] == pytest.approx(3.25 / 7.75, abs=0.02)           # mean sigma of the halves, mm
    for point in told["curve"]:
        assert point["observed_mm"] == pytest.approx(point["expected_mm"], rel=0.05)
    guessed = reliability(rng.permutation(std), error)
    assert guessed["half_ratio"] == pytest.approx(1, abs=0.05)
    assert reliability(std / 2, error)["within_1_sigma"] < 0.45


# -------------------------------------------------------------------------------------------------------- scenes

def textured(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Red where x < 0 in the object frame, else blue; a seam of its own for every triangle."""
    mesh = trimesh.Trimesh(mesh.triangles.reshape(-1, 3), np.arange(3 * len(mesh.faces)).reshape(-1, 3), process=False)
    side = np.repeat(mesh.triangles_center[:, 0] > 0, 3)
    image = Image.fromarray(np.array([[RED, BLUE]], np.uint8).repeat(8, axis=0).repeat(8, axis=1))
    uv = np.stack([np.where(side, 0.75, 0.25), np.full(len(side), 0.5)], axis=1)
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=image)
    mesh.visual = trimesh.visual.TextureVisuals(uv, material=material)
    return mesh


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A data folder with three textured solids in its dev split, and an open mesh that is no solid."""
    root = tmp_path_factory.mktemp("data")
    (root / "meshes").mkdir()
    shapes = {"block": BOX, "can": trimesh.creation.cylinder(0.035, 0.1, sections=24),
              "lump": trimesh.creation.icosphere(2, 0.045).apply_scale([1, 0.8, 0.6]),
              "sheet": trimesh.Trimesh([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]], [[0, 1, 2]])}
    rows = []
    for name, mesh in shapes.items():
        textured(mesh).export(root / "meshes" / f"{name}.glb")
        rows.append(json.dumps({"file": f"meshes/{name}.glb", "name": name, "split": "dev"}))
    (root / "meshes" / "manifest.jsonl").write_text("\n".join(rows))
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("scenes")


SMALL = tuple(replace(scene_set, counts=(2, 3)) for scene_set in scenes.SETS)


@pytest.fixture(scope="module")
def small_sets():
    """Scenes of two or three objects, so that three models are enough."""
    patch = pytest.MonkeyPatch()
    patch.setattr(shape, "SCENE_SETS", {scene_set.name: scene_set for scene_set in SMALL})
    patch.setattr(scenes, "SIZE", (320, 240))
    patch.setattr(scenes, "FOCAL_LENGTHS", (290.0,))
    patch.setattr(scenes, "LEAST_PIXELS", 100)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def rendered(data, cache, small_sets) -> Path:
    return scenes.scene_folder(data, cache, SMALL[0], 3, seed=1)


def test_only_solids_are_used(data):
    assert [model.name for model in scenes.dev_models(data)] == ["block", "can", "lump"]


def test_depth_and_masks_lie_on_the_true_meshes(data, rendered):
    for folder in frames.frame_folders(rendered / "none"):
        true_frame = frames.read_true_frame(folder, data)
        for true in true_frame.objects:
            rows, columns = np.nonzero(true_frame.frame.labels == true.label)
            points = back_project(true_frame.frame.depth, true_frame.frame.intrinsics, rows, columns)
            distance = trimesh.proximity.closest_point_naive(true.posed, points[::40])[1]
            assert distance.max() < 2e-4                                        # depth is stored in steps of 0.1 mm
            height = trimesh.transform_points(true.posed.vertices, true_frame.world_from_camera)[:, 2].min()
            assert -2e-3 < height - true_frame.support_height < 0.05


def test_noise_levels_differ_in_depth_alone(data, rendered):
    levels = [frames.read_true_frame(frames.frame_folders(rendered / noise)[0], data).frame for noise in scenes.NOISE]
    missing = [(frame.depth == 0).mean() for frame in levels]
    assert missing[0] < missing[1] < missing[2]
    assert all(np.array_equal(frame.labels, levels[0].labels) for frame in levels)


def test_same_seed_same_scenes_another_seed_others(data, rendered, tmp_path, small_sets):
    def picture(folder: Path) -> bytes:
        return (frames.frame_folders(folder / "heavy")[0] / "depth.png").read_bytes()
    again = scenes.scene_folder(data, tmp_path, SMALL[0], 1, seed=1)
    assert picture(again) == picture(rendered)
    assert picture(scenes.scene_folder(data, tmp_path, SMALL[0], 1, seed=2)) != picture(rendered)


def test_other_meshes_are_other_scenes(data, rendered, tmp_path, small_sets):
    shutil.copytree(data, tmp_path / "data")
    manifest = tmp_path / "data" / "meshes" / "manifest.jsonl"
    assert scenes.scene_folder(tmp_path / "data", rendered.parents[1], SMALL[0], 3, seed=1) == rendered
    manifest.write_text("\n".join(manifest.read_text().splitlines()[:2]))
    fewer = scenes.scene_folder(tmp_path / "data", rendered.parents[1], SMALL[0], 3, seed=1)
    assert fewer != rendered and {true.name for folder in frames.frame_folders(fewer / "none")
                                  for true in frames.read_true_frame(folder, data).objects} <= {"block", "can"}


# ------------------------------------------------------------------------------------------- sections of the bench

def as_object(label: int, mesh: trimesh.Trimesh, camera_from_object: np.ndarray, std: float = 0.001,
              rgb=RED) -> ReconstructedObject:
    none = np.empty((0, 3), np.float32)
    count = len(mesh.vertices)
    return ReconstructedObject(
        label=label, class_id="", score=1.0, detector_id="", camera_from_object=camera_from_object,
        pose_covariance=np.eye(6), size=mesh.extents, vertices=mesh.vertices.astype(np.float32),
        triangles=mesh.faces.astype(np.uint32), vertex_rgba=np.tile(np.array([*rgb, 255], np.uint8), (count, 1)),
        vertex_std=np.full(count, std, np.float32), scale_source=ScaleSource.DEPTH, scale_std=0.0,
        visible_fraction=0.5, status=Status.OK, observed_points=none,
        observed_rgb=none.astype(np.uint8))


class Cheat:
    """Stands in for the pipeline: gives the true meshes, swollen about their middle by `mm` in every direction; twice
    that where depth is missing, half of that for each further view.
    """

    def __init__(self, frames_by_image: dict[bytes, frames.TrueFrame], mm: float):
        self._frames, self._mm = frames_by_image, mm

    def run(self, frame: Frame, earlier=None, *_: Any) -> PipelineResult:
        true_frame = self._frames[frame.labels.tobytes()]
        objects = []
        for true in true_frame.objects:
            mm = self._mm * (2 if frame.depth is None else 0.5 ** len((earlier or {}).get(true.label, ())))
            middle = true.model.bounds.mean(axis=0)
            mesh = true.model.copy().apply_translation(-middle)
            mesh.apply_scale((mesh.extents.max() + 2e-3 * mm) / mesh.extents.max())
            objects.append(as_object(true.label, mesh.apply_translation(middle), true.camera_from_object))
        return PipelineResult(objects, (), {})


@pytest.fixture(scope="module")
def bench(data, cache, rendered, small_sets) -> shape.Bench:
    made = shape.Bench(None, data, cache, 3, 1)
    known = {where.frame.labels.tobytes(): where for scene_set in shape.SCENE_SETS
             for where in [*made.frames(scene_set), *made.other_views(scene_set)]}
    made.pipeline = Cheat(known, mm=2.0)
    return made


def test_core_sees_a_small_error_and_better_shapes_than_hulls(bench):
    section = shape.SECTIONS["core"](bench)
    methods = section["easy"]["methods"]
    product = methods["sam3d"]["all"]
    assert product["found"] == product["objects"] >= 3
    assert 0.5 < product["mean"]["chamfer_mm"] < 2
    assert product["mean"]["volume_iou"] > methods["convex hull"]["all"]["mean"]["volume_iou"]
    assert sum(group["objects"] for group in section["easy"]["by_object"].values()) == product["objects"]
    assert sum(group["objects"] for group in section["easy"]["by_visibility"].values()) == product["objects"]
    assert "| easy | sam3d |" in shape_report.section_table("core", section)


def test_fused_views_are_compared_on_the_same_objects(bench):
    section = shape.SECTIONS["views"](bench)
    two = section["2 views"]
    assert two["compared"] > 0 and two["ratio"] == pytest.approx(0.5, abs=0.05)
    assert section["4 views"]["compared"] == 0 or section["4 views"]["ratio"] == pytest.approx(1 / 8, abs=0.05)
    assert "2 views" in shape_report.section_table("views", section)


def test_views_of_one_scene_agree_on_where_its_objects_are(bench):
    where = bench.frames("easy")[0]
    for other in bench.other_views("easy")[:3]:
        assert other.name.startswith(where.name)
        for true in other.objects:
            here = [mine for mine in where.objects if mine.label == true.label]
            pose = shape.camera_from_observer(where, other) @ true.camera_from_object
            assert all(np.allclose(pose, mine.camera_from_object, atol=1e-9) for mine in here)


def test_without_depth(bench):
    with_depth = shape.SECTIONS["core"](bench)["easy"]["methods"]["sam3d"]["all"]
    section = shape.SECTIONS["no_depth"](bench)
    for name in ("unknown_scale", "support_plane"):
        assert section[name]["found"] == with_depth["found"]
        assert section[name]["mean"]["chamfer_mm"] == pytest.approx(2 * with_depth["mean"]["chamfer_mm"], rel=0.1)
    assert section["unknown_scale"]["aligned_volume_iou"] > 0.9 and section["support_plane"]["size_error_median"] < 0.1
    assert "| the support plane |" in shape_report.section_table("no_depth", section)


def test_uncertainty_and_colour_of_the_bench(bench):
    told = shape.SECTIONS["uncertainty"](bench)["easy"]
    assert told["vertices"] >= 3 * 2000 and "half_ratio_within_objects" in told
    tones = shape.SECTIONS["colour"](bench)["easy"]
    assert tones["objects"] >= 3 and 0 < tones["unseen"] < 120
    assert tones["below_mean_colour"] == pytest.approx(1 - tones["unseen"] / tones["mean_colour"])


def test_a_change_is_judged_on_the_objects_found_both_times(bench):
    pairs = bench.pairs("easy")[:3]
    before = [2.0, np.nan, 4.0]
    told = shape.ratio_report(before, [pairs[0], pairs[1], replace(pairs[2], item=None)])
    assert (told["objects"], told["found"], told["compared"]) == (3, 2, 1)
    assert told["ratio"] == told["sound_ratio"] == pytest.approx(shape.chamfer_mm(pairs[0]) / 2.0)
    chain = replace(pairs[0], true=replace(pairs[0].true, name="chain"))
    both = shape.ratio_report([2.0, 1.0], [pairs[0], chain])
    assert both["sound_ratio"] == told["ratio"] and both["ratio"] == pytest.approx(told["ratio"] * 4 / 3)


def test_a_bench_in_which_nothing_is_found_has_no_figures(bench, tmp_path):
    empty = replace(bench, pipeline=SimpleNamespace(run=lambda *_: PipelineResult([], (), {})), _results={}, _scores={})
    for name in ("core", "protocol", "robustness", "views", "colour", "uncertainty"):
        section = shape.SECTIONS[name](empty)
        json.dumps(section, allow_nan=False)
        assert isinstance(shape_report.section_table(name, section), str)
    assert section == {} and pictures.draw(empty, tmp_path) == []


def test_vertex_errors_are_distances_to_the_true_surface():
    swollen = as_object(1, trimesh.creation.icosphere(3, 0.06), np.eye(4), std=0.004)
    std, error = vertex_errors(swollen, trimesh.creation.icosphere(5, 0.05))
    assert np.allclose(std, 0.004) and np.allclose(error, 0.01, atol=2e-4)


def test_colour_error_is_of_the_unseen_side(data):
    """A block, red for x < 0 and blue for x > 0, seen from x < 0 alone; the image shows it in its true colours."""
    model = next(model for model in scenes.dev_models(data) if model.name == "block")
    world_from_camera = np.eye(4)                           # looks along +x of the object
    world_from_camera[:3, :3] = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    world_from_camera[0, 3] = -0.5
    camera_from_object = np.linalg.inv(world_from_camera)
    labels = np.zeros((60, 80), np.int32)
    rows, columns = np.mgrid[:60, :80]
    labels[(np.abs((columns - 39.5) / 100 * 0.44) < 0.04) & (np.abs((rows - 29.5) / 100 * 0.44) < 0.025)] = 1
    depth = np.where(labels == 1, 0.44, 0).astype(np.float32)
    frame = Frame(np.where((labels == 1)[..., None], RED, 0).astype(np.uint8), depth, labels, CAMERA, (Instance(1),))
    contrast = lab_distance(np.array(RED) / 255, np.array([BLUE]) / 255)
    told = colour_errors(as_object(1, BOX, camera_from_object, rgb=RED), model, camera_from_object, frame, frame)
    area = 2 * (0.12 * 0.08 + 0.12 * 0.05) + 0.08 * 0.05   # all but the seen face
    blue = ((0.12 * 0.08 + 0.12 * 0.05) + 0.08 * 0.05) / area
    assert told.unseen == pytest.approx(contrast * blue, rel=0.1)
    assert told.mean_colour == pytest.approx(told.unseen, rel=1e-6)             # both are red
    assert told.unseen_relit == pytest.approx(told.unseen, rel=0.05)            # no shade to make up for
    dark = Frame(frame.colour // 2, depth, labels, CAMERA, (Instance(1),))
    in_shade = colour_errors(as_object(1, BOX, camera_from_object, rgb=RED), model, camera_from_object, dark, frame)
    assert in_shade.mean_true_colour == pytest.approx(told.mean_colour, rel=0.02) and in_shade.mean_colour != \
        pytest.approx(told.mean_colour, rel=0.02)


def test_pictures_show_best_median_and_worst(bench, tmp_path):
    files = pictures.draw(bench, tmp_path)
    assert sorted(path.name for path in files) == sorted(
        f"{scene_set}_{rank}.png" for scene_set in shape.SCENE_SETS for rank in ("best", "median", "worst"))
    assert all(path.stat().st_size < 300_000 for path in files)
    assert {Image.open(path).size for path in files} == {(4 * 190 + 3 * 4, 2 * 210 + 4)}


def test_error_colours_run_from_blue_to_red():
    true = trimesh.creation.icosphere(2, 0.05)
    assert (pictures.error_colours(true, true, np.eye(4)) == pictures.SCALE[0].astype(np.uint8)).all()
    far = pictures.error_colours(trimesh.creation.icosphere(2, 0.07), true, np.eye(4))
    assert (far == pictures.SCALE[-1].astype(np.uint8)).all()


@pytest.mark.skipif(not JUDGE.exists(), reason="the judge is not beside the third-party data; set SAM3D_DATA")
def test_judge_agrees_to_two_digits(data, bench, tmp_path):
    for where, results in zip(bench.frames("easy"), bench.results("easy"), strict=True):
        write_objects(tmp_path / where.name, list(results.values()), [str(label) for label in results], 0.0)
    environment = {name: value for name, value in os.environ.items() if name != "_ROS_WHEELS_BOOTSTRAP_COMPLETE"}
    folder = scenes.scene_folder(data, bench.cache, SMALL[0], 3, seed=1) / "normal"
    run = subprocess.run([sys.executable, str(JUDGE), str(folder), str(data), str(tmp_path)], capture_output=True,
                         text=True, check=True, cwd=JUDGE.parent, env=environment)
    judged = json.loads(run.stdout.splitlines()[-1])
    ours = frames.group_report([score for score in bench.scores("easy") if score.method == "sam3d"])["mean"]
    for theirs, name in (("cd_mm", "chamfer_mm"), ("f5mm", "f_score_5mm"), ("f10mm", "f_score_10mm"),
                         ("viou", "volume_iou"), ("iou3d", "box_iou"), ("adds", "add_s")):
        assert ours[name] == pytest.approx(judged[theirs], rel=5e-3, abs=1e-4), name
