from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.methods.toys import (
    CLASSES,
    VOLUME,
    Echo,
    batch_of,
    patches,
    pixelwise,
    plain,
    plan_of,
    slow_softmax,
)
from tutelage.archive.formats import write_image
from tutelage.archive.synthetic import STRUCTURES, phantom
from tutelage.casework.online import AskJob, asker
from tutelage.errors import TrainingError
from tutelage.generalists import GeneralistSettings
from tutelage.generalists.settings import CacheSettings
from tutelage.geometry import Grid
from tutelage.methods import semisam_plus
from tutelage.methods.base import SPECIALIST, Answers, Asker, Batch, Resources, View
from tutelage.methods.batches import Batches, Sample
from tutelage.methods.registry import method_class
from tutelage.methods.schedules import fade
from tutelage.methods.semisam_plus import SemiSamPlus
from tutelage.methods.settings import TrainSettings
from tutelage.prompts import PromptSettings
from tutelage.records import Case, Role
from tutelage.specialist.plan import Plan, make_plan
from tutelage.specialist.preprocess import prepare, resample_label
from tutelage.specialist.settings import SpecialistSettings
from tutelage.specialist.windows import slide

pytestmark = pytest.mark.torch

LARGE = (10, 20, 24)
"""A volume of which patches show a part."""


@dataclass
class Listening:
    """Remembers what it was asked, and answers like Echo."""

    masks: list[NDArray[np.uint8]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    def ask(self, case: str, mask_DHW: NDArray[np.uint8], seed: int) -> Answers:
        self.masks.append(mask_DHW)
        self.seeds.append(seed)
        return Echo().ask(case, mask_DHW, seed)


def settings(steps: int = 20, checkpoint_every: int = 100, **options: object) -> TrainSettings:
    told = {"base": "supervised", "ask_every": 1, **options}
    return TrainSettings(steps=steps, checkpoint_every=checkpoint_every, semisam_plus=told)


def method(whom: Asker | None = None, told: TrainSettings | None = None) -> SemiSamPlus:
    return SemiSamPlus(plan_of(), told or settings(), Resources(asker=whom or Echo()))


def one(seed: int = 1) -> nn.ModuleDict:
    return nn.ModuleDict({SPECIALIST: pixelwise(seed)})


def viewed(batch: Batch, *views: View) -> Batch:
    assert batch.unlabeled is not None
    return replace(batch, unlabeled=replace(batch.unlabeled, views=views))


def generalist(found: SemiSamPlus, batch: Batch, networks: nn.ModuleDict, step: int) -> Tensor | None:
    return found.losses(batch, networks, step).get("generalist")


# --- the term -------------------------------------------------------------------------------


def test_the_distance_is_what_a_slow_one_says() -> None:
    rng = np.random.default_rng(0)
    p, mean = rng.random((2, 2, 3, 2, 4, 3))
    variance = rng.uniform(0, 0.3, mean.shape)
    asked = np.array([[True, False, True], [False, True, False]])
    terms = []
    for b, k in np.ndindex(2, 3):
        above = below = 0.0
        for at in np.ndindex(2, 4, 3):
            sure = max(0.0, 1 - 4 * variance[(b, k, *at)])
            above += sure * (p[(b, k, *at)] - mean[(b, k, *at)]) ** 2
            below += sure
        if asked[b, k]:
            terms.append(above / max(below, 1.0))
    found = semisam_plus.distance(*map(torch.from_numpy, (p, mean, variance, asked)))
    assert found.item() == pytest.approx(np.mean(terms), abs=1e-5)


def test_the_term_is_the_distance_to_what_was_said_by_its_weight() -> None:
    listening, networks, batch, step = Listening(), one(), batch_of(), 7
    found = generalist(method(listening, settings(weight=0.3)), batch, networks, step)
    assert found is not None
    assert batch.unlabeled is not None
    p = slow_softmax(plain(networks[SPECIALIST](batch.unlabeled.image)))[:, 1:]
    said = [
        Echo().ask(case, mask, seed)
        for case, mask, seed in zip(batch.unlabeled.cases, listening.masks, listening.seeds, strict=True)
    ]
    each = []
    for opinion, answer in zip(p, said, strict=True):
        for k in np.flatnonzero(answer.asked_K):
            sure = 1 - 4 * answer.variance_KDHW[k].astype(np.float64)
            each.append((sure * (opinion[k] - answer.mean_KDHW[k]) ** 2).sum() / sure.sum())
    assert found.item() == pytest.approx(0.3 * fade(step, 20, 1.0) * np.mean(each), abs=1e-5)


def test_the_specialist_has_a_gradient_and_who_is_sure_of_nothing_gives_none() -> None:
    networks = one()
    found = generalist(method(), batch_of(), networks, 0)
    assert found is not None
    slopes = torch.autograd.grad(found, list(networks.parameters()))
    assert all((slope != 0).any() for slope in slopes)

    class Doubting(Echo):
        def ask(self, case: str, mask_DHW: NDArray[np.uint8], seed: int) -> Answers:
            answers = super().ask(case, mask_DHW, seed)
            return replace(answers, variance_KDHW=np.full_like(answers.variance_KDHW, 0.25))

    silent = generalist(method(Doubting()), batch_of(), networks, 0)
    assert silent is not None
    assert silent.item() == 0


def test_structures_that_nobody_asked_about_are_not_taught() -> None:
    class Partial(Echo):
        def ask(self, case: str, mask_DHW: NDArray[np.uint8], seed: int) -> Answers:
            return replace(super().ask(case, mask_DHW, seed), asked_K=np.zeros(CLASSES - 1, np.bool_))

    assert generalist(method(Partial()), batch_of(), one(), 0) is None


def test_it_is_high_early_and_fades() -> None:
    terms = [generalist(method(), batch_of(), one(), step) for step in (0, 10, 19)]
    found = [term.item() for term in terms if term is not None]
    assert found == sorted(found, reverse=True)
    assert found[2] < 0.05 * found[0]


# --- questions ------------------------------------------------------------------------------


def test_questions_lie_in_the_foreground_they_come_from_however_the_patch_was_turned() -> None:
    listening, networks = Listening(), one()
    straight = View(LARGE, (1, 3, 5), VOLUME)
    turned = replace(straight, flips=(False, True, False), quarter_turns=1)
    batch = viewed(batch_of(), straight, turned)
    method(listening).losses(batch, networks, 0)
    assert batch.unlabeled is not None
    labels = semisam_plus.foreground(networks[SPECIALIST](batch.unlabeled.image).softmax(1))
    for mask_DHW, label_DHW, view in zip(listening.masks, labels, (straight, turned), strict=True):
        assert mask_DHW.shape == LARGE
        assert mask_DHW.any()
        assert (view.of(mask_DHW) == label_DHW).all()
        assert mask_DHW.sum() == label_DHW.sum()


def test_a_tiny_probability_everywhere_is_no_foreground() -> None:
    p = torch.full((1, CLASSES, *VOLUME), 1e-3)
    p[:, 0] = 1 - 2e-3
    p[0, :, 2, 3:5, 3:5] = torch.tensor([0.2, 0.7, 0.1])[:, None, None]
    p[0, :, 4, 3:5, 3:5] = torch.tensor([0.35, 0.45, 0.2])[:, None, None]
    label_DHW = semisam_plus.foreground(p)[0]
    assert np.argwhere(label_DHW).tolist() == [[2, 3, 3], [2, 3, 4], [2, 4, 3], [2, 4, 4]]


def test_where_the_specialist_sees_nothing_nobody_is_asked() -> None:
    listening, networks = Listening(), one()
    network = networks[SPECIALIST]
    assert isinstance(network, nn.Conv3d)
    assert network.bias is not None
    with torch.no_grad():
        network.bias[0] += 100
    found = method(listening)
    assert generalist(found, batch_of(), networks, 0) is None
    assert listening.masks == []
    assert found.counts() == {"asks": 0.0, "generalist_calls": 0.0}


def test_answers_that_do_not_count_are_not_asked_for() -> None:
    found = method(listening := Listening(), settings(weight=0.0))
    assert generalist(found, batch_of(), one(), 0) is None
    assert listening.masks == []


def test_calls_are_counted_and_seeds_follow_the_steps() -> None:
    listening, found = Listening(), method(told := Listening(), settings(ask_every=3))
    for step in range(7):
        generalist(found, batch_of(seed=step), one(), step)
    assert found.counts()["asks"] == len(told.masks) == 2 * 3
    assert found.counts()["generalist_calls"] == 4 * sum(len(set(np.unique(m)) - {0}) for m in told.masks)
    assert len(set(told.seeds)) == 6
    again = method(listening, settings(ask_every=3))
    for step in range(7):
        generalist(again, batch_of(seed=step), one(), step)
    assert listening.seeds == told.seeds


def test_without_anybody_to_ask_it_says_so() -> None:
    with pytest.raises(TrainingError, match="no generalist to ask"):
        SemiSamPlus(plan_of(), settings(), Resources())


# --- answers that are used again --------------------------------------------------------------


def test_an_answer_teaches_again_while_it_is_young() -> None:
    found = method(told=settings(ask_every=10, reuse=3))
    there = [generalist(found, batch_of(), one(), step) is not None for step in range(6)]
    assert there == [True] * 4 + [False] * 2


def test_an_answer_teaches_only_where_it_was_asked_for() -> None:
    """Both patches come from one case; the second has nothing in common with what the first one showed."""
    near, far = View(LARGE, (0, 0, 0), VOLUME), View((24, 20, 24), (16, 0, 0), VOLUME)
    batch = Batch(patches(1), patches(1, seed=2), 0)
    apart = [viewed(batch, replace(near, shape=(24, 20, 24))), viewed(batch, far)]
    found = method(told=settings(ask_every=10, reuse=3))
    assert generalist(found, apart[0], one(), 0)
    silent = generalist(found, apart[1], one(), 1)
    assert silent is not None
    assert silent.item() == 0
    overlapping = generalist(found, viewed(batch, replace(far, start=(4, 0, 0))), one(), 2)
    assert overlapping is not None
    assert overlapping.item() > 0


def test_a_training_that_goes_on_from_a_checkpoint_sees_what_it_would_have_seen() -> None:
    told = settings(ask_every=4, reuse=8, checkpoint_every=6)
    whole, rest = method(told=told), method(told=told)
    for step in range(6):
        generalist(whole, batch_of(), one(), step)
    for step in range(6, 12):
        expected, found = (generalist(each, batch_of(), one(), step) for each in (whole, rest))
        assert (expected is None) == (found is None) == (step < 8)
        assert expected is None or found is None or torch.equal(expected, found)


def test_parts_of_one_step_that_leaves_a_checkpoint_forget_nothing_of_each_other() -> None:
    found = method(told=settings(ask_every=10, reuse=3, checkpoint_every=5))
    first, second = batch_of(), batch_of(seed=1)
    assert second.unlabeled is not None
    second = replace(second, unlabeled=replace(second.unlabeled, cases=("x", "y")))
    for part in (first, second):
        generalist(found, part, one(), 10)
    assert [generalist(found, part, one(), 11) is not None for part in (first, second)] == [True, True]


# --- other methods beneath ----------------------------------------------------------------------


@pytest.mark.parametrize("base", ["supervised", "mean_teacher", "ua_mt", "cps", "bcp"])
def test_any_method_may_be_beneath(base: str) -> None:
    told = settings(base=base)
    resources = Resources(asker=Echo())
    above, alone = (
        made(plan_of(), told, resources) for made in (SemiSamPlus, method_class(told.semisam_plus.base))
    )
    networks = above.networks()
    batch = batch_of()
    if base == "supervised":
        batch = replace(batch, unlabeled=None)
    torch.manual_seed(0)
    expected = alone.losses(batch, networks, 5)
    torch.manual_seed(0)
    found = above.losses(batch_of(), networks, 5)
    assert found.keys() == {*expected, "generalist"}
    assert all(torch.equal(found[name], term) for name, term in expected.items())
    above.after_step(networks, 5)
    assert above.plan == plan_of()


# --- whether it helps -----------------------------------------------------------------------------


SPACING = (18.0, 9.0, 9.0)
KIDNEY = STRUCTURES.index("kidney_left") + 1


@dataclass(frozen=True)
class World:
    """One labeled kidney, six that are not, and some to be measured on."""

    plan: Plan
    gold: list[Sample]
    free: list[Sample]
    test: list[Sample]
    truth: dict[str, NDArray[np.uint8]]
    real: Asker


def world(folder: Path) -> World:
    made = [phantom(3, index, SPACING, ("ct",)) for index in range(14)]
    shown = [(one.image_DHW, (one.label_DHW == KIDNEY).astype(np.uint8)) for one in made]
    shown = [(image, label) for image, label in shown if label.any()]
    grids = [Grid.from_spacing(image.shape, SPACING) for image, _ in shown]
    plan = make_plan(grids, ["kidney"], 1, SpecialistSettings(channels=(8, 16, 16)))
    samples = [
        Sample(
            case=f"c{number}",
            image_CDHW=prepare(image[None].astype(np.float32), grid, plan),
            label_DHW=resample_label(label, grid, plan),
            weight_DHW=None,
            undecided=(),
            gold=True,
        )
        for number, ((image, label), grid) in enumerate(zip(shown, grids, strict=True))
    ]
    cases = []
    for number, grid in enumerate(grids):
        file = folder / f"c{number}.nii.gz"
        write_image(file, shown[number][0], grid)
        cases.append(Case(f"c{number}", "p", Role.UNLABELED, str(file), None, None, "CT", grid, 1, ""))
    job = AskJob(
        tuple(cases[1:7]),
        plan,
        GeneralistSettings(name="threshold", cache=CacheSettings(when="always")),
        PromptSettings(variants=3),
        str(folder / "embeddings"),
        10**6,
    )
    truth = {one.case: one.label_DHW for one in samples if one.label_DHW is not None}
    free = [replace(one, gold=False, label_DHW=None) for one in samples[1:7]]
    return World(plan, samples[:1], free, samples[7:], truth, asker(job))


@dataclass(frozen=True)
class Oracle:
    """Answers with the hidden label. It exists in tests alone."""

    truth: dict[str, NDArray[np.uint8]]

    def ask(self, case: str, mask_DHW: NDArray[np.uint8], seed: int) -> Answers:
        mean_KDHW = self.truth[case][None].astype(np.float32)
        return Answers(mean_KDHW, np.zeros_like(mean_KDHW), np.ones(1, np.bool_), 1)


@dataclass(frozen=True)
class Elsewhere:
    """Asks the real one about the same mask at a random place."""

    real: Asker

    def ask(self, case: str, mask_DHW: NDArray[np.uint8], seed: int) -> Answers:
        rng = np.random.default_rng(seed)
        moved = np.roll(mask_DHW, [int(rng.integers(n)) for n in mask_DHW.shape], (0, 1, 2))
        return self.real.ask(case, moved, seed)


def learned(around: World, whom: Asker | None, seed: int, steps: int = 60) -> float:
    """Train with one seed and return the mean Dice over what is measured on."""
    options = {"base": "supervised", "weight": 5.0, "ask_every": 2, "fade": 0.2}
    told = TrainSettings(steps=steps, semisam_plus=options)
    above: SemiSamPlus | None = None
    if whom is not None:
        above = SemiSamPlus(around.plan, told, Resources(asker=whom))
    found = above or method_class("supervised")(around.plan, told, Resources())
    torch.manual_seed(seed)
    networks = found.networks().train()
    optimizer = torch.optim.AdamW(networks.parameters(), lr=4e-3)
    batches = Batches([*around.gold, *around.free], around.plan, told, seed)
    for step in range(steps):
        torch.manual_seed(1000 * seed + step)
        batch = batches.at(step)
        terms = found.losses(batch if above else replace(batch, unlabeled=None), networks, step)
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        optimizer.step()
    return float(np.mean([dice(around.plan, networks[SPECIALIST], sample) for sample in around.test]))


@torch.inference_mode()
def dice(plan: Plan, network: nn.Module, sample: Sample) -> float:
    slices = slide(torch.from_numpy(sample.image_CDHW), plan.patch, network.eval(), torch.device("cpu"))
    mask_DHW = torch.stack([logits_KHW.argmax(0) for logits_KHW in slices]).numpy() == 1
    assert sample.label_DHW is not None
    label_DHW = sample.label_DHW == 1
    return 2 * float((mask_DHW & label_DHW).sum()) / float(mask_DHW.sum() + label_DHW.sum())


@pytest.mark.slow
def test_the_better_the_answers_the_more_they_help(tmp_path: Path) -> None:
    around = world(tmp_path)
    askers = {
        "oracle": Oracle(around.truth),
        "real": around.real,
        "off": None,
        "random": Elsewhere(around.real),
    }
    found = {name: np.mean([learned(around, whom, s) for s in (0, 1)]) for name, whom in askers.items()}
    assert len(set(found.values())) == 4
    # Random places average out, so that such answers are worth nothing rather than less than nothing.
    assert found["oracle"] > found["real"] > max(found["off"], found["random"]), found
