"""Surfaces that float are drawn down to what carries them, where the camera could not see below."""
import numpy as np
import open3d as o3d
import pytest
import trimesh

from sam3d_ros.perception.frame import Frame, Instance, Intrinsics
from sam3d_ros.perception.standing import standing
from sam3d_ros.perception.surface import Surface
from sam3d_ros.synth.render import look_at

CAMERA = Intrinsics(320, 240, 300.0, 300.0, 159.5, 119.5)
EYE = np.array([0.0, -0.5, 0.3])
ROTATION = look_at(EYE, np.zeros(3), 0.0)                 # camera_from_world
FLOOR = np.append(ROTATION[:, 2], EYE[2])                 # height over z = 0, of points in the camera frame
TABLE = trimesh.creation.box([3, 3, 0.02]).apply_translation([0, 0, -0.01])


def box(size, position):
    return trimesh.creation.box(size).subdivide_to_size(0.01).apply_translation(position)


def surface(mesh):
    return Surface((mesh.vertices - EYE) @ ROTATION.T, mesh.faces.astype(np.uint32),
                   np.full(len(mesh.vertices), 0.001, np.float32))


def world(found):
    return found.vertices @ ROTATION + EYE


def frame(*meshes, unlabelled=()):
    """What the camera sees of a table with the meshes; labels count from 1."""
    scene = trimesh.util.concatenate([TABLE, *meshes, *unlabelled])
    owner = np.repeat([0, *range(1, len(meshes) + 1), *[0] * len(unlabelled)],
                      [len(mesh.faces) for mesh in (TABLE, *meshes, *unlabelled)])
    rows, columns = (grid.ravel() for grid in np.indices((CAMERA.height, CAMERA.width)))
    rays = np.stack([(columns - CAMERA.cx) / CAMERA.fx, (rows - CAMERA.cy) / CAMERA.fy, np.ones(len(rows))], axis=1)
    caster = o3d.t.geometry.RaycastingScene()
    caster.add_triangles(o3d.core.Tensor(scene.vertices.astype(np.float32)),
                         o3d.core.Tensor(scene.faces.astype(np.uint32)))
    cast = caster.cast_rays(o3d.core.Tensor(np.hstack([np.tile(EYE, (len(rays), 1)), rays @ ROTATION]).astype("f")))
    depth, hit = cast["t_hit"].numpy(), cast["primitive_ids"].numpy()
    labels = np.where(np.isfinite(depth), owner[np.where(np.isfinite(depth), hit, 0)], 0)
    shape = (CAMERA.height, CAMERA.width)
    return Frame(np.zeros((*shape, 3), np.uint8), np.where(np.isfinite(depth), depth, 0).reshape(shape).astype("f"),
                 labels.reshape(shape).astype(np.int32), CAMERA, tuple(Instance(i + 1) for i in range(len(meshes))))


CAN = box([0.06, 0.06, 0.1], [0.02, 0, 0.05])
FRONT = box([0.2, 0.05, 0.06], [0, -0.08, 0.03])          # hides the foot of CAN
UPPER_HALF = box([0.06, 0.06, 0.055], [0.02, 0, 0.0725])  # what there is of CAN without its foot
SUPPORTED = box([0.06, 0.06, 0.1], [0.02, 0, 0.08])       # CAN on something 3 cm high


def test_a_hidden_foot_is_drawn_down_to_the_support():
    seen = frame(CAN, FRONT)
    can, front = standing([surface(UPPER_HALF), surface(FRONT)], [1, 2], seen, FLOOR)
    assert world(can)[:, 2].min() == pytest.approx(0, abs=1e-6)
    assert world(can)[:, 2].max() == pytest.approx(0.1, abs=1e-6)
    np.testing.assert_allclose(world(can)[:, :2], UPPER_HALF.vertices[:, :2], atol=1e-6)
    # The lowest centimetre sinks as it is, what is above it up to another one is stretched, the rest stays.
    sunk = UPPER_HALF.vertices[:, 2] - world(can)[:, 2]
    np.testing.assert_allclose(sunk, np.interp(UPPER_HALF.vertices[:, 2], [0.055, 0.065], [0.045, 0]), atol=1e-6)
    assert can.vertex_std.max() == pytest.approx(0.045 / 3, rel=0.01) and can.vertex_std.min() == pytest.approx(0.001)
    np.testing.assert_array_equal(front.vertices, surface(FRONT).vertices)
    assert trimesh.Trimesh(can.vertices, can.triangles, process=False).volume == pytest.approx(CAN.volume, rel=0.01)


def test_what_is_seen_to_hang_in_the_air_stays():
    hanging = box([0.06, 0.06, 0.06], [0.02, 0, 0.07])
    found, = standing([surface(hanging)], [1], frame(hanging), FLOOR)
    np.testing.assert_array_equal(found.vertices, surface(hanging).vertices)


def test_what_hides_its_own_underside_stays():
    """Seen from above, an object in the hand looks like one that stands."""
    plane = np.array([0, 0, -1.0, 0.6])
    held = trimesh.creation.box([0.06, 0.06, 0.06]).subdivide_to_size(0.01).apply_translation([0, 0, 0.5])
    labels = np.zeros((CAMERA.height, CAMERA.width), np.int32)
    labels[100:140, 140:180] = 1
    seen = Frame(np.zeros((*labels.shape, 3), np.uint8), np.where(labels, 0.47, 0.6).astype("f"), labels, CAMERA,
                 (Instance(1),))
    item = Surface(held.vertices, held.faces.astype(np.uint32), np.full(len(held.vertices), 0.001, "f"))
    np.testing.assert_array_equal(standing([item], [1], seen, plane)[0].vertices, held.vertices)


def test_what_stands_on_something_that_is_no_instance_stays():
    book = box([0.3, 0.3, 0.03], [0, 0, 0.015])
    found, = standing([surface(SUPPORTED)], [1], frame(SUPPORTED, unlabelled=[book]), FLOOR)
    np.testing.assert_array_equal(found.vertices, surface(SUPPORTED).vertices)


@pytest.mark.parametrize("is_known", [False, True])
def test_what_stands_on_another_object_is_drawn_down_to_that(is_known):
    base = box([0.1, 0.1, 0.03], [0.02, 0, 0.015])
    short = box([0.06, 0.06, 0.08], [0.02, 0, 0.09])      # its lowest 2 cm are missing
    front = box([0.2, 0.05, 0.1], [0, -0.1, 0.05])
    seen = frame(SUPPORTED, base, front)
    beside = [surface(mesh) for mesh in (base, front)]
    if is_known:
        found = standing([surface(short)], [1], seen, FLOOR, [(item.vertices, item.triangles) for item in beside])
    else:
        found = standing([surface(short), *beside], [1, 2, 3], seen, FLOOR)
    assert world(found[0])[:, 2].min() == pytest.approx(0.03, abs=0.005)


def test_a_crumb_of_a_hidden_object_is_drawn_down():
    lid = box([0.06, 0.06, 0.02], [0.02, 0, 0.09])
    found, _ = standing([surface(lid), surface(FRONT)], [1, 2], frame(CAN, FRONT), FLOOR)
    assert world(found)[:, 2].min() == pytest.approx(0, abs=1e-6)
    assert world(found)[:, 2].max() == pytest.approx(0.1, abs=1e-6)


def test_a_sliver_high_above_the_support_stays():
    sliver = box([0.06, 0.06, 0.015], [0.02, 0, 0.0925])
    found, _ = standing([surface(sliver), surface(FRONT)], [1, 2], frame(CAN, FRONT), FLOOR)
    np.testing.assert_array_equal(found.vertices, surface(sliver).vertices)
