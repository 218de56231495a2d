import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.methods.toys import (
    always,
    batch_of,
    patches,
    pixelwise,
    plain,
    plan_of,
    slow_supervised,
    weight_of,
)
from tutelage.methods.base import SPECIALIST, Batch, Resources
from tutelage.methods.cps import PEER, Cps
from tutelage.methods.options import CpsOptions
from tutelage.methods.schedules import rise
from tutelage.methods.settings import TrainSettings
from tutelage.specialist.plan import Triple

pytestmark = pytest.mark.torch


def method(**options: float) -> Cps:
    return Cps(plan_of(), TrainSettings(steps=20, cps=CpsOptions.model_validate(options)), Resources())


def pair() -> nn.ModuleDict:
    return nn.ModuleDict({SPECIALIST: pixelwise(1), PEER: pixelwise(2)})


@pytest.mark.parametrize("patch", [(2, 3, 4), (1, 4, 5)], ids=["volume", "flat"])
@pytest.mark.parametrize("dice", [False, True])
def test_the_loss_is_what_a_slow_one_says(patch: Triple, dice: bool) -> None:
    networks, step = pair(), 3
    batch = Batch(patches(2, patch), patches(3, patch, seed=1), 0)
    assert batch.unlabeled is not None
    terms = method(dice=dice).losses(batch, networks, step)

    label, weight = batch.labeled.label.numpy(), plain(batch.labeled.weight)
    told = [slow_supervised(plain(networks[name](batch.labeled.image)), label, weight) for name in networks]
    assert terms["cross_entropy"].item() == pytest.approx(told[0][0] + told[1][0], abs=1e-5)
    assert terms["dice"].item() == pytest.approx(told[0][1] + told[1][1], abs=1e-5)
    mine, theirs = (plain(networks[name](batch.unlabeled.image)) for name in (SPECIALIST, PEER))
    everywhere = np.ones(mine[:, 0].shape)
    taught = [
        slow_supervised(mine, theirs.argmax(1), everywhere),
        slow_supervised(theirs, mine.argmax(1), everywhere),
    ]
    cross = sum(one[0] + (one[1] if dice else 0) for one in taught)
    assert terms["cross"].item() == pytest.approx(0.2 * rise(step, 20, 0.4) * cross, abs=1e-5)
    assert len(terms) == 3


def test_who_teaches_does_not_learn_from_it() -> None:
    """The gradient of each network is that of its own answer against labels that stand still."""
    networks, batch = pair(), batch_of()
    assert batch.unlabeled is not None
    cross = method(consistency=1.0, rise=0.0).losses(batch, networks, 0)["cross"]
    for name, other in ((SPECIALIST, PEER), (PEER, SPECIALIST)):
        label = networks[other](batch.unlabeled.image).argmax(1)
        alone = F.cross_entropy(networks[name](batch.unlabeled.image), label)
        (found,) = torch.autograd.grad(cross, weight_of(networks[name]), retain_graph=True)
        (expected,) = torch.autograd.grad(alone, weight_of(networks[name]))
        assert (found != 0).any()
        assert plain(found) == pytest.approx(plain(expected), abs=1e-5)


def test_networks_that_agree_and_are_sure_have_nothing_to_say() -> None:
    networks = nn.ModuleDict({name: always([40.0, 0.0, 0.0]) for name in (SPECIALIST, PEER)})
    assert method().losses(batch_of(), networks, 19)["cross"].item() == pytest.approx(0, abs=1e-6)


def test_two_networks_start_from_different_weights() -> None:
    torch.manual_seed(0)
    networks = method().networks()
    assert set(networks) == {SPECIALIST, PEER}
    one, other = networks[SPECIALIST].state_dict(), networks[PEER].state_dict()
    assert one.keys() == other.keys()
    assert not any(torch.equal(one[key], other[key]) for key in one if one[key].ndim > 1)
    assert all(weight.requires_grad for weight in networks.parameters())


def test_nothing_follows() -> None:
    networks = pair()
    before = {key: value.clone() for key, value in networks.state_dict().items()}
    method().after_step(networks, 5)
    assert all(torch.equal(value, before[key]) for key, value in networks.state_dict().items())
