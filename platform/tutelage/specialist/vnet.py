"""V-Net as the literature on learning from few labels has it, and its sibling with residual blocks.

Published (code read): the V-Net of UA-MT and of nearly all after it is not the one of its name.
Its kernels have 3 voxels instead of 5, it adds skipped features instead of joining them, activates
by ReLU and has no residual connections: 1, 2, 3, 3, 3 convolutions by level, 9.45 million
weights with 16 filters and two classes. ResV-Net (of MCF, where it is called Resnet34) has
the same decoder on an encoder of 3, 4, 6, 3 residual blocks. How MCF's encoder begins could not
be read: here with one convolution at full resolution.

MONAI's class VNet is the original one, with batch norm and halving of all axes written into
it. So both are put together here from MONAI's blocks, which take the plan's norm and strides.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from tutelage.specialist.base import Specialist
from tutelage.specialist.parts import Convolution, UnetResBlock
from tutelage.specialist.plan import Plan, Triple

_RELU = ("relu", {"inplace": True})

_MOST = 3
"""Convolutions of a level: one more than of the next finer one, up to so many."""

_RESIDUAL = (3, 4, 6, 3)
"""Residual blocks of each level after the first; deeper ones have as many as the last."""


class VNet(Specialist):
    """V-Net's decoder on an encoder of one stage a level."""

    def __init__(self, plan: Plan, encoder: Sequence[nn.Module]) -> None:
        super().__init__(tuple(reversed(plan.channels)))
        self.encoder = nn.ModuleList(encoder)
        upward = range(len(plan.strides) - 1, -1, -1)
        self.ups = nn.ModuleList(_up(plan, level) for level in upward)
        self.decoder = nn.ModuleList(_convolutions(plan, level) for level in upward)
        self.dropout = nn.Dropout3d(plan.dropout)
        self.classes = None if plan.headless else nn.Conv3d(plan.channels[0], plan.classes, 1)

    def levels(self, image_BCDHW: Tensor) -> tuple[Tensor, ...]:
        """Walk down and up again; see Seen."""
        x, skips = image_BCDHW, []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        x = self.bottleneck(self.dropout(skips.pop()))
        levels = [x]
        for up, convolutions in zip(self.ups, self.decoder, strict=True):
            x = convolutions(up(x) + skips.pop())
            levels.append(x)
        return *levels[:-1], self.dropout(x)

    def last(self, finest_BCDHW: Tensor) -> Tensor:
        """Apply the convolution of one voxel that tells classes apart."""
        assert self.classes is not None
        logits: Tensor = self.classes(finest_BCDHW)
        return logits


def plain_vnet(plan: Plan) -> VNet:
    """Return the V-Net of a plan."""
    stages = [_convolutions(plan, 0, plan.channels_in)]
    stages += [
        nn.Sequential(_down(plan, level), _convolutions(plan, level + 1))
        for level in range(len(plan.strides))
    ]
    return VNet(plan, stages)


def residual_vnet(plan: Plan) -> VNet:
    """Return the ResV-Net of a plan."""
    stages = [_convolutions(plan, 0, plan.channels_in)]
    stages += [nn.Sequential(*_residual(plan, level)) for level in range(len(plan.strides))]
    return VNet(plan, stages)


def _residual(plan: Plan, level: int) -> Iterator[nn.Module]:
    """Residual blocks, of which the first goes down."""
    inside, outside = plan.channels[level : level + 2]
    for number in range(_RESIDUAL[min(level, len(_RESIDUAL) - 1)]):
        yield UnetResBlock(
            spatial_dims=3,
            in_channels=outside if number else inside,
            out_channels=outside,
            kernel_size=plan.kernel,
            stride=1 if number else plan.strides[level],
            norm_name=plan.norm,
            act_name=_RELU,
        )


def _convolutions(plan: Plan, level: int, inside: int | None = None) -> nn.Sequential:
    count, outside = min(level + 1, _MOST), plan.channels[level]
    sizes = [inside or outside, *[outside] * count]
    return nn.Sequential(
        *(
            Convolution(3, sizes[n], sizes[n + 1], kernel_size=plan.kernel, norm=plan.norm, act=_RELU)
            for n in range(count)
        )
    )


def _down(plan: Plan, level: int) -> nn.Module:
    return _scaled(plan, plan.channels[level], plan.channels[level + 1], plan.strides[level])


def _up(plan: Plan, level: int) -> nn.Module:
    return _scaled(plan, plan.channels[level + 1], plan.channels[level], plan.strides[level], up=True)


def _scaled(plan: Plan, inside: int, outside: int, stride: Triple, up: bool = False) -> nn.Module:
    """Cells that lie side by side become one, or one becomes so many."""
    scaled: nn.Module = Convolution(
        3, inside, outside, strides=stride, kernel_size=stride, padding=0, output_padding=0,
        is_transposed=up, norm=plan.norm, act=_RELU,
    )  # fmt: skip
    return scaled
