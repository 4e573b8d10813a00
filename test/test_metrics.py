"""Shape errors against cases whose answer is known."""
from __future__ import annotations

import numpy as np
import pytest
import trimesh

from sam3d_ros.evaluation.metrics import compare, mean_errors


def cube(edge: float, shift: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> trimesh.Trimesh:
    mesh = trimesh.creation.box(extents=(edge, edge, edge))
    mesh.apply_translation(shift)
    return mesh


def test_identical_meshes_have_no_error():
    errors = compare(cube(0.1), cube(0.1))
    assert errors.chamfer_mm == pytest.approx(0, abs=1e-3)
    assert (errors.f_score_5mm, errors.f_score_10mm, errors.volume_iou, errors.box_iou) == (1, 1, 1, 1)
    assert errors.add_s == pytest.approx(0, abs=1e-5)
    assert errors.add_s_accepted


def test_concentric_spheres_are_apart_by_the_difference_of_their_radii():
    small, large = (trimesh.creation.icosphere(subdivisions=5, radius=r) for r in (0.050, 0.057))
    errors = compare(small, large)
    assert errors.accuracy_mm == pytest.approx(7, abs=0.05)
    assert errors.completeness_mm == pytest.approx(7, abs=0.05)
    assert errors.chamfer_mm == pytest.approx(7, abs=0.05)
    assert errors.f_score_5mm == 0
    assert errors.f_score_10mm == 1
    assert errors.volume_iou == pytest.approx((50 / 57) ** 3, abs=0.01)
    assert errors.box_iou == pytest.approx((50 / 57) ** 3, abs=1e-3)
    assert errors.add_s == pytest.approx(7 / (2 * 57 * np.sqrt(3)), rel=0.01)


def test_cube_shifted_along_an_axis():
    edge, shift = 0.100, 0.020
    errors = compare(cube(edge, (shift, 0, 0)), cube(edge))
    leading_face = shift
    trailing_face = (edge**3 - (edge - 2 * shift) ** 3) / (6 * edge**2)  # mean of min(shift, distance to a side)
    side_face = shift / edge * shift / 2                                 # only the part that overhangs is off
    expected_mm = 1e3 * (leading_face + trailing_face + 4 * side_face) / 6
    assert errors.accuracy_mm == pytest.approx(expected_mm, rel=0.02)
    assert errors.completeness_mm == pytest.approx(expected_mm, rel=0.02)
    assert errors.volume_iou == pytest.approx(80 / 120, abs=0.015)
    assert errors.box_iou == pytest.approx(80 / 120)
    assert errors.add_s_accepted


def test_error_of_scale_and_place_is_not_aligned_away():
    assert compare(cube(0.1, (1, 0, 0)), cube(0.1)).volume_iou == 0
    assert compare(cube(0.1, (1, 0, 0)), cube(0.1)).box_iou == 0
    assert not compare(cube(0.2), cube(0.1)).add_s_accepted


def test_accuracy_and_completeness_tell_which_part_is_wrong():
    """Half of the object predicted: what is there is right, what is missing is not."""
    half = trimesh.creation.box(bounds=[[-0.05, -0.05, -0.05], [0, 0.05, 0.05]])
    errors = compare(half, cube(0.1))
    assert errors.completeness_mm > errors.accuracy_mm
    assert errors.volume_iou == pytest.approx(0.5, abs=0.02)


def test_small_hole_in_the_true_mesh_keeps_its_volume():
    sphere = trimesh.creation.icosphere(subdivisions=4, radius=0.05)
    holed = sphere.copy()
    holed.update_faces(np.arange(len(holed.faces)) > 2)
    assert compare(sphere, holed).volume_iou > 0.98


def test_draw_is_repeatable():
    a, b = trimesh.creation.icosphere(radius=0.05), trimesh.creation.icosphere(radius=0.06)
    assert compare(a, b, samples=500, seed=3) == compare(a, b, samples=500, seed=3)


def test_means():
    errors = [compare(cube(0.1, (s, 0, 0)), cube(0.1), samples=1000) for s in (0.0, 0.001, 0.2)]
    means = mean_errors(errors)
    assert means["objects"] == 3
    assert means["chamfer_mm"] == pytest.approx(np.mean([e.chamfer_mm for e in errors]))
    assert means["chamfer_mm_median"] == pytest.approx(errors[1].chamfer_mm)
    assert means["add_s_accepted"] == pytest.approx(2 / 3)
