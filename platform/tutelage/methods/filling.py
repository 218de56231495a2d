"""Pseudo-labels made whole: what they leave open, a mean teacher says where it is sure.

It decides, voxel by voxel, whose word counts and how much: a pseudo-label's where it names a
structure, or says background and leaves none undecided; else the teacher's if it is sure and
does not contradict; else nobody's, and a voxel of "background or one of the undecided" counts as
just that. It knows neither networks nor steps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.methods import supervised
from tutelage.methods.base import Patches


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """What is known about patches."""

    label: Tensor
    """(B, D, H, W), int64."""
    weight: Tensor
    """(B, D, H, W): how far the label counts as it is."""
    open: Tensor
    """(B, D, H, W): how far it counts that here is the background or something undecided."""
    undecided: Tensor
    """(B, K), bool."""

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All of it, in order."""
        return self.label, self.weight, self.open, self.undecided


def told(patches: Patches, *, by_voxel: bool = True, believed: bool = True) -> Told:
    """Return what labels and pseudo-labels say by themselves; nothing if they are not believed."""
    weight = patches.weight if by_voxel else (patches.weight > 0).float()
    if not believed:
        weight = torch.zeros_like(weight)
    maybe = patches.undecided.any(1)[:, None, None, None] & (patches.label == 0)
    return Told(patches.label, weight * ~maybe, weight * maybe, patches.undecided)


def filled(known: Told, p_BKDHW: Tensor, *, share: float, sure: float) -> Told:
    """Add what a teacher says, with a weight of `share`, where its probability is above `sure`."""
    likely, guess = p_BKDHW.max(1)
    allowed = known.undecided.clone()
    allowed[:, 0] = True
    fits = allowed.gather(1, guess.flatten(1)).view_as(guess)
    unknown = (known.weight == 0) & (fits | (known.open == 0)) & (likely > sure)
    return Told(
        torch.where(unknown, guess, known.label),
        torch.where(unknown, share, known.weight),
        known.open,
        known.undecided,
    )


def pasted(outer: Told, inner: Told, inside_DHW: Tensor) -> Told:
    """Return what is known where the inner patches lie inside and the outer ones around them.

    Only what is open asks for undecided structures, so two patches must not both leave something open.
    """
    return Told(
        torch.where(inside_DHW, inner.label, outer.label),
        torch.where(inside_DHW, inner.weight, outer.weight),
        torch.where(inside_DHW, inner.open, outer.open),
        outer.undecided | inner.undecided,
    )


def loss(logits_BKDHW: Tensor, known: Told) -> dict[str, Tensor]:
    """Return cross entropy over all that is known, sets of classes included, and Dice over what is named."""
    with torch.autocast(logits_BKDHW.device.type, enabled=False):
        log_p = logits_BKDHW.float().log_softmax(1)
        decided = torch.zeros_like(known.undecided)
        named = supervised.sums_of(log_p, known.label, known.weight, decided)
        maybe = log_p.new_zeros(())
        if known.open.any():
            maybe = (supervised.nll_of_background(log_p, known.undecided) * known.open).sum()
        sums, (maybe, opened) = named.together(maybe, known.open.sum())
        total = (sums.entropy + maybe) / (sums.counted + opened).clamp(min=1.0)
        return {"cross_entropy": total, "dice": sums.dice}
