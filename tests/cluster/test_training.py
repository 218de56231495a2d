"""Training on Ray that loses workers, nodes and its driver ends as one that never did."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage.archive.synthetic import STRUCTURES
from tutelage.casework.training import TrainJob
from tutelage.casework.training import train as train_here
from tutelage.cluster import learning, training
from tutelage.cluster.settings import ClusterSettings
from tutelage.errors import DivergedError, Preempted, TrainingError
from tutelage.methods.settings import TrainSettings
from tutelage.methods.training import Pace, StepReport
from tutelage.records import Case, Role
from tutelage.rounds.campaign import opened
from tutelage.rounds.progress import Reporter
from tutelage.rounds.settings import RunSettings
from tutelage.settings import load
from tutelage.specialist import artifact
from tutelage.specialist.plan import make_plan
from tutelage.specialist.settings import SpecialistSettings
from tutelage.storage import Place

pytestmark = [pytest.mark.ray, pytest.mark.torch, pytest.mark.usefixtures("local_ray")]

STEPS, EVERY = 12, 4
TWO = ClusterSettings(backend="ray", train_workers=2)


@pytest.fixture(scope="module")
def cases(
    tmp_path_factory: pytest.TempPathFactory, write_tiny: Callable[[Path, str], Path]
) -> tuple[Case, ...]:
    """Annotated phantoms."""
    from rich.console import Console

    settings = load(write_tiny(tmp_path_factory.mktemp("cases"), "workspace"), RunSettings)
    with opened(settings, Reporter(Console(quiet=True))) as campaign:
        return tuple(campaign.catalog.of(Role.GOLD))


def job_in(folder: Path, cases: tuple[Case, ...], **told: Any) -> TrainJob:
    return TrainJob(
        gold=cases,
        pseudo=(),
        labels=str(folder / "labels"),
        plan=make_plan([case.grid for case in cases], STRUCTURES, 1, SpecialistSettings(channels=(4, 8))),
        settings=TrainSettings(**{"steps": STEPS, "warmup": 1, "checkpoint_every": EVERY, **told}),
        seed=0,
        out=str(folder / "specialist"),
        checkpoint=str(folder / "checkpoint"),
        stage="labels-only",
        max_voxels=10**8,
    )


@dataclass(frozen=True)
class Trained:
    """What a training left and told."""

    weights: dict[str, torch.Tensor]
    losses: dict[int, float]
    steps: list[int]
    paces: list[Pace]


def trained(
    job: TrainJob, settings: ClusterSettings, on_step: Callable[[StepReport], None] = lambda report: None
) -> Trained:
    reports: list[StepReport] = []
    paces: list[Pace] = []

    def both(report: StepReport) -> None:
        reports.append(report)
        on_step(report)

    training.train(job, settings, both, paces.append)
    return left(job, reports, paces)


def left(job: TrainJob, reports: list[StepReport], paces: list[Pace]) -> Trained:
    network, _, _ = artifact.load(Place.of(job.out))
    losses = {report.step: report.loss for report in reports}
    return Trained(dict(network.state_dict()), losses, [report.step for report in reports], paces)


def same(one: Trained, other: Trained) -> None:
    assert one.losses == other.losses
    assert set(one.losses) == set(range(STEPS))
    assert all(torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items())


def alike(one: Trained, other: Trained) -> None:
    """Losses agree, the first to rounding; then AdamW makes whole steps of what is hardly a gradient."""
    assert set(one.losses) == set(other.losses) == set(range(STEPS))
    assert one.losses[0] == pytest.approx(other.losses[0], rel=1e-6)
    for number, loss in one.losses.items():
        assert loss == pytest.approx(other.losses[number], rel=2e-3), number


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, cases: tuple[Case, ...], local_ray: None) -> Trained:
    """What two workers learn that nothing happens to."""
    return trained(job_in(tmp_path_factory.mktemp("unbroken"), cases), TWO)


@pytest.fixture(autouse=True)
def known_to_workers() -> Iterator[None]:
    """Let workers have the functions below: they cannot import a test."""
    from ray import cloudpickle

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]
    yield
    cloudpickle.unregister_pickle_by_value(module)  # type: ignore[no-untyped-call]


Happening = tuple[int, int, Callable[[], None]]
"""A rank, a step, and what happens to it there the first time."""


def kept(folder: str, step: int) -> None:
    """Wait for the checkpoint of a step: a thread writes it, on a busy machine some steps later."""
    until = time.monotonic() + 30
    while step and not any(Path(folder).glob(f"step-{step:06d}-*.pt")):
        assert time.monotonic() < until, f"no checkpoint of step {step}"
        time.sleep(0.01)


def happening(monkeypatch: pytest.MonkeyPatch, folder: Path, *happenings: Happening) -> None:
    """Let things happen in workers."""

    def learn(config: dict[str, Any]) -> str | None:
        def trains(job: TrainJob, *, on_step: Callable[[StepReport], None], **told: Any) -> str:
            def stepped(report: StepReport) -> None:
                on_step(report)
                for rank, number, happen in happenings:
                    mark = folder / f"happened-{number}"
                    if (told["rank"], report.step) == (rank, number) and not mark.exists():
                        mark.touch()
                        kept(job.checkpoint, report.step // EVERY * EVERY)
                        happen()

            return train_here(job, on_step=stepped, **told)

        vars(learning)["train_here"] = trains
        return learning.learn(config)

    monkeypatch.setattr(training, "learn", learn)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def burn() -> None:
    raise OSError("the disk is on fire")


def be_told_to_end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(2)  # the signal is handled in another thread


def be_drained() -> None:
    from ray.train.v2._internal.execution.context import get_train_context
    from ray.train.v2.api.preemption import PreemptionInfo

    get_train_context().preemption_context.preemption_info = PreemptionInfo(None, {"node": [0]})


def test_two_workers_on_ray_learn_what_a_plain_loop_does(
    unbroken: Trained, cases: tuple[Case, ...], tmp_path: Path
) -> None:
    job, reports = job_in(tmp_path, cases), list[StepReport]()
    train_here(job, on_step=reports.append)
    alike(unbroken, left(job, reports, []))


def test_two_workers_who_divide_a_specialist_learn_what_those_do_who_have_all_of_it(
    unbroken: Trained, cases: tuple[Case, ...], tmp_path: Path
) -> None:
    alike(trained(job_in(tmp_path, cases), TWO.model_copy(update={"shard": True})), unbroken)


def test_the_driver_hears_of_every_step_and_of_every_worker(unbroken: Trained) -> None:
    assert unbroken.steps == list(range(STEPS))
    assert [(pace.rank, pace.step) for pace in unbroken.paces] == [(1, number) for number in range(STEPS)]
    assert all(pace.seconds > 0 for pace in unbroken.paces)


def test_a_killed_and_a_failing_worker_cost_only_steps_since_the_checkpoint(
    unbroken: Trained,
    cases: tuple[Case, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    happening(monkeypatch, tmp_path, (0, 6, die), (1, 9, burn))
    broken = trained(job_in(tmp_path, cases), TWO)
    same(broken, unbroken)
    assert broken.steps.count(3) == 1
    assert broken.steps[-4:] == [8, 9, 10, 11]
    told = [record.getMessage() for record in caplog.records if record.name.startswith("tutelage")]
    assert "worker 0 lost" in told[0]
    assert "retry 1 of 2" in told[0]
    assert told[1] == "labels-only training goes on from step 4"
    assert "OSError: the disk is on fire" in told[2]
    assert "retry 2 of 2" in told[2]
    assert told[3] == "labels-only training goes on from step 8"


def test_a_training_out_of_retries_says_what_was_lost_and_goes_on_when_started_again(
    unbroken: Trained, cases: tuple[Case, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happening(monkeypatch, tmp_path, (1, 6, burn))
    job = job_in(tmp_path, cases)
    settings = TWO.model_copy(update={"train_retries": 0})
    with pytest.raises(TrainingError, match=r"worker 1 lost \(OSError: the disk is on fire\).*goes on from"):
        trained(job, settings)
    again = trained(job, settings)
    assert again.steps == list(range(4, STEPS))
    assert all(torch.equal(tensor, unbroken.weights[name]) for name, tensor in again.weights.items())


def test_a_worker_told_to_end_and_a_node_taken_away_cost_no_step_and_no_retry(
    unbroken: Trained,
    cases: tuple[Case, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    happening(monkeypatch, tmp_path, (1, 5, be_told_to_end), (0, 9, be_drained))
    stopped = trained(job_in(tmp_path, cases), TWO.model_copy(update={"train_retries": 0}))
    same(stopped, unbroken)
    assert stopped.steps == list(range(STEPS))
    assert caplog.text.count("Workers start again") == 2


def test_a_loss_that_is_no_number_is_not_tried_again(
    cases: tuple[Case, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DivergedError, match="expected a number") as failed:
        trained(job_in(tmp_path, cases, learning_rate=1e30), TWO)
    assert any(case.case in str(failed.value) for case in cases)
    assert "retry" not in caplog.text


def test_a_driver_told_to_end_lets_workers_save_and_the_next_goes_on(
    unbroken: Trained, cases: tuple[Case, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happening(monkeypatch, tmp_path, *((0, number, lambda: time.sleep(1)) for number in range(1, 5)))
    job = job_in(tmp_path, cases)
    before = signal.getsignal(signal.SIGTERM)

    def on_step(report: StepReport) -> None:
        if report.step == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted, match="goes on from step"):
        trained(job, TWO, on_step)
    assert signal.getsignal(signal.SIGTERM) is before
    again = trained(job, TWO)
    assert 0 < again.steps[0] < STEPS
    assert all(torch.equal(tensor, unbroken.weights[name]) for name, tensor in again.weights.items())


def test_a_range_of_workers_takes_as_many_as_nodes_hold_and_learns_the_same(
    unbroken: Trained, cases: tuple[Case, ...], tmp_path: Path
) -> None:
    import ray

    cores = int(ray.cluster_resources()["CPU"])  # type: ignore[no-untyped-call]
    settings = ClusterSettings(backend="ray", train_workers=(1, 2), cpus_per_train_worker=cores - 1)
    alone = trained(job_in(tmp_path, cases), settings)
    assert not alone.paces, "there is no room for a second worker"
    alike(alone, unbroken)
