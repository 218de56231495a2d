"""A learner divided among the processes that train it, by torch's FSDP2: each holds its part of every tensor.

Weights, gradients and optimizer state lie in parts along their first axis. A large convolution is
put together when it is called and falls apart behind it, forward and back; everything smaller is
put together once a step. What is kept is whole whatever it was learned in: a checkpoint knows no
number of processes, and each of them takes its own part of one.

Under autocast, what layers were computed with in bf16 is kept until the way back, as it is where
weights are whole: two bytes a weight are not divided.

What puts tensors together must be said by every process at the same moment. It knows no method.
"""

import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, distributed, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_LARGE = 2**18
"""Weights from which a convolution is put together by itself: one exchange each, forward and back."""


def shard(learner: nn.Module, device: torch.device, large: int = _LARGE) -> nn.Module:
    """Divide all weights in place, each layer on its way to the device, and return the same module.

    Each process gives its part of the weights it has, so they should be the same in all.
    """
    # A second or two of every process that trains, if it stood above.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for parameter in learner.parameters():  # no other layout can be divided
        parameter.data = parameter.data.contiguous()
    for module in learner.modules():
        # Convolutions alone are always called; of other layers a network may read the weights.
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d) and module.weight.numel() >= large:
            fully_shard(module, mesh=mesh)
    fully_shard(learner, mesh=mesh)
    return learner


# --- put together ---------------------------------------------------------------------------


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, if this process has only its part of it."""
    return tensor.full_tensor() if _is_part(tensor) else tensor


def gathered(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of which none is a part: those that were, now in main memory."""
    return {
        name: whole(tensor).detach().cpu() if _is_part(tensor) else tensor for name, tensor in state.items()
    }


def lend(values: Any) -> None:
    """Give one's parts of all tensors in there to those who put them together, and keep nothing."""
    for tensor in _tensors(values):
        whole(tensor.detach())


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict | list | tuple):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _tensors(value)


# --- divided --------------------------------------------------------------------------------


def divided(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return one's own part of each tensor whose namesake is a part; the others as they are."""
    return {name: _part(tensor, like.get(name)) for name, tensor in state.items()}


def divided_optimizer(state: Mapping[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """Return a copy of an optimizer's state; what is as large as its parameter is divided as that is.

    It lies in memory as its parameter does, too: a fused step walks through both without looking at
    strides, and what was put together lies otherwise than kernels whose channels come last.
    """

    def copied(number: int, value: Any) -> Any:
        like = parameters[number] if number < len(parameters) else None
        if not isinstance(value, Tensor) or like is None or value.shape != like.shape:
            return copy.deepcopy(value)
        return _part(value, like) if _is_part(like) else torch.empty_like(like).copy_(value)

    about = {
        number: {name: copied(number, value) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": about, "param_groups": copy.deepcopy(state["param_groups"])}


def _part(tensor: Tensor, like: Tensor | None) -> Tensor:
    if not _is_part(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # Everybody has the same whole, so nothing is sent.
    part = distribute_tensor(tensor.contiguous(), like.device_mesh, like.placements, src_data_rank=None)
    return part.clone()  # a view would keep the whole in memory


def _is_part(tensor: Tensor | None) -> "TypeGuard[DTensor]":
    """Whether a process has only its part of this tensor, which it cannot before the class was loaded."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)
