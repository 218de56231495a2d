"""Of every method: each term teaches whoever learns, and nobody else."""

import pytest
import torch
from torch import Tensor, nn

from tests.methods.toys import FLAT, VOLUME, batch_of, method_of
from tutelage.methods.base import SPECIALIST
from tutelage.methods.needs import NEEDS, MethodName
from tutelage.methods.registry import METHODS
from tutelage.specialist.plan import Triple

pytestmark = pytest.mark.torch

STEPS = 20


def moved(term: Tensor, network: nn.Module) -> bool:
    """Whether descent on a term would change any weight."""
    learning = [weight for weight in network.parameters() if weight.requires_grad]
    if not learning or not term.requires_grad:
        return False
    found = torch.autograd.grad(term, learning, retain_graph=True, allow_unused=True)
    assert all(slope is None or slope.isfinite().all() for slope in found)
    return any(slope is not None and bool((slope != 0).any()) for slope in found)


@pytest.mark.parametrize("patch", [VOLUME, FLAT], ids=["volume", "flat"])
@pytest.mark.parametrize("name", METHODS)
def test_every_term_teaches_the_specialist_at_some_step(name: MethodName, patch: Triple) -> None:
    method = method_of(name, patch, STEPS)
    torch.manual_seed(0)
    networks = method.networks().train()
    teaches: dict[str, bool] = {}
    for step in (0, STEPS // 2, STEPS - 1):
        torch.manual_seed(step)
        terms = method.losses(batch_of(patch, seed=step), networks, step)
        for key, term in terms.items():
            assert term.shape == ()
            assert term.isfinite()
            teaches[key] = teaches.get(key, False) or moved(term, networks[SPECIALIST])
        assert moved(torch.stack(list(terms.values())).sum(), networks[SPECIALIST])
    assert teaches == dict.fromkeys(teaches, True)


@pytest.mark.parametrize("name", METHODS)
def test_a_network_learns_by_gradients_at_some_step_or_never_gets_one(name: MethodName) -> None:
    method = method_of(name, steps=STEPS)
    torch.manual_seed(0)
    networks = method.networks().train()
    learned: set[str] = set()
    for step in (0, STEPS // 2, STEPS - 1):
        networks.zero_grad(set_to_none=True)
        torch.manual_seed(step)
        terms = method.losses(batch_of(seed=step), networks, step)
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        for key, network in networks.items():
            slopes = [weight.grad for weight in network.parameters() if weight.grad is not None]
            learned |= {key} if any((slope != 0).any() for slope in slopes) else set()
            assert all(weight.grad is None for weight in network.parameters() if not weight.requires_grad)
    able = {key for key, one in networks.items() if any(weight.requires_grad for weight in one.parameters())}
    assert learned == able


@pytest.mark.parametrize("name", METHODS)
def test_losses_change_no_weight(name: MethodName) -> None:
    """Whoever follows does so after the step, when all of it has been learned from."""
    method = method_of(name, steps=STEPS)
    torch.manual_seed(0)
    networks = method.networks().train()
    before = {key: weight.detach().clone() for key, weight in networks.named_parameters()}
    method.losses(batch_of(), networks, STEPS - 1)
    assert all(torch.equal(weight, before[key]) for key, weight in networks.named_parameters())


@pytest.mark.parametrize("name", [name for name in METHODS if NEEDS[name].mixes])
@pytest.mark.parametrize(("labeled", "unlabeled"), [(1, 1), (1, 3), (3, 1)])
def test_streams_of_any_length_are_learned_from(name: MethodName, labeled: int, unlabeled: int) -> None:
    method = method_of(name, steps=STEPS)
    torch.manual_seed(0)
    networks = method.networks().train()
    for step in (0, STEPS - 1):
        terms = method.losses(batch_of(labeled=labeled, unlabeled=unlabeled), networks, step)
        total = torch.stack(list(terms.values())).sum()
        assert total.isfinite()
        assert moved(total, networks[SPECIALIST])
