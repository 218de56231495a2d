from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.methods.toys import (
    VOLUME,
    batch_of,
    learn,
    method_of,
    plain,
    plan_of,
    resources,
    same,
    slow_softmax,
)
from tutelage.errors import TrainingError
from tutelage.methods.base import SPECIALIST, Resources
from tutelage.methods.cps import PEER
from tutelage.methods.llm_segnet import LlmSegNet, box, cut_mix, undo_cut_mix, united
from tutelage.methods.schedules import rise
from tutelage.methods.settings import TrainSettings
from tutelage.methods.together import Ring
from tutelage.specialist.network import build
from tutelage.specialist.plan import Plan
from tutelage.specialist.vnet import VNet

pytestmark = pytest.mark.torch


def slow_united(logits: NDArray[np.float64], other: NDArray[np.float64], sure: float, unsure: float) -> float:
    p, known, doubted = slow_softmax(logits), [], []
    for b, *at in np.ndindex(*other[:, 0].shape):
        mine, theirs = p[(b, slice(None), *at)], other[(b, slice(None), *at)]
        if theirs.max() >= sure:
            known.append(-np.log(mine[int(theirs.argmax())]))
        else:
            doubted.append(sum((mine - theirs) ** 2))
    return float(sum(known) / max(1, len(known)) + unsure * sum(doubted) / max(1, len(doubted)))


@pytest.mark.parametrize("sure", [0.0, 0.6, 0.9, 1.0])
def test_the_united_loss_is_that_of_a_slow_loop(sure: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, others = (2 * torch.randn(2, 3, 2, 4, 4, generator=generator) for _ in range(2))
    expected = slow_united(plain(logits), slow_softmax(plain(others)), sure, 0.7)
    assert united(logits, others.softmax(1), sure, 0.7).item() == pytest.approx(expected, abs=1e-5)


def test_the_one_who_teaches_gets_no_gradient() -> None:
    logits = torch.randn(1, 3, 2, 2, 2, requires_grad=True)
    other = torch.randn(1, 3, 2, 2, 2, requires_grad=True)
    torch.autograd.backward(united(logits, other.softmax(1), 0.6, 1.0))
    assert other.grad is None
    assert logits.grad is not None
    assert (logits.grad != 0).any(1).all()


@pytest.mark.parametrize("images", [2, 3])
def test_a_cut_mix_is_undone_exactly(images: int) -> None:
    volume, inside = torch.randn(images, 2, 4, 6, 8), box((4, 6, 8), (0.2, 0.5), 0)
    ring = Ring.of(volume)
    mixed = cut_mix(volume, inside, ring)
    assert torch.equal(mixed[1][:, inside], volume[0][:, inside])
    assert torch.equal(mixed[1][:, ~inside], volume[1][:, ~inside])
    assert torch.equal(undo_cut_mix(mixed, inside, ring), volume)


@pytest.mark.parametrize("shape", [(40, 40, 40), (1, 40, 40), (20, 40, 60)])
def test_a_box_has_its_share_of_the_patch(shape: tuple[int, ...]) -> None:
    shares = [float(box(shape, (0.1, 0.5), seed).float().mean()) for seed in range(30)]
    assert 0.07 <= min(shares) < 0.25
    assert 0.35 < max(shares) <= 0.5


def told(network: str) -> nn.ModuleDict:
    plan = plan_of().model_copy(update={"network": network})
    return LlmSegNet(plan, TrainSettings(method="llm_segnet"), resources()).networks()


def test_a_v_net_learns_beside_a_residual_one() -> None:
    networks = told("vnet")
    assert isinstance(networks[SPECIALIST], VNet)
    assert isinstance(networks[PEER], VNet)
    sizes = [sum(w.numel() for w in networks[name].parameters()) for name in (SPECIALIST, PEER)]
    assert sizes[0] != sizes[1]


def test_another_network_learns_beside_one_of_its_kind() -> None:
    one, other = (told("unet")[name].state_dict() for name in (SPECIALIST, PEER))
    assert {key: w.shape for key, w in one.items()} == {key: w.shape for key, w in other.items()}
    assert not same(one, other)


def test_both_start_as_if_there_were_no_text() -> None:
    method, image = method_of("llm_segnet"), batch_of().labeled.image
    torch.manual_seed(0)
    networks = method.networks()
    for network in networks.values():
        answer = network(image)
        network.bottleneck = nn.Identity()
        assert torch.equal(network(image), answer)


def test_text_comes_to_matter() -> None:
    def learned(seed: int) -> dict[str, Tensor]:
        texts = torch.randn(3, 2, 12, generator=torch.Generator().manual_seed(seed))
        settings = TrainSettings(method="llm_segnet", steps=20)
        return learn(LlmSegNet(plan_of(), settings, Resources(texts_KTF=texts)))

    one, other = learned(0), learned(1)
    key = f"{SPECIALIST}.bottleneck.balance"
    assert one[key] != -4.0
    weights = [name for name in one if "texts_KTF" not in name]
    assert not all(torch.equal(one[name], other[name]) for name in weights)


def test_each_learns_from_the_other() -> None:
    method = method_of("llm_segnet")
    torch.manual_seed(0)
    networks = method.networks().train()
    term = method.losses(batch_of(), networks, 19)["united"]
    for network in networks.values():
        slopes = torch.autograd.grad(term, list(network.parameters()), retain_graph=True, allow_unused=True)
        assert any(slope is not None and bool((slope != 0).any()) for slope in slopes)


def test_the_weight_of_each_others_answers_rises() -> None:
    method, batch = method_of("llm_segnet", steps=20), batch_of()
    torch.manual_seed(0)
    networks = method.networks().train()
    terms = {}
    for step in (0, 4, 8, 19):
        torch.manual_seed(1)
        terms[step] = float(method.losses(batch, networks, step)["united"].detach())
    for step in (0, 4, 8):
        assert terms[step] / terms[19] == pytest.approx(rise(step, 20, 0.4), rel=1e-4)


def test_a_patch_that_is_alone_is_mixed_with_an_annotated_one_and_not_told_its_label() -> None:
    method = method_of("llm_segnet")
    torch.manual_seed(0)
    networks = method.networks().train()
    batch = batch_of(labeled=1, unlabeled=1)
    other = replace(batch, labeled=replace(batch.labeled, label=torch.zeros_like(batch.labeled.label)))
    found = []
    for given in (batch, other):
        torch.manual_seed(1)
        found.append(method.losses(given, networks, 19))
    assert torch.equal(found[0]["united"], found[1]["united"])
    assert not torch.equal(found[0]["dice"], found[1]["dice"])


def test_its_plan_builds_what_it_trained() -> None:
    method = method_of("llm_segnet")
    state = method.networks()[SPECIALIST].state_dict()
    network = build(Plan.model_validate_json(method.plan.model_dump_json()))
    network.load_state_dict(state)
    assert network(torch.randn(1, 1, *VOLUME)).shape == (1, 3, *VOLUME)


def test_without_vectors_nothing_starts() -> None:
    with pytest.raises(TrainingError, match="needs vectors of 3 classes"):
        LlmSegNet(plan_of(), TrainSettings(method="llm_segnet"), Resources())
