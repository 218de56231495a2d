import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.methods.runs import MIXED, SETTINGS, SHAPE, Restless, Run, brightness, same, stored, told
from tests.methods.toys import plan_of, sample
from tutelage.casework.training import laid_out
from tutelage.errors import DivergedError, Preempted, TrainingError
from tutelage.methods.base import SPECIALIST, Resources
from tutelage.methods.checkpoint import Checkpoint
from tutelage.methods.registry import method_class
from tutelage.methods.settings import TrainSettings
from tutelage.methods.supervised import Supervised
from tutelage.methods.training import Around, StepReport

pytestmark = pytest.mark.torch


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


def test_a_step_is_that_of_plain_adamw_however_kernels_lie_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fused step walks through weights, gradients and what it remembers of them as they lie."""
    fused, plain = Run(*MIXED), Run(*MIXED)
    for run in (fused, plain):
        laid_out(run.networks)
    found = fused.fit().last
    adamw = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *weights, fused, **told: adamw(*weights, **told))
    expected = plain.fit().last
    assert any(not weight.is_contiguous() for weight in expected.values())
    # Biases before a norm change nothing, and their gradient is noise, of which AdamW makes whole steps.
    for name, kernel in expected.items():
        if kernel.dim() > 1:
            torch.testing.assert_close(found[name], kernel, rtol=1e-4, atol=1e-5)


def test_what_was_remembered_lies_as_the_weights_do_that_go_on_with_it() -> None:
    kept: list[Checkpoint] = []
    first, other = Run(*MIXED), Run(*MIXED, first=9)
    laid_out(first.networks), laid_out(other.networks)
    expected = first.fit(Around(save=kept.append)).last
    about = kept[0].optimizer["state"].values()
    assert any(not value.is_contiguous() for values in about for value in values.values())
    for values in about:
        values.update({name: value.contiguous() for name, value in values.items()})
    assert same(other.fit(Around(resume=kept[0])).last, expected)


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
        assert (report.patches, report.memory_mib) == (2, 0.0)
    rates = [report.lr for report in reports]
    assert rates[0] == pytest.approx(SETTINGS.learning_rate / 2)
    assert rates[1] == pytest.approx(SETTINGS.learning_rate * (1 - 1 / 8) ** 0.9)
    assert rates[1:] == sorted(rates[1:], reverse=True)


def test_a_loss_that_is_no_number_names_the_cases() -> None:
    bad = sample("bad apple", gold=False)
    bad.image_CDHW[0, 2, 3, 4] = np.nan
    with pytest.raises(
        DivergedError, match=r"loss is nan in step 0 on one, bad apple.*learning_rate"
    ) as found:
        Run(sample("one"), bad).fit()
    error = found.value
    assert (error.step, error.what, error.cases) == (0, "loss", ("one", "bad apple"))
    assert np.isnan(error.value)


def test_a_loss_that_is_no_number_in_another_process_stops_this_one_too() -> None:
    def with_a_bad_one(numbers: Tensor) -> Tensor:
        return (numbers + torch.nan) / 2

    run = Run()
    before = copy.deepcopy(run.specialist.state_dict())
    with pytest.raises(DivergedError, match="loss is nan in step 0 in another process") as found:
        run.fit(Around(mean=with_a_bad_one))
    assert found.value.cases == ()
    assert same(before, run.specialist.state_dict())


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


def test_validation_comes_every_so_many_steps_and_at_the_end() -> None:
    trained = Run(settings=told(validate_every=3)).fit(Around(validate=brightness))
    assert [step for step, _ in trained.validated] == [3, 6, 8]
    assert Run(settings=told(validate_every=4)).fit(Around(validate=brightness)).validated[-1][0] == 8
    assert Run().fit(Around(validate=brightness)).validated == ()


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_best_weights_are_those_that_scored_highest(ema: float) -> None:
    seen: list[dict[str, Tensor]] = []
    scores = iter([0.3, 0.7, 0.7, 0.5])

    def validate(weights: dict[str, Tensor]) -> Iterator[float]:
        seen.append({name: value.clone() for name, value in weights.items()})
        yield next(scores)

    trained = Run(settings=told(validate_every=2, ema=ema)).fit(Around(validate=validate))
    assert trained.best is not None
    assert (trained.best.step, trained.best.score) == (4, 0.7)
    assert same(trained.best.weights, seen[1])
    assert same(trained.last, seen[3])
    assert not same(trained.best.weights, trained.last)


def test_validation_does_not_disturb_training() -> None:
    def noisy(weights: dict[str, Tensor]) -> Iterator[float]:
        yield float(torch.rand(()))

    looked = Run(*MIXED, cls=Restless, settings=told(validate_every=1)).fit(Around(validate=noisy)).last
    assert same(looked, Run(*MIXED, cls=Restless).fit().last)


# --- ending before the end ------------------------------------------------------------------


def asked_after(steps: int) -> Callable[[], bool]:
    """Ask a loop to end in the step after so many, and in every one from then on."""
    calls = iter(range(1000))
    return lambda: next(calls) >= steps


@pytest.mark.parametrize("cls", [Supervised, Restless])
def test_asked_to_end_it_saves_where_it_is_and_goes_on_to_the_same_bits(cls: type[Supervised]) -> None:
    settings = told(ema=0.9)
    expected = Run(*MIXED, settings=settings, cls=cls).fit()
    kept: list[Checkpoint] = []
    with pytest.raises(Preempted, match="after 5 of 8 steps"):
        Run(*MIXED, settings=settings, cls=cls).fit(Around(save=kept.append, stop=asked_after(4)))
    assert [checkpoint.step for checkpoint in kept] == [3, 5]
    resumed = Run(*MIXED, settings=settings, cls=cls, first=9).fit(Around(resume=stored(kept[-1])))
    assert same(resumed.last, expected.last)
    assert resumed.counts == expected.counts


def test_asked_to_end_in_the_last_step_it_is_done() -> None:
    kept: list[Checkpoint] = []
    trained = Run().fit(Around(save=kept.append, stop=asked_after(7)))
    assert same(trained.last, Run().fit().last)
    assert [checkpoint.step for checkpoint in kept] == [3, 6]


@pytest.mark.parametrize(
    "calls", [3, 4, 5], ids=["in the step before", "after a case", "after the last case"]
)
def test_a_look_that_was_given_up_is_made_up_for(calls: int) -> None:
    settings = told(validate_every=4)
    expected = Run(settings=settings).fit(Around(validate=brightness))
    kept: list[Checkpoint] = []
    around = Around(save=kept.append, stop=asked_after(calls), validate=brightness)
    with pytest.raises(Preempted, match="after 4 of 8 steps"):
        Run(settings=settings).fit(around)
    assert kept[-1].validated == ()
    resumed = Run(settings=settings).fit(Around(resume=stored(kept[-1]), validate=brightness))
    assert resumed.validated == expected.validated
    assert same(resumed.last, expected.last)
    assert resumed.best is not None
    assert expected.best is not None
    assert same(resumed.best.weights, expected.best.weights)


def test_a_look_after_the_last_step_can_be_given_up_too() -> None:
    settings = told(validate_every=8)
    kept: list[Checkpoint] = []
    around = Around(save=kept.append, stop=asked_after(9), validate=brightness)
    with pytest.raises(Preempted, match="after 8 of 8 steps"):
        Run(settings=settings).fit(around)
    steps: list[StepReport] = []
    resumed = Run(settings=settings).fit(Around(resume=kept[-1], validate=brightness, on_step=steps.append))
    assert (steps, [step for step, _ in resumed.validated]) == ([], [8])
    assert same(resumed.last, Run(settings=settings).fit().last)


def test_whoever_is_asked_ends_all() -> None:
    """The mean over two processes, of which the other one was asked."""

    def other_was(numbers: Tensor) -> Tensor:
        return torch.cat([numbers[:-1], torch.ones(1) / 2])

    with pytest.raises(Preempted, match="after 1 of 8 steps"):
        Run().fit(Around(mean=other_was))
