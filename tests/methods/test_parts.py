"""Batches in parts: the patches of several workers, the numbers of one pass."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.methods.runs import MIXED, Run, told
from tests.methods.toys import SLAB, batch_of, plan_of
from tutelage.errors import TrainingError
from tutelage.methods.base import SPECIALIST, Batch
from tutelage.methods.batches import Batches
from tutelage.methods.parts import parted
from tutelage.methods.settings import TrainSettings
from tutelage.methods.supervised import Supervised
from tutelage.methods.training import Around, StepReport

pytestmark = pytest.mark.torch


class Even(Supervised):
    """Its loss is a mean over patches."""

    def losses(self, batch: Batch, networks: nn.ModuleDict, step: int) -> dict[str, Tensor]:
        assert batch.unlabeled is not None
        logits = networks[SPECIALIST](torch.cat([batch.labeled.image, batch.unlabeled.image]))
        return {"size": logits.square().mean(), "slope": logits.mean()}


@pytest.mark.parametrize("gold_share", [0.5, 0.75])
def test_parts_are_what_so_many_workers_would_have(gold_share: float) -> None:
    settings = TrainSettings(batch=8, accumulate=2, gold_share=gold_share)
    alone = TrainSettings(batch=8, gold_share=gold_share)
    for rank in range(2):
        parts = parted(Batches(MIXED, plan_of(SLAB), settings, 0, rank, 2).at(3), 2)
        workers = [Batches(MIXED, plan_of(SLAB), alone, 0, rank + 2 * part, 4).at(3) for part in range(2)]
        for part, worker in zip(parts, workers, strict=True):
            assert part.unlabeled is not None
            assert worker.unlabeled is not None
            assert part.seed == worker.seed
            for mine, theirs in ((part.labeled, worker.labeled), (part.unlabeled, worker.unlabeled)):
                assert (mine.cases, mine.views, mine.seeds) == (theirs.cases, theirs.views, theirs.seeds)
                assert torch.equal(mine.image, theirs.image)
                assert torch.equal(mine.weight, theirs.weight)


def test_a_batch_that_is_learned_in_one_piece_stays_as_it_is() -> None:
    batch = batch_of()
    assert parted(batch, 1)[0] is batch


def test_patches_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(TrainingError, match="4 patches cannot be learned from in 3 equal parts"):
        parted(batch_of(), 3)


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_give_loss_and_gradient_of_the_whole(parts: int) -> None:
    whole: list[StepReport] = []
    divided: list[StepReport] = []
    one, other = (
        Run(*MIXED, settings=told(batch=8, steps=1, accumulate=count), cls=Even) for count in (1, parts)
    )
    one.fit(Around(on_step=whole.append))
    other.fit(Around(on_step=divided.append))
    for mine, theirs in zip(whole, divided, strict=True):
        assert theirs.loss == pytest.approx(mine.loss, rel=1e-4)
        assert theirs.gradient_norm == pytest.approx(mine.gradient_norm, rel=1e-4)
        assert theirs.terms == pytest.approx(mine.terms, rel=1e-4, abs=1e-5)
        assert theirs.patches == mine.patches == 8
    gradients = zip(one.specialist.parameters(), other.specialist.parameters(), strict=True)
    assert all(
        mine.grad is not None
        and theirs.grad is not None
        and torch.allclose(mine.grad, theirs.grad, atol=1e-5)
        for mine, theirs in gradients
    )


def test_chance_differs_from_part_to_part_and_follows_from_the_seed() -> None:
    class Drawing(Even):
        """Notes what torch's generator would give it."""

        def losses(self, batch: Batch, networks: nn.ModuleDict, step: int) -> dict[str, Tensor]:
            drawn.append(float(torch.rand(())))
            return super().losses(batch, networks, step)

    drawn: list[float] = []
    for _ in range(2):
        Run(*MIXED, settings=told(batch=4, accumulate=2, steps=2), cls=Drawing).fit()
    assert drawn[:4] == drawn[4:]
    assert len(set(drawn)) == 4


def test_gradients_of_parts_are_joined_with_other_processes_once_a_step() -> None:
    class Joined(nn.Module):
        """Notes what it is asked to do without the other processes."""

        def __init__(self, learner: nn.Module) -> None:
            super().__init__()
            self.learner = learner
            self.apart = False
            self.seen: list[bool] = []

        @contextlib.contextmanager
        def no_sync(self) -> Iterator[None]:
            self.apart = True
            yield
            self.apart = False

        def forward(self, batch: Batch, step: int) -> object:
            self.seen.append(self.apart)
            return self.learner(batch, step)

    joined: list[Joined] = []

    def wrap(learner: nn.Module) -> nn.Module:
        joined.append(Joined(learner))
        return joined[0]

    Run(*MIXED, settings=told(batch=6, accumulate=3, steps=2), cls=Even).fit(Around(wrap=wrap))
    assert joined[0].seen == [True, True, False] * 2


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (6, r"a batch of 6 cannot be divided over 1 workers, in 4 parts each"),
        (4, r"cps mixes annotated and unlabeled patches in each of 1 workers, in 4 parts each.*8 or more"),
    ],
)
def test_a_batch_that_gives_a_part_too_little_is_refused(batch: int, message: str) -> None:
    settings = TrainSettings(method="cps", batch=batch, accumulate=4)
    with pytest.raises(TrainingError, match=message):
        Batches(MIXED, plan_of(SLAB), settings, 0)
