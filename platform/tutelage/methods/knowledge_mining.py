"""Knowledge mining: rounds of prompting, gating and fine-tuning, and one specialist that is deployed.

Mao et al., 2025. Published: a specialist learns from the labeled images, its predictions on the
others become prompts for a frozen SAM, SAM's masks become pseudo-labels, and the specialist is
fine-tuned on both, again and again. Not published, and reconstructed: gates, prompts and numbers.
Prompts and gates are settings of `prompts` and `curation` (the mined mask counts as much as it
overlaps with the specialist's, and where a gate refuses it the voxels on which both agree), and
are obeyed before training. What remains is here: cross entropy and Dice of labels and
pseudo-labels in one weighted mean, of which at least half is from labels: settings refuse less.

Of the reconstruction three things are left out. The specialist prompts by one look, not by the mean
of several turned ones: it never learned from turned images, which would have the liver left, and
each look costs a pass. Rounds do not stop when validation no longer improves: `rounds` says how many,
and promotion keeps the better specialist, so that one too many costs time alone. No answer is refused
because the generalist thinks little of it: measured on LiteMedSAM, that opinion and the true Dice
correlate by .79 on solid organs and by about -.2 on a ring (`curation.min_predicted_iou` would
refuse).
"""

import torch
from torch import Tensor, nn

from tutelage.methods import supervised
from tutelage.methods.base import SPECIALIST, Batch, Resources
from tutelage.methods.settings import TrainSettings
from tutelage.specialist.network import build
from tutelage.specialist.plan import Plan


class KnowledgeMining:
    """Terms: `cross_entropy` and `dice` of labels and pseudo-labels together."""

    def __init__(self, plan: Plan, settings: TrainSettings, resources: Resources) -> None:
        self.plan = plan

    def networks(self) -> nn.ModuleDict:
        """Return the specialist alone; it starts from that of the stage before, if there is one."""
        return nn.ModuleDict({SPECIALIST: build(self.plan)})

    def losses(self, batch: Batch, networks: nn.ModuleDict, step: int) -> dict[str, Tensor]:
        """Return the terms. In a mean of its own, what is half believed would count in full."""
        streams = [batch.labeled] if batch.unlabeled is None else [batch.labeled, batch.unlabeled]
        return supervised.loss(
            networks[SPECIALIST](torch.cat([patches.image for patches in streams])),
            torch.cat([patches.label for patches in streams]),
            torch.cat([patches.weight for patches in streams]),
            torch.cat([patches.undecided for patches in streams]),
        )

    def after_step(self, networks: nn.ModuleDict, step: int) -> None:
        """Nothing follows."""

    def counts(self) -> dict[str, float]:
        """Nothing is counted."""
        return {}
