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

    def rows(self, chosen: list[int]) -> "Told":
        """Choose patches, repeated where there are too few."""
        return Told(*(part[chosen] for part in (self.label, self.weight, self.open, self.undecided)))


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
    decided = torch.zeros_like(known.undecided)
    terms = supervised.loss(logits_BKDHW, known.label, known.weight, decided)
    if not known.open.any():
        return terms
    background = torch.zeros_like(known.label)
    either = supervised.loss(logits_BKDHW, background, known.open, known.undecided)["cross_entropy"]
    named, maybe = known.weight.sum(), known.open.sum()
    # Each is a mean over its own weights, of which the loss counts no less than one.
    total = terms["cross_entropy"] * named.clamp(min=1.0) + either * maybe.clamp(min=1.0)
    return {**terms, "cross_entropy": total / (named + maybe).clamp(min=1.0)}
