"""The networks a specialist can be: MONAI's, built from a plan."""

from collections.abc import Callable

from monai.networks.nets import UNet
from torch import nn

from tutelage.specialist.plan import Plan


def _unet(plan: Plan) -> nn.Module:
    flat = plan.patch[0] == 1
    kernel = (1, 3, 3) if flat else 3
    return UNet(
        spatial_dims=3,
        in_channels=plan.channels_in,
        out_channels=plan.classes,
        channels=plan.channels,
        strides=plan.strides,
        kernel_size=kernel,
        up_kernel_size=kernel,
        num_res_units=2,
        norm="instance",
    )


NETWORKS: dict[str, Callable[[Plan], nn.Module]] = {"unet": _unet}
"""Networks by the name that settings use."""


def build(plan: Plan) -> nn.Module:
    """Return the network of a plan, with fresh weights from torch's seed."""
    return NETWORKS[plan.network](plan)
