"""Training data and training: conventions with numbers, determinism, resuming, export."""
import numpy as np
import pytest
import trimesh

from sam3d_ros.perception.frame import back_project
from sam3d_ros.synth import sensor
from sam3d_ros.synth.render import look_at, random_rotation, render_view
from sam3d_ros.synth.sdf import closed_parts, normalised, raycasting_scene, signed_distance_grid
from sam3d_ros.training.meshes import MeshStore
from sam3d_ros.training.samples import Samples, make_batch, make_samples


def small_store() -> MeshStore:
    shapes = [trimesh.creation.icosphere(3, 0.5), trimesh.creation.box([1, 0.6, 0.4]),
              trimesh.creation.cylinder(0.3, 1.0)]
    shapes = [normalised(s)[0] for s in shapes]
    return MeshStore(shapes, np.stack([signed_distance_grid([s]) for s in shapes]), np.full(3, np.nan),
                     ["ball", "box", "can"])


@pytest.fixture(scope="module")
def store():
    return small_store()


def test_signed_distance_of_overlapping_parts_is_that_of_their_union():
    ball, bar = trimesh.creation.icosphere(4, 0.4), trimesh.creation.box([1, 0.2, 0.2])
    grid = signed_distance_grid([ball, bar]).astype(float)
    t = np.linspace(-0.62, 0.62, 64)
    points = np.stack(np.meshgrid(t, t, t, indexing="ij"), axis=-1)
    outside = np.abs(points) - [0.5, 0.1, 0.1]
    to_bar = np.linalg.norm(np.maximum(outside, 0), axis=-1) + np.minimum(outside.max(axis=-1), 0)
    np.testing.assert_allclose(grid, np.minimum(np.linalg.norm(points, axis=-1) - 0.4, to_bar), atol=2e-3)


def test_open_meshes_are_left_out():
    box = trimesh.creation.box()
    assert len(closed_parts(trimesh.util.concatenate([box, box.copy().apply_translation([0.5, 0, 0])]))) == 2
    ball = trimesh.creation.icosphere(2)
    assert closed_parts(trimesh.Trimesh(ball.vertices, ball.faces[ball.triangles_center[:, 2] > 0])) is None


def test_rendered_points_lie_on_the_target(store):
    """Depth, intrinsics and target_from_camera agree: the masked points are on the mesh, to a tenth of a millimetre."""
    rng = np.random.default_rng(3)
    for target in store.meshes:
        view = None
        while view is None:
            view = render_view(target, store.meshes, rng)
        rows, columns = np.nonzero(view.mask)
        points = back_project(view.depth, view.intrinsics, rows, columns)
        in_target = points @ view.target_from_camera[:3, :3].T + view.target_from_camera[:3, 3]
        distance = raycasting_scene(target).compute_distance(in_target.astype(np.float32)).numpy()
        assert distance.max() * view.scale < 1e-4


def test_look_at_is_an_optical_frame():
    rotation = look_at(np.array([1.0, 0, 0.5]), np.zeros(3), 0.0)
    np.testing.assert_allclose(rotation @ [-1, 0, -0.5], [0, 0, np.hypot(1, 0.5)], atol=1e-12)
    assert (rotation @ [0, 0, 1])[1] < 0 and rotation[0, 2] == pytest.approx(0)   # up in the world is -y in the image
    np.testing.assert_allclose(random_rotation(np.random.default_rng(0)) @ random_rotation(np.random.default_rng(0)).T,
                               np.eye(3), atol=1e-12)


def test_samples_are_deterministic_and_survive_the_disk(store, tmp_path):
    first, second = make_samples(store, 4, seed=5), make_samples(store, 4, seed=5)
    first.save(tmp_path / "s.npz")
    loaded = Samples.load(tmp_path / "s.npz")
    for name, values in vars(first).items():
        np.testing.assert_array_equal(values, getattr(second, name))
        np.testing.assert_array_equal(values, getattr(loaded, name))
    store.save(tmp_path / "m.npz")
    again = MeshStore.load(tmp_path / "m.npz")
    assert again.name == store.name
    np.testing.assert_array_equal(again.meshes[1].faces, store.meshes[1].faces)


def test_true_distance_is_zero_where_the_camera_sees_the_surface(store):
    samples = make_samples(store, 24, seed=1, spoil=False)
    evidence, distance = make_batch(samples, store.sdf.astype(np.float32))
    seen = (np.abs(evidence[:, 0]) < 0.05) & (evidence[:, 1] > 0) & (evidence[:, 2] > 0)
    assert np.abs(np.median(distance[:, 0][seen])) < 0.15 and np.percentile(np.abs(distance[:, 0][seen]), 90) < 1.0
    free = (evidence[:, 0] == 1) & (evidence[:, 2] > 0)
    assert (distance[:, 0][free] > 0).mean() > 0.999                    # what the camera sees through is outside


def test_mirroring_and_jitter_keep_evidence_and_target_together(store):
    samples = make_samples(store, 8, seed=2, spoil=False)
    evidence, distance = make_batch(samples, store.sdf.astype(np.float32), np.random.default_rng(0))
    seen = (np.abs(evidence[:, 0]) < 0.05) & (evidence[:, 1] > 0) & (evidence[:, 2] > 0)
    assert np.percentile(np.abs(distance[:, 0][seen]), 90) < 1.0


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
    assert min(sizes) < 900 < max(sizes) and 500 < min(sizes) and max(sizes) < 1600


class TestWithTorch:
    torch = pytest.importorskip("torch", reason="training needs torch: pip install sam3d_ros[train]")

    def test_the_loss_is_least_at_the_truth(self):
        from sam3d_ros.training.train import SOFTNESS, loss_of

        distance = self.torch.from_numpy(np.linalg.norm(np.indices((1, 1, 64, 64, 64))[2:] - 31.5, axis=0) - 12.0)
        distance = distance.float()
        truth = loss_of(-distance / SOFTNESS, distance)
        assert truth < loss_of(-(distance + 2) / SOFTNESS, distance)
        assert truth < loss_of(self.torch.zeros_like(distance), distance)

    def test_training_resumes_and_exports(self, store, tmp_path):
        from sam3d_ros.runtime.engine import load_engine
        from sam3d_ros.runtime.signature import INPUT_NAME, OUTPUT_NAME
        from sam3d_ros.training import train
        from sam3d_ros.training.export import export, load_student

        store.save(tmp_path / "train_meshes.npz")
        store.save(tmp_path / "dev_meshes.npz")
        make_samples(store, train.BATCH, seed=0).save(tmp_path / "shard_00000.npz")
        settings = dict(data=tmp_path, run=tmp_path, shards=1, procedural=0, workers=1)
        train.train(minutes=0.01, **settings)
        first = self.torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        train.train(minutes=first["elapsed"] / 60 + 0.005, **settings)
        second = self.torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        assert second["step"] > first["step"] >= 1 and second["elapsed"] > first["elapsed"]

        student = load_student(tmp_path / "checkpoint.pt")
        export(student, tmp_path / "student.onnx")
        assert (tmp_path / "student.onnx").stat().st_size < 25e6
        evidence = make_batch(make_samples(store, 2, seed=1), store.sdf.astype(np.float32))[0]
        with self.torch.no_grad():
            expected = student(self.torch.from_numpy(evidence)).numpy()
        for engine in ("openvino", "onnxruntime"):
            found = load_engine(engine, tmp_path / "student.onnx", "fp32").infer({INPUT_NAME: evidence})
            found = found[OUTPUT_NAME]
            np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
