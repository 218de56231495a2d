"""What methods share in which one network teaches another: copies, running means, noise, distances.

It decides how a mean teacher is made and how it follows. It does not know when a term counts
or how much.

A teacher stays in training mode, as in the published codes: dropout, where a network has it, is
part of UA-MT's doubt, and batch norm then looks at the patches at hand, as it does in the student.
Running statistics that this mode would move are overwritten by the student's after each step,
together with every other buffer, so that a teacher is a whole network. Instance norm has none.
"""

import copy

import torch
from torch import Tensor, nn

from tutelage.errors import TrainingError
from tutelage.methods import chance
from tutelage.methods.base import SPECIALIST, Batch, Patches

TEACHER = "teacher"
"""Name of a mean teacher among a method's networks."""


def with_teacher(student: nn.Module) -> nn.ModuleDict:
    """Return the specialist and a copy of it that no gradient reaches."""
    teacher = copy.deepcopy(student).requires_grad_(False)
    return nn.ModuleDict({SPECIALIST: student, TEACHER: teacher})


def start_alike(networks: nn.ModuleDict) -> None:
    """Have the running mean, if there is one, start where the specialist does, which was given weights."""
    if TEACHER in networks:
        networks[TEACHER].load_state_dict(networks[SPECIALIST].state_dict())


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Move each weight to `decay` of itself and the rest of the student's; take over the buffers."""
    for mean, weight in zip(teacher.parameters(), student.parameters(), strict=True):
        mean.lerp_(weight, 1 - decay)
    for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
        mine.copy_(theirs)


def early_decay(step: int, decay: float) -> float:
    """Return min(1 - 1 / (step + 1), decay): the plain mean of all steps while there are few."""
    return min(1 - 1 / (step + 1), decay)


@torch.no_grad()
def opinion(teacher: nn.Module, image_BCDHW: Tensor) -> Tensor:
    """Return the teacher's probabilities (B, K, D, H, W)."""
    teacher.train()
    logits: Tensor = teacher(image_BCDHW)
    return logits.float().softmax(1)


def noisy(patches: Patches, deviation: float, what: str = "noise") -> Tensor:
    """Return the image with normal noise of each patch's own, clipped at twice its deviation."""
    noise = chance.normal(patches.image, patches.seeds, what) * deviation
    return patches.image + noise.clamp(-2 * deviation, 2 * deviation)


def distance(p_BKDHW: Tensor, target_BKDHW: Tensor) -> Tensor:
    """Return the squared distance of two opinions by voxel (B, D, H, W), as the mean over classes."""
    return (p_BKDHW - target_BKDHW).square().mean(1)


def both(batch: Batch, method: str) -> tuple[Patches, Patches]:
    """Return the annotated and the unlabeled patches.

    Raises:
        TrainingError: there is no unlabeled patch.
    """
    if batch.unlabeled is None or len(batch.unlabeled) == 0:
        raise TrainingError(
            f"train.method {method} got a batch without unlabeled patches, expected some of each kind; "
            "add unlabeled cases, raise train.batch or lower train.gold_share, or train with supervised"
        )
    return batch.labeled, batch.unlabeled
