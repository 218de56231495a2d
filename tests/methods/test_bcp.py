from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.methods.toys import (
    batch_of,
    bias_of,
    patches,
    pixelwise,
    plain,
    plan_of,
    slow_supervised,
    weight_of,
)
from tutelage.methods.base import SPECIALIST, Batch, Patches, Resources
from tutelage.methods.bcp import Bcp, cuboid, largest_pieces
from tutelage.methods.options import BcpOptions
from tutelage.methods.settings import TrainSettings
from tutelage.methods.teachers import TEACHER
from tutelage.specialist.plan import Triple

pytestmark = pytest.mark.torch

ALONE = 5
"""Steps of twenty in which annotated patches are mixed alone."""


def method(**options: float) -> Bcp:
    return Bcp(plan_of(), TrainSettings(steps=20, bcp=BcpOptions.model_validate(options)), Resources())


class Watched(nn.Module):
    """Keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = pixelwise(1)
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(image)
        answer: Tensor = self.inner(image)
        return answer


def pair(student: nn.Module | None = None) -> nn.ModuleDict:
    return nn.ModuleDict({SPECIALIST: student or pixelwise(1), TEACHER: pixelwise(2).requires_grad_(False)})


def images_of(value: float, count: int, patch: Triple) -> Patches:
    """Patches whose image says which stream and which place they are from."""
    made = patches(count, patch)
    places = torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1, 1)
    return replace(made, image=(value + places).expand_as(made.image).clone())


# --- the cut ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "sides"),
    [
        ((9, 12, 15), (6, 8, 10)),
        ((112, 112, 80), (74, 74, 53)),
        ((1, 12, 12), (1, 8, 8)),
        ((2, 12, 12), (1, 8, 8)),
        ((3, 3, 1), (2, 2, 1)),
    ],
)
def test_a_cuboid_has_its_share_of_each_side(shape: Triple, sides: Triple) -> None:
    for seed in range(5):
        inside = cuboid(shape, 2 / 3, seed)
        assert inside.shape == shape
        where = inside.nonzero()
        low, high = where.min(0).values, where.max(0).values
        assert tuple((high - low + 1).tolist()) == sides
        assert inside.sum() == np.prod(sides)


def test_a_cuboid_lies_anywhere_and_where_the_seed_says() -> None:
    def corner(seed: int) -> tuple[int, ...]:
        return tuple(cuboid((3, 6, 6), 2 / 3, seed).nonzero()[0].tolist())

    corners = {corner(seed) for seed in range(300)}
    assert corners == {(d, h, w) for d in range(2) for h in range(3) for w in range(3)}
    assert corner(4) == corner(4)


# --- the mixing -------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [(3, 6, 6), (1, 6, 6)], ids=["volume", "flat"])
def test_both_directions_are_mixed_by_one_cut(patch: Triple) -> None:
    student = Watched()
    batch = Batch(images_of(10, 2, patch), images_of(20, 2, patch), 0)
    method().losses(batch, pair(student), ALONE)
    inside = cuboid(patch, 2 / 3, 0)
    (shown,) = student.seen
    found = [
        (float(image[0][~inside].unique().item()), float(image[0][inside].unique().item())) for image in shown
    ]
    assert found == [(10, 20), (11, 21), (21, 10), (20, 11)]


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "expected"),
    [
        (1, 1, [(10, 20), (20, 10)]),
        (1, 3, [(10, 20), (10, 21), (22, 10), (20, 10)]),
        (3, 1, [(10, 20), (11, 20), (20, 12), (20, 10)]),
    ],
)
def test_every_patch_is_used_whatever_the_streams(
    labeled: int, unlabeled: int, expected: list[tuple[float, float]]
) -> None:
    student, patch = Watched(), (3, 6, 6)
    method().losses(
        Batch(images_of(10, labeled, patch), images_of(20, unlabeled, patch), 0), pair(student), ALONE
    )
    inside = cuboid(patch, 2 / 3, 0)
    found = [(float(i[0][~inside][0]), float(i[0][inside][0])) for i in student.seen[0]]
    assert found == expected


def test_annotated_patches_are_mixed_alone_at_first() -> None:
    student, patch = Watched(), (3, 6, 6)
    batch = Batch(images_of(10, 2, patch), images_of(20, 2, patch), 0)
    for step in (0, ALONE - 1, ALONE):
        terms = method().losses(batch, pair(student), step)
        assert ("mixed_dice" in terms) == (step >= ALONE)
    inside = cuboid(patch, 2 / 3, 0)
    for shown in student.seen[:2]:
        assert [(float(i[0][~inside][0]), float(i[0][inside][0])) for i in shown] == [(10, 11), (11, 10)]


def test_an_annotated_patch_that_is_alone_is_mixed_with_its_mirror_image() -> None:
    student, patch = Watched(), (3, 6, 6)
    batch = Batch(patches(1, patch), patches(1, patch, seed=1), 0)
    method().losses(batch, pair(student), 0)
    inside = cuboid(patch, 2 / 3, 0)
    (shown,) = student.seen
    image = batch.labeled.image
    assert torch.equal(shown, torch.where(inside, image.flip(-1), image))
    assert not torch.equal(shown, image)


def copying() -> nn.Module:
    """Believes what it sees: image value v makes class v certain."""
    network = pixelwise(0)
    with torch.no_grad():
        # Lines that cross between whole numbers: each is on top around its own.
        weight_of(network).copy_(torch.tensor([0.0, 60.0, 120.0]).view(3, 1, 1, 1, 1))
        bias_of(network).copy_(torch.tensor([0.0, -30.0, -120.0]))
    return network


@pytest.mark.parametrize("patch", [(4, 6, 6), (1, 6, 6)], ids=["volume", "flat"])
@pytest.mark.parametrize("step", [0, ALONE])
@pytest.mark.parametrize("count", [1, 2])
def test_labels_are_mixed_exactly_as_images_are(patch: Triple, step: int, count: int) -> None:
    """Where images are their labels, a student that copies the image is right everywhere."""

    def honest(seed: int) -> Patches:
        made = patches(count, patch, seed)
        return replace(made, image=made.label[:, None].float(), weight=torch.ones(made.label.shape))

    networks = nn.ModuleDict({SPECIALIST: copying(), TEACHER: copying().requires_grad_(False)})
    terms = method(largest=0).losses(Batch(honest(0), honest(1), 0), networks, step)
    assert {key: term.item() for key, term in terms.items()} == pytest.approx(
        dict.fromkeys(terms, 0), abs=1e-4
    )
    wrong = replace(honest(0), label=2 - honest(0).label)
    assert method(largest=0).losses(Batch(wrong, honest(1), 0), networks, step)["cross_entropy"] > 1


# --- the loss ---------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [(3, 4, 5), (1, 4, 5)], ids=["volume", "flat"])
def test_the_loss_is_what_a_slow_one_says(patch: Triple) -> None:
    networks = pair()
    batch = Batch(patches(2, patch), patches(2, patch, seed=1), 0)
    assert batch.unlabeled is not None
    terms = method().losses(batch, networks, ALONE + 1)

    inside = cuboid(patch, 2 / 3, 0).numpy()
    guessed = largest_pieces(networks[TEACHER](batch.unlabeled.image).argmax(1)).numpy()
    known, sure = batch.labeled.label.numpy(), plain(batch.labeled.weight)
    a, b = plain(batch.labeled.image), plain(batch.unlabeled.image)
    one_way, and_back = np.where(inside, b, a), np.where(inside, a, b[::-1])
    first, second = (plain(networks[SPECIALIST](torch.from_numpy(x).float())) for x in (one_way, and_back))
    told = [
        slow_supervised(first, known, sure * ~inside),
        slow_supervised(second, known, sure * inside),
    ]
    taught = [
        slow_supervised(first, guessed, 1.0 * np.broadcast_to(inside, guessed.shape)),
        slow_supervised(second, guessed[::-1], 1.0 * np.broadcast_to(~inside, guessed.shape)),
    ]
    for index, name in enumerate(("cross_entropy", "dice")):
        assert terms[name].item() == pytest.approx((told[0][index] + told[1][index]) / 2, abs=1e-5)
        half = 0.5 * (taught[0][index] + taught[1][index]) / 2
        assert terms[f"mixed_{name}"].item() == pytest.approx(half, abs=1e-5)
    assert len(terms) == 4


@pytest.mark.parametrize("patch", [(3, 4, 5), (1, 4, 5)], ids=["volume", "flat"])
def test_the_loss_before_that_is_what_a_slow_one_says(patch: Triple) -> None:
    networks = pair()
    batch = Batch(patches(3, patch), patches(1, patch, seed=1), 0)
    terms = method().losses(batch, networks, 0)

    inside = cuboid(patch, 2 / 3, 0).numpy()
    image, label, sure = plain(batch.labeled.image), batch.labeled.label.numpy(), plain(batch.labeled.weight)
    turned = [1, 2, 0]
    said = plain(networks[SPECIALIST](torch.from_numpy(np.where(inside, image[turned], image)).float()))
    outer = slow_supervised(said, label, sure * ~inside)
    inner = slow_supervised(said, label[turned], sure[turned] * inside)
    assert terms["cross_entropy"].item() == pytest.approx((outer[0] + inner[0]) / 2, abs=1e-5)
    assert terms["dice"].item() == pytest.approx((outer[1] + inner[1]) / 2, abs=1e-5)
    assert len(terms) == 2


def test_a_mirrored_patch_brings_its_weights() -> None:
    """Voxels of which nothing is known are wrong, and cost nothing on either side of the cut."""
    patch = (3, 6, 6)
    made = patches(1, patch)
    known = (torch.arange(6) < 3).expand(1, *patch)
    label = torch.where(known, made.label, 2 - made.label)
    one = replace(made, image=made.label[:, None].float(), label=label, weight=known.float())
    networks = nn.ModuleDict({SPECIALIST: copying(), TEACHER: copying().requires_grad_(False)})
    terms = method().losses(Batch(one, one, 0), networks, 0)
    assert {key: term.item() for key, term in terms.items()} == pytest.approx(
        dict.fromkeys(terms, 0), abs=1e-4
    )


def test_unlabeled_voxels_count_as_told() -> None:
    def terms(**options: float) -> dict[str, Tensor]:
        return method(**options).losses(batch_of(), pair(), ALONE)

    half, whole = terms(), terms(unlabeled=1.0)
    for name in half:
        expected = 2 if name.startswith("mixed_") else 1
        assert whole[name].item() == pytest.approx(expected * half[name].item(), rel=1e-5)


def test_what_is_undecided_in_an_annotated_patch_stays_so_on_its_side_of_the_cut() -> None:
    batch = batch_of(labeled=1, unlabeled=1)
    doubtful = torch.tensor([[False, False, True]])
    doubted = replace(batch, labeled=replace(batch.labeled, undecided=doubtful))
    found = [method().losses(given, pair(), ALONE) for given in (batch, doubted)]
    assert found[0]["cross_entropy"] != found[1]["cross_entropy"]
    assert found[0]["mixed_cross_entropy"] == found[1]["mixed_cross_entropy"]
    assert found[0]["mixed_dice"] == found[1]["mixed_dice"]


# --- the teacher ------------------------------------------------------------------------------


def test_the_largest_piece_of_each_structure_is_kept() -> None:
    label = torch.zeros(2, 1, 6, 8, dtype=torch.int64)
    label[0, 0, 0:2, 0:2], label[0, 0, 4, 0], label[0, 0, 2, 2] = 1, 1, 1
    label[0, 0, 4:6, 5:8], label[0, 0, 0, 7] = 2, 2
    label[1, 0, 5, 5] = 2
    expected = label.clone()
    expected[0, 0, 4, 0] = expected[0, 0, 2, 2] = expected[0, 0, 0, 7] = 0
    kept = largest_pieces(label)
    assert torch.equal(kept, expected)
    assert kept.dtype == torch.int64


def test_stray_pieces_are_learned_from_where_settings_say_so() -> None:
    found = [
        method(largest=largest).losses(batch_of(), pair(), ALONE)["mixed_cross_entropy"] for largest in (1, 0)
    ]
    assert found[0] != found[1]


def test_a_teacher_is_the_student_until_it_teaches_and_follows_from_then_on() -> None:
    networks = pair()
    bcp = method(decay=0.75)
    bcp.after_step(networks, ALONE - 1)
    weight = weight_of(networks[SPECIALIST]).detach().clone()
    assert torch.equal(weight_of(networks[TEACHER]), weight)
    with torch.no_grad():
        weight_of(networks[SPECIALIST]).add_(1)
    bcp.after_step(networks, ALONE)
    assert plain(weight_of(networks[TEACHER])) == pytest.approx(plain(weight) + 0.25, abs=1e-6)
    bcp.after_step(networks, ALONE + 1)
    assert plain(weight_of(networks[TEACHER])) == pytest.approx(plain(weight) + 0.4375, abs=1e-6)
