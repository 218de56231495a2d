"""Voxels and words in one space: supervised InfoNCE, as in TAK's released code.

It decides which voxels are drawn and what they are pulled to. It does not know which network
made the features or who said what the voxels show.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.methods import chance

NOBODY = -1
"""Label of voxels that are not drawn."""


def draw(label_BV: Tensor, most: int, seeds: Sequence[int], what: str = "voxels") -> Tensor:
    """Return flat positions of at most so many voxels of each class in each image, which has its own seed.

    One sort instead of a search by image and class: all draws of a step would be hundreds.
    """
    images, voxels = label_BV.shape
    classes = int(label_BV.max()) + 1
    image = torch.arange(images, device=label_BV.device)[:, None]
    group = torch.where(label_BV == NOBODY, images * classes, image * classes + label_BV).flatten()
    drawn = [chance.generator(seed, what, group.device) for seed in seeds]
    orders = [torch.randperm(voxels, generator=one, device=group.device) for one in drawn]
    shuffled = torch.cat([voxels * place + order for place, order in enumerate(orders)])
    ordered, order = group[shuffled].sort(stable=True)
    sizes = torch.bincount(ordered, minlength=images * classes + 1)
    rank = torch.arange(len(ordered), device=ordered.device) - (sizes.cumsum(0) - sizes)[ordered]
    return shuffled[order[(rank < most) & (ordered < images * classes)]]


def info_nce(features_NC: Tensor, class_N: Tensor, temperature: float) -> Tensor:
    """Mean over all of how far each is from what is of its class, against all that is not.

    With s the cosine over the temperature: of i, -1/|P| sum over j in P of s_ij - log(exp s_ij + sum
    over n in N of exp s_in). P has the others of its class, N those of other classes; what is
    alone in its class adds nothing but counts. There are at least two classes. Computed in fp32,
    because a small temperature magnifies what a shorter product leaves out.
    """
    with torch.autocast(features_NC.device.type, enabled=False):
        unit = F.normalize(features_NC.float(), dim=1)
        cosine = unit @ unit.T / temperature
    same = class_N[:, None] == class_N
    against = cosine.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)
    closeness = cosine - torch.logaddexp(cosine, against)
    friends = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    near = closeness.masked_fill(~friends, 0).sum(1) / friends.sum(1).clamp(min=1)
    return -near.mean()


def gate(label_BDHW: Tensor, entropy_BDHW: Tensor, most: float) -> Tensor:
    """Return labels without those voxels whose prediction is too unsure."""
    return label_BDHW.masked_fill(entropy_BDHW > most, NOBODY)
