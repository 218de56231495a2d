from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.methods.toys import (
    CLASSES,
    VOLUME,
    batch_of,
    bias_of,
    patches,
    pixelwise,
    plain,
    plan_of,
    slow_softmax,
    slow_supervised,
    student_and_teacher,
    weight_of,
)
from tutelage.errors import TrainingError
from tutelage.methods import teachers
from tutelage.methods.base import SPECIALIST, Batch, Patches, Resources
from tutelage.methods.chance import normal
from tutelage.methods.mean_teacher import MeanTeacher
from tutelage.methods.options import MeanTeacherOptions
from tutelage.methods.schedules import rise
from tutelage.methods.settings import TrainSettings
from tutelage.methods.teachers import TEACHER
from tutelage.specialist.plan import Triple

pytestmark = pytest.mark.torch


def method(**options: float) -> MeanTeacher:
    told = MeanTeacherOptions.model_validate(options)
    return MeanTeacher(plan_of(), TrainSettings(steps=20, mean_teacher=told), Resources())


@pytest.mark.parametrize("patch", [(2, 3, 4), (1, 4, 5)], ids=["volume", "flat"])
def test_the_loss_is_what_a_slow_one_says(patch: Triple) -> None:
    networks, step = student_and_teacher(), 3
    batch = Batch(patches(2, patch), patches(3, patch, seed=1), 0)
    assert batch.unlabeled is not None
    terms = method().losses(batch, networks, step)

    noise = np.clip(0.1 * plain(normal(batch.unlabeled.image, batch.unlabeled.seeds, "noise")), -0.2, 0.2)
    shown = torch.from_numpy(plain(batch.unlabeled.image) + noise).float()
    taught = slow_softmax(plain(networks[TEACHER](shown)))
    said = slow_softmax(plain(networks[SPECIALIST](batch.unlabeled.image)))
    squares = [(said[at] - taught[at]) ** 2 for at in np.ndindex(*said.shape)]
    told = plain(networks[SPECIALIST](batch.labeled.image))
    entropy, dice = slow_supervised(told, batch.labeled.label.numpy(), plain(batch.labeled.weight))
    assert terms["cross_entropy"].item() == pytest.approx(entropy, abs=1e-5)
    assert terms["dice"].item() == pytest.approx(dice, abs=1e-5)
    expected = 0.2 * rise(step, 20, 0.4) * np.mean(squares)
    assert terms["consistency"].item() == pytest.approx(expected, rel=1e-5)
    assert len(terms) == 3


def test_a_teacher_who_agrees_teaches_nothing() -> None:
    networks = teachers.with_teacher(pixelwise(1))
    terms = method(noise=0.0).losses(batch_of(), networks, 19)
    assert terms["consistency"].item() == 0


def test_consistency_has_its_weight_and_its_rise() -> None:
    def consistency(step: int, **options: float) -> float:
        return method(**options).losses(batch_of(), student_and_teacher(), step)["consistency"].item()

    assert consistency(19, consistency=1.0) == pytest.approx(5 * consistency(19), rel=1e-5)
    assert consistency(4) == pytest.approx(rise(4, 20, 0.4) * consistency(8), rel=1e-5)
    assert consistency(4, rise=0.0) == consistency(8)


def test_noise_is_clipped_at_twice_its_deviation() -> None:
    made = patches(1, (10, 50, 50))
    noise = teachers.noisy(replace(made, image=torch.zeros_like(made.image)), 0.1)
    assert noise.abs().max().item() == pytest.approx(0.2)
    assert noise.std().item() == pytest.approx(0.096, abs=0.003)
    assert torch.equal(teachers.noisy(made, 0.0), made.image)


def test_each_patch_has_the_noise_of_its_own_seed_whichever_are_beside_it() -> None:
    three = patches(3)
    last = replace(three, image=three.image[2:], seeds=three.seeds[2:])
    assert torch.equal(teachers.noisy(last, 0.1), teachers.noisy(three, 0.1)[2:])
    alike = replace(three, image=torch.zeros_like(three.image))
    one, other, _ = teachers.noisy(alike, 0.1)
    assert not torch.equal(one, other)
    assert not torch.equal(teachers.noisy(alike, 0.1, "look 0"), teachers.noisy(alike, 0.1))


def test_a_teacher_starts_as_a_copy_that_no_gradient_reaches() -> None:
    networks = method().networks()
    assert set(networks) == {SPECIALIST, TEACHER}
    own, copied = networks[SPECIALIST].state_dict(), networks[TEACHER].state_dict()
    assert all(torch.equal(own[key], copied[key]) for key in own)
    assert not any(weight.requires_grad for weight in networks[TEACHER].parameters())
    assert all(weight.requires_grad for weight in networks[SPECIALIST].parameters())
    with torch.no_grad():
        next(networks[SPECIALIST].parameters()).add_(1)
    assert not torch.equal(next(networks[SPECIALIST].parameters()), next(networks[TEACHER].parameters()))


@pytest.mark.parametrize("decay", [0.0, 0.25, 0.5, 0.75])
def test_a_teacher_follows_by_the_formula_to_the_last_bit(decay: float) -> None:
    """Numbers that binary fractions hold exactly leave no rounding to argue about."""
    teacher, student = pixelwise(0, 2), pixelwise(1, 2)
    first, second = torch.tensor([12.0, -4.0]), torch.tensor([4.0, 20.0])
    for network, values in ((teacher, first), (student, second)):
        with torch.no_grad():
            weight_of(network).copy_(values.view(2, 1, 1, 1, 1))
            bias_of(network).copy_(values.flip(0))
    teachers.follow(teacher, student, decay)
    expected = decay * first + (1 - decay) * second
    assert torch.equal(weight_of(teacher).flatten(), expected)
    assert torch.equal(bias_of(teacher), expected.flip(0))
    assert torch.equal(weight_of(student).flatten(), second)


def test_a_teacher_is_the_plain_mean_of_the_first_steps_and_then_a_running_one() -> None:
    decays = [teachers.early_decay(step, 0.75) for step in range(6)]
    assert decays == [0.0, 1 / 2, 1 - 1 / 3, 0.75, 0.75, 0.75]
    networks, following = student_and_teacher(), method(decay=0.75)
    rng = np.random.default_rng(0)
    mean, seen = np.zeros(CLASSES), []
    for step in range(6):
        now = rng.normal(size=CLASSES)
        with torch.no_grad():
            weight_of(networks[SPECIALIST]).copy_(torch.from_numpy(now).view(-1, 1, 1, 1, 1))
        following.after_step(networks, step)
        seen.append(now)
        mean = decays[step] * mean + (1 - decays[step]) * now
        assert plain(weight_of(networks[TEACHER])).ravel() == pytest.approx(mean, abs=1e-6)
        if step < 4:
            assert mean == pytest.approx(np.mean(seen, axis=0))


def test_a_teacher_takes_over_what_batch_norm_counted() -> None:
    student = nn.Sequential(nn.BatchNorm3d(1), pixelwise(0))
    networks = teachers.with_teacher(student)
    method().losses(batch_of(), networks.train(), 0)
    counted, mine = student.state_dict(), networks[TEACHER].state_dict()
    assert not torch.equal(mine["0.running_mean"], counted["0.running_mean"])
    teachers.follow(networks[TEACHER], student, 0.99)
    taken = networks[TEACHER].state_dict()
    for key in ("0.running_mean", "0.running_var", "0.num_batches_tracked"):
        assert torch.equal(taken[key], counted[key])


def test_a_teacher_looks_in_training_mode_whatever_was_left_behind() -> None:
    networks = student_and_teacher()
    networks[TEACHER].eval()
    method().losses(batch_of(), networks, 0)
    assert networks[TEACHER].training


@pytest.mark.parametrize("unlabeled", [None, patches(0)])
def test_a_batch_without_unlabeled_patches_is_refused(unlabeled: Patches | None) -> None:
    batch = replace(batch_of(), unlabeled=unlabeled)
    with pytest.raises(TrainingError, match="mean_teacher got a batch without unlabeled patches"):
        method().losses(batch, student_and_teacher(), 0)


def test_what_is_far_apart_is_measured_by_voxel_as_the_mean_over_classes() -> None:
    one, other = torch.zeros(1, 4, *VOLUME), torch.zeros(1, 4, *VOLUME)
    one[:, 0], other[:, 1, 3, 4, 5] = 1, 1
    found: Tensor = teachers.distance(one, other)
    assert found.shape == (1, *VOLUME)
    assert found[0, 3, 4, 5] == 0.5
    assert found[0, 0, 0, 0] == 0.25
