"""Cross pseudo supervision: two networks with different first weights teach each other.

Chen et al., CVPR 2021, in the form of SSL4MIS, read in code: on unlabeled patches, the class that
one network finds likeliest is the other one's label, by cross entropy, with a weight that
rises. The paper lets them teach each other on annotated patches too, and its weight is constant;
the code base of the field does neither. The first network is kept. Where SSL4MIS starts the two
from two kinds of random weights, here they are two draws of one kind. Pseudo-labels in the batch
are not looked at.
"""

import torch
from torch import Tensor, nn

from tutelage.methods import supervised, teachers
from tutelage.methods.base import SPECIALIST, Batch, Resources
from tutelage.methods.schedules import rise
from tutelage.methods.settings import TrainSettings
from tutelage.specialist.network import build
from tutelage.specialist.plan import Plan

PEER = "peer"
"""Name of the second network."""


class Cps:
    """Terms: `cross_entropy` and `dice` of annotated patches, `cross` of the others, of both networks."""

    def __init__(self, plan: Plan, settings: TrainSettings, resources: Resources) -> None:
        self.plan = plan
        self._steps = settings.steps
        self._options = settings.cps

    def networks(self) -> nn.ModuleDict:
        """Return two networks that differ by their random weights alone."""
        return nn.ModuleDict({SPECIALIST: build(self.plan), PEER: build(self.plan)})

    def losses(self, batch: Batch, networks: nn.ModuleDict, step: int) -> dict[str, Tensor]:
        """Return the terms, each the sum over both networks."""
        labeled, unlabeled = teachers.both(batch, "cps")
        images = torch.cat([labeled.image, unlabeled.image])
        sizes = [len(labeled), len(unlabeled)]
        (told, free), (told_peer, free_peer) = (
            networks[name](images).split(sizes) for name in (SPECIALIST, PEER)
        )
        mine = supervised.loss(told, labeled.label, labeled.weight, labeled.undecided)
        theirs = supervised.loss(told_peer, labeled.label, labeled.weight, labeled.undecided)
        weight = self._options.consistency * rise(step, self._steps, self._options.rise)
        cross = self._taught(free, by=free_peer) + self._taught(free_peer, by=free)
        return {**{name: mine[name] + theirs[name] for name in mine}, "cross": weight * cross}

    def after_step(self, networks: nn.ModuleDict, step: int) -> None:
        """Both networks learn by gradients; nothing follows."""

    def counts(self) -> dict[str, float]:
        """Nothing is counted."""
        return {}

    def _taught(self, logits_BKDHW: Tensor, by: Tensor) -> Tensor:
        label = by.detach().argmax(1)
        everywhere = torch.ones(label.shape, device=label.device)
        decided = torch.zeros(logits_BKDHW.shape[:2], dtype=torch.bool, device=label.device)
        terms = supervised.loss(logits_BKDHW, label, everywhere, decided)
        return terms["cross_entropy"] + terms["dice"] if self._options.dice else terms["cross_entropy"]
