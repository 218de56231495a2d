import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.methods.toys import plain, slow_softmax
from tutelage.methods.imbalance import ga_ce, ga_dice

pytestmark = pytest.mark.torch

SHAPE = (2, 3, 4, 5)


def made(classes: int = 4, shown: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(SHAPE[0], classes, *SHAPE[1:], generator=generator) * 2
    return logits.requires_grad_(), torch.randint(shown, SHAPE, generator=generator)


def slow_ga_dice(p_BKDHW: NDArray[np.float64], label: NDArray[np.int64]) -> float:
    terms = []
    for value in range(p_BKDHW.shape[1]):
        p, y = p_BKDHW[:, value], (label == value).astype(float)
        if y.sum() > 0:
            terms.append(1 - (2 * (p * y).sum() + 1e-10) / ((p * p).sum() + (y * y).sum() + 1e-10))
        else:
            terms.append(sum(q / (1 - y).sum() * q for q in p.flat))
    return float(sum(terms) / len(terms))


def slow_ga_ce(
    logits: NDArray[np.float64], label: NDArray[np.int64], hardest: float, evenness: float
) -> float:
    p = slow_softmax(logits)
    voxels = [(-np.log(p[(b, label[(b, *at)], *at)]), label[(b, *at)]) for b, *at in np.ndindex(*label.shape)]
    worst = sorted(voxels, key=lambda voxel: -voxel[0])[: int(hardest * len(voxels))]
    total = 0.0
    for value in range(logits.shape[1]):
        mine = [nll for nll, theirs in worst if theirs == value]
        if mine:
            total += sum(mine) / (len(mine) ** (1 - evenness) * len(worst) ** evenness)
    return total


@pytest.mark.parametrize("shown", [1, 3, 4], ids=["background", "one absent", "all"])
def test_dice_is_that_of_a_slow_loop(shown: int) -> None:
    logits, label = made(shown=shown)
    expected = slow_ga_dice(slow_softmax(plain(logits)), label.numpy())
    assert ga_dice(logits.softmax(1), label).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("hardest", "evenness"), [(0.1, 0.5), (0.3, 0.0), (1.0, 1.0)])
def test_cross_entropy_is_that_of_a_slow_loop(hardest: float, evenness: float) -> None:
    logits, label = made()
    expected = slow_ga_ce(plain(logits), label.numpy(), hardest, evenness)
    assert ga_ce(logits, label, hardest, evenness).item() == pytest.approx(expected, abs=1e-5)


def test_an_absent_class_is_pushed_down_by_its_own_probability() -> None:
    p = torch.full((1, 2, 4), 0.5)
    p[0, 1] = torch.tensor([0.1, 0.2, 0.4, 0.8])
    p.requires_grad_()
    label = torch.zeros(1, 4, dtype=torch.int64)
    (slope,) = torch.autograd.grad(ga_dice(p, label), p)
    assert torch.allclose(slope[0, 1], p[0, 1] / 4 / 2)


def test_cross_entropy_looks_at_the_hardest_voxels_alone() -> None:
    logits, label = made()
    (slope,) = torch.autograd.grad(ga_ce(logits, label, 0.1, 0.5), logits)
    assert int((slope != 0).any(1).sum()) == label.numel() // 10


def test_even_classes_count_alike_however_rare() -> None:
    logits = torch.zeros(1, 2, 10)
    label = torch.zeros(1, 10, dtype=torch.int64)
    label[0, 0] = 1
    even, by_voxel = (float(ga_ce(logits, label, 1.0, evenness)) for evenness in (0.0, 1.0))
    assert even == pytest.approx(2 * np.log(2))
    assert by_voxel == pytest.approx(np.log(2))
