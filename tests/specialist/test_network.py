import pytest
import torch

from tutelage.errors import TrainingError
from tutelage.geometry import Grid
from tutelage.specialist.network import build
from tutelage.specialist.plan import Plan, Triple, make_plan
from tutelage.specialist.settings import SpecialistSettings

pytestmark = pytest.mark.torch


def planned(shape: Triple, channels_in: int = 1) -> Plan:
    grid = Grid.from_spacing(shape, (2.0, 1.0, 1.0))
    return make_plan([grid], ["a", "b"], channels_in, SpecialistSettings(channels=(4, 8, 8)))


@pytest.mark.parametrize("channels_in", [1, 2])
@pytest.mark.parametrize(
    "shape",
    [(8, 32, 24), (16, 16, 16), (1, 32, 24), (2, 3, 3), (3, 40, 40)],
    ids=["thick", "cube", "flat", "tiny", "few"],
)
def test_a_network_answers_voxel_by_voxel_and_class_by_class(shape: Triple, channels_in: int) -> None:
    plan = planned(shape, channels_in)
    image = torch.randn(2, channels_in, *plan.patch)
    assert build(plan)(image).shape == (2, 3, *plan.patch)


def test_a_flat_network_has_flat_kernels() -> None:
    flat, solid = build(planned((1, 32, 32))), build(planned((8, 32, 32)))
    assert {w.shape[2] for w in flat.state_dict().values() if w.ndim == 5} == {1}
    assert {w.shape[2] for w in solid.state_dict().values() if w.ndim == 5} == {3}


def test_weights_follow_from_the_seed() -> None:
    plan = planned((8, 16, 16))
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(torch.cat([w.flatten() for w in build(plan).state_dict().values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_a_network_nobody_knows_is_refused() -> None:
    plan = planned((8, 16, 16)).model_copy(update={"network": "vnet"})
    with pytest.raises(TrainingError, match="'vnet', expected one of unet"):
        build(plan)
