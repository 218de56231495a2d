"""The networks a specialist can be: MONAI's, built from a plan.

It decides which layers a plan's numbers become. It does not know where weights are kept.
"""

from collections.abc import Callable

from monai.networks.nets import UNet
from torch import nn

from tutelage.errors import TrainingError
from tutelage.specialist.plan import Plan


def _unet(plan: Plan) -> nn.Module:
    # What never sees a second slice cannot learn what to do with one.
    kernel = (1, 3, 3) if plan.patch[0] == 1 else 3
    network: nn.Module = UNet(
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
    return network


NETWORKS: dict[str, Callable[[Plan], nn.Module]] = {"unet": _unet}
"""Networks by the name that settings use."""


def build(plan: Plan) -> nn.Module:
    """Return the network of a plan, with fresh weights from torch's seed.

    Raises:
        TrainingError: the plan names a network that this version does not have.
    """
    if plan.network not in NETWORKS:
        raise TrainingError(
            f"the plan's network is {plan.network!r}, expected one of {', '.join(NETWORKS)}; "
            "use the version of tutelage that trained it"
        )
    return NETWORKS[plan.network](plan)
