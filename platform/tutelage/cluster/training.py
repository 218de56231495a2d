"""Training one specialist with Ray Train: the plain loop in several processes.

Checkpoints and the finished specialist go to the workspace, where a retry, or the next
run, finds them; Ray's own storage holds nothing we need. Here it is decided what follows
when something is lost. A worker that dies or fails costs one of `train_retries`, and all of
them go on from the last checkpoint. A node that is taken away, or a SIGTERM, stops the loop
after a step, with a checkpoint, and costs nothing. What would only happen again, as a loss that
is no number, ends training at once. It knows no method and no step.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.exceptions import RayActorError
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from tutelage.casework.training import TrainJob
from tutelage.casework.watching import Stopper, asked_by_signal
from tutelage.cluster import board as boards
from tutelage.cluster.asking import Askers, askers
from tutelage.cluster.callbacks import Losses, Terminable
from tutelage.cluster.learning import Learning, learn
from tutelage.cluster.settings import ClusterSettings
from tutelage.errors import Preempted, TrainingError, TutelageError
from tutelage.methods.training import Pace, StepReport
from tutelage.specialist.artifact import digest_of
from tutelage.storage import Place

_POLL_EVERY_S = 0.5

_START_S = 60
"""Seconds after which Ray Train gives up a group of workers that did not start, and tries again."""

_log = logging.getLogger(__name__)

_train: Any = ray.train
"""Its annotations are still those of V1."""


def train(
    job: TrainJob,
    settings: ClusterSettings,
    on_step: Callable[[StepReport], None],
    on_pace: Callable[[Pace], None] | None = None,
) -> str:
    """Train on `settings.train_workers` processes and return the specialist's digest.

    Raises:
        TrainingError: it cannot be learned from, or every retry failed; the message says what was lost.
        Preempted: this process was told to end; the next run goes on from the checkpoint.
    """
    with ExitStack() as stack:
        pool = None
        if settings.askers and job.needs.asker and job.asks is not None:
            pool = stack.enter_context(askers(job.asks, settings))
        stopper = Stopper()
        stack.enter_context(asked_by_signal(stopper))
        training = stack.enter_context(closing(_Training(job, settings, on_step, on_pace, pool, stopper)))
        while (stopped := training.run()) is not None:
            if stopper():
                raise Preempted(stopped)
            _log.error("%s training: %s. Workers start again", job.stage, stopped)
    (Place.of(job.out).parent / "ray").remove()
    return digest_of(Place.of(job.out))


class _Training:
    """One training, in as many attempts as it takes, seen from the process that wants it."""

    def __init__(
        self,
        job: TrainJob,
        settings: ClusterSettings,
        on_step: Callable[[StepReport], None],
        on_pace: Callable[[Pace], None] | None,
        pool: Askers | None,
        stopper: Stopper,
    ) -> None:
        self._job, self._settings = job, settings
        self._on_step, self._on_pace, self._stopper = on_step, on_pace, stopper
        self._board = boards.hung()
        # Once for all: a job names every case, and Ray would send it along wherever it sends settings.
        self._learning = ray.put(Learning(job, settings, self._board, pool))
        self._lost = 0
        self._resumed = 0
        """After how many losses workers have gone on."""
        self._resuming = False
        self._waiting_since: float | None = None

    def run(self) -> str | None:
        """Train to the end, or until all workers stopped together; return why they did."""
        fitting = _Fitting(self._trainer())
        self._waiting_since = time.monotonic()
        fitting.start()
        while fitting.is_alive():
            self._relay()
            fitting.join(_POLL_EVERY_S)
        self._relay()
        if fitting.failure is not None:
            raise self._failed(fitting.failure) from fitting.failure
        stopped: str | None = fitting.stopped
        return stopped

    def close(self) -> None:
        ray.kill(self._board)

    def _trainer(self) -> Any:
        settings = self._settings
        gpus = settings.gpus_per_train_worker
        least, most = settings.worker_counts[0], settings.worker_counts[-1]
        self._share = {"CPU": settings.cpus_per_train_worker} | ({"GPU": gpus} if gpus else {})
        self._share |= settings.resources_per_train_worker
        trainer = _LoneTrainer if settings.address == "local" else _train.torch.TorchTrainer
        return trainer(
            learn,
            train_loop_config={"learning": self._learning},
            torch_config=ray.train.torch.TorchConfig(timeout_s=settings.patience_s),
            scaling_config=_train.ScalingConfig(
                num_workers=most if least == most else (least, most),
                use_gpu=gpus > 0,
                resources_per_worker=self._share,
                elastic_resize_monitor_interval_s=settings.resize_every_s,
            ),
            run_config=_train.RunConfig(
                name="specialist",
                storage_path=f"{Place.of(self._job.out).parent}/ray",
                failure_config=_train.FailureConfig(
                    max_failures=settings.train_retries,
                    controller_failure_limit=max(1, settings.patience_s // _START_S),
                ),
                callbacks=[Losses(self._board), Terminable()],
            ),
        )

    def _relay(self) -> None:
        """Hand on what workers pinned, say what happened to them, and pass on a wish to end."""
        if self._stopper():
            self._board.stop.remote()  # at every look, because a board that died forgot it
        try:
            pinned: list[boards.Pinned] = ray.get(self._board.take.remote())
        except RayActorError:  # started anew; reports are not worth a training
            return
        for what in pinned:
            if isinstance(what, boards.Lost):
                self._say_lost(what)
            elif isinstance(what, boards.Begun):
                self._resuming, self._waiting_since = self._lost > self._resumed, None
            else:
                self._hand_on(boards.read(what))
        self._say_waiting()

    def _hand_on(self, reports: boards.Reports) -> None:
        for report in reports.steps:
            if self._resuming:
                _log.error("%s training goes on from step %d", self._job.stage, report.step)
                self._resuming, self._resumed = False, self._lost
            self._on_step(report)
        if self._on_pace is not None:
            for pace in reports.paces:
                self._on_pace(pace)

    def _say_lost(self, lost: boards.Lost) -> None:
        self._lost += 1
        retries = self._settings.train_retries
        if self._lost <= retries:
            _log.error("%s training: %s; retry %d of %d", self._job.stage, lost, self._lost, retries)
            self._waiting_since = time.monotonic()

    def _say_waiting(self) -> None:
        """Say once what there is no room for, when no worker could start for long."""
        if self._waiting_since is None or time.monotonic() - self._waiting_since < _START_S:
            return
        self._waiting_since = None
        there, free = ray.cluster_resources(), ray.available_resources()  # type: ignore[no-untyped-call]
        found = ", ".join(
            f"{there.get(what, 0):g} {what} ({free.get(what, 0):g} free)" for what in self._share
        )
        wanted = ", ".join(f"{share:g} {what}" for what, share in self._share.items())
        _log.error(
            "no training worker has started for %d s: at least %d with %s each are wanted, the cluster has "
            "%s; waiting on, or change cluster.train_workers",
            *(_START_S, self._settings.worker_counts[0], wanted, found),
        )

    def _failed(self, failure: BaseException) -> TutelageError:
        """What ended training, in one line."""
        told = getattr(failure, "controller_failure", failure)
        if isinstance(told, TutelageError):
            return told
        if isinstance(failure, _train.WorkerGroupError):
            lost = boards.lost(failure.worker_failures)
            after = f" after {self._lost - 1} retries" if self._lost > 1 else ""
            return TrainingError(
                f"training on Ray failed{after}: {lost}; "
                f"started again, it goes on from its last checkpoint in {self._job.checkpoint}"
            )
        return TrainingError(f"training on Ray failed: {boards.reason(told)}")


class _LoneTrainer(_train.torch.TorchTrainer):  # type: ignore[misc]
    """Trains on a Ray that ends with this process, and so has nobody who would clean up after it.

    That would be a process more, and a dozen seconds at the end of a short training: it asks an API server
    that such a Ray does not have whether the training still lives, and is waited for.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        return [each for each in callbacks if not isinstance(each, PlacementGroupCleanerCallback)]


class _Fitting(threading.Thread):
    """Waits for Ray Train, whose `fit` returns only in the end."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(daemon=True)
        self._trainer = trainer
        self.failure: BaseException | None = None
        self.stopped: str | None = None

    def run(self) -> None:
        try:
            self.stopped = self._trainer.fit().return_value
        except BaseException as error:  # carried to the main thread, which raises it
            self.failure = error
