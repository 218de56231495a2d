"""Features of the specialist made to resemble those of a generalist: one linear layer and an angle.

It decides how two grids of different width and resolution are compared. It does not know
which generalist the features are of, nor how much the comparison counts. Only directions are
compared: lengths of a generalist's features say nothing about tissue.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.methods import together

PROJECTION = "projection"
"""Name of the layer among a method's networks; it is not kept."""


def projection(channels: int, width: int) -> nn.Module:
    """Return a layer of kernel 1 from a decoder level to the width of a generalist's embedding."""
    return nn.Conv3d(channels, width, 1)


def distance(level_BCDHW: Tensor, projection: nn.Module, features_BFDHW: Tensor) -> Tensor:
    """Return the mean of 1 - cosine over the cells of the features that hold anything; 0 if none does.

    A finer level is averaged over each cell first, a coarser one repeated.
    """
    with torch.autocast(level_BCDHW.device.type, enabled=False):
        level = F.adaptive_avg_pool3d(level_BCDHW.float(), _cells(features_BFDHW))
        away = 1 - F.cosine_similarity(projection(level), features_BFDHW.float(), dim=1)
        known = features_BFDHW.abs().amax(1) > 0
        apart, cells = together.total((away * known).sum(), known.sum())
        return apart / cells.clamp(min=1)


def pasted(outer_BFDHW: Tensor, inner_BFDHW: Tensor, inside_DHW: Tensor) -> Tensor:
    """Return the features of a patch that was pasted into another; cells that hold both are emptied."""
    share = F.adaptive_avg_pool3d(inside_DHW[None].float(), _cells(outer_BFDHW))
    return torch.where(share == 0, outer_BFDHW, torch.where(share == 1, inner_BFDHW, 0.0))


def _cells(features_BFDHW: Tensor) -> tuple[int, int, int]:
    d, h, w = features_BFDHW.shape[2:]
    return d, h, w
