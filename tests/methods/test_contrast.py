import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.methods.toys import plain
from tutelage.methods.contrast import NOBODY, draw, gate, info_nce

pytestmark = pytest.mark.torch


def slow_info_nce(features: NDArray[np.float64], classes: list[int], temperature: float) -> float:
    unit = [f / math.sqrt(sum(x * x for x in f)) for f in features]
    total = 0.0
    for i, mine in enumerate(classes):
        s = [float(unit[i] @ other) / temperature for other in unit]
        against = sum(math.exp(s[n]) for n, theirs in enumerate(classes) if theirs != mine)
        friends = [j for j, theirs in enumerate(classes) if theirs == mine and j != i]
        for j in friends:
            total -= (s[j] - math.log(math.exp(s[j]) + against)) / len(friends)
    return total / len(classes)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_nearness_is_that_of_a_slow_loop(temperature: float) -> None:
    torch.manual_seed(0)
    features, classes = torch.randn(9, 5), [0, 0, 1, 1, 1, 2, 2, 0, 3]
    expected = slow_info_nce(plain(features), classes, temperature)
    found = info_nce(features, torch.tensor(classes), temperature).item()
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_half_precision_around_it_changes_nothing() -> None:
    torch.manual_seed(0)
    features, classes = torch.randn(9, 5), torch.tensor([0, 0, 1, 1, 1, 2, 2, 0, 3])
    with torch.autocast("cpu", torch.bfloat16):
        inside = info_nce(features, classes, 0.07)
    assert torch.equal(inside, info_nce(features, classes, 0.07))


def test_voxels_are_pulled_to_the_text_of_their_class() -> None:
    torch.manual_seed(0)
    voxels = torch.randn(6, 4, requires_grad=True)
    texts, classes = torch.eye(4)[:2], torch.tensor([0, 0, 0, 1, 1, 1, 0, 1])
    before = info_nce(torch.cat([voxels, texts]), classes, 0.5)
    (slope,) = torch.autograd.grad(before, voxels)
    assert (slope != 0).any(1).all()
    assert info_nce(torch.cat([voxels - 0.5 * slope, texts]), classes, 0.5) < before


def test_what_is_apart_already_has_gradients_that_are_numbers() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    loss = info_nce(features, torch.tensor([0, 0, 1, 2]), 0.001)
    (slope,) = torch.autograd.grad(loss, features)
    assert loss.isfinite()
    assert slope.isfinite().all()


def test_at_most_so_many_voxels_of_each_class_in_each_image_are_drawn() -> None:
    label = torch.randint(NOBODY, 3, (3, 200), generator=torch.Generator().manual_seed(0))
    label[1, :] = 2
    label[2, 0], label[2, 1:] = 1, NOBODY
    chosen = draw(label, 7, (0, 1, 2))
    assert len(chosen) == len(set(chosen.tolist()))
    drawn = [(place // 200, int(label.flatten()[place])) for place in chosen.tolist()]
    counts = {pair: drawn.count(pair) for pair in set(drawn)}
    assert counts == {(0, 0): 7, (0, 1): 7, (0, 2): 7, (1, 2): 7, (2, 1): 1}


def test_which_voxels_are_drawn_follows_from_the_seed_of_their_image() -> None:
    label = torch.zeros(2, 500, dtype=torch.int64)
    one, other = (set(draw(label[:1], 10, (seed,)).tolist()) for seed in (4, 5))
    assert one != other
    assert one != set(draw(label[:1], 10, (4,), "again").tolist())
    both = draw(label, 10, (4, 5)).tolist()
    assert {place for place in both if place < 500} == one
    assert {place - 500 for place in both if place >= 500} == other


def test_nothing_to_draw_is_drawn_as_nothing() -> None:
    assert len(draw(torch.full((2, 10), NOBODY), 4, (0, 1))) == 0


def test_unsure_voxels_are_left_out() -> None:
    label, entropy = torch.tensor([0, 1, 2]), torch.tensor([0.7, 0.5, 0.6])
    assert gate(label, entropy, 0.6).tolist() == [NOBODY, 1, 2]
