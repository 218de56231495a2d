"""One process of a training on Ray: runs the plain loop, reports, and hears when it has to stop.

SIGTERM, Ray's word that the node is taken away, and whoever wants the training may ask the
loop to stop after the step it is in, with a checkpoint. Having stopped is a result, not an
error, or it would cost a retry.
"""

import functools
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train.v2._internal.execution.context import get_train_context

from tutelage.casework.training import TrainJob
from tutelage.casework.training import train as train_here
from tutelage.cluster import streams
from tutelage.cluster.asking import Askers
from tutelage.cluster.board import Pins
from tutelage.cluster.callbacks import terminated
from tutelage.cluster.settings import ClusterSettings
from tutelage.errors import Preempted


@dataclass(frozen=True, slots=True)
class Learning:
    """What every worker is given."""

    job: TrainJob
    settings: ClusterSettings
    board: Any
    """Where it reports."""
    pool: Askers | None
    """Whom its method may ask; None loads the generalist here."""


def learn(config: dict[str, Any]) -> str | None:
    """Train; return why it stopped before the end, if it did."""
    learning: Learning = ray.get(config["learning"])
    job, pool = learning.job, learning.pool
    if torch.cuda.is_available():  # a worker sees all GPUs of its node
        torch.cuda.set_device(ray.train.torch.get_device())
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    pins = Pins(learning.board, rank, job.settings.checkpoint_every)
    pins.begin()
    try:
        train_here(
            job,
            on_step=pins.on_step,
            rank=rank,
            world=world,
            wrap=functools.partial(
                ray.train.torch.prepare_model,
                parallel_strategy_kwargs={
                    "find_unused_parameters": not job.needs.every_parameter,
                    "gradient_as_bucket_view": True,  # spares a copy of all gradients, there and back
                },
            ),
            shard=learning.settings.shard and world > 1,
            ask=None if pool is None else lambda asks: pool,
            read=streams.reader(learning.settings, world),
            stop=lambda: pins.stopping() or _ending(),
        )
    except Preempted as stopped:
        return str(stopped)
    finally:
        pins.finish()
    return None


def _ending() -> bool:
    """Whether this process, or its node, is about to be taken away."""
    # `ray.train.get_preemption_info` says the same, but makes every worker wait for the slowest.
    return terminated.is_set() or get_train_context().preemption_context.preemption_info is not None
