"""What processes that learn together say to each other within a step, so that they learn as one would.

A loss that is a ratio of sums is not the mean of such ratios over parts of a batch. So every process
sums up its part, the sums are added, and each computes the same loss of the whole batch from
them. Joining them takes the mean of all gradients, to which each process gives only what flows
through its own part, and so the way back through an addition multiplies by their number; it needs
no exchange. In one process all of this changes nothing and costs nothing.

Whoever calls one of these functions must see to it that every process does, at the same place: a
process must not leave a term out because its own patches have nothing to say about it.

It does not know what is learned, nor who started the processes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm


def world() -> int:
    """Return how many processes learn together."""
    joined = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if joined else 1


# --- sums -----------------------------------------------------------------------------------


def total(*parts: Tensor) -> tuple[Tensor, ...]:
    """Return each part summed over all processes, all of them in one exchange.

    Gradients are right for whoever goes on in every process alike, up to a loss.
    """
    if world() == 1:
        return parts
    sums: Tensor = _Total.apply(_flat(parts))  # type: ignore[no-untyped-call]
    shaped = zip(torch.split(sums, [part.numel() for part in parts]), parts, strict=True)
    return tuple(one.view(part.shape) for one, part in shaped)


def mean(values: Tensor) -> Tensor:
    """Return the mean of all values in all processes."""
    summed, count = total(values.sum(), values.new_tensor(float(values.numel())))
    return summed / count


def anyone(here: bool, device: torch.device) -> bool:
    """Whether something is so in any process."""
    return here if world() == 1 else sum(counts(int(here), device)) > 0


def counts(here: int, device: torch.device) -> list[int]:
    """Return a count of each process, in their order."""
    if world() == 1:
        return [here]
    everyone = torch.zeros(world(), dtype=torch.int64, device=device)
    everyone[distributed.get_rank()] = here
    distributed.all_reduce(everyone)
    found: list[int] = everyone.tolist()
    return found


def _flat(parts: tuple[Tensor, ...]) -> Tensor:
    """All numbers in a row, in fp32 or what is more precise."""
    precise = torch.float64 if any(part.dtype is torch.float64 for part in parts) else torch.float32
    return torch.cat([part.flatten().to(precise) for part in parts])


def _summed(mine: Tensor) -> Tensor:
    """Add up over all processes what stays as it is in each."""
    sums = mine.clone()
    distributed.all_reduce(sums)
    return sums


class _Total(Function):
    """A sum of which every process makes the same."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        return _summed(mine)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope * world()


# --- rows -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows of all processes, one process after the other."""

    all: Tensor
    start: int
    """The first one that is this process's."""


def rows(mine: Tensor) -> Rows:
    """Bring together what each process has, however many rows; gradients as in `total`."""
    if world() == 1:
        return Rows(mine, 0)
    sizes = counts(len(mine), mine.device)
    everyones: Tensor = _Rows.apply(mine, sizes)  # type: ignore[no-untyped-call]
    return Rows(everyones, sum(sizes[: distributed.get_rank()]))


class _Rows(Function):
    """Rows of which every process makes the same."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, sizes: list[int]) -> Tensor:
        rank = distributed.get_rank()
        ctx.start, ctx.size = sum(sizes[:rank]), sizes[rank]
        padded = mine.new_zeros(max(sizes), *mine.shape[1:])
        padded[: len(mine)] = mine
        everyones = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(everyones, padded)
        return torch.cat([one[:size] for one, size in zip(everyones, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return slope.narrow(0, ctx.start, ctx.size) * world(), None


# --- neighbours -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ring:
    """All patches of one stream in a circle, by their place in the whole batch; no gradient goes around it.

    Patches are dealt like cards, so the one after a patch is the next process's. Where processes
    have unequally many, each has a circle of its own.
    """

    joined: bool
    """Over all processes."""
    lonely: bool
    """A patch would be its own neighbour."""

    @classmethod
    def of(cls, patches: Tensor) -> "Ring":
        """Find out whether every process has equally many."""
        everyones = counts(len(patches), patches.device)
        joined = len(everyones) > 1 and len(set(everyones)) == 1
        return cls(joined, lonely=len(patches) == 1 and not joined)

    def following(self, *parts: Tensor) -> list[Tensor]:
        """Return for each patch what the next one has."""
        return [self._moved(part, -1) for part in parts]

    def preceding(self, *parts: Tensor) -> list[Tensor]:
        """Return for each patch what the one before it has."""
        return [self._moved(part, 1) for part in parts]

    def _moved(self, part: Tensor, by: int) -> Tensor:
        if not self.joined:
            return part.roll(by, 0)
        rank, last = distributed.get_rank(), world() - 1
        # Not every way to send things knows booleans.
        sent = part.detach().to(torch.uint8 if part.dtype is torch.bool else part.dtype).contiguous()
        got = torch.empty_like(sent)
        exchange = [
            distributed.P2POp(distributed.isend, sent, (rank + by) % (last + 1)),
            distributed.P2POp(distributed.irecv, got, (rank - by) % (last + 1)),
        ]
        for work in distributed.batch_isend_irecv(exchange):
            work.wait()
        # Past the last process the circle goes on with the next patch of the first one, and the reverse.
        around = rank == (last if by < 0 else 0)
        return (got.roll(by, 0) if around else got).to(part.dtype)


# --- norms ----------------------------------------------------------------------------------


def join_norms(networks: nn.Module) -> None:
    """Let norms over a batch see the patches of all processes while they learn.

    Torch's own way of doing so knows GPUs alone.
    """
    if world() == 1:
        return
    for module in networks.modules():
        if isinstance(module, _BatchNorm):
            module.forward = partial(_normed, module, module.forward)  # type: ignore[method-assign]


def _normed(norm: _BatchNorm, alone: Callable[[Tensor], Tensor], image_BC: Tensor) -> Tensor:
    """Batch norm over all processes, in fp32 whatever the image comes in."""
    if not norm.training:
        return alone(image_BC)
    axes = [axis for axis in range(image_BC.dim()) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(image_BC.dim())]
    with torch.autocast(image_BC.device.type, enabled=False):
        x = image_BC.float()
        here = x.new_tensor([float(x.numel() // x.shape[1])])
        sums = _shared(torch.cat([x.sum(axes), here]))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        away = x - mean.view(shape)
        variance = _shared(away.square().sum(axes)) / count
        _remember(norm, mean.detach(), (variance * count / (count - 1)).detach())
        y: Tensor = away * (variance + norm.eps).rsqrt().view(shape)
        if norm.affine:
            y = torch.addcmul(norm.bias.view(shape), y, norm.weight.view(shape))
        return y.to(image_BC.dtype)


def _shared(mine: Tensor) -> Tensor:
    sums: Tensor = _Shared.apply(mine)  # type: ignore[no-untyped-call]
    return sums


@torch.no_grad()
def _remember(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics as torch does."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked += 1
    share = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(variance, share)


class _Shared(Function):
    """A sum with which each process goes on in its own way, so that all of their gradients count."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        return _summed(mine)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return _summed(slope)
