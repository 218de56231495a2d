"""UA-MT: a mean teacher that is listened to only where it is sure.

Yu et al., MICCAI 2019, as read in the code of SSL4MIS: the teacher looks at each unlabeled patch
eight more times, each with noise of its own and dropout if the network has any. Where the entropy
of the mean answer stays below a threshold, the squared difference between the student and the
teacher's first answer counts. The threshold rises from 0.75 to 1 times the entropy of knowing
nothing, which is ln 2 in the code and ln K here, for any number of classes. Without
dropout, doubt comes from noise on the image alone. Pseudo-labels in the batch are not looked at.
"""

import math

import torch
from torch import Tensor, nn

from tutelage.methods import supervised, teachers
from tutelage.methods.base import SPECIALIST, Batch, Resources
from tutelage.methods.schedules import rise
from tutelage.methods.settings import TrainSettings
from tutelage.methods.teachers import TEACHER
from tutelage.specialist.network import build
from tutelage.specialist.plan import Plan

_TINY = 1e-6
"""Added to a probability before its logarithm is taken, as published."""


class UaMt:
    """Terms: `cross_entropy` and `dice` of annotated patches, `consistency` of the others where sure."""

    def __init__(self, plan: Plan, settings: TrainSettings, resources: Resources) -> None:
        self.plan = plan
        self._steps = settings.steps
        self._options = settings.ua_mt

    def networks(self) -> nn.ModuleDict:
        """Return the specialist and its running mean, which starts as a copy."""
        return teachers.with_teacher(build(self.plan))

    def losses(self, batch: Batch, networks: nn.ModuleDict, step: int) -> dict[str, Tensor]:
        """Return the terms; both kinds of patches go through the student together."""
        labeled, unlabeled = teachers.both(batch, "ua_mt")
        options = self._options
        logits = networks[SPECIALIST](torch.cat([labeled.image, unlabeled.image]))
        told, free = logits.split([len(labeled), len(unlabeled)])
        target = teachers.opinion(networks[TEACHER], teachers.noisy(unlabeled.image, options.noise))
        sure = entropy(self._mean_opinion(networks[TEACHER], unlabeled.image)) < self._threshold(step)
        apart = teachers.distance(free.float().softmax(1), target)
        agreed = (apart * sure).sum() / sure.sum().clamp(min=1)
        return {
            **supervised.loss(told, labeled.label, labeled.weight, labeled.undecided),
            "consistency": options.consistency * rise(step, self._steps, options.rise) * agreed,
        }

    def after_step(self, networks: nn.ModuleDict, step: int) -> None:
        """Let the teacher follow."""
        decay = teachers.early_decay(step, self._options.decay)
        teachers.follow(networks[TEACHER], networks[SPECIALIST], decay)

    def counts(self) -> dict[str, float]:
        """Nothing is counted."""
        return {}

    def _mean_opinion(self, teacher: nn.Module, image: Tensor) -> Tensor:
        """One pass after the other: all at once would take eight times the memory."""
        options = self._options
        total = teachers.opinion(teacher, teachers.noisy(image, options.noise))
        for _ in range(options.passes - 1):
            total += teachers.opinion(teacher, teachers.noisy(image, options.noise))
        return total / options.passes

    def _threshold(self, step: int) -> float:
        most = math.log(self.plan.classes)
        lowest = self._options.surest
        return (lowest + (1 - lowest) * rise(step, self._steps, 1.0)) * most


def entropy(p_BKDHW: Tensor) -> Tensor:
    """Return the entropy of each voxel's probabilities (B, D, H, W), in nats."""
    return -(p_BKDHW * (p_BKDHW + _TINY).log()).sum(1)
