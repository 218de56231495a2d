"""Grids and boxes: where voxels lie, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import ArchiveError
from tutelage.geometry import Box, Grid

shapes = st.tuples(*[st.integers(1, 400)] * 3)
spacings = st.tuples(*[st.floats(0.05, 20)] * 3)


@given(shapes, spacings)
def test_a_grid_of_a_spacing_has_that_spacing(
    shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    grid = Grid.from_spacing(shape, spacing)
    assert grid.shape == shape
    assert grid.spacing == pytest.approx(spacing)
    assert grid.voxel_ml == pytest.approx(np.prod(spacing) / 1000)


def test_axes_run_toward_head_back_and_left() -> None:
    grid = Grid.from_spacing((2, 3, 4), (5, 2, 1))
    # RAS+: x to the right, y to the front, z to the head.
    assert (grid.matrix @ [1, 0, 0, 1])[:3].tolist() == [0, 0, 5]
    assert (grid.matrix @ [0, 1, 0, 1])[:3].tolist() == [0, -2, 0]
    assert (grid.matrix @ [0, 0, 1, 1])[:3].tolist() == [-1, 0, 0]


def test_a_matrix_comes_back_as_it_was_given() -> None:
    rng = np.random.default_rng(0)
    matrix = np.vstack([rng.standard_normal((3, 4)), [0, 0, 0, 1]])
    grid = Grid.from_matrix((2, 3, 4), matrix)
    assert np.array_equal(grid.matrix, matrix)
    assert grid == Grid.from_matrix([2, 3, 4], matrix[:3])
    assert hash(grid) == hash(Grid.from_matrix((2, 3, 4), matrix))


@pytest.mark.parametrize(
    ("shape", "spacing", "told"),
    [
        ((0, 3, 4), (1, 1, 1), "an axis without voxels"),
        ((2, 3, 4), (1, 0, 1), "not a positive number"),
        ((2, 3, 4), (1, float("nan"), 1), "not a positive number"),
        ((2, 3, 4), (float("inf"), 1, 1), "not a positive number"),
    ],
    ids=["empty", "zero", "nan", "infinite"],
)
def test_a_grid_that_cannot_be_is_refused(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], told: str
) -> None:
    with pytest.raises(ArchiveError, match=told):
        Grid.from_spacing(shape, spacing)


@pytest.mark.parametrize(
    ("shape", "shift", "stretch", "told"),
    [
        ((2, 30, 40), 0.0, 1.0, None),
        ((2, 30, 40), 0.009, 1.0, None),
        ((2, 30, 40), 0.5, 1.0, "0.50 mm"),
        ((2, 30, 40), 0.0, 1.01, "mm"),
        ((2, 30, 41), 0.0, 1.0, "shape"),
    ],
    ids=["the same", "within rounding", "moved", "stretched", "another shape"],
)
def test_a_grid_says_how_another_differs(
    shape: tuple[int, int, int], shift: float, stretch: float, told: str | None
) -> None:
    grid = Grid.from_spacing((2, 30, 40), (5, 1, 1))
    other = Grid.from_spacing(shape, (5 * stretch, stretch, stretch))
    matrix = other.matrix
    matrix[0, 3] += shift
    found = grid.difference(Grid.from_matrix(shape, matrix))
    assert (found is None) == (told is None)
    assert told is None or (found is not None and told in found)


def test_a_box_is_tight_around_a_mask() -> None:
    mask = np.zeros((4, 6, 8), bool)
    mask[1:3, 2:5, 7] = True
    assert Box.around(mask) == Box((1.0, 2.0, 7.0), (3.0, 5.0, 8.0))
    assert Box.around(mask[1]) == Box((2.0, 7.0), (5.0, 8.0))
    assert Box.around(np.zeros((2, 2), bool)) is None


def test_a_box_grows_by_a_share_of_its_size_on_every_side() -> None:
    box = Box((10.0, 20.0), (20.0, 40.0))
    assert box.size == (10.0, 20.0)
    assert box.grown(0.1) == Box((9.0, 18.0), (21.0, 42.0))
    assert box.moved((1, 2, 3, 4)) == Box((9.0, 18.0), (23.0, 44.0))


@given(
    st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
    st.tuples(st.floats(0, 60), st.floats(0, 60)),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
)
def test_a_clipped_box_lies_inside_and_holds_a_voxel(
    start: tuple[float, float], size: tuple[float, float], shape: tuple[int, int]
) -> None:
    stop = (start[0] + size[0], start[1] + size[1])
    clipped = Box(start, stop).clipped(shape)
    for a, b, n in zip(clipped.start, clipped.stop, shape, strict=True):
        assert 0 <= a <= n - 1
        assert 1 <= b <= n
        assert a <= b
