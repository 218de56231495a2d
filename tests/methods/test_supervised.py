from math import log

import pytest
import torch
from torch import Tensor

from tutelage.methods.supervised import loss

pytestmark = pytest.mark.torch

SMOOTH = 1e-3


def batch(
    label: list[list[int]], weight: list[list[float]] | None = None, undecided: list[list[int]] | None = None
) -> dict[str, Tensor]:
    """One row of voxels a sample, three classes."""
    flags = torch.zeros(len(label), 3, dtype=torch.bool)
    for sample, values in enumerate(undecided or []):
        flags[sample, values] = True
    weights = torch.ones(len(label), len(label[0])) if weight is None else torch.tensor(weight)
    return {
        "label": torch.tensor(label)[:, None, None],
        "weight": weights[:, None, None],
        "undecided": flags,
    }


def terms_of(logits: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
    return loss(logits, given["label"], given["weight"], given["undecided"])


def logits_of(p: list[list[list[float]]]) -> Tensor:
    """Logits whose softmax is p, given by sample, voxel and class."""
    return torch.tensor(p).log().movedim(2, 1)[:, :, None, None].requires_grad_()


P = [[[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.7, 0.2, 0.1]]]


def test_without_doubts_it_is_cross_entropy_and_dice() -> None:
    terms = terms_of(logits_of(P), batch([[0, 1, 2, 0]]))
    assert terms["cross_entropy"].item() == pytest.approx(-(log(0.5) + log(0.8) + log(0.6) + log(0.7)) / 4)
    one = 1 - (2 * 0.8 + SMOOTH) / (0.09 + 0.64 + 0.04 + 0.04 + 1 + SMOOTH)
    two = 1 - (2 * 0.6 + SMOOTH) / (0.04 + 0.01 + 0.36 + 0.01 + 1 + SMOOTH)
    assert terms["dice"].item() == pytest.approx((one + two) / 2)


def test_background_means_background_or_what_is_undecided() -> None:
    terms = terms_of(logits_of(P), batch([[0, 1, 1, 0]], undecided=[[2]]))
    expected = -(log(0.5 + 0.2) + log(0.8) + log(0.2) + log(0.7 + 0.1)) / 4
    assert terms["cross_entropy"].item() == pytest.approx(expected)


def test_each_sample_has_its_own_doubts() -> None:
    terms = terms_of(logits_of(P + P), batch([[0, 0, 0, 0]] * 2, undecided=[[1, 2], []]))
    expected = -(log(0.5) + log(0.1) + log(0.2) + log(0.7)) / 8
    assert terms["cross_entropy"].item() == pytest.approx(expected)


def test_voxels_count_by_their_weights() -> None:
    terms = terms_of(logits_of(P), batch([[0, 1, 2, 0]], weight=[[1.0, 0.5, 0.25, 0.0]]))
    assert terms["cross_entropy"].item() == pytest.approx(
        -(log(0.5) + 0.5 * log(0.8) + 0.25 * log(0.6)) / 1.75
    )
    one = 1 - (2 * 0.5 * 0.8 + SMOOTH) / (0.09 + 0.5 * 1.64 + 0.25 * 0.04 + SMOOTH)
    two = 1 - (2 * 0.25 * 0.6 + SMOOTH) / (0.04 + 0.5 * 0.01 + 0.25 * 1.36 + SMOOTH)
    assert terms["dice"].item() == pytest.approx((one + two) / 2)


def gradient(logits: Tensor, given: dict[str, Tensor]) -> Tensor:
    (found,) = torch.autograd.grad(torch.stack(list(terms_of(logits, given).values())).sum(), logits)
    return found


def test_voxels_without_weight_teach_nothing() -> None:
    given = batch([[0, 1, 2, 0]], weight=[[1.0, 1.0, 0.0, 0.0]])
    found = gradient(logits_of(P), given)
    assert (found[..., 2:] == 0).all()
    assert (found[..., :2] != 0).all()
    other = batch([[0, 1, 1, 2]], weight=[[1.0, 1.0, 0.0, 0.0]])
    assert torch.equal(gradient(logits_of(P), other), found)


def test_nothing_speaks_against_finding_what_is_undecided() -> None:
    """Descent goes against the gradient: where the undecided structure's is negative, it is let grow."""
    logits = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    label = torch.zeros(2, 4, 5, 6, dtype=torch.int64)
    label[:, 1:3, 1:3] = 1
    given = {
        "label": label,
        "weight": torch.ones(2, 4, 5, 6),
        "undecided": torch.tensor([[False, False, True], [False, False, False]]),
    }
    found = gradient(logits, given)
    background = label == 0
    assert (found[0, 2][background[0]] <= 0).all()
    assert found[1, 2][background[1]].mean() > 0


def test_between_background_and_what_is_undecided_nothing_is_preferred() -> None:
    logits = logits_of([[[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]]])
    given = batch([[0, 0]], undecided=[[1, 2]])
    assert terms_of(logits, given)["cross_entropy"].item() == pytest.approx(0, abs=1e-6)
    assert gradient(logits, given).abs().max() < 1e-6


def test_dice_leaves_out_what_is_undecided() -> None:
    certain = terms_of(logits_of(P), batch([[0, 1, 1, 0]]))["dice"].item()
    doubted = terms_of(logits_of(P + P), batch([[0, 1, 1, 0], [0, 0, 0, 0]], undecided=[[], [1, 2]]))
    assert doubted["dice"].item() == pytest.approx(certain)


def test_structures_that_no_sample_shows_are_left_out_of_dice() -> None:
    only_one = 1 - (2 * 0.8 + SMOOTH) / (0.09 + 0.64 + 0.04 + 0.04 + 1 + SMOOTH)
    assert terms_of(logits_of(P), batch([[0, 1, 0, 0]]))["dice"].item() == pytest.approx(only_one)
    assert terms_of(logits_of(P), batch([[0, 0, 0, 0]]))["dice"].item() == 0


def test_a_batch_that_counts_nothing_costs_nothing() -> None:
    logits = logits_of(P)
    found = gradient(logits, batch([[0, 1, 2, 0]], weight=[[0.0] * 4]))
    assert (found == 0).all()


def test_it_counts_in_single_precision_whatever_computes_the_logits() -> None:
    logits, given = logits_of(P), batch([[0, 1, 2, 0]])
    with torch.autocast("cpu", torch.bfloat16):
        half = terms_of(logits, given)
    for name, term in terms_of(logits, given).items():
        assert half[name].dtype == torch.float32
        assert torch.equal(half[name], term)


def test_large_logits_stay_numbers() -> None:
    logits = torch.tensor([60.0, -60.0, 0.0]).reshape(1, 3, 1, 1, 1).expand(1, 3, 1, 1, 4).clone()
    terms = terms_of(logits.to(torch.bfloat16), batch([[0, 1, 2, 0]], undecided=[[2]]))
    assert all(term.isfinite() for term in terms.values())
    assert terms["cross_entropy"].dtype == torch.float32
