import copy
import io
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tutelage.errors import TrainingError
from tutelage.geometry import Grid
from tutelage.methods.settings import TrainSettings
from tutelage.methods.training import Batches, Checkpoint, Sample, StepReport, fit
from tutelage.specialist.network import build
from tutelage.specialist.plan import Plan, Triple, make_plan
from tutelage.specialist.settings import SpecialistSettings

pytestmark = pytest.mark.torch

SHAPE = (4, 16, 16)
SETTINGS = TrainSettings(steps=8, batch=2, warmup=2, checkpoint_every=3)


def sample(name: str, gold: bool = True, shape: Triple = SHAPE, undecided: tuple[int, ...] = ()) -> Sample:
    """Two bright blocks on a dark, noisy ground."""
    rng = np.random.default_rng(list(name.encode()))
    label = np.zeros(shape, np.uint8)
    label[1:3, 2:9, 3:8] = 1
    label[1:3, 8:14, 9:14] = 2
    image = (label * 1.2 - 0.5 + rng.normal(0, 0.2, shape)).astype(np.float32)[None]
    weight = None if gold else rng.random(shape, np.float32)
    return Sample(name, image, label, weight, undecided, gold)


def plan_of(shape: Triple = SHAPE) -> Plan:
    grid = Grid.from_spacing(shape, (2.0, 1.0, 1.0))
    return make_plan([grid], ["a", "b"], 1, SpecialistSettings(channels=(8, 16)))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build(plan_of())


def batches(
    *samples: Sample, settings: TrainSettings = SETTINGS, seed: int = 5, rank: int = 0, world: int = 1
) -> Batches:
    return Batches(samples or (sample("one"), sample("two")), SHAPE, 3, settings, seed, rank, world)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


MIXED = (sample("g1"), sample("g2"), sample("u1", gold=False, undecided=(2,)), sample("u2", gold=False))


# --- batches --------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 4])
def test_what_the_workers_see_is_what_one_would_see(world: int) -> None:
    settings = SETTINGS.model_copy(update={"batch": 4})
    for step in range(5):
        whole, cases = batches(*MIXED, settings=settings).at(step)
        shares = [
            batches(*MIXED, settings=settings, rank=rank, world=world).at(step) for rank in range(world)
        ]
        assert [case for _, named in shares for case in named] == cases
        assert same({key: torch.cat([share[key] for share, _ in shares]) for key in whole}, whole)


def test_a_batch_follows_from_seed_and_step() -> None:
    drawn = batches(*MIXED)
    backwards = {step: drawn.at(step) for step in reversed(range(6))}
    for step in range(6):
        again, cases = batches(*MIXED).at(step)
        assert same(again, backwards[step][0])
        assert cases == backwards[step][1]
    assert not same(drawn.at(0)[0], drawn.at(1)[0])
    assert not same(drawn.at(0)[0], batches(*MIXED, seed=6).at(0)[0])


def test_a_batch_is_what_the_loss_and_the_network_take() -> None:
    tensors, cases = batches(*MIXED).at(0)
    assert len(cases) == 2
    assert {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()} == {
        "image": ((2, 1, *SHAPE), torch.float32),
        "label": ((2, *SHAPE), torch.int64),
        "weight": ((2, *SHAPE), torch.float32),
        "undecided": ((2, 3), torch.bool),
    }


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9, 1.0])
def test_annotated_cases_get_their_share(share: float) -> None:
    drawn = batches(*MIXED, settings=SETTINGS.model_copy(update={"gold_share": share}))
    cases = [case for step in range(300) for case in drawn.at(step)[1]]
    assert np.mean([case.startswith("g") for case in cases]) == pytest.approx(share, abs=0.06)
    assert {"g1", "g2"} <= set(cases)


def test_without_pseudo_labels_annotated_cases_are_all_there_is() -> None:
    assert {case for step in range(20) for case in batches().at(step)[1]} == {"one", "two"}


def test_doubts_and_weights_travel_with_their_sample() -> None:
    seen = set()
    for step in range(30):
        tensors, cases = batches(*MIXED).at(step)
        for place, case in enumerate(cases):
            seen.add(case)
            assert tensors["undecided"][place].tolist() == [False, False, case == "u1"]
            believed = tensors["weight"][place]
            assert bool((believed == 1).all()) == case.startswith("g")
    assert seen == {"g1", "g2", "u1", "u2"}


@pytest.mark.parametrize(
    "shape", [(4, 16, 16), (9, 30, 16), (3, 14, 14), (3, 40, 14)], ids=["patch", "larger", "smaller", "both"]
)
def test_image_label_and_weight_are_cut_and_filled_alike(shape: Triple) -> None:
    """The image holds its label, so that after any change of brightness their order must agree."""
    one = sample("one", gold=False, shape=shape)
    label = np.random.default_rng(0).integers(1, 3, shape).astype(np.uint8)
    exact = replace(
        one,
        image_CDHW=label[None].astype(np.float32),
        label_DHW=label,
        weight_DHW=(label / 2).astype(np.float32),
    )
    drawn = Batches((replace(exact, gold=True),), SHAPE, 3, SETTINGS, 0)
    places = set()
    for step in range(12):
        tensors, _ = drawn.at(step)
        for image, cut, weight in zip(tensors["image"], tensors["label"], tensors["weight"], strict=True):
            kept = tuple(slice(0, min(n, p)) for n, p in zip(shape, SHAPE, strict=True))
            assert (cut[kept] > 0).all()
            assert torch.equal(weight[kept], cut[kept] / 2)
            filled = cut == 0
            assert filled.sum() == np.prod(SHAPE) - cut[kept].numel()
            assert (weight[filled] == 1).all()
            assert image[0][cut == 2].mean() > image[0][cut == 1].mean() + 0.5
            places.add(cut.numpy().tobytes())
    assert (len(places) > 1) == any(n > p for n, p in zip(shape, SHAPE, strict=True))


def test_samples_are_not_changed_by_drawing() -> None:
    before = copy.deepcopy([(one.image_CDHW, one.label_DHW) for one in MIXED])
    for step in range(10):
        batches(*MIXED).at(step)
    for one, (image, label) in zip(MIXED, before, strict=True):
        assert np.array_equal(one.image_CDHW, image)
        assert np.array_equal(one.label_DHW, label)


@pytest.mark.parametrize(("batch", "world"), [(2, 3), (3, 2), (1, 2)])
def test_a_batch_that_cannot_be_divided_is_refused(batch: int, world: int) -> None:
    with pytest.raises(TrainingError, match=rf"batch of {batch} cannot be divided over {world}"):
        batches(settings=SETTINGS.model_copy(update={"batch": batch}), world=world)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((sample("u", gold=False),), "no annotated case"),
        ((sample("g"), sample("x1", gold=False, undecided=(3,))), r"x1 has .* undecided structures \[3\]"),
        ((sample("g"), sample("x1", gold=False, undecided=(-1,))), r"x1 .* expected structures 1 to 2"),
        ((sample("g"), sample("x1", gold=False, undecided=(0,))), r"x1 .* expected structures 1 to 2"),
        (
            (sample("g"), replace(sample("x1"), label_DHW=np.full(SHAPE, 7, np.uint8))),
            "x1 has labels up to 7",
        ),
    ],
    ids=["no gold", "undecided too large", "undecided negative", "undecided background", "label too large"],
)
def test_samples_that_cannot_be_learned_from_are_refused(given: tuple[Sample, ...], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        batches(*given)


# --- the loop -------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_same_seed_trains_the_same_bits(ema: float) -> None:
    settings = SETTINGS.model_copy(update={"ema": ema})
    one, other = (fit(network(), batches(*MIXED), settings) for _ in range(2))
    assert same(one, other)
    assert not same(one, fit(network(), batches(*MIXED, seed=6), settings))


def stored(checkpoint: Checkpoint) -> Checkpoint:
    """What a file would give back."""
    buffer = io.BytesIO()
    torch.save(asdict(checkpoint), buffer)
    buffer.seek(0)
    return Checkpoint(**torch.load(buffer, weights_only=True))


@pytest.mark.parametrize("keep", [stored, lambda checkpoint: checkpoint], ids=["from a file", "from memory"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_going_on_from_a_checkpoint_gives_the_bits_of_never_having_stopped(
    ema: float, keep: Callable[[Checkpoint], Checkpoint]
) -> None:
    settings = SETTINGS.model_copy(update={"ema": ema})
    kept: list[Checkpoint] = []
    expected = fit(network(), batches(*MIXED), settings, save=kept.append)
    assert [checkpoint.step for checkpoint in kept] == [3, 6]
    for checkpoint in kept:
        resumed = fit(network(seed=9), batches(*MIXED), settings, resume=keep(checkpoint))
        assert same(resumed, expected)


def test_a_checkpoint_in_memory_is_not_changed_by_what_follows() -> None:
    settings = SETTINGS.model_copy(update={"ema": 0.9})
    kept: list[tuple[Checkpoint, Checkpoint]] = []
    fit(network(), batches(), settings, save=lambda checkpoint: kept.append((checkpoint, stored(checkpoint))))
    fit(network(), batches(), settings, resume=kept[0][0])
    for held, written in kept:
        assert same(held.model, written.model)
        assert held.mean is not None
        assert written.mean is not None
        assert same(held.mean, written.mean)
        moments = zip(held.optimizer["state"].values(), written.optimizer["state"].values(), strict=True)
        assert all(same(one, other) for one, other in moments)


def test_a_checkpoint_from_before_the_running_mean_starts_one() -> None:
    kept: list[Checkpoint] = []
    fit(network(), batches(), SETTINGS, save=kept.append)
    settings = SETTINGS.model_copy(update={"ema": 0.9})
    model = network()
    mean = fit(model, batches(), settings, resume=kept[0])
    assert not same(mean, model.state_dict())


def test_a_checkpoint_of_another_network_is_refused() -> None:
    kept: list[Checkpoint] = []
    fit(network(), batches(), SETTINGS, save=kept.append)
    other = build(plan_of().model_copy(update={"channels": (4, 8)}))
    with pytest.raises(TrainingError, match="checkpoint of step 3 is of another network"):
        fit(other, batches(), SETTINGS, resume=kept[0])


def test_the_running_mean_is_kept_and_training_itself_does_not_feel_it() -> None:
    plain, averaged = network(), network()
    fit(plain, batches(), SETTINGS)
    mean = fit(averaged, batches(), SETTINGS.model_copy(update={"ema": 0.9}))
    assert same(plain.state_dict(), averaged.state_dict())
    assert not same(mean, averaged.state_dict())


def test_every_step_is_reported() -> None:
    reports: list[StepReport] = []
    fit(network(), batches(), SETTINGS, on_step=reports.append)
    assert [report.step for report in reports] == list(range(8))
    for report in reports:
        assert report.loss == pytest.approx(sum(report.terms.values()), rel=1e-5)
        assert set(report.terms) == {"cross_entropy", "dice"}
        assert report.seconds > 0
        assert report.gradient_norm > 0
    rates = [report.lr for report in reports]
    assert rates[0] == pytest.approx(SETTINGS.learning_rate / 2)
    assert rates[1] == pytest.approx(SETTINGS.learning_rate * (1 - 1 / 8) ** 0.9)
    assert rates[1:] == sorted(rates[1:], reverse=True)


def test_a_loss_that_is_no_number_names_the_cases() -> None:
    bad = sample("bad apple")
    bad.image_CDHW[0, 2, 3, 4] = np.nan
    with pytest.raises(TrainingError, match=r"loss is nan in step \d+ on .*bad apple.*learning_rate"):
        fit(network(), batches(bad), SETTINGS)


def test_a_gradient_that_is_no_number_changes_no_weight() -> None:
    class Steep(nn.Module):
        """Its answer is a number, its slope is not."""

        def __init__(self) -> None:
            super().__init__()
            self.height = nn.Parameter(torch.zeros(3))

        def forward(self, image: Tensor) -> Tensor:
            return image.expand(-1, 3, -1, -1, -1) + self.height.abs().sqrt()[:, None, None, None]

    model = Steep()
    with pytest.raises(TrainingError, match=r"gradient is (nan|inf) in step 0 on (one|two)"):
        fit(model, batches(), SETTINGS)
    assert (model.height == 0).all()


def test_one_small_sample_is_learned_by_heart() -> None:
    settings = TrainSettings(steps=100, batch=1, warmup=5)
    only, model = sample("one"), network()
    reports: list[StepReport] = []
    fit(model, batches(only, settings=settings), settings, on_step=reports.append)
    with torch.inference_mode():
        found = model.eval()(torch.from_numpy(only.image_CDHW)[None])[0].argmax(0).numpy()
    for value in (1, 2):
        one, other = found == value, only.label_DHW == value
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) > 0.95
    assert reports[-1].loss < 0.2 * reports[0].loss


def test_a_flat_sample_is_learned_too() -> None:
    settings = TrainSettings(steps=60, batch=1, warmup=5)
    whole = sample("one")
    flat = replace(whole, image_CDHW=whole.image_CDHW[:, 1:2], label_DHW=whole.label_DHW[1:2])
    plan = plan_of((1, 16, 16))
    torch.manual_seed(0)
    model = build(plan)
    fit(model, Batches([flat], plan.patch, 3, settings, 0), settings)
    with torch.inference_mode():
        found = model.eval()(torch.from_numpy(flat.image_CDHW)[None])[0].argmax(0).numpy()
    assert (found == flat.label_DHW).mean() > 0.95
