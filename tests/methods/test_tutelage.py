from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.methods.toys import (
    CLASSES,
    FEATURES,
    VOLUME,
    batch_of,
    blank,
    learn,
    patches,
    plain,
    plan_of,
    resources,
    same,
    slow_softmax,
    slow_supervised,
)  # fmt: skip
from tutelage.errors import TrainingError
from tutelage.methods import filling, teachers
from tutelage.methods.base import SPECIALIST, Batch, Patches, Resources
from tutelage.methods.filling import Told
from tutelage.methods.needs import needs_of
from tutelage.methods.options import TutelageOptions
from tutelage.methods.settings import TrainSettings
from tutelage.methods.teachers import TEACHER, start_alike
from tutelage.methods.tutelage import Tutelage

pytestmark = pytest.mark.torch

PLAIN = {"mixing": False, "self_reliance": 0.0, "fill": 0.0}
"""Nothing but pseudo-labels."""


def settings(**options: object) -> TrainSettings:
    return TrainSettings(method="tutelage", steps=20, warmup=0, tutelage=options)


def method(**options: object) -> Tutelage:
    whole = replace(resources(), feature_width=FEATURES)
    return Tutelage(plan_of(), settings(**options), whole)


def terms_of(found: Tutelage, batch: Batch, step: int = 0) -> tuple[dict[str, Tensor], nn.ModuleDict]:
    torch.manual_seed(0)
    networks = found.networks().train()
    torch.manual_seed(1)
    return found.losses(batch, networks, step), networks


def believed(**changes: object) -> Patches:
    return replace(patches(2, seed=9), **changes)  # type: ignore[arg-type]


# --- what pseudo-labels leave open ----------------------------------------------------------


def told_of(label: list[int], weight: list[float], undecided: list[bool]) -> Told:
    made = replace(
        patches(1, (1, 1, len(label))),
        label=torch.tensor(label)[None, None, None],
        weight=torch.tensor(weight)[None, None, None],
        undecided=torch.tensor([undecided]),
    )
    return filling.told(made)


def opinion(*classes: int, share: float = 0.9) -> Tensor:
    p = torch.full((1, CLASSES, 1, 1, len(classes)), (1 - share) / (CLASSES - 1))
    for place, value in enumerate(classes):
        p[0, value, 0, 0, place] = share
    return p


def row(tensor: Tensor) -> list[float]:
    return [round(float(value), 4) for value in tensor.flatten()]


def test_a_teacher_speaks_only_where_the_pseudo_label_does_not() -> None:
    """Structure 2 is undecided. From left: named, open and 2, open and 0, open and denied, unknown."""
    known = told_of([1, 0, 0, 0, 0], [0.7, 1, 1, 1, 0], [False, False, True])
    assert row(known.weight) == [0.7, 0, 0, 0, 0]
    assert row(known.open) == [0, 1, 1, 1, 0]
    found = filling.filled(known, opinion(2, 2, 0, 1, 1), share=0.5, sure=0.8)
    assert row(found.label) == [1, 2, 0, 0, 1]
    assert row(found.weight) == [0.7, 0.5, 0.5, 0, 0.5]
    assert row(found.open) == row(known.open)


def test_a_teacher_who_is_not_sure_says_nothing() -> None:
    known = told_of([1, 0, 0], [1, 1, 0], [False, False, True])
    found = filling.filled(known, opinion(2, 2, 1, share=0.7), share=0.5, sure=0.8)
    assert row(found.weight) == row(known.weight)
    assert row(found.label) == row(known.label)


def test_where_all_is_decided_background_means_background() -> None:
    known = told_of([1, 0], [1, 0.4], [False, False, False])
    found = filling.filled(known, opinion(2, 2), share=0.5, sure=0.8)
    assert (row(found.label), row(found.weight), row(found.open)) == ([1, 0], [1, 0.4], [0, 0])


def test_the_loss_is_what_a_slow_one_says() -> None:
    rng = np.random.default_rng(0)
    shape = (2, 2, 3, 4)
    logits = rng.normal(size=(2, CLASSES, *shape[1:]))
    label = rng.integers(0, CLASSES, shape)
    weight, open_ = rng.random((2, *shape))
    open_[0] = 0
    undecided = np.array([[False, False, False], [False, False, True]])
    known = Told(
        *map(torch.from_numpy, (label, weight.astype(np.float32), open_.astype(np.float32), undecided))
    )
    terms = filling.loss(torch.from_numpy(logits), known)
    p = slow_softmax(logits)
    entropy, dice = slow_supervised(logits, label, weight)
    either = sum(
        -open_[at] * np.log(p[(at[0], 0, *at[1:])] + undecided[at[0], 2] * p[(at[0], 2, *at[1:])])
        for at in np.ndindex(*shape)
    )
    expected = (entropy * weight.sum() + either) / (weight.sum() + open_.sum())
    assert terms["cross_entropy"].item() == pytest.approx(expected, abs=1e-5)
    assert terms["dice"].item() == pytest.approx(dice, abs=1e-5)


def test_what_is_pasted_brings_its_weights_and_its_doubts() -> None:
    outer = told_of([1, 1, 1, 1], [1, 1, 1, 1], [False, False, False])
    inner = told_of([0, 2, 0, 2], [0.5, 0.5, 0.5, 0.5], [False, True, False])
    inside = torch.tensor([[[False, True, True, False]]])
    mixed = filling.pasted(outer, inner, inside)
    assert row(mixed.label) == [1, 2, 0, 1]
    assert row(mixed.weight) == [1, 0.5, 0, 1]
    assert row(mixed.open) == [0, 0, 0.5, 0]
    assert mixed.undecided.tolist() == [[False, True, False]]


# --- parts, one by one ----------------------------------------------------------------------------


def test_with_everything_off_it_is_labels_and_pseudo_labels() -> None:
    batch = batch_of()
    assert batch.unlabeled is not None
    terms, networks = terms_of(method(**PLAIN), batch)
    image, label, weight = (
        torch.cat([getattr(batch.labeled, name), getattr(batch.unlabeled, name)])
        for name in ("image", "label", "weight")
    )
    entropy, dice = slow_supervised(plain(networks[SPECIALIST](image)), label.numpy(), plain(weight))
    assert terms["cross_entropy"].item() == pytest.approx(entropy, abs=1e-5)
    assert terms["dice"].item() == pytest.approx(dice, abs=1e-5)
    assert len(terms) == 2


@pytest.mark.parametrize(
    "part", [{"mixing": True}, {"fill": 1.0, "rise": 0.0, "sure": 0.3}, {"voxel_weights": False},
             {"text": "bottleneck"}, {"text": "head"}, {"distillation": 0.1}],
    ids=lambda part: "-".join(map(str, next(iter(part.items())))),
)  # fmt: skip
def test_every_part_changes_what_is_learned(part: dict[str, object]) -> None:
    batch = batch_of()
    assert batch.unlabeled is not None
    unknown = replace(batch, unlabeled=believed(weight=(patches(2).weight * (patches(2).weight > 0.5))))
    learned, without = (
        learn(method(**options), given=lambda _: unknown) for options in (PLAIN | part, PLAIN)
    )
    assert not same({name: learned[name] for name in without if name in learned}, without)


@pytest.mark.parametrize("text", [None, "bottleneck", "head"])
def test_every_term_teaches_the_specialist_and_nothing_teaches_the_teacher(text: str | None) -> None:
    terms, networks = terms_of(method(distillation=0.1, text=text), batch_of(), step=10)
    assert terms.keys() == {"cross_entropy", "dice", "distillation"}
    weights = [weight for weight in networks[SPECIALIST].parameters() if weight.requires_grad]
    for term in terms.values():
        slopes = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
        assert any(slope is not None and slope.any() for slope in slopes)
    torch.autograd.backward(torch.stack(list(terms.values())).sum())
    assert all(weight.grad is None for weight in networks[TEACHER].parameters())


def test_in_the_last_phase_pseudo_labels_do_not_count() -> None:
    found, batch = method(self_reliance=0.3), batch_of()

    def loss(step: int, given: Batch) -> list[float]:
        terms, _ = terms_of(found, given, step)
        return [term.item() for term in terms.values()]

    assert loss(13, batch) != loss(13, blank(batch))
    assert loss(14, batch) == loss(14, blank(batch))


def test_without_weights_by_voxel_all_that_is_believed_counts_in_full() -> None:
    half = believed(weight=torch.full((2, *VOLUME), 0.5))
    full = believed(weight=torch.ones(2, *VOLUME))
    batch = batch_of()

    def loss(given: Patches, by_voxel: bool) -> float:
        found = method(**PLAIN | {"voxel_weights": by_voxel})
        return terms_of(found, replace(batch, unlabeled=given))[0]["cross_entropy"].item()

    assert loss(half, False) == loss(full, True)
    assert loss(half, True) != loss(full, True)


def test_text_is_in_the_plan_and_its_vectors_are_in_the_network() -> None:
    found = method(text="head")
    assert found.plan.text is not None
    texts = resources().texts_KTF
    assert texts is not None
    kept = [tensor for name, tensor in found.networks()[SPECIALIST].named_buffers() if "texts_KTF" in name]
    assert len(kept) == 1
    assert torch.equal(kept[0], texts)
    assert method().plan.text is None
    with pytest.raises(TrainingError, match="no vectors of texts"):
        Tutelage(plan_of(), settings(text="head"), Resources())


def test_a_teacher_who_would_not_be_heard_is_neither_built_nor_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teachers, "opinion", None)
    found = method(**PLAIN | {"mixing": True})
    _, networks = terms_of(found, batch_of())
    assert set(networks) == {SPECIALIST}
    found.after_step(networks, 0)
    assert set(method().networks()) == {SPECIALIST, TEACHER}


def test_a_last_phase_in_which_nobody_labels_is_refused() -> None:
    assert [where for where, _ in settings(fill=0.0).problems()] == ["tutelage.self_reliance"]
    assert not list(settings(fill=0.0, self_reliance=0.0).problems())
    assert not list(settings().problems())
    other = TrainSettings(method="supervised", tutelage=TutelageOptions(fill=0.0))
    assert not list(other.problems())


def test_what_is_off_is_not_needed() -> None:
    assert not needs_of(settings()).text
    assert not needs_of(settings()).features
    assert needs_of(settings(text="head")).text
    assert needs_of(settings(distillation=0.1)).features
    assert needs_of(settings()).pseudo
    assert not needs_of(settings()).continues
    assert needs_of(settings(continues=True)).continues


def test_what_trained_before_rounds_could_go_on_is_what_it_was() -> None:
    assert "continues" not in settings().effective()["tutelage"]
    assert settings(continues=True).effective()["tutelage"]["continues"]


def test_a_running_mean_starts_where_the_specialist_does() -> None:
    networks = method().networks()
    for weight in networks[SPECIALIST].parameters():
        torch.nn.init.normal_(weight)
    start_alike(networks)
    pairs = zip(
        networks[SPECIALIST].state_dict().values(), networks[TEACHER].state_dict().values(), strict=True
    )
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
    start_alike(torch.nn.ModuleDict({SPECIALIST: networks[SPECIALIST]}))  # there need not be one


def test_before_the_first_round_there_are_no_features_and_nothing_is_distilled() -> None:
    found = Tutelage(plan_of(), settings(distillation=0.1), Resources())
    batch = batch_of()
    assert batch.unlabeled is not None
    bare = Batch(replace(batch.labeled, features=None), replace(batch.unlabeled, features=None), 0)
    assert terms_of(found, bare)[0].keys() == {"cross_entropy", "dice"}
