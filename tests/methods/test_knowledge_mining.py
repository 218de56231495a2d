from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.methods.toys import CLASSES, batch_of, patches, pixelwise, plain, plan_of, slow_supervised
from tutelage.methods.base import SPECIALIST, Batch, Resources
from tutelage.methods.knowledge_mining import KnowledgeMining
from tutelage.methods.needs import NEEDS
from tutelage.methods.settings import TrainSettings

pytestmark = pytest.mark.torch


def method() -> KnowledgeMining:
    return KnowledgeMining(plan_of(), TrainSettings(method="knowledge_mining"), Resources())


def test_the_loss_is_what_a_slow_one_says_of_labels_and_pseudo_labels_together() -> None:
    networks = nn.ModuleDict({SPECIALIST: pixelwise(1)})
    batch = Batch(patches(1, (2, 3, 4)), patches(2, (2, 3, 4), seed=1), 0)
    assert batch.unlabeled is not None
    terms = method().losses(batch, networks, 0)
    image, label, weight = (
        torch.cat([getattr(batch.labeled, name), getattr(batch.unlabeled, name)])
        for name in ("image", "label", "weight")
    )
    entropy, dice = slow_supervised(plain(networks[SPECIALIST](image)), label.numpy(), plain(weight))
    assert terms["cross_entropy"].item() == pytest.approx(entropy, abs=1e-5)
    assert terms["dice"].item() == pytest.approx(dice, abs=1e-5)
    assert len(terms) == 2


def test_what_is_half_believed_counts_less_beside_labels() -> None:
    networks = nn.ModuleDict({SPECIALIST: pixelwise(1)})
    batch = batch_of()
    assert batch.unlabeled is not None

    def entropy(share: float) -> float:
        weight = torch.full_like(batch.labeled.weight, share)
        wrong = (batch.labeled.label + 1) % CLASSES
        assert batch.unlabeled is not None
        mined = replace(batch.unlabeled, image=batch.labeled.image, label=wrong, weight=weight)
        given = replace(batch.labeled, weight=torch.ones_like(weight))
        return method().losses(Batch(given, mined, 0), networks, 0)["cross_entropy"].item()

    low, middle, high = (entropy(share) for share in (0.0, 0.5, 1.0))
    assert min(low, high) < middle < max(low, high)
    assert middle == pytest.approx((low + 0.5 * (2 * high - low)) / 1.5, rel=1e-5)


def test_before_anything_is_mined_it_learns_from_labels_alone() -> None:
    networks = method().networks()
    terms = method().losses(Batch(patches(2), None, 0), networks, 0)
    torch.autograd.backward(torch.stack(list(terms.values())).sum())
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in networks.parameters())


def test_it_goes_on_from_the_stage_before_at_a_lower_rate() -> None:
    assert NEEDS["knowledge_mining"].continues
    assert NEEDS["knowledge_mining"].pseudo
    assert 0 < TrainSettings().fine_tuning < 1


@pytest.mark.parametrize(
    ("batch", "share", "gold"), [(10, 0.4, 4), (5, 0.5, 2), (2, 0.75, 2), (1, 0.5, 1), (4, 1.0, 4)]
)
def test_fewer_labels_than_mined_ones_and_nothing_mined_are_refused(
    batch: int, share: float, gold: int
) -> None:
    told = TrainSettings(method="knowledge_mining", batch=batch, gold_share=share)
    ((where, what),) = list(told.problems())
    assert where == "gold_share"
    assert f"found {share}, which makes {gold} of the {batch} patches" in what
    assert list(TrainSettings(method="bcp", batch=batch, gold_share=share).problems()) == []


@pytest.mark.parametrize(("batch", "share"), [(2, 0.5), (4, 0.75), (3, 0.5)])
def test_as_many_labels_as_mined_ones_or_more_are_taken(batch: int, share: float) -> None:
    assert list(TrainSettings(method="knowledge_mining", batch=batch, gold_share=share).problems()) == []
