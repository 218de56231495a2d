"""What two processes see that divide a learner between them; each writes it down for the tests."""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tests.methods.learning import LESSONS, cases, learn
from tests.methods.runs import brightness
from tests.methods.toys import plan_of
from tutelage.casework.workers import Workers
from tutelage.methods.base import Resources
from tutelage.methods.batches import Batches
from tutelage.methods.checkpoint import Checkpoint
from tutelage.methods.settings import TrainSettings
from tutelage.methods.sharding import gathered, shard
from tutelage.methods.supervised import Supervised
from tutelage.methods.training import Around, StepReport, fit

Wrap = Callable[[nn.Module], nn.Module]

SETTINGS = TrainSettings(steps=6, batch=4, warmup=0, ema=0.5, clip=0.1, checkpoint_every=3, validate_every=3)

PARTS = SETTINGS.model_copy(update={"accumulate": 2})

TAUGHT = (
    "supervised",
    "supervised, dealt unevenly",
    "supervised with batch norm",
    "supervised by AdamW",
    "mean teacher",
    "UA-MT",
    "CPS",
    "BCP",
    "TAK, cubes staying",
    "knowledge mining",
    "SemiSAM+",
    "ours",
)
"""Lessons, of every method that can be divided."""

divide: Wrap = partial(shard, device=torch.device("cpu"), large=500)
"""With convolutions of their own in a network of a test."""


@dataclass
class Seen:
    """One training by AdamW with everything that a checkpoint holds."""

    told: list[list[float]]
    """Step by step: the norm of the gradient, the loss and its terms."""
    weights: dict[str, Tensor]
    validated: tuple[tuple[int, float], ...]
    best: dict[str, Tensor] | None
    saved: dict[str, Any] | None
    """The checkpoint of the middle, where this process is who saves."""
    held: dict[str, int]
    """Numbers that this process held in the end, by what they are."""
    exchanges: int
    """Modules that are put together by themselves."""


def run(
    rank: int = 0,
    world: int = 1,
    wrap: Wrap | None = None,
    resume: Checkpoint | None = None,
    settings: TrainSettings = SETTINGS,
) -> Seen:
    """Train to the end, or on to it."""
    method = Supervised(plan_of().model_copy(update={"channels": (4, 8)}), settings, Resources())
    torch.manual_seed(0 if resume is None else 1)
    networks = method.networks()
    reports: list[StepReport] = []
    saved: list[Checkpoint] = []
    optimizers: list[torch.optim.Optimizer] = []
    adamw = torch.optim.AdamW

    def made(*about: Any, **more: Any) -> torch.optim.Optimizer:
        optimizers.append(adamw(*about, **more))
        return optimizers[0]

    around = Around(
        resume=resume,
        save=saved.append if rank == 0 else None,
        on_step=reports.append,
        validate=brightness if rank == 0 else None,
        wrap=wrap,
        mean=Workers(rank, world).mean,
    )
    batches = Batches(cases(), method.plan, settings, 5, rank, world)
    with patch.object(torch.optim, "AdamW", made):
        trained = fit(method, networks, batches, settings, around)
    parameters = [*networks.parameters()]
    moments = [about[name] for about in optimizers[0].state.values() for name in ("exp_avg", "exp_avg_sq")]
    gradients = [one.grad for one in parameters if one.grad is not None]
    return Seen(
        told=[[report.gradient_norm, report.loss, *report.terms.values()] for report in reports],
        weights=trained.last,
        validated=trained.validated,
        best=None if trained.best is None else trained.best.weights,
        saved=saved[0].to_dict() if saved else None,
        held={
            name: sum(_own(one).numel() for one in tensors)
            for name, tensors in (("weights", parameters), ("gradients", gradients), ("moments", moments))
        },
        exchanges=sum(isinstance(module, FSDPModule) for module in networks.modules()),
    )


def _own(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


if __name__ == "__main__":
    mine, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=mine, world_size=2)
    lessons = {name: learn(LESSONS[name], mine, 2, divide) for name in TAUGHT}
    alone = Checkpoint.from_dict(torch.load(folder / "alone.pt", weights_only=True))
    parts, wholes = run(mine, 2, divide), run(mine, 2, DistributedDataParallel)
    told = [parts.saved, wholes.saved]
    torch.distributed.broadcast_object_list(told)
    of_parts, of_wholes = (Checkpoint.from_dict(one) for one in told if one is not None)
    found = {
        "divided": parts,
        "divided, on divided": run(mine, 2, divide, of_parts),
        "divided, on whole": run(mine, 2, DistributedDataParallel, of_parts),
        "whole, on divided": run(mine, 2, divide, of_wholes),
        "one process, on divided": run(mine, 2, divide, alone),
        "divided, by parts": run(mine, 2, divide, settings=PARTS),
        "whole, by parts": run(mine, 2, DistributedDataParallel, settings=PARTS),
    }
    torch.save(
        {
            "lessons": {name: (one.told, gathered(one.weights)) for name, one in lessons.items()},
            "runs": {name: asdict(one) for name, one in found.items()},
        },
        folder / f"{mine}.pt",
    )
    torch.distributed.destroy_process_group()
