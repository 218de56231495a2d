from dataclasses import replace
from math import log
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.methods.test_contrast import slow_info_nce
from tests.methods.test_imbalance import slow_ga_ce, slow_ga_dice
from tests.methods.toys import (
    CLASSES,
    batch_of,
    learn,
    method_of,
    patches,
    plain,
    plan_of,
    resources,
    same,
    slow_softmax,
)
from tutelage.errors import TrainingError
from tutelage.methods import tak
from tutelage.methods.base import SPECIALIST, Batch, Resources
from tutelage.methods.contrast import info_nce
from tutelage.methods.options import TakOptions
from tutelage.methods.schedules import rise
from tutelage.methods.settings import TrainSettings
from tutelage.methods.tak import ALIGNER, FREQUENCY, LOCATOR, Aligner, Frequency, Tak
from tutelage.methods.teachers import TEACHER
from tutelage.specialist.base import Specialist
from tutelage.specialist.network import build
from tutelage.specialist.plan import Plan
from tutelage.specialist.text import TextHead

pytestmark = pytest.mark.torch

STEPS = 20
LATE = STEPS - 1


def made(options: TakOptions | None = None, texts_KTF: Tensor | None = None) -> tuple[Tak, nn.ModuleDict]:
    settings = TrainSettings(method="tak", steps=STEPS, tak=options or TakOptions(blend_from=2))
    given = resources() if texts_KTF is None else Resources(texts_KTF=texts_KTF)
    method = Tak(plan_of(), settings, given)
    torch.manual_seed(0)
    return method, method.networks().train()


def terms_at(
    step: int, method: Tak, networks: nn.ModuleDict, batch: Batch | None = None
) -> dict[str, Tensor]:
    return method.losses(batch or batch_of(), networks, step)


def seen(networks: nn.ModuleDict, image: Tensor) -> Tensor:
    logits: Tensor = networks[SPECIALIST](image)
    return logits


# --- terms --------------------------------------------------------------------------------------


def test_annotated_patches_are_learned_four_ways_in_equal_parts() -> None:
    method, networks = made()
    batch = batch_of()
    assert batch.unlabeled is not None
    terms = terms_at(LATE, method, networks, batch)
    student, cubes, label = cast(Specialist, networks[SPECIALIST]), method._cubes, batch.labeled.label.numpy()
    head = cast(TextHead, student.head)
    image = torch.cat([batch.labeled.image, batch.unlabeled.image])
    source = cubes.draw([*batch.labeled.seeds, *batch.unlabeled.seeds])
    whole = plain(seen(networks, batch.labeled.image))
    mixed = student.levels(cubes.mix(image, source))
    across = plain(head(tuple(cubes.unmix(level, source) for level in mixed))[:2])
    single = student.levels(cubes.cut(batch.labeled.image))
    within = plain(head(tuple(cubes.join(level) for level in single)))
    expected = sum(slow_ga_dice(slow_softmax(logits), label) for logits in (whole, across, within))
    assert 4 * terms["dice"].item() == pytest.approx(expected, abs=1e-4)
    assert 4 * terms["cross_entropy"].item() == pytest.approx(slow_ga_ce(whole, label, 0.1, 0.5), rel=1e-4)


@pytest.mark.parametrize("term", ["cross_entropy", "dice", "location", "consistency", "contrast"])
def test_each_term_moves_the_student_and_not_the_teacher(term: str) -> None:
    method, networks = made()
    torch.autograd.backward(terms_at(LATE, method, networks)[term])
    slopes = [weight.grad for weight in networks[SPECIALIST].parameters()]
    assert any(slope is not None and bool((slope != 0).any()) for slope in slopes)
    assert all(weight.grad is None for weight in networks[TEACHER].parameters())


def test_the_head_learns_to_read_the_text() -> None:
    method, networks = made()
    terms = terms_at(0, method, networks)
    torch.autograd.backward(terms["dice"])
    head = cast(TextHead, cast(Specialist, networks[SPECIALIST]).head)
    for layer in (head.reader, head.join, head.controller, head.sums, head.entry):
        assert all(weight.grad is not None and (weight.grad != 0).any() for weight in layer.parameters())


def test_consistency_rises_over_all_steps() -> None:
    method, networks = made(TakOptions(blend_from=STEPS))
    found = {step: float(terms_at(step, method, networks)["consistency"].detach()) for step in (0, 10, LATE)}
    assert found[0] / found[LATE] == pytest.approx(rise(0, STEPS, 1.0) / rise(LATE, STEPS, 1.0), rel=1e-4)
    assert found[10] / found[LATE] == pytest.approx(rise(10, STEPS, 1.0) / rise(LATE, STEPS, 1.0), rel=1e-4)


def test_places_of_cubes_are_learned() -> None:
    method, networks = made()
    terms = terms_at(0, method, networks)
    assert float(terms["location"].detach()) == pytest.approx(0.1 * log(len(method._cubes)), rel=0.5)
    torch.autograd.backward(terms["location"])
    assert all(weight.grad is not None for weight in networks[LOCATOR].parameters())


# --- the teacher --------------------------------------------------------------------------------


def test_frequent_classes_lean_on_single_cubes() -> None:
    method, networks = made(TakOptions(noise=0, blend_from=2))
    shown = patches(2)
    image = shown.image
    frequency = cast(Frequency, networks[FREQUENCY])
    frequency.shares_K.copy_(torch.tensor([0.8, 0.2, 0.0]))
    whole, blended = method._said(networks, shown, LATE)
    teacher, cubes = networks[TEACHER], method._cubes
    alone = cubes.join(teacher(cubes.cut(image)))
    for value, weight in enumerate([1.0, 0.25, 0.0]):
        where = (whole.argmax(1) == value)[:, None].expand_as(whole)
        expected = (1 - weight) * whole[where] + weight * alone[where]
        assert torch.allclose(blended[where], expected, atol=1e-5)


def test_before_that_it_looks_at_the_whole_alone() -> None:
    method, networks = made()
    whole, blended = method._said(networks, patches(1), 1)
    assert torch.equal(whole, blended)


def test_how_often_a_class_is_found_is_remembered() -> None:
    frequency = Frequency(3)
    label = torch.tensor([[0, 0, 0, 1]])
    assert frequency(label).tolist() == [[0, 0, 0, 0]]
    for _ in range(200):
        frequency.count(label)
    assert frequency.shares_K.tolist() == pytest.approx([0.75, 0.25, 0], abs=1e-3)
    assert frequency(label).flatten().tolist() == pytest.approx([1, 1, 1, 1 / 3])
    assert not list(frequency.parameters())


def test_the_teacher_follows_and_keeps_the_text() -> None:
    method, networks = made()
    before = [weight.clone() for weight in networks[TEACHER].parameters()]
    with torch.no_grad():
        for weight in networks[SPECIALIST].parameters():
            weight.add_(1)
    method.after_step(networks, 1000)
    for old, weight in zip(before, networks[TEACHER].parameters(), strict=True):
        assert torch.allclose(weight, old + 0.01, atol=1e-5)
    texts = cast(TextHead, cast(Specialist, networks[TEACHER]).head).texts.texts_KTF
    assert torch.equal(texts, cast(Tensor, resources().texts_KTF))


# --- voxels and text ----------------------------------------------------------------------------


def test_contrast_takes_three_looks_at_sure_voxels_and_all_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Tensor, Tensor, float]] = []

    def listen(features: Tensor, classes: Tensor, temperature: float) -> Tensor:
        calls.append((features, classes, temperature))
        return info_nce(features, classes, temperature)

    monkeypatch.setattr(tak, "info_nce", listen)
    method, networks = made()
    term = terms_at(LATE, method, networks)["contrast"]
    expected = sum(
        slow_info_nce(plain(features), classes.tolist(), temperature)
        for features, classes, temperature in calls
    )
    assert term.item() == pytest.approx(0.1 * expected, rel=1e-4)
    assert len(calls) == 2  # levels that this network has
    head = cast(TextHead, cast(Specialist, networks[SPECIALIST]).head)
    for (features, classes, temperature), most in zip(calls, (10, 20), strict=True):
        assert temperature == 0.07
        assert classes[-2 * CLASSES :].tolist() == [0, 0, 1, 1, 2, 2]
        voxels = len(features) - 2 * CLASSES
        assert 0 < voxels <= 3 * 4 * 3 * most
    assert torch.equal(calls[0][0][-2 * CLASSES :], head.read_texts().flatten(0, 1))


def test_voxels_of_unlabeled_patches_have_to_be_sure() -> None:
    method, networks = made()
    batch = batch_of()
    assert batch.unlabeled is not None
    views = [torch.randn(12, c, 8, n, n) for c, n in ((16, 8), (8, 16))]
    found = []
    for sharpness in (0.0, 100.0):
        said = sharpness * torch.randn(
            2, CLASSES, *method.plan.patch, generator=torch.Generator().manual_seed(0)
        )
        drawn: list[int] = []

        def listen(features: Tensor, classes: Tensor, temperature: float, into: list[int] = drawn) -> Tensor:
            into.append(len(classes))
            return features.sum()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tak, "info_nce", listen)
            method._near(networks, views, batch, said, said, LATE)
        found.append(drawn)
    assert found[0][0] == 3 * 2 * CLASSES * 10 + 2 * CLASSES
    assert found[1][0] == 3 * 4 * CLASSES * 10 + 2 * CLASSES


def test_before_contrast_counts_its_weights_have_gradients_of_zero() -> None:
    method, networks = made()
    term = terms_at(0, method, networks)["contrast"]
    assert float(term.detach()) == 0
    torch.autograd.backward(term)
    assert all(w.grad is not None and bool((w.grad == 0).all()) for w in networks[ALIGNER].parameters())


def test_the_head_reads_for_the_coarsest_level() -> None:
    torch.manual_seed(0)
    aligner = Aligner((16, 8, 4), 12)
    head = TextHead(cast(TextHead, cast(Specialist, made()[1][SPECIALIST]).head).texts, (16, 8, 4, 4))
    levels = [torch.randn(2, c, n, n, n) for c, n in ((16, 2), (8, 4), (4, 8))]
    pairs = aligner(levels, head)
    assert [tuple(x.shape) for x, _ in pairs] == [tuple(level.shape) for level in levels]
    assert [tuple(text.shape) for _, text in pairs] == [(3, 2, 16), (3, 2, 8), (3, 2, 4)]
    assert torch.equal(pairs[0][1], head.read_texts())


# --- as a whole ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "texts", [torch.eye(6).reshape(3, 2, 6), torch.full((3, 2, 5), 0.3)], ids=["one-hot", "alike"]
)
def test_any_vectors_do(texts: Tensor) -> None:
    method, networks = made(texts_KTF=texts)
    total = torch.stack(list(terms_at(LATE, method, networks).values())).sum()
    assert total.isfinite()


def test_half_precision_learns_from_the_same_terms() -> None:
    method, networks = made()
    state = {key: value.clone() for key, value in networks.state_dict().items()}
    full = terms_at(LATE, method, networks)
    networks.load_state_dict(state)
    with torch.autocast("cpu", torch.bfloat16):
        half = terms_at(LATE, method, networks)
    for name, term in full.items():
        assert half[name].dtype == torch.float32
        assert half[name].item() == pytest.approx(term.item(), rel=0.1)


def test_three_steps_from_a_seed_are_the_same_bits() -> None:
    def spread() -> dict[str, Tensor]:
        return learn(made()[0], steps=(0, 5, LATE))

    assert same(spread(), spread())


def test_labels_of_unlabeled_patches_are_not_looked_at() -> None:
    method, networks = made()
    state = {key: value.clone() for key, value in networks.state_dict().items()}
    batch = batch_of()
    assert batch.unlabeled is not None
    nothing = replace(batch.unlabeled, label=torch.zeros_like(batch.unlabeled.label))
    seen_terms = terms_at(LATE, method, networks, batch)
    networks.load_state_dict(state)
    blanked = terms_at(LATE, method, networks, replace(batch, unlabeled=nothing))
    assert all(torch.equal(seen_terms[name], blanked[name]) for name in seen_terms)


def test_its_plan_builds_what_it_trained() -> None:
    method, networks = made()
    network = build(Plan.model_validate_json(method.plan.model_dump_json()))
    network.load_state_dict(networks[SPECIALIST].state_dict())
    image = torch.randn(1, 1, *method.plan.patch)
    assert torch.equal(network(image), seen(networks, image))


def test_without_vectors_nothing_starts() -> None:
    with pytest.raises(TrainingError, match="needs vectors of 3 classes"):
        Tak(plan_of(), TrainSettings(method="tak"), Resources())


def test_classes_that_nobody_shows_do_no_harm() -> None:
    method, networks = made()
    batch = batch_of()
    empty = replace(batch, labeled=replace(batch.labeled, label=torch.zeros_like(batch.labeled.label)))
    terms = terms_at(LATE, method, networks, empty)
    assert all(np.isfinite(float(term.detach())) for term in terms.values())
    assert method_of("tak").counts() == {}
