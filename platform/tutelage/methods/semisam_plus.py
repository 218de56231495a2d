"""SemiSAM+: beside any other method, a generalist is asked about unlabeled patches while training goes on.

Zhang et al., Medical Image Analysis 2025. Published: the specialist's coarse mask prompts a frozen
generalist several times; the squared distance to the mean answer counts, each voxel by how little
answers differ (U = 4 Var), with a weight that is high early and fades. The released code, as read,
does something else, and this does what the paper says: there the generalist term is s / (s + 1e-16),
whose gradient is zero, doubt is one number a volume, clicks are drawn where a soft map is above
0, which is everywhere, and prompts are of the background. Reconstructed: the weight relative to
the other terms (0.1 beside half the supervised ones), and every structure is taught on its own.

What is ours: prompts come from voxels of which the specialist is more than half sure, carried
back to the volume as it was before augmentation, so that embeddings can be kept and an ask costs
a decode; answers are carried forth the same way. Where nothing was said nothing is taught. Several
processes each remember what they asked themselves: with `reuse`, an answer is found again only
by the one that asked. What is remembered is in no checkpoint, so all of it is forgotten in steps that
are multiples of `checkpoint_every`, and a training that goes on from one of these sees what it would
have seen. One that was asked to end in between does not, unless `reuse` is 0.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tutelage.errors import TrainingError
from tutelage.methods import chance, together
from tutelage.methods.base import SPECIALIST, Answers, Asker, Batch, Method, Patches, Resources, View
from tutelage.methods.registry import method_class
from tutelage.methods.schedules import fade
from tutelage.methods.settings import TrainSettings
from tutelage.methods.teachers import both
from tutelage.specialist.plan import Plan

_MOST_KEPT = 16
"""Answers kept for later steps, one a case: bounds memory."""

_DOUBT = 0.25
"""The variance of a probability that is 0 as often as 1: nothing is known."""

_SEEDS = 2**31

Carried = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]
"""Mean and variance of answers over a patch, and which structures were asked."""


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """An answer, where in the volume it was asked for, and when."""

    answers: Answers
    heard_DHW: NDArray[np.bool_]
    step: int


class SemiSamPlus:
    """Terms: those of the method it stands on, and `generalist` in steps with an answer."""

    def __init__(self, plan: Plan, settings: TrainSettings, resources: Resources) -> None:
        if resources.asker is None:
            raise TrainingError(
                "train.method semisam_plus has no generalist to ask; name one in `generalist`, "
                f"or train with {settings.semisam_plus.base} alone"
            )
        self._base: Method = method_class(settings.semisam_plus.base)(plan, settings, resources)
        self._asker: Asker = resources.asker
        self._options = settings.semisam_plus
        self._steps, self._checkpoint_every = settings.steps, settings.checkpoint_every
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._asks, self._calls = 0, 0

    @property
    def plan(self) -> Plan:
        """Of the method it stands on."""
        return self._base.plan

    def networks(self) -> nn.ModuleDict:
        """Return those of the method it stands on; the generalist is not among them."""
        return self._base.networks()

    def losses(self, batch: Batch, networks: nn.ModuleDict, step: int) -> dict[str, Tensor]:
        """Return the terms; unlabeled patches go through the specialist once more where it is taught."""
        _, unlabeled = both(batch, "semisam_plus")
        seen = replace(batch, unlabeled=None) if self._options.base == "supervised" else batch
        terms = self._base.losses(seen, networks, step)
        if not self._options.weight:
            return terms
        self._forget(step)
        device, asks = unlabeled.image.device, step % self._options.ask_every == 0
        if asks or together.anyone(any(case in self._kept for case in unlabeled.cases), device):
            p_BKDHW = networks[SPECIALIST](unlabeled.image).float().softmax(1)
            if asks:
                self._ask(unlabeled, p_BKDHW.detach(), step)
            told = self._told(unlabeled)
            if together.anyone(bool(told), device):
                terms["generalist"] = self._weight(step) * _taught(p_BKDHW[:, 1:], told)
        return terms

    def after_step(self, networks: nn.ModuleDict, step: int) -> None:
        """Let follow what follows in the method it stands on."""
        self._base.after_step(networks, step)

    def counts(self) -> dict[str, float]:
        """Return how many patches were asked about, and how many prompts were decoded for that."""
        return {**self._base.counts(), "asks": float(self._asks), "generalist_calls": float(self._calls)}

    def _weight(self, step: int) -> float:
        return self._options.weight * fade(step, self._steps, self._options.fade)

    def _ask(self, patches: Patches, p_BKDHW: Tensor, step: int) -> None:
        """Ask about every patch in which the specialist sees anything, and keep the answers."""
        asked = zip(patches.cases, patches.views, patches.seeds, foreground(p_BKDHW), strict=True)
        for case, view, seed, label_DHW in asked:
            self._kept.pop(case, None)
            if not label_DHW.any():
                continue
            mask_DHW = view.back(label_DHW).astype(np.uint8, copy=False)
            answers = self._asker.ask(case, mask_DHW, chance.number(seed, "ask", _SEEDS))
            heard_DHW = view.back(np.ones(view.patch, np.bool_)).astype(np.bool_, copy=False)
            self._kept[case] = Kept(answers, heard_DHW, step)
            self._asks += 1
            self._calls += answers.calls
        while len(self._kept) > max(_MOST_KEPT, len(patches)):
            self._kept.popitem(last=False)

    def _forget(self, step: int) -> None:
        """Drop answers that are too old, or from before the last step that leaves a checkpoint by itself."""
        oldest = max(step - self._options.reuse, step - step % self._checkpoint_every)
        for case in [case for case, kept in self._kept.items() if kept.step < oldest]:
            del self._kept[case]

    def _told(self, patches: Patches) -> dict[int, Carried]:
        """What was said about patches, by their place, where anything was."""
        heard = [(place, self._kept.get(case)) for place, case in enumerate(patches.cases)]
        return {
            place: _carried(kept, patches.views[place])
            for place, kept in heard
            if kept is not None and kept.answers.asked_K.any()
        }


def foreground(p_BKDHW: Tensor) -> NDArray[np.uint8]:
    """Return label values (B, D, H, W) where one structure has more than half of the probability, else 0."""
    share, label = p_BKDHW.max(1)
    sure: NDArray[np.uint8] = (label * (share > 0.5)).to(torch.uint8).cpu().numpy()
    return sure


def distance(p_BKDHW: Tensor, mean_BKDHW: Tensor, variance_BKDHW: Tensor, asked_BK: Tensor) -> Tensor:
    """Return the mean over structures asked of sum (1 - U) (p - mean)^2 / sum (1 - U), U = 4 variance."""
    sure = (1 - 4 * variance_BKDHW).clamp(0, 1)
    apart = (sure * (p_BKDHW - mean_BKDHW).square()).flatten(2).sum(2)
    each_BK = apart / sure.flatten(2).sum(2).clamp(min=1.0)
    total, asked = together.total((each_BK * asked_BK).sum(), asked_BK.sum())
    return total / asked.clamp(min=1)


def _taught(p_BKDHW: Tensor, told: Mapping[int, Carried]) -> Tensor:
    """The distance to what was said, here and in other processes; no background among the structures."""
    mean, variance = torch.full_like(p_BKDHW, 0.5), torch.full_like(p_BKDHW, _DOUBT)
    asked = torch.zeros(p_BKDHW.shape[:2], dtype=torch.bool, device=p_BKDHW.device)
    for place, carried in told.items():
        mean[place], variance[place], asked[place] = map(torch.from_numpy, carried)
    return distance(p_BKDHW, mean, variance, asked)


def _carried(kept: Kept, view: View) -> Carried:
    """Mean and variance over a patch, and which structures were asked; elsewhere there is only doubt."""
    variance = np.where(kept.heard_DHW, kept.answers.variance_KDHW, np.float32(_DOUBT))
    return (
        view.of(kept.answers.mean_KDHW, 0.5).astype(np.float32, copy=False),
        view.of(variance, _DOUBT).astype(np.float32, copy=False),
        kept.answers.asked_K,
    )
