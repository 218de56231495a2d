"""Losses that do not let large structures drown small ones: GADice and GACE, as in TAK's released code.

They know probabilities, logits and labels, and nothing of where those are from. Both are of the
whole batch, however many processes share it.
"""

import torch
from torch import Tensor

from tutelage.methods import together

_EPSILON = 1e-10


def ga_dice(p_BKV: Tensor, label_BV: Tensor) -> Tensor:
    """Mean over classes of the whole batch, the background included.

    A class that the labels show: 1 - (2 sum p y + e) / (sum p^2 + sum y + e). One that they do not:
    the sum of p times its own p over the number of voxels, which passes no gradient; so what is
    surely wrong is pushed down more.

    `p_BKV` are probabilities of float32, `label_BV` int64; V may be any number of axes.
    """
    p, label = p_BKV.flatten(2), label_BV.flatten(1)
    nothing = p.new_zeros(p.shape[:2])
    told = p.gather(1, label[:, None])[:, 0]
    both = nothing.scatter_add(1, label, told).sum(0)
    shown = nothing.scatter_add(1, label, torch.ones_like(told)).sum(0)
    squared, voxels = p.square().sum((0, 2)), p.new_tensor(float(label.numel()))
    both, shown, squared, voxels = together.total(both, shown, squared, voxels)
    missed = 1 - (2 * both + _EPSILON) / (squared + shown + _EPSILON)
    # Half of the squares has the gradient of p with a weight p that has none, and half of the value.
    half = squared / (2 * voxels)
    return torch.where(shown > 0, missed, half + half.detach()).mean()


def ga_ce(logits_BKV: Tensor, label_BV: Tensor, hardest: float, evenness: float) -> Tensor:
    """Cross entropy of the hardest voxels, summed by class and normalized by how many each has.

    With N_c of the K hardest voxels labeled c, a class counts its sum by N_c^(1 - evenness) K^evenness: with
    evenness 0 every class counts alike, with 1 every voxel.
    """
    log_p = logits_BKV.flatten(2).log_softmax(1)
    label = label_BV.flatten(1)
    nll = -log_p.gather(1, label[:, None])[:, 0].flatten()
    most = max(1, int(hardest * sum(together.counts(nll.numel(), nll.device))))
    worst, where = _worst(nll, most)
    classes = label.flatten()[where]
    nothing = nll.new_zeros(logits_BKV.shape[1])
    sums = nothing.scatter_add(0, classes, worst)
    counts = nothing.scatter_add(0, classes, torch.ones_like(worst))
    sums, counts = together.total(sums, counts)
    by_class: Tensor = sums / (counts.clamp(min=1) ** (1 - evenness) * most**evenness)
    return by_class.sum()


def _worst(nll_N: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return those of this process's voxels that are among the hardest of all, and where they are."""
    worst, where = nll_N.topk(min(most, len(nll_N)), sorted=False)
    everyones = together.rows(worst.detach())
    if len(everyones.all) == len(worst):
        return worst, where
    chosen = everyones.all.topk(most, sorted=False).indices - everyones.start
    mine = chosen[(chosen >= 0) & (chosen < len(worst))]
    return worst[mine], where[mine]
