import pytest
import torch
from monai.networks.nets import BasicUNetPlusPlus
from monai.networks.nets import UNet as MonaiUNet
from torch import Tensor, nn

from tutelage.errors import TrainingError
from tutelage.geometry import Grid
from tutelage.specialist.network import NETWORKS, build
from tutelage.specialist.plan import Plan, TextPlan, Triple, make_plan
from tutelage.specialist.settings import SpecialistSettings

pytestmark = pytest.mark.torch

CHANNELS = (4, 8, 8)
PUBLISHED = Plan(
    structures=("atrium",),
    spacing=(1.0, 1.0, 1.0),
    patch=(112, 112, 80),
    network="vnet",
    channels=(16, 32, 64, 128, 256),
    strides=((2, 2, 2),) * 4,
    norm="batch",
)
SHAPES = {
    "thick": (8, 32, 24),
    "cube": (16, 16, 16),
    "flat": (1, 32, 24),
    "tiny": (2, 3, 3),
    "few": (3, 40, 40),
}


def planned(shape: Triple, channels_in: int = 1, network: str = "unet", **changes: object) -> Plan:
    grid = Grid.from_spacing(shape, (2.0, 1.0, 1.0))
    plan = make_plan([grid], ["a", "b"], channels_in, SpecialistSettings(channels=CHANNELS))
    return plan.model_copy(update={"network": network, **changes})


def weights(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("channels_in", [1, 2])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_network_answers_voxel_by_voxel_and_class_by_class(
    shape: Triple, channels_in: int, network: str
) -> None:
    plan = planned(shape, channels_in, network)
    image = torch.randn(2, channels_in, *plan.patch)
    assert build(plan)(image).shape == (2, 3, *plan.patch)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_levels_go_from_the_bottleneck_to_full_resolution(shape: Triple, network: str) -> None:
    plan = planned(shape, network=network)
    built = build(plan)
    seen = built.see(torch.randn(2, 1, *plan.patch))
    assert tuple(level.shape[1] for level in seen.levels) == built.level_channels
    expected = [torch.tensor(plan.patch)]
    for stride in plan.strides:
        expected.insert(0, expected[0] // torch.tensor(stride))
    assert [level.shape[2:] for level in seen.levels] == [tuple(size.tolist()) for size in expected]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_seeing_gives_the_answer_that_looking_gives(network: str, norm: str) -> None:
    plan = planned((8, 32, 24), network=network, norm=norm)
    built, image = build(plan), torch.randn(2, 1, *plan.patch)
    assert torch.equal(built.see(image).logits, built(image))


@pytest.mark.parametrize("text", [None, "bottleneck", "head"])
@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("shape", [(8, 32, 24), (1, 32, 24)], ids=["thick", "flat"])
@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_reach_every_weight(network: str, shape: Triple, norm: str, text: str | None) -> None:
    plan = planned(shape, network=network, norm=norm)
    if text is not None:
        plan = plan.model_copy(update={"text": TextPlan(kind=text, topics=2, width=5)})
    torch.manual_seed(0)
    built = build(plan)
    built(torch.randn(2, 1, *plan.patch)).square().mean().backward()
    assert [name for name, weight in built.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("network", NETWORKS)
def test_every_level_carries_gradients_down_to_the_image(network: str) -> None:
    plan = planned((8, 32, 24), network=network)
    built, image = build(plan), torch.randn(2, 1, *plan.patch, requires_grad=True)
    for level in built.see(image).levels:
        # A plain mean of what was normalized would not depend on the image.
        (gradient,) = torch.autograd.grad(level.relu().pow(3).mean(), image, retain_graph=True)
        assert float(gradient.abs().sum()) > 0


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_put_at_the_bottleneck_is_in_the_levels_and_in_the_answer(network: str) -> None:
    plan = planned((8, 32, 24), network=network)
    built, image = build(plan), torch.randn(2, 1, *plan.patch)
    before = built.see(image)

    class Turned(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return features.flip(1) + 1

    built.bottleneck = Turned()
    after = built.see(image)
    assert torch.allclose(after.levels[0], before.levels[0].flip(1) + 1)
    assert not torch.allclose(after.logits, before.logits)


@pytest.mark.parametrize("network", NETWORKS)
def test_another_head_is_given_all_levels_and_has_the_last_word(network: str) -> None:
    plan = planned((8, 32, 24), network=network)
    built, image = build(plan), torch.randn(2, 1, *plan.patch)

    class Sum(nn.Module):
        def forward(self, levels: tuple[Tensor, ...]) -> Tensor:
            assert tuple(level.shape[1] for level in levels) == built.level_channels
            return levels[-1].sum(1, keepdim=True)

    built.head = Sum()
    seen = built.see(image)
    assert torch.equal(seen.logits, seen.levels[-1].sum(1, keepdim=True))


@pytest.mark.parametrize("network", NETWORKS)
def test_under_a_text_head_the_finest_level_has_the_features_of_the_first(network: str) -> None:
    plan = planned((8, 32, 24), network=network, text=TextPlan(kind="head", topics=2, width=5))
    built = build(plan)
    assert built.level_channels[-1] == CHANNELS[0]
    assert built(torch.randn(2, 1, *plan.patch)).shape == (2, 3, *plan.patch)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_flat_network_has_flat_kernels(network: str) -> None:
    flat, solid = (build(planned(shape, network=network)) for shape in ((1, 32, 32), (8, 32, 32)))
    assert {w.shape[2] for w in flat.state_dict().values() if w.ndim == 5} == {1}
    assert 3 in {w.shape[2] for w in solid.state_dict().values() if w.ndim == 5}


@pytest.mark.parametrize("network", NETWORKS)
def test_weights_follow_from_the_seed(network: str) -> None:
    plan = planned((8, 16, 16), network=network)
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(torch.cat([w.flatten().float() for w in build(plan).state_dict().values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("network", NETWORKS)
def test_dropout_is_for_training_alone(network: str) -> None:
    plan = planned((8, 32, 24), network=network, dropout=0.5)
    built, image = build(plan), torch.randn(2, 1, *plan.patch)
    assert not torch.equal(built(image), built(image))
    built.eval()
    assert torch.equal(built(image), built(image))


def test_a_unet_is_monais_name_by_name_and_number_by_number() -> None:
    plan = planned((8, 32, 24))
    torch.manual_seed(0)
    ours = build(plan)
    torch.manual_seed(0)
    theirs = MonaiUNet(
        spatial_dims=3, in_channels=1, out_channels=3, channels=CHANNELS, strides=plan.strides,
        kernel_size=3, up_kernel_size=3, num_res_units=2, norm="instance",
    )  # fmt: skip
    assert list(ours.state_dict()) == list(theirs.state_dict())
    image = torch.randn(2, 1, *plan.patch)
    assert torch.equal(ours(image), theirs(image))


def test_a_unetplusplus_is_monais_where_that_can_be_one() -> None:
    """Five levels, halved along all axes, on a cube. Its weights are taken over in their order."""
    plan = Plan(
        structures=("a", "b"), spacing=(1.0, 1.0, 1.0), patch=(32, 32, 32), network="unetplusplus",
        channels=(2, 4, 4, 6, 8), strides=((2, 2, 2),) * 4,
    )  # fmt: skip
    theirs = BasicUNetPlusPlus(3, 1, 3, features=(2, 4, 4, 6, 8, 2))
    ours = build(plan).eval()
    for level in range(5):
        for column in range(5 - level):
            name = f"upcat_{level}_{column}" if column else f"conv_{level}_0"
            block = theirs.get_submodule(name)
            values = list(block.state_dict().values())
            if column:
                ours.get_submodule(f"ups.{level}_{column}").load_state_dict(
                    dict(zip(("weight", "bias"), values[:2], strict=True))
                )
            node = ours.get_submodule(f"nodes.{level}_{column}")
            kept = values[2:] if column else values
            node.load_state_dict(dict(zip(node.state_dict(), kept, strict=True)))
    ours.get_submodule("classes").load_state_dict(theirs.final_conv_0_4.state_dict())
    image = torch.randn(1, 1, *plan.patch)
    assert torch.allclose(ours(image), theirs.eval()(image)[0], atol=1e-5)


def test_v_nets_are_as_large_as_published() -> None:
    """9.44 and 17.93 million weights are what papers of the UA-MT and MCF family report of theirs."""
    assert weights(build(PUBLISHED)) == 9_448_866
    assert weights(build(PUBLISHED.model_copy(update={"network": "resvnet"}))) == 17_925_314


def test_a_network_nobody_knows_is_refused() -> None:
    with pytest.raises(TrainingError, match="'wnet', expected one of unet, vnet, resvnet, unetplusplus"):
        build(planned((8, 16, 16), network="wnet"))
