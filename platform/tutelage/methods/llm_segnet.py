"""LLM-SegNet: two networks that know the task's text teach each other, one of them on mixed patches.

Kumari et al., arXiv 2407.05088; no code was released and its tables could not be read. Published:
two networks train together; text about the target, one for the whole task, is fused at the bottleneck
by a learned balance; Dice and cross entropy on annotated patches; a loss that unites log likelihood
where the other network is sure with squared distance where it is not. From second hand: one
network sees raw patches, the other a CutMix of them, and each learns from the other's answers.

Ours, for want of anything to read: the form of the fusion (`specialist.text`); all thresholds and
weights of the united loss; how boxes are cut; the rise of its weight, which is that of the field.
Two kinds of networks, a V-Net and a ResV-Net, are what such methods use (MCF); a plan with another
network has two of that, with different first weights. The network of the plan is the one that sees raw
patches, and is kept. Labels and weights of unlabeled patches are not looked at.
"""

import torch
from torch import Tensor, nn

from tutelage.methods import chance, supervised, teachers, together
from tutelage.methods.base import SPECIALIST, Batch, Resources
from tutelage.methods.bcp import cuboid
from tutelage.methods.cps import PEER
from tutelage.methods.schedules import rise
from tutelage.methods.settings import TrainSettings
from tutelage.methods.together import Ring
from tutelage.specialist.network import build
from tutelage.specialist.plan import Plan
from tutelage.specialist.text import tell, with_text

_OTHER_KIND = {"vnet": "resvnet", "resvnet": "vnet"}
"""What stands beside a network; one that is not listed has another of its kind."""


class LlmSegNet:
    """Terms: `cross_entropy` and `dice` of annotated patches, `united` of the others, of both networks."""

    def __init__(self, plan: Plan, settings: TrainSettings, resources: Resources) -> None:
        self.plan = with_text(plan, "bottleneck", resources.texts_KTF)
        self._steps = settings.steps
        self._options = settings.llm_segnet
        self._texts_KTF = resources.texts_KTF

    def networks(self) -> nn.ModuleDict:
        """Return both networks, told what there is to know; neither fuses anything yet."""
        other = _OTHER_KIND.get(self.plan.network, self.plan.network)
        beside = self.plan.model_copy(update={"network": other})
        networks = nn.ModuleDict({SPECIALIST: build(self.plan), PEER: build(beside)})
        assert self._texts_KTF is not None
        tell(networks, self._texts_KTF)
        return networks

    def losses(self, batch: Batch, networks: nn.ModuleDict, step: int) -> dict[str, Tensor]:
        """Return the terms, each the sum over both networks."""
        labeled, unlabeled = teachers.both(batch, "llm_segnet")
        options = self._options
        # A patch that is alone is mixed with an annotated one, of which it is not told the label.
        ring = Ring.of(unlabeled.image)
        raw = torch.cat([unlabeled.image, labeled.image[:1]]) if ring.lonely else unlabeled.image
        inside_DHW = box(tuple(raw.shape[2:]), options.cut, batch.seed).to(raw.device)
        sizes = [len(labeled), len(raw)]
        told, free = networks[SPECIALIST](torch.cat([labeled.image, raw])).split(sizes)
        cut = cut_mix(raw, inside_DHW, ring)
        told_peer, mixed = networks[PEER](torch.cat([labeled.image, cut])).split(sizes)

        mine = supervised.loss(told, labeled.label, labeled.weight, labeled.undecided)
        theirs = supervised.loss(told_peer, labeled.label, labeled.weight, labeled.undecided)
        with torch.no_grad():
            as_mixed = cut_mix(free.float().softmax(1), inside_DHW, ring)
            as_raw = undo_cut_mix(mixed.float().softmax(1), inside_DHW, ring)
        weight = options.consistency * rise(step, self._steps, options.rise)
        both = united(free, as_raw, options.sure, options.unsure)
        both = both + united(mixed, as_mixed, options.sure, options.unsure)
        return {**{name: mine[name] + theirs[name] for name in mine}, "united": weight * both}

    def after_step(self, networks: nn.ModuleDict, step: int) -> None:
        """Both networks learn by gradients; nothing follows."""

    def counts(self) -> dict[str, float]:
        """Nothing is counted."""
        return {}


def box(shape: tuple[int, ...], shares: tuple[float, float], seed: int) -> Tensor:
    """Return where (D, H, W) a box of the patch's form lies, of a random share of its voxels."""
    low, high = shares
    share = low + (high - low) * float(torch.rand((), generator=chance.generator(seed, "share")))
    return cuboid(shape, share ** (1 / max(1, sum(n > 1 for n in shape))), seed)


def cut_mix(volume_BCDHW: Tensor, inside_DHW: Tensor, ring: Ring) -> Tensor:
    """Give each patch the box of the one before it in the whole batch."""
    (before,) = ring.preceding(volume_BCDHW)
    return torch.where(inside_DHW, before, volume_BCDHW)


def undo_cut_mix(volume_BCDHW: Tensor, inside_DHW: Tensor, ring: Ring) -> Tensor:
    """Give the boxes back: answers about mixed patches become answers about whole ones."""
    (after,) = ring.following(volume_BCDHW)
    return torch.where(inside_DHW, after, volume_BCDHW)


def united(logits_BKDHW: Tensor, other_BKDHW: Tensor, sure: float, unsure: float) -> Tensor:
    """Return the loss against another network's probabilities, in fp32 whatever computes the logits.

    Where the other is sure: the mean of -log p of the class that it means. Elsewhere: `unsure` times
    the mean of the squared distance over all classes. Gradients reach the logits alone.
    """
    with torch.autocast(logits_BKDHW.device.type, enabled=False):
        log_p, other = logits_BKDHW.float().log_softmax(1), other_BKDHW.detach()
        confidence, meant = other.max(1)
        certain = confidence >= sure
        nll = -log_p.gather(1, meant[:, None])[:, 0]
        apart = (log_p.exp() - other).square().sum(1)
        known, sures, doubted, unsures = together.total(
            (nll * certain).sum(), certain.sum(), (apart * ~certain).sum(), (~certain).sum()
        )
        return known / sures.clamp(min=1) + unsure * doubted / unsures.clamp(min=1)
