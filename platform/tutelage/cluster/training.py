"""Training one specialist with Ray Train: the plain loop in several processes.

Checkpoints and the finished specialist go to the workspace, where a retry, or the next
run, finds them; Ray's own storage holds nothing we need. Progress travels through a small
actor, because a report to Ray Train makes every worker wait for the slowest.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any

import ray
import ray.train
import ray.train.torch

from tutelage.casework.training import TrainJob
from tutelage.casework.training import train as train_here
from tutelage.cluster.settings import ClusterSettings
from tutelage.errors import TrainingError
from tutelage.methods.training import StepReport
from tutelage.specialist.artifact import digest_of
from tutelage.storage import Place

_POST_EVERY_STEPS = 10
_POLL_EVERY_S = 0.5


class _Board:
    """Where rank 0 pins what happened, for the driver to take."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []

    def post(self, reports: list[StepReport]) -> None:
        self.reports += reports

    def take(self) -> list[StepReport]:
        taken, self.reports = self.reports, []
        return taken


def train(job: TrainJob, settings: ClusterSettings, on_step: Callable[[StepReport], None]) -> str:
    """Train on `settings.train_workers` processes and return the specialist's digest.

    Raises:
        TrainingError: every retry failed; the message holds the first line of the cause.
    """
    board: Any = ray.remote(num_cpus=0)(_Board).remote()
    gpus = settings.gpus_per_train_worker
    trainer = ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config={"job": job, "board": board},
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.train_workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": 1} | ({"GPU": gpus} if gpus else {}),
        ),
        run_config=ray.train.RunConfig(
            name="specialist",
            storage_path=f"{Place.of(job.out).parent}/ray",
            failure_config=ray.train.FailureConfig(max_failures=settings.train_retries),
        ),
    )
    failure: list[BaseException] = []
    fitting = threading.Thread(target=_fit, args=(trainer, failure), daemon=True)
    fitting.start()
    while fitting.is_alive():
        _relay(board, on_step)
        fitting.join(_POLL_EVERY_S)
    _relay(board, on_step)
    ray.kill(board)
    if failure:
        cause = str(failure[0]).strip().splitlines()[-1] if str(failure[0]).strip() else repr(failure[0])
        raise TrainingError(f"training on Ray failed: {cause}") from failure[0]
    (Place.of(job.out).parent / "ray").remove()
    return digest_of(Place.of(job.out))


def _fit(trainer: Any, failure: list[BaseException]) -> None:
    try:
        trainer.fit()
    except BaseException as error:  # carried to the main thread, which raises it
        failure.append(error)


def _relay(board: Any, on_step: Callable[[StepReport], None]) -> None:
    for report in ray.get(board.take.remote()):
        on_step(report)


def _worker(config: dict[str, Any]) -> None:
    """One process of the training."""
    context = ray.train.get_context()
    waiting: list[StepReport] = []
    job: TrainJob = config["job"]

    def on_step(report: StepReport) -> None:
        waiting.append(report)
        last = report.step + 1 >= job.settings.steps
        if last or len(waiting) >= _POST_EVERY_STEPS:
            posted = config["board"].post.remote(list(waiting))
            waiting.clear()
            if last:
                ray.get(posted)

    rank = context.get_world_rank()
    train_here(
        job,
        on_step=on_step if rank == 0 else None,
        rank=rank,
        world=context.get_world_size(),
        wrap=functools.partial(
            ray.train.torch.prepare_model,
            parallel_strategy_kwargs={"find_unused_parameters": not job.needs.every_parameter},
        ),
    )
