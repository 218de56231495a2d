import itertools

import pytest
import torch
from torch.nn import functional as F

from tutelage.errors import TrainingError
from tutelage.methods.cubes import Cubes, Triple, coarser, small

pytestmark = pytest.mark.torch

CASES = [
    ((24, 24, 24), (4, 4, 4), (8, 8, 8), (3, 3, 3)),
    ((8, 20, 28), (2, 4, 4), (4, 8, 12), (2, 3, 3)),
    ((1, 40, 56), (1, 8, 8), (1, 16, 24), (1, 3, 3)),
    ((6, 12, 12), (1, 4, 4), (2, 8, 8), (3, 2, 2)),
]
IDS = ["published form", "not divided", "flat", "overlapping"]

every = pytest.mark.parametrize(("patch", "multiple", "size", "counts"), CASES, ids=IDS)


@every
def test_cubes_fit_the_network(patch: Triple, multiple: Triple, size: Triple, counts: Triple) -> None:
    cubes = Cubes.of(patch, multiple, 3)
    assert (cubes.size, cubes.counts) == (size, counts)


@every
def test_what_is_mixed_is_unmixed_exactly(
    patch: Triple, multiple: Triple, size: Triple, counts: Triple
) -> None:
    cubes, volume = Cubes.of(patch, multiple, 3), torch.randn(4, 2, *patch)
    source = cubes.draw(range(4))
    mixed = cubes.mix(volume, source)
    assert torch.equal(cubes.unmix(mixed, source), volume)
    assert not torch.equal(mixed, volume)


@every
def test_what_is_cut_is_joined_exactly(patch: Triple, multiple: Triple, size: Triple, counts: Triple) -> None:
    cubes, volume = Cubes.of(patch, multiple, 3), torch.randn(3, 2, *patch)
    pieces = cubes.cut(volume)
    assert pieces.shape == (3 * len(cubes), 2, *size)
    assert torch.equal(cubes.join(pieces), volume)


@every
def test_a_coarser_level_is_cut_at_the_same_places(
    patch: Triple, multiple: Triple, size: Triple, counts: Triple
) -> None:
    cubes, volume = Cubes.of(patch, multiple, 3), torch.randn(3, 2, *patch)
    source = cubes.draw(range(3))
    level = F.avg_pool3d(volume, multiple)
    of_mixed = F.avg_pool3d(cubes.mix(volume, source), multiple)
    assert torch.equal(cubes.unmix(of_mixed, source), level)
    of_pieces = F.avg_pool3d(cubes.cut(volume), multiple)
    assert torch.equal(cubes.join(of_pieces), level)


def test_every_cube_of_every_image_goes_somewhere_once() -> None:
    cubes = Cubes.of((24, 24, 24), (4, 4, 4), 3)
    marks = torch.zeros(4, 1, 24, 24, 24)
    for image, (i, j, k) in itertools.product(range(4), itertools.product(range(3), repeat=3)):
        where = (slice(8 * i, 8 * i + 8), slice(8 * j, 8 * j + 8), slice(8 * k, 8 * k + 8))
        marks[(image, 0, *where)] = 100 * image + 9 * i + 3 * j + k
    mixed = cubes.mix(marks, cubes.draw(range(4)))
    pieces = cubes.cut(mixed).flatten(1)
    assert (pieces == pieces[:, :1]).all()
    assert torch.equal(pieces[:, 0].sort().values, cubes.cut(marks).flatten(1)[:, 0].sort().values)
    # Each stays at its place, whichever image it goes to.
    assert torch.equal(pieces[:, 0] % 100, torch.arange(27.0).repeat(4))


def test_gradients_of_joined_cubes_reach_what_was_kept() -> None:
    cubes = Cubes.of((6, 12, 12), (1, 4, 4), 3)
    pieces = torch.randn(len(cubes), 1, *cubes.size, requires_grad=True)
    (slope,) = torch.autograd.grad(cubes.join(pieces).sum(), pieces)
    assert slope.sum() == 6 * 12 * 12
    assert set(slope.flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("patch", [(8, 8, 8), (4, 8, 8), (1, 8, 8)])
def test_a_patch_of_two_cells_is_refused(patch: Triple) -> None:
    with pytest.raises(TrainingError, match="cannot be cut into cubes, expected more than 2 cells"):
        Cubes.of(patch, (min(patch[0], 4), 4, 4), 3)


def test_labels_get_coarser_by_leaving_voxels_out() -> None:
    label = torch.arange(4 * 4 * 4).reshape(1, 4, 4, 4)
    assert coarser(label, torch.zeros(1, 9, 4, 2, 2))[0, 1].tolist() == [[16, 18], [24, 26]]


def test_a_cube_is_summed_up_in_at_most_two_cells_an_axis() -> None:
    level = torch.randn(5, 3, 1, 2, 2)
    assert torch.equal(small(level), level.flatten(1))
    assert small(torch.randn(5, 3, 4, 6, 1)).shape == (5, 3 * 2 * 2)
