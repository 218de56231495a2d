from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from tutelage.errors import ArchiveError
from tutelage.geometry import Grid
from tutelage.specialist.plan import Plan, Triple, make_plan
from tutelage.specialist.preprocess import prepare, resample_label, resample_weight, restored, shape_at
from tutelage.specialist.settings import SpecialistSettings

pytestmark = pytest.mark.torch

Spacing = tuple[float, float, float]


def plan_at(spacing: Spacing, channels_in: int = 1, structures: int = 2) -> Plan:
    grid = Grid.from_spacing((16, 32, 32), spacing)
    return make_plan([grid], [f"s{i}" for i in range(structures)], channels_in, SpecialistSettings())


def restore(share_KDHW: torch.Tensor, shape: Triple) -> torch.Tensor:
    """All slices at once."""
    source: Triple = (share_KDHW.shape[1], share_KDHW.shape[2], share_KDHW.shape[3])
    return torch.stack(list(restored(iter(share_KDHW.unbind(1)), source, shape)), dim=1)


def centre_mm(share_DHW: NDArray[np.floating], extent_mm: Spacing) -> NDArray[np.float64]:
    """Where the mass of an array lies in a field of view of this size, whatever its voxels."""
    spacing = np.divide(extent_mm, share_DHW.shape)
    where = np.argwhere(share_DHW > 0)
    mass = share_DHW[tuple(where.T)]
    centre: NDArray[np.float64] = ((where + 0.5) * spacing * mass[:, None]).sum(0) / mass.sum()
    return centre


@pytest.mark.parametrize(
    ("shape", "spacing", "wanted", "expected"),
    [
        ((20, 64, 64), (3.0, 1.0, 1.0), (3.0, 2.0, 2.0), (20, 32, 32)),
        ((20, 64, 64), (3.0, 1.0, 1.0), (1.5, 1.0, 1.0), (40, 64, 64)),
        ((21, 63, 65), (2.9, 0.7, 0.9), (3.0, 2.0, 2.0), (20, 22, 29)),
        ((1, 64, 64), (1.0, 1.0, 1.0), (5.0, 2.0, 2.0), (1, 32, 32)),
    ],
    ids=["coarser", "finer", "no round numbers", "flat stays flat"],
)
def test_an_image_takes_the_spacing_of_the_plan(
    shape: Triple, spacing: Spacing, wanted: Spacing, expected: Triple
) -> None:
    grid, plan = Grid.from_spacing(shape, spacing), plan_at(wanted)
    image = np.random.default_rng(0).random((1, *shape), np.float32)
    assert shape_at(grid, plan) == expected
    assert prepare(image, grid, plan).shape == (1, *expected)
    assert restore(torch.zeros(3, *expected), grid.shape).shape == (3, *shape)


@pytest.mark.parametrize("wanted", [(3.0, 2.0, 2.0), (1.5, 0.5, 0.8), (4.0, 1.3, 1.7)])
def test_what_is_prepared_and_restored_lies_where_it_lay(wanted: Spacing) -> None:
    grid = Grid.from_spacing((20, 50, 60), (3.0, 1.0, 1.0))
    extent = (60.0, 50.0, 60.0)
    d, h, w = np.indices(grid.shape)
    blob = np.exp(-(((d - 7) / 3) ** 2) - ((h - 33) / 7) ** 2 - ((w - 21) / 7) ** 2).astype(np.float32)
    coarse = torch.from_numpy(resample_weight((blob * 255).astype(np.uint8), grid, plan_at(wanted)))
    there = centre_mm(coarse.numpy(), extent)
    back = centre_mm(restore(coarse[None], grid.shape)[0].numpy(), extent)
    assert np.abs(there - centre_mm(blob, extent)).max() < 0.3
    assert np.abs(back - there).max() < 0.3


def test_the_same_spacing_changes_no_geometry() -> None:
    grid = Grid.from_spacing((6, 8, 9), (3.0, 1.0, 1.0))
    label = np.random.default_rng(0).integers(0, 3, grid.shape).astype(np.uint8)
    assert np.array_equal(resample_label(label, grid, plan_at((3.0, 1.0, 1.0))), label)
    share = torch.rand(3, *grid.shape)
    assert torch.equal(restore(share, grid.shape), share)


@pytest.mark.parametrize(
    ("source", "shape"),
    [
        ((7, 9, 11), (16, 9, 11)),
        ((16, 9, 11), (7, 9, 11)),
        ((40, 5, 5), (3, 8, 4)),
        ((3, 5, 5), (40, 8, 4)),
        ((1, 6, 6), (5, 6, 6)),
        ((5, 6, 6), (1, 3, 3)),
        ((6, 4, 4), (6, 9, 3)),
    ],
    ids=["finer", "coarser", "much coarser", "much finer", "of one slice", "to one slice", "within slices"],
)
def test_slice_by_slice_comes_what_a_whole_volume_gives(source: Triple, shape: Triple) -> None:
    torch.manual_seed(0)
    share = torch.rand(3, *source)
    whole = F.interpolate(share[None], size=shape, mode="trilinear", align_corners=False)[0]
    assert torch.allclose(restore(share, shape), whole, atol=1e-6)


def test_slices_are_asked_for_one_by_one_as_they_are_needed() -> None:
    asked: list[int] = []

    def slices() -> Iterator[torch.Tensor]:
        for index in range(10):
            asked.append(index)
            yield torch.full((1, 2, 2), float(index))

    finer = restored(slices(), (10, 2, 2), (20, 2, 2))
    next(finer)
    assert asked == [0]
    assert float(next(finer).mean()) == pytest.approx(0.25)
    assert asked == [0, 1]


@pytest.mark.parametrize("edge", [3, 4, 6])
def test_small_structures_keep_their_centres(edge: int) -> None:
    """Halved in each direction, and next to another structure so that both compete."""
    grid, plan = Grid.from_spacing((24, 40, 40), (1.0, 1.0, 1.0)), plan_at((2.0, 2.0, 2.0))
    label = np.zeros(grid.shape, np.uint8)
    label[10 : 10 + edge, 17 : 17 + edge, 8 : 8 + edge] = 1
    label[10 : 10 + edge, 17 : 17 + edge, 8 + edge : 8 + 2 * edge] = 2
    coarse = resample_label(label, grid, plan)
    assert coarse.dtype == np.uint8
    for value in (1, 2):
        before = centre_mm((label == value).astype(np.float32), (24.0, 40.0, 40.0))
        after = centre_mm((coarse == value).astype(np.float32), (24.0, 40.0, 40.0))
        assert np.abs(before - after).max() <= 1.0


def test_labels_of_two_bytes_are_resampled_too() -> None:
    grid, plan = Grid.from_spacing((4, 8, 8), (1.0, 1.0, 1.0)), plan_at((1.0, 2.0, 2.0), structures=255)
    label = np.full(grid.shape, 255, np.uint16)
    assert (resample_label(label[:, ::-1], grid, plan) == 255).all()


def test_weights_become_shares() -> None:
    grid, plan = Grid.from_spacing((4, 8, 8), (1.0, 1.0, 1.0)), plan_at((1.0, 2.0, 2.0))
    weight = np.zeros(grid.shape, np.uint8)
    weight[2:] = 255
    share = resample_weight(weight, grid, plan)
    assert share.dtype == np.float32
    assert (share[:2] == 0).all()
    assert (share[2:] == 1).all()


def test_brightness_and_contrast_of_each_channel_are_forgotten() -> None:
    grid, plan = Grid.from_spacing((4, 16, 16), (1.0, 1.0, 1.0)), plan_at((1.0, 1.0, 1.0), channels_in=2)
    channel = np.random.default_rng(0).normal(40, 12, grid.shape).astype(np.float32)
    one, other = prepare(np.stack([channel, channel * 30 + 7000]), grid, plan)
    assert np.abs(one - other).max() < 1e-3
    assert abs(float(one.mean())) < 1e-4
    assert float(one.std()) == pytest.approx(1, abs=1e-3)


def test_one_mad_voxel_does_not_darken_the_rest() -> None:
    grid, plan = Grid.from_spacing((4, 16, 16), (1.0, 1.0, 1.0)), plan_at((1.0, 1.0, 1.0))
    image = np.random.default_rng(0).normal(0, 1, (1, *grid.shape)).astype(np.float32)
    calm = prepare(image, grid, plan)
    image[0, 0, 0, 0] = 1e6
    assert np.abs(prepare(image, grid, plan) - calm)[0, 1:].max() < 0.1


@pytest.mark.parametrize("value", [0.0, 1000.1, -1024.0, 3e7])
def test_a_blank_image_is_blank(value: float) -> None:
    grid, plan = Grid.from_spacing((16, 64, 64), (1.0, 1.0, 1.0)), plan_at((1.0, 2.0, 2.0))
    image = np.full((1, *grid.shape), value, np.float32)
    assert (prepare(image, grid, plan) == 0).all()


def test_what_is_small_and_alone_on_a_blank_image_is_seen() -> None:
    grid, plan = Grid.from_spacing((16, 64, 64), (1.0, 1.0, 1.0)), plan_at((1.0, 1.0, 1.0))
    image = np.zeros((1, *grid.shape), np.float32)
    image[0, 8, 30:34, 30:34] = 5
    seen = prepare(image, grid, plan)
    assert seen[0, 8, 31, 31] > 10 * abs(seen[0, 0, 0, 0])


def test_an_image_with_other_channels_is_refused() -> None:
    grid, plan = Grid.from_spacing((4, 8, 8), (1.0, 1.0, 1.0)), plan_at((1.0, 1.0, 1.0))
    with pytest.raises(ArchiveError, match="has 2 channels, the specialist expects 1"):
        prepare(np.zeros((2, *grid.shape), np.float32), grid, plan)
