from math import exp, log

import numpy as np
import pytest
import torch
from torch import nn

from tests.methods.toys import (
    always,
    batch_of,
    patches,
    pixelwise,
    plain,
    plan_of,
    slow_softmax,
    slow_supervised,
    student_and_teacher,
    weight_of,
)
from tutelage.methods import teachers
from tutelage.methods.base import SPECIALIST, Batch, Resources
from tutelage.methods.chance import normal
from tutelage.methods.options import UaMtOptions
from tutelage.methods.schedules import rise
from tutelage.methods.settings import TrainSettings
from tutelage.methods.teachers import TEACHER
from tutelage.methods.ua_mt import UaMt, entropy
from tutelage.specialist.plan import Triple

pytestmark = pytest.mark.torch


def method(**options: float) -> UaMt:
    told = UaMtOptions.model_validate(options)
    return UaMt(plan_of(), TrainSettings(steps=20, ua_mt=told), Resources())


@pytest.mark.parametrize("patch", [(2, 3, 4), (1, 4, 5)], ids=["volume", "flat"])
@pytest.mark.parametrize("step", [0, 12])
def test_the_loss_is_what_a_slow_one_says(patch: Triple, step: int) -> None:
    networks = student_and_teacher()
    batch = Batch(patches(2, patch), patches(3, patch, seed=1), 0)
    assert batch.unlabeled is not None
    terms = method().losses(batch, networks, step)

    looks = []
    for what in ("noise", *(f"look {n}" for n in range(8))):
        noise = np.clip(0.1 * plain(normal(batch.unlabeled.image, batch.unlabeled.seeds, what)), -0.2, 0.2)
        shown = torch.from_numpy(plain(batch.unlabeled.image) + noise).float()
        looks.append(slow_softmax(plain(networks[TEACHER](shown))))
    said = slow_softmax(plain(networks[SPECIALIST](batch.unlabeled.image)))
    mean = np.mean(looks[1:], axis=0)
    threshold = (0.75 + 0.25 * exp(-5 * (1 - step / 20) ** 2)) * log(3)
    squares, doubtful = [], 0
    for b, *where in np.ndindex(*mean[:, 0].shape):
        at = (b, slice(None), *where)
        if -sum(p * log(p + 1e-6) for p in mean[at]) < threshold:
            squares.append(np.mean((said[at] - looks[0][at]) ** 2))
        else:
            doubtful += 1
    assert squares
    assert doubtful
    told = plain(networks[SPECIALIST](batch.labeled.image))
    cross, dice = slow_supervised(told, batch.labeled.label.numpy(), plain(batch.labeled.weight))
    assert terms["cross_entropy"].item() == pytest.approx(cross, abs=1e-5)
    assert terms["dice"].item() == pytest.approx(dice, abs=1e-5)
    expected = 0.2 * rise(step, 20, 0.4) * np.mean(squares)
    assert terms["consistency"].item() == pytest.approx(expected, rel=1e-5)


def test_a_teacher_who_knows_nothing_is_not_listened_to() -> None:
    networks = nn.ModuleDict({SPECIALIST: pixelwise(1), TEACHER: always([0.0, 0.0, 0.0])})
    terms = method().losses(batch_of(), networks, 0)
    assert terms["consistency"].item() == 0
    assert all(term.isfinite() for term in terms.values())


def test_where_a_teacher_is_sure_it_is_a_mean_teacher() -> None:
    networks = nn.ModuleDict({SPECIALIST: pixelwise(1), TEACHER: always([9.0, 0.0, 0.0])})
    batch = batch_of()
    assert batch.unlabeled is not None
    found = method(consistency=1.0, rise=0.0).losses(batch, networks, 0)["consistency"]
    said = networks[SPECIALIST](batch.unlabeled.image).softmax(1)
    sure = torch.tensor([9.0, 0.0, 0.0]).softmax(0)[None, :, None, None, None].expand_as(said)
    assert found.item() == pytest.approx(teachers.distance(said, sure).mean().item(), rel=1e-5)


def test_a_teacher_looks_as_often_as_told_and_once_to_answer() -> None:
    class Counting(nn.Module):
        """Counts how often it is asked."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.asked = inner, 0

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            self.asked += 1
            answer: torch.Tensor = self.inner(image)
            return answer

    for passes in (1, 8):
        teacher = Counting(pixelwise(2))
        networks = nn.ModuleDict({SPECIALIST: pixelwise(1), TEACHER: teacher})
        method(passes=passes).losses(batch_of(), networks, 0)
        assert teacher.asked == passes + 1


@pytest.mark.parametrize(
    ("p", "expected"),
    [([1.0, 0.0, 0.0], 0.0), ([1 / 3, 1 / 3, 1 / 3], log(3)), ([0.5, 0.5, 0.0], log(2))],
)
def test_doubt_is_entropy(p: list[float], expected: float) -> None:
    found = entropy(torch.tensor(p)[None, :, None, None, None])
    assert found.shape == (1, 1, 1, 1)
    assert found.item() == pytest.approx(expected, abs=1e-5)


def test_its_teacher_follows_as_any_mean_teacher() -> None:
    networks = student_and_teacher()
    weight = weight_of(networks[SPECIALIST]).detach().clone()
    method().after_step(networks, 0)
    assert torch.equal(weight_of(networks[TEACHER]), weight)
    with torch.no_grad():
        weight_of(networks[SPECIALIST]).add_(1)
    method(decay=0.75).after_step(networks, 50)
    assert plain(weight_of(networks[TEACHER])) == pytest.approx(plain(weight) + 0.25, abs=1e-6)
