import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import TrainingError
from tutelage.geometry import Grid
from tutelage.specialist.network import build
from tutelage.specialist.plan import Plan, Triple, make_plan
from tutelage.specialist.settings import SpecialistSettings
from tutelage.specialist.text import BottleneckFusion, Steady, TextHead, Texts, dynamic, tell, with_text

pytestmark = pytest.mark.torch

KINDS = ("bottleneck", "head")


def planned(shape: Triple = (8, 16, 16), network: str = "unet") -> Plan:
    settings = SpecialistSettings(channels=(8, 8, 16)).model_copy(update={"network": network})
    return make_plan([Grid.from_spacing(shape, (1.0, 1.0, 1.0))], ["a", "b"], 1, settings)


def vectors(seed: int = 0, width: int = 12) -> Tensor:
    return torch.randn(3, 2, width, generator=torch.Generator().manual_seed(seed))


def told(texts_KTF: Tensor) -> Texts:
    texts = Texts(*texts_KTF.shape)
    texts.texts_KTF.copy_(texts_KTF)
    return texts


def fusion(texts_KTF: Tensor, learned: bool = True) -> BottleneckFusion:
    torch.manual_seed(5)
    module = BottleneckFusion(told(texts_KTF), 6)
    if learned:
        nn.init.normal_(module.scale.weight)
        nn.init.normal_(module.shift.weight)
    return module


# --- how fast text is learned ------------------------------------------------------------------


def moved(layer: nn.Linear) -> float:
    """By how much one step of Adam moves what a layer makes of numbers that are all one."""
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.004, weight_decay=0.0)
    x = torch.ones(1, layer.in_features)
    before = layer(x)
    torch.autograd.backward(before.sum())
    optimizer.step()
    return float((layer(x) - before).detach().abs().mean())


def test_a_steady_layer_is_a_plain_one_at_first() -> None:
    torch.manual_seed(3)
    plain = nn.Linear(20, 5)
    torch.manual_seed(3)
    steady, x = Steady(20, 5), torch.randn(7, 20)
    assert torch.allclose(steady(x), plain(x), atol=1e-6)
    assert torch.equal(steady.counted, steady.weight / 20**0.5)


@pytest.mark.parametrize("width", [4, 400])
def test_a_steady_layer_moves_by_the_root_of_what_it_reads(width: int) -> None:
    torch.manual_seed(0)
    assert moved(nn.Linear(width, 8, bias=False)) == pytest.approx(0.004 * width, rel=0.01)
    assert moved(Steady(width, 8, bias=False)) == pytest.approx(0.004 * width**0.5, rel=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_a_wide_head_learns_at_the_pace_of_a_network(seed: int) -> None:
    """With plain layers its generated units are all off after some twenty steps, and it finds nothing."""
    torch.manual_seed(seed)
    sides = ((256, 2), (64, 4), (32, 8), (16, 8))
    levels = tuple(torch.randn(2, channels, n, n, n) for channels, n in sides)
    wanted = (levels[-1][:, 0] > 0.8).long()  # about a fifth
    head = TextHead(told(vectors(width=384)[:2]), tuple(channels for channels, _ in sides))
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.004)
    for _ in range(100):
        optimizer.zero_grad()
        loss = F.cross_entropy(head(levels), wanted)
        torch.autograd.backward(loss)
        optimizer.step()
    found = head(levels).argmax(1)
    dice = 2 * (found * wanted).sum() / (found.sum() + wanted.sum())
    assert dice > 0.9
    assert (head.read_texts() > 0).float().mean() > 0.25


def test_what_reads_text_at_the_bottleneck_stays_on_where_steps_disagree() -> None:
    """With plain layers none is left on."""
    torch.manual_seed(0)
    module = BottleneckFusion(told(vectors(width=384)), 128)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.004)
    for step in range(100):
        torch.manual_seed(step)
        features = torch.randn(2, 128, 2, 2, 2)
        optimizer.zero_grad()
        torch.autograd.backward((module(features) - (1 + 0.1 * (-1) ** step) * features).square().mean())
        optimizer.step()
    read = module.reader(module.texts()[1:].mean(0).flatten())
    assert (read > 0).float().mean() > 0.2


# --- fusion at the bottleneck -------------------------------------------------------------------


def test_a_new_fusion_changes_no_bit() -> None:
    features = torch.randn(2, 6, 2, 3, 4)
    assert torch.equal(fusion(vectors(), learned=False)(features), features)


def test_a_fusion_scales_and_shifts_by_its_balance() -> None:
    module, features = fusion(vectors()), torch.randn(2, 6, 2, 3, 4)
    text = vectors() / vectors().square().mean(2, keepdim=True).sqrt()
    read = (module.reader[0].counted @ ((text[1] + text[2]) / 2).flatten()).relu()  # type: ignore
    scale, shift = module.scale.counted @ read, module.shift.counted @ read
    s = 1 / (1 + torch.exp(torch.tensor(4.0)))
    for channel in range(6):
        f = features[:, channel]
        expected = (1 - s) * f + s * (f * (1 + scale[channel]) + shift[channel])
        assert torch.allclose(module(features)[:, channel], expected, atol=1e-5)


def test_balance_scale_and_shift_all_learn() -> None:
    module, features = fusion(vectors(), learned=False), torch.randn(2, 6, 2, 3, 4)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    slopes: list[dict[str, bool]] = []
    for _ in range(2):
        optimizer.zero_grad()
        torch.autograd.backward((module(features) * torch.randn(2, 6, 2, 3, 4)).sum())
        slopes.append({name: bool((w.grad != 0).any()) for name, w in module.named_parameters()})  # type: ignore
        optimizer.step()
    assert {name for name, moved in slopes[0].items() if moved} == {"scale.weight", "shift.weight"}
    assert all(slopes[1].values())
    assert not torch.equal(module(features), features)


def test_what_a_fusion_changes_it_has_from_the_text() -> None:
    features = torch.randn(2, 6, 2, 3, 4)
    answers = [fusion(vectors(seed))(features) for seed in (0, 1)]
    assert not torch.allclose(*answers)
    assert torch.equal(fusion(torch.zeros(3, 2, 12))(features), features)


# --- the head -----------------------------------------------------------------------------------


def test_all_classes_at_once_are_a_loop_of_plain_convolutions() -> None:
    features, generated = torch.randn(2, 8, 3, 4, 5), torch.randn(2, 4, 153)
    found = dynamic(features, generated)
    for image in range(2):
        for number in range(4):
            w1, w2, w3, b1, b2, b3 = torch.split(generated[image, number], [64, 64, 8, 8, 8, 1])
            x = F.relu(F.conv3d(features[image : image + 1], w1.view(8, 8, 1, 1, 1), b1))
            x = F.relu(F.conv3d(x, w2.view(8, 8, 1, 1, 1), b2))
            x = F.conv3d(x, w3.view(1, 8, 1, 1, 1), b3)
            assert torch.allclose(found[image, number], x[0, 0], atol=1e-4)


def test_numbers_of_a_class_follow_from_its_text_and_the_image() -> None:
    torch.manual_seed(0)
    head = TextHead(told(vectors()), (16, 8, 8, 4))
    levels = tuple(torch.randn(2, c, n, n, n) for c, n in ((16, 2), (8, 4), (8, 8), (4, 16)))
    found = head.generate(levels)
    assert found.shape == (2, 3, 153)
    for image in range(2):
        pooled = []
        for level, norm, layer in zip(levels[:3], head.norms, head.sums, strict=True):
            pooled.append(layer(norm(level[image : image + 1]).relu().mean((2, 3, 4)))[0])
        seen = (pooled[0] + pooled[1] + pooled[2]) / 3
        for number in range(3):
            shape, position = head.reader(head.texts())[number]
            known = head.join(torch.cat([shape, position]))
            expected = head.controller(torch.cat([seen, known]))
            assert torch.allclose(found[image, number], expected, atol=1e-5)


def test_the_published_head_has_a_controller_of_512_to_153() -> None:
    head = TextHead(Texts(16, 2, 512), (256, 128, 64, 32, 16))
    assert head.controller.weight.shape == (153, 512)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_how_long_vectors_are_does_not_matter(scale: float) -> None:
    torch.manual_seed(0)
    head = TextHead(told(vectors()), (8, 8, 4))
    levels = tuple(torch.randn(1, c, n, n, n) for c, n in ((8, 2), (8, 4), (4, 8)))
    expected = head(levels)
    head.texts.texts_KTF *= scale
    assert torch.allclose(head(levels), expected, atol=1e-5)


# --- in a network -------------------------------------------------------------------------------


@pytest.mark.parametrize("texts", [vectors(), vectors(width=40), torch.eye(6).reshape(3, 2, 6)])
@pytest.mark.parametrize("network", ["unet", "vnet", "resvnet", "unetplusplus"])
@pytest.mark.parametrize("shape", [(8, 16, 16), (1, 16, 16)])
@pytest.mark.parametrize("kind", KINDS)
def test_any_network_reads_any_vectors(kind: str, shape: Triple, network: str, texts: Tensor) -> None:
    plan = with_text(planned(shape, network), kind, texts)  # type: ignore[arg-type]
    read = build(plan)
    tell(read, texts)
    assert read(torch.randn(2, 1, *plan.patch)).shape == (2, 3, *plan.patch)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_network_needs_no_text(kind: str) -> None:
    plan, image = with_text(planned(), kind, vectors()), torch.randn(1, 1, 8, 16, 16)  # type: ignore[arg-type]
    network = build(plan)
    tell(network, vectors())
    again = build(Plan.model_validate_json(plan.model_dump_json()))
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(image), network.eval()(image))


def test_answers_of_a_head_follow_the_text() -> None:
    plan, image = with_text(planned(), "head", vectors()), torch.randn(1, 1, 8, 16, 16)
    network = build(plan)
    tell(network, vectors())
    answer = network(image)
    tell(network, vectors().flip(0))
    assert torch.allclose(network(image), answer.flip(1), atol=1e-5)


def test_a_network_without_text_has_nothing_to_be_told() -> None:
    network = build(planned())
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    tell(network, vectors())
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())


def test_vectors_of_another_shape_are_refused() -> None:
    network = build(with_text(planned(), "head", vectors()))
    with pytest.raises(TrainingError, match=r"shape \(3, 2, 40\), expected \(3, 2, 12\)"):
        tell(network, vectors(width=40))


@pytest.mark.parametrize(
    ("texts", "found"),
    [(None, "given none"), (vectors()[1:], r"some of shape \(2, 2, 12\)"), (torch.zeros(3, 4), r"\(3, 4\)")],
)
def test_a_plan_needs_vectors_of_its_classes(texts: Tensor | None, found: str) -> None:
    with pytest.raises(TrainingError, match=found):
        with_text(planned(), "head", texts)
