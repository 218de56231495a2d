import copy
import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.methods.toys import SLAB, plan_of, sample
from tutelage.errors import TrainingError
from tutelage.methods.base import SPECIALIST, Batch, Method, Resources
from tutelage.methods.batches import Batches, Sample
from tutelage.methods.registry import method_class
from tutelage.methods.settings import TrainSettings
from tutelage.methods.supervised import Supervised
from tutelage.methods.training import Around, Checkpoint, StepReport, Trained, fit
from tutelage.specialist.plan import Plan

pytestmark = pytest.mark.torch

SHAPE = SLAB
SETTINGS = TrainSettings(steps=8, batch=2, warmup=2, checkpoint_every=3)


MIXED = (sample("g1"), sample("g2"), sample("u1", gold=False, undecided=(2,)), sample("u2", gold=False))


class Restless(Supervised):
    """Has chance in its losses, a second network that follows, and something to count."""

    def __init__(self, plan: Plan, settings: TrainSettings, resources: Resources) -> None:
        super().__init__(plan, settings, resources)
        self.seen = 0

    def networks(self) -> nn.ModuleDict:
        networks = super().networks()
        networks["teacher"] = copy.deepcopy(networks[SPECIALIST]).requires_grad_(False)
        return networks

    def losses(self, batch: Batch, networks: nn.ModuleDict, step: int) -> dict[str, Tensor]:
        self.seen += len(batch.labeled)
        shaken = batch.labeled.image + 0.1 * torch.randn_like(batch.labeled.image)
        with torch.no_grad():
            told = networks["teacher"](batch.labeled.image).softmax(1)
        steady = (networks[SPECIALIST](shaken).softmax(1) - told).square().mean()
        return super().losses(batch, networks, step) | {"steady": steady}

    def after_step(self, networks: nn.ModuleDict, step: int) -> None:
        mean, weights = networks["teacher"].state_dict(), networks[SPECIALIST].state_dict()
        for name, value in weights.items():
            mean[name].lerp_(value, 0.2)

    def counts(self) -> dict[str, float]:
        return {"patches": float(self.seen)}


class Run:
    """One training of a small method on the samples above."""

    def __init__(
        self,
        *samples: Sample,
        settings: TrainSettings = SETTINGS,
        seed: int = 5,
        first: int = 0,
        cls: Callable[[Plan, TrainSettings, Resources], Method] = Supervised,
        plan: Plan | None = None,
    ) -> None:
        plan = plan or plan_of(SHAPE)
        self.method = cls(plan, settings, Resources())
        torch.manual_seed(first)
        self.networks = self.method.networks()
        self.settings = settings
        self.batches = Batches(samples or (sample("one"), sample("two")), plan, settings, seed)

    @property
    def specialist(self) -> nn.Module:
        return self.networks[SPECIALIST]

    def fit(self, around: Around | None = None) -> Trained:
        return fit(self.method, self.networks, self.batches, self.settings, around)


def told(**values: object) -> TrainSettings:
    return SETTINGS.model_copy(update=values)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("cls", [Supervised, Restless])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_same_seed_trains_the_same_bits(ema: float, cls: type[Supervised]) -> None:
    one, other = (Run(*MIXED, settings=told(ema=ema), cls=cls).fit().last for _ in range(2))
    assert same(one, other)
    assert not same(one, Run(*MIXED, settings=told(ema=ema), cls=cls, seed=6).fit().last)


def test_what_was_random_before_training_does_not_count() -> None:
    one, other = Run(*MIXED, cls=Restless), Run(*MIXED, cls=Restless)
    torch.manual_seed(1)
    expected = one.fit().last
    torch.manual_seed(2)
    assert same(other.fit().last, expected)


def test_workers_have_chance_of_their_own() -> None:
    """The same patches at another rank: only what is random inside the losses can differ."""
    one, other = (Run(sample("one"), cls=Restless, settings=told(steps=1)) for _ in range(2))
    other.batches.rank = 1
    assert not same(one.fit().last, other.fit().last)


def stored(checkpoint: Checkpoint) -> Checkpoint:
    """What a file would give back."""
    buffer = io.BytesIO()
    torch.save(checkpoint.to_dict(), buffer)
    buffer.seek(0)
    return Checkpoint.from_dict(torch.load(buffer, weights_only=True))


@pytest.mark.parametrize("keep", [stored, lambda checkpoint: checkpoint], ids=["from a file", "from memory"])
@pytest.mark.parametrize(("ema", "cls"), [(0.0, Supervised), (0.9, Supervised), (0.9, Restless)])
def test_going_on_from_a_checkpoint_gives_the_bits_of_never_having_stopped(
    ema: float, cls: type[Supervised], keep: Callable[[Checkpoint], Checkpoint]
) -> None:
    settings = told(ema=ema, validate_every=2)
    kept: list[Checkpoint] = []
    expected = Run(*MIXED, settings=settings, cls=cls).fit(Around(save=kept.append, validate=brightness))
    assert [checkpoint.step for checkpoint in kept] == [3, 6]
    for checkpoint in kept:
        run = Run(*MIXED, settings=settings, cls=cls, first=9)
        resumed = run.fit(Around(resume=keep(checkpoint), validate=brightness))
        assert same(resumed.last, expected.last)
        assert resumed.validated == expected.validated
        assert resumed.counts == expected.counts
        assert resumed.best is not None
        assert expected.best is not None
        assert resumed.best.step == expected.best.step
        assert same(resumed.best.weights, expected.best.weights)
        assert resumed.seconds > checkpoint.seconds > 0


def test_a_checkpoint_in_memory_is_not_changed_by_what_follows() -> None:
    settings = told(ema=0.9)
    kept: list[tuple[Checkpoint, Checkpoint]] = []
    Run(settings=settings).fit(Around(save=lambda one: kept.append((one, stored(one)))))
    Run(settings=settings).fit(Around(resume=kept[0][0]))
    for held, written in kept:
        assert same(held.networks, written.networks)
        assert held.mean is not None
        assert written.mean is not None
        assert same(held.mean, written.mean)
        moments = zip(held.optimizer["state"].values(), written.optimizer["state"].values(), strict=True)
        assert all(same(one, other) for one, other in moments)


def test_a_checkpoint_from_before_the_running_mean_starts_one() -> None:
    kept: list[Checkpoint] = []
    Run().fit(Around(save=kept.append))
    run = Run(settings=told(ema=0.9))
    mean = run.fit(Around(resume=kept[0])).last
    assert not same(mean, run.specialist.state_dict())


def test_a_checkpoint_of_another_network_is_refused() -> None:
    kept: list[Checkpoint] = []
    Run().fit(Around(save=kept.append))
    other = Run(plan=plan_of(SHAPE).model_copy(update={"channels": (4, 8)}))
    with pytest.raises(TrainingError, match="checkpoint of step 3 is of another network"):
        other.fit(Around(resume=kept[0]))
    with pytest.raises(TrainingError, match="checkpoint of step 3 is of another network"):
        Run(cls=Restless).fit(Around(resume=kept[0]))


def test_the_running_mean_is_kept_and_training_itself_does_not_feel_it() -> None:
    plain, averaged = Run(), Run(settings=told(ema=0.9))
    plain.fit()
    mean = averaged.fit().last
    assert same(plain.specialist.state_dict(), averaged.specialist.state_dict())
    assert not same(mean, averaged.specialist.state_dict())


def test_every_step_is_reported() -> None:
    reports: list[StepReport] = []
    Run(cls=Restless).fit(Around(on_step=reports.append))
    assert [report.step for report in reports] == list(range(8))
    for report in reports:
        assert report.loss == pytest.approx(sum(report.terms.values()), rel=1e-5)
        assert set(report.terms) == {"cross_entropy", "dice", "steady"}
        assert report.seconds > 0
        assert report.gradient_norm > 0
    rates = [report.lr for report in reports]
    assert rates[0] == pytest.approx(SETTINGS.learning_rate / 2)
    assert rates[1] == pytest.approx(SETTINGS.learning_rate * (1 - 1 / 8) ** 0.9)
    assert rates[1:] == sorted(rates[1:], reverse=True)


def test_a_loss_that_is_no_number_names_the_cases() -> None:
    bad = sample("bad apple", gold=False)
    bad.image_CDHW[0, 2, 3, 4] = np.nan
    with pytest.raises(TrainingError, match=r"loss is nan in step 0 on one, bad apple.*learning_rate"):
        Run(sample("one"), bad).fit()


def test_a_gradient_that_is_no_number_changes_no_weight() -> None:
    class Steep(nn.Module):
        """Its answer is a number, its slope is not."""

        def __init__(self) -> None:
            super().__init__()
            self.height = nn.Parameter(torch.zeros(3))

        def forward(self, image: Tensor) -> Tensor:
            return image.expand(-1, 3, -1, -1, -1) + self.height.abs().sqrt()[:, None, None, None]

    class OfSteep(Supervised):
        def networks(self) -> nn.ModuleDict:
            return nn.ModuleDict({SPECIALIST: Steep()})

    run = Run(cls=OfSteep)
    with pytest.raises(TrainingError, match=r"gradient is (nan|inf) in step 0 on (one|two)"):
        run.fit()
    assert torch.equal(run.specialist.state_dict()["height"], torch.zeros(3))


def test_one_small_sample_is_learned_by_heart() -> None:
    only = sample("one")
    assert only.label_DHW is not None
    run = Run(only, settings=TrainSettings(steps=100, batch=1, warmup=5))
    reports: list[StepReport] = []
    run.fit(Around(on_step=reports.append))
    with torch.inference_mode():
        found = run.specialist.eval()(torch.from_numpy(only.image_CDHW)[None])[0].argmax(0).numpy()
    for value in (1, 2):
        one, other = found == value, np.equal(only.label_DHW, value)
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) > 0.95
    assert reports[-1].loss < 0.2 * reports[0].loss


def test_a_flat_sample_is_learned_too() -> None:
    whole = sample("one")
    assert whole.label_DHW is not None
    flat = replace(whole, image_CDHW=whole.image_CDHW[:, 1:2], label_DHW=whole.label_DHW[1:2])
    run = Run(flat, settings=TrainSettings(steps=60, batch=1, warmup=5), plan=plan_of((1, 16, 16)))
    run.fit()
    with torch.inference_mode():
        found = run.specialist.eval()(torch.from_numpy(flat.image_CDHW)[None])[0].argmax(0).numpy()
    assert (found == flat.label_DHW).mean() > 0.95


# --- methods --------------------------------------------------------------------------------


def test_what_is_beside_the_specialist_follows_after_each_step() -> None:
    run = Run(cls=Restless)
    before = copy.deepcopy(run.networks["teacher"].state_dict())
    run.fit()
    after = run.networks["teacher"].state_dict()
    assert not same(before, after)
    assert not same(after, run.specialist.state_dict())


def test_only_the_specialist_is_kept() -> None:
    run = Run(cls=Restless)
    assert same(run.fit().last, run.specialist.state_dict())


def test_counts_are_those_of_all_workers_and_of_steps_before_a_checkpoint() -> None:
    def three_workers(counts: dict[str, float]) -> dict[str, float]:
        return {name: 3 * count for name, count in counts.items()}

    kept: list[Checkpoint] = []
    assert Run(cls=Restless).fit(Around(save=kept.append, total=three_workers)).counts == {"patches": 48.0}
    assert [checkpoint.counts for checkpoint in kept] == [{"patches": 18.0}, {"patches": 36.0}]


def test_every_method_that_is_built_has_the_class_that_the_registry_names() -> None:
    supervised = method_class("supervised")(plan_of(SHAPE), SETTINGS, Resources())
    assert isinstance(supervised, Supervised)


# --- validation -----------------------------------------------------------------------------


def brightness(weights: dict[str, Tensor]) -> float:
    """A score that is as good as any: it follows from weights alone."""
    return float(torch.stack([value.float().sum() for value in weights.values()]).sum())


def test_validation_comes_every_so_many_steps_and_at_the_end() -> None:
    trained = Run(settings=told(validate_every=3)).fit(Around(validate=brightness))
    assert [step for step, _ in trained.validated] == [3, 6, 8]
    assert Run(settings=told(validate_every=4)).fit(Around(validate=brightness)).validated[-1][0] == 8
    assert Run().fit(Around(validate=brightness)).validated == ()


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_best_weights_are_those_that_scored_highest(ema: float) -> None:
    seen: list[dict[str, Tensor]] = []
    scores = iter([0.3, 0.7, 0.7, 0.5])

    def validate(weights: dict[str, Tensor]) -> float:
        seen.append({name: value.clone() for name, value in weights.items()})
        return next(scores)

    trained = Run(settings=told(validate_every=2, ema=ema)).fit(Around(validate=validate))
    assert trained.best is not None
    assert (trained.best.step, trained.best.score) == (4, 0.7)
    assert same(trained.best.weights, seen[1])
    assert same(trained.last, seen[3])
    assert not same(trained.best.weights, trained.last)


def test_validation_does_not_disturb_training() -> None:
    def noisy(weights: dict[str, Tensor]) -> float:
        return float(torch.rand(()))

    looked = Run(*MIXED, cls=Restless, settings=told(validate_every=1)).fit(Around(validate=noisy)).last
    assert same(looked, Run(*MIXED, cls=Restless).fit().last)
