"""The networks a specialist can be: MONAI's layers, put together as a plan says.

It decides which layers a plan's numbers become. It does not know where weights are kept.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tutelage.errors import TrainingError
from tutelage.specialist.base import Seen, Specialist
from tutelage.specialist.nested import UNetPlusPlus
from tutelage.specialist.parts import UNet as MonaiUNet
from tutelage.specialist.plan import Plan
from tutelage.specialist.vnet import plain_vnet, residual_vnet

__all__ = ["NETWORKS", "Seen", "Specialist", "build"]


class UNet(Specialist):
    """MONAI's residual U-Net, walked level by level; weights have the names that MONAI gives them.

    Its last step both makes the image whole again and turns features into classes, so the finest
    level has as many channels as there are classes. Under another head it has those of the
    plan's first level.
    """

    def __init__(self, plan: Plan) -> None:
        finest = plan.channels[0] if plan.headless else plan.classes
        # The way up halves twice: a level gives the next finer one as many features as that has itself.
        between = tuple(reversed(plan.channels[:-2]))
        super().__init__((plan.channels[-1], *between, finest))
        # What never sees a second slice cannot learn what to do with one.
        kernel = plan.kernel
        whole = MonaiUNet(
            spatial_dims=3,
            in_channels=plan.channels_in,
            out_channels=finest,
            channels=plan.channels,
            strides=plan.strides,
            kernel_size=kernel,
            up_kernel_size=kernel,
            num_res_units=2,
            norm=plan.norm,
            dropout=plan.dropout,
        )
        self.model: nn.Module = whole.model
        self._whole_last = plan.headless

    def levels(self, image_BCDHW: Tensor) -> tuple[Tensor, ...]:
        """Walk down and up again; see Seen."""
        downs, bottom, ups = self._parts()
        x, skips = image_BCDHW, []
        for down in downs:
            x = down(x)
            skips.append(x)
        x = self.bottleneck(bottom(x))
        levels = [x]
        for up in ups[:-1]:
            x = up(torch.cat([skips.pop(), x], dim=1))
            levels.append(x)
        finest = ups[-1] if self._whole_last else ups[-1][0]
        return *levels, finest(torch.cat([skips.pop(), x], dim=1))

    def last(self, finest_BCDHW: Tensor) -> Tensor:
        """Apply the second half of MONAI's last step."""
        logits: Tensor = self._parts()[2][-1][1](finest_BCDHW)
        return logits

    def _parts(self) -> tuple[list[nn.Module], nn.Module, list[nn.Sequential]]:
        """Layers downward, the bottom, and layers upward, out of MONAI's nested ones."""
        downs: list[nn.Module] = []
        ups: list[nn.Sequential] = []
        block = self.model
        while isinstance(block, nn.Sequential):
            down, skip, up = block
            assert isinstance(up, nn.Sequential)
            downs.append(down)
            ups.insert(0, up)
            block = skip.get_submodule("submodule")
        return downs, block, ups


NETWORKS: dict[str, Callable[[Plan], Specialist]] = {
    "unet": UNet,
    "vnet": plain_vnet,
    "resvnet": residual_vnet,
    "unetplusplus": UNetPlusPlus,
}
"""Networks by the name that settings use."""


def build(plan: Plan) -> Specialist:
    """Return the network of a plan, with fresh weights from torch's seed and vectors of zeros.

    Raises:
        TrainingError: the plan names a network that this version does not have.
    """
    if plan.network not in NETWORKS:
        raise TrainingError(
            f"the plan's network is {plan.network!r}, expected one of {', '.join(NETWORKS)}; "
            "use the version of tutelage that trained it"
        )
    network = NETWORKS[plan.network](plan)
    if plan.text is not None:
        from tutelage.specialist.text import attach

        attach(network, plan)
    return network
