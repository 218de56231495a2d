"""Mean teacher: the specialist learns to agree with a running mean of itself about unlabeled patches.

Published as a method for classification (Tarvainen and Valpola, 2017); this is the form that
the code base of the field (SSL4MIS) gives it for segmentation, read in code: the teacher sees the
unlabeled image with noise, the student without, and the mean squared difference of their
probabilities counts with a weight that rises. Pseudo-labels in the batch are not looked at.
"""

import torch
from torch import Tensor, nn

from tutelage.methods import supervised, teachers, together
from tutelage.methods.base import SPECIALIST, Batch, Patches, Resources
from tutelage.methods.options import MeanTeacherOptions
from tutelage.methods.schedules import rise
from tutelage.methods.settings import TrainSettings
from tutelage.methods.teachers import TEACHER
from tutelage.specialist.network import build
from tutelage.specialist.plan import Plan


class MeanTeacher:
    """Terms: `cross_entropy` and `dice` of annotated patches, `consistency` of the others."""

    name = "mean_teacher"

    def __init__(self, plan: Plan, settings: TrainSettings, resources: Resources) -> None:
        self.plan = plan
        self._steps = settings.steps
        self._options: MeanTeacherOptions = settings.mean_teacher

    def networks(self) -> nn.ModuleDict:
        """Return the specialist and its running mean, which starts as a copy."""
        return teachers.with_teacher(build(self.plan))

    def losses(self, batch: Batch, networks: nn.ModuleDict, step: int) -> dict[str, Tensor]:
        """Return the terms; both kinds of patches go through the student together."""
        labeled, unlabeled = teachers.both(batch, self.name)
        options = self._options
        logits = networks[SPECIALIST](torch.cat([labeled.image, unlabeled.image]))
        told, free = logits.split([len(labeled), len(unlabeled)])
        target = teachers.opinion(networks[TEACHER], teachers.noisy(unlabeled, options.noise))
        apart = teachers.distance(free.float().softmax(1), target)
        heard = self.heard(apart, networks[TEACHER], unlabeled, step)
        return {
            **supervised.loss(told, labeled.label, labeled.weight, labeled.undecided),
            "consistency": options.consistency * rise(step, self._steps, options.rise) * heard,
        }

    def heard(self, apart: Tensor, teacher: nn.Module, patches: Patches, step: int) -> Tensor:
        """Return what counts of the squared distances (B, D, H, W) to the teacher: the mean of all."""
        return together.mean(apart)

    def after_step(self, networks: nn.ModuleDict, step: int) -> None:
        """Let the teacher follow."""
        decay = teachers.early_decay(step, self._options.decay)
        teachers.follow(networks[TEACHER], networks[SPECIALIST], decay)

    def counts(self) -> dict[str, float]:
        """Nothing is counted."""
        return {}
