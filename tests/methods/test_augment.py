import numpy as np
import pytest
import torch

from tutelage.methods.augment import Look, foreground, look, looked, view
from tutelage.methods.settings import AugmentSettings

pytestmark = pytest.mark.torch

PLAIN = Look(contrast=1.0, shift=0.0, noise=0.0, gamma=None, seed=0)


def image(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(seed))


def test_nothing_told_nothing_changed() -> None:
    assert torch.equal(looked(image(), PLAIN), image())


def test_brightness_and_contrast_are_a_line() -> None:
    found = looked(image(), Look(1.2, -0.1, 0.0, None, 0))
    assert torch.allclose(found, image() * 1.2 - 0.1)


def test_gamma_bends_between_the_extremes_and_keeps_order() -> None:
    found = looked(image(), Look(1.0, 0.0, 0.0, 1.5, 0))
    low, high = image().min(), image().max()
    expected = ((image() - low) / (high - low)) ** 1.5 * (high - low) + low
    assert torch.allclose(found, expected, atol=1e-4)
    assert torch.equal(found.flatten().argsort(), image().flatten().argsort())


def test_noise_follows_from_its_seed_and_moves_no_other_chance() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one = looked(image(), Look(1.0, 0.0, 0.5, None, 7))
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(one, looked(image(), Look(1.0, 0.0, 0.5, None, 7)))
    assert not torch.equal(one, looked(image(), Look(1.0, 0.0, 0.5, None, 8)))
    assert (one - image()).std() == pytest.approx(0.5, rel=0.2)


def test_looks_keep_to_the_settings() -> None:
    rng = np.random.default_rng(0)
    settings = AugmentSettings(brightness=0.3, contrast=0.5, noise=0.2, gamma=(0.5, 0.8))
    looks = [look(settings, rng) for _ in range(400)]
    assert all(1 / 1.5 <= one.contrast <= 1.5 and abs(one.shift) <= 0.3 for one in looks)
    assert {one.noise for one in looks} == {0.0, 0.2}
    assert np.mean([one.noise > 0 for one in looks]) == pytest.approx(0.3, abs=0.08)
    bent = [one.gamma for one in looks if one.gamma is not None]
    assert len(bent) / 400 == pytest.approx(0.3, abs=0.08)
    assert all(0.5 <= gamma <= 0.8 for gamma in bent)


def test_foreground_names_every_structure_that_counts() -> None:
    label = np.zeros((2, 40, 100), np.uint8)
    label[0], label[1, 3, 4:6], label[1, 9] = 1, 5, 3
    weight = np.ones(label.shape, np.float32)
    weight[1, 9] = 0
    one, five = foreground(label, weight)
    assert set(label.ravel()[one]) == {1}
    assert sorted(five) == [4000 + 304, 4000 + 305]
    assert len(foreground(label, None)) == 3
    assert len(one) <= 2 * 4096


def test_foreground_holds_no_more_than_it_names() -> None:
    (found,) = foreground(np.ones((16, 32, 64), np.uint8), None)
    assert len(found) == 4096
    assert found.base is None


def test_a_label_of_background_has_no_foreground() -> None:
    assert foreground(np.zeros((2, 3, 4), np.uint8), None) == ()


def test_a_patch_around_a_voxel_stays_inside_the_volume() -> None:
    settings = AugmentSettings(foreground_share=1.0)
    corner = (np.array([0]), np.array([9 * 20 * 30 - 1]))
    rng = np.random.default_rng(0)
    starts = {view((9, 20, 30), (4, 8, 8), corner, settings, 1, rng).start for _ in range(20)}
    assert starts == {(0, 0, 0), (5, 12, 22)}


def test_without_leave_nothing_is_flipped_or_turned() -> None:
    rng = np.random.default_rng(0)
    views = [view((9, 20, 30), (4, 8, 8), (), AugmentSettings(), 1, rng) for _ in range(20)]
    assert {(one.flips, one.quarter_turns) for one in views} == {((False,) * 3, 0)}
