"""U-Net++: a U-Net whose skipped features pass through nodes of their own on the way across.

Published (Zhou et al. 2018), as in MONAI's BasicUNetPlusPlus: the same nodes, in the same order,
with the same weights. That class has exactly five levels, halves all axes, keeps three last
layers that nothing uses unless deep supervision is on, and shows no features, so its nodes are
put together here from MONAI's layers. On flat patches it is a 2D network.
"""

import torch
from torch import Tensor, nn

from tutelage.specialist.base import Specialist
from tutelage.specialist.parts import Convolution
from tutelage.specialist.plan import Plan

_LEAKY = ("leakyrelu", {"negative_slope": 0.1, "inplace": True})


class UNetPlusPlus(Specialist):
    """Node (level, column) joins all nodes before it on its level and the one below, made finer."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(tuple(reversed(plan.channels)))
        depth = len(plan.strides)
        self.depth = depth
        self.pools = nn.ModuleList(nn.MaxPool3d(stride) for stride in plan.strides)
        self.ups = nn.ModuleDict()
        self.nodes = nn.ModuleDict()
        before = [plan.channels_in, *plan.channels]
        for level in range(depth + 1):
            self.nodes[_name(level, 0)] = _two(plan, before[level], plan.channels[level])
        for column in range(1, depth + 1):
            for level in range(depth + 1 - column):
                here, below = plan.channels[level], plan.channels[level + 1]
                # As MONAI does: what comes from below is halved, but for the finest level.
                risen = below if level == 0 else below // 2
                stride = plan.strides[level]
                self.ups[_name(level, column)] = nn.ConvTranspose3d(below, risen, stride, stride)
                self.nodes[_name(level, column)] = _two(plan, column * here + risen, here)
        self.classes = None if plan.headless else nn.Conv3d(plan.channels[0], plan.classes, 1)

    def levels(self, image_BCDHW: Tensor) -> tuple[Tensor, ...]:
        """Compute all nodes, and return the last one of each level; see Seen."""
        rows: list[list[Tensor]] = []
        x = image_BCDHW
        for level in range(self.depth + 1):
            x = self.nodes[_name(level, 0)](self.pools[level - 1](x) if level else x)
            rows.append([x])
        rows[-1] = [self.bottleneck(x)]
        for column in range(1, self.depth + 1):
            for level in range(self.depth + 1 - column):
                risen = self.ups[_name(level, column)](rows[level + 1][column - 1])
                node = self.nodes[_name(level, column)]
                rows[level].append(node(torch.cat([*rows[level], risen], dim=1)))
        return tuple(row[-1] for row in reversed(rows))

    def last(self, finest_BCDHW: Tensor) -> Tensor:
        """Apply the convolution of one voxel that tells classes apart."""
        assert self.classes is not None
        logits: Tensor = self.classes(finest_BCDHW)
        return logits


def _two(plan: Plan, inside: int, outside: int) -> nn.Sequential:
    """Two convolutions. Dropout comes after the norm, as everywhere in MONAI."""
    norm = ("instance", {"affine": True}) if plan.norm == "instance" else plan.norm
    return nn.Sequential(
        *(
            Convolution(
                3, size, outside, kernel_size=plan.kernel, norm=norm, act=_LEAKY, dropout=plan.dropout
            )
            for size in (inside, outside)
        )
    )


def _name(level: int, column: int) -> str:
    return f"{level}_{column}"
