"""UA-MT: a mean teacher that is listened to only where it is sure.

Yu et al., MICCAI 2019, as read in the code of SSL4MIS: the teacher looks at each unlabeled patch
eight more times, each with noise of its own and dropout if the network has any. Where the entropy
of the mean answer stays below a threshold, the squared difference between the student and the
teacher's first answer counts. The threshold rises from 0.75 to 1 times the entropy of knowing
nothing, which is ln 2 in the code and ln K here, for any number of classes. Without
dropout, doubt comes from noise on the image alone. Pseudo-labels in the batch are not looked at.
"""

import math

from torch import Tensor, nn

from tutelage.methods import teachers, together
from tutelage.methods.base import Patches, Resources
from tutelage.methods.mean_teacher import MeanTeacher
from tutelage.methods.schedules import rise
from tutelage.methods.settings import TrainSettings
from tutelage.specialist.plan import Plan

_TINY = 1e-6
"""Added to a probability before its logarithm is taken, as published."""


class UaMt(MeanTeacher):
    """Terms: `cross_entropy` and `dice` of annotated patches, `consistency` of the others where sure."""

    name = "ua_mt"

    def __init__(self, plan: Plan, settings: TrainSettings, resources: Resources) -> None:
        super().__init__(plan, settings, resources)
        self._options = self._doubting = settings.ua_mt

    def heard(self, apart: Tensor, teacher: nn.Module, patches: Patches, step: int) -> Tensor:
        """Return the mean of the squared distances where the teacher is sure."""
        sure = entropy(self._mean_opinion(teacher, patches)) < self._threshold(step)
        total, heard = together.total((apart * sure).sum(), sure.sum())
        return total / heard.clamp(min=1)

    def _mean_opinion(self, teacher: nn.Module, patches: Patches) -> Tensor:
        """One pass after the other: all at once would take eight times the memory."""
        options = self._doubting
        looks = (teachers.noisy(patches, options.noise, f"look {n}") for n in range(options.passes))
        total = teachers.opinion(teacher, next(looks))
        for look in looks:
            total += teachers.opinion(teacher, look)
        return total / options.passes

    def _threshold(self, step: int) -> float:
        most = math.log(self.plan.classes)
        lowest = self._doubting.surest
        return (lowest + (1 - lowest) * rise(step, self._steps, 1.0)) * most


def entropy(p_BKDHW: Tensor) -> Tensor:
    """Return the entropy of each voxel's probabilities (B, D, H, W), in nats."""
    return -(p_BKDHW * (p_BKDHW + _TINY).log()).sum(1)
