"""Regular gaps in registered depth: found, filled from beside, and told from holes."""
from __future__ import annotations

import numpy as np
import pytest

from sam3d_ros.perception.gaps import without_gaps

# A slope, before which something stands.
ROWS, COLUMNS = np.indices((120, 160))
WHOLE = (1 + 0.001 * ROWS).astype(np.float32)
WHOLE[30:70, 40:90] = 0.5
HOLE = np.s_[80:100, 60:100]


@pytest.mark.parametrize("empty", [
    ROWS % 2 == 1, COLUMNS % 2 == 0, (ROWS % 2 == 1) | (COLUMNS % 2 == 1), (ROWS % 3 == 2) | (COLUMNS % 3 == 1),
    np.floor(ROWS / 1.93) == np.floor((ROWS + 1) / 1.93), (ROWS % 3 > 0) | (COLUMNS % 3 > 0),
    np.floor(ROWS / 3.25) == np.floor((ROWS + 1) / 3.25)],
    ids=["rows", "columns", "both", "every third", "drifting", "two of three", "drifting pairs and threes"])
def test_gaps_take_a_reading_beside_them_and_holes_stay(empty: np.ndarray):
    depth = np.where(empty, 0, WHOLE)
    depth[HOLE] = 0
    filled = without_gaps(depth)
    given = depth > 0
    np.testing.assert_array_equal(filled[given], depth[given])
    assert (filled[HOLE] == 0).all()
    inner = np.zeros(depth.shape, bool)
    inner[3:-3, 3:-3] = True
    inner[77:103, 57:103] = False
    assert (filled[inner] > 0).all()
    # Of the thing in front or of the slope a row or two beside, and nothing between.
    added = inner & ~given
    at_edge = np.zeros(depth.shape, bool)
    at_edge[28:72, 38:92] = True
    at_edge[32:68, 42:88] = False
    assert np.abs(filled - WHOLE)[added & ~at_edge].max() < 0.0025
    assert np.isin(filled[added & at_edge], depth[given]).all()


@pytest.mark.parametrize("phase", range(6))
def test_gaps_are_found_wherever_they_begin(phase):
    """One row and column of six is empty, as where an image has 1.2 times the pixels each way."""
    depth = np.where((ROWS % 6 == phase) | (COLUMNS % 6 == phase), 0, WHOLE)
    depth[HOLE] = 0
    assert without_gaps(depth) is not depth


def test_an_image_with_holes_and_noise_is_left_as_it_is():
    rng = np.random.default_rng(0)
    depth = np.where(rng.random(WHOLE.shape) < 0.1, 0, WHOLE)
    depth[HOLE] = 0
    assert without_gaps(depth) is depth
    for shape in ((0, 0), (1, 5), (2, 2), (120, 160)):
        nothing = np.zeros(shape, np.float32)
        assert without_gaps(nothing) is nothing


@pytest.mark.parametrize("gap", [1, 2, 3])
def test_a_pixel_in_a_gap_takes_the_nearer_reading_or_the_first(gap):
    depth = np.zeros((8, 40), np.float32)
    starts = np.arange(0, 40, gap + 1)
    depth[:, starts] = 1 + np.arange(len(starts)) / 64
    filled = without_gaps(depth)
    columns = np.arange(starts[-1] + 1)
    nearest = np.ceil(columns / (gap + 1) - 0.5).astype(int)
    np.testing.assert_array_equal(filled[:, :starts[-1] + 1], np.tile(depth[0, starts][nearest], (8, 1)))
    np.testing.assert_array_equal(without_gaps(np.ascontiguousarray(depth.T)), filled.T)
