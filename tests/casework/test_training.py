"""What training is given and what it leaves, with cases that are files."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tutelage.archive.synthetic import STRUCTURES
from tutelage.casework import training
from tutelage.casework.training import TrainJob, train
from tutelage.casework.validating import Validator
from tutelage.casework.workers import Workers
from tutelage.errors import DivergedError, Preempted, TrainingError
from tutelage.labels.arrays import write_label
from tutelage.methods.base import SPECIALIST, Batch, Resources
from tutelage.methods.batches import Sample
from tutelage.methods.needs import Needs
from tutelage.methods.settings import TrainSettings
from tutelage.methods.supervised import Supervised
from tutelage.methods.training import StepReport
from tutelage.records import Case, PseudoLabel, Role
from tutelage.rounds.campaign import opened
from tutelage.rounds.progress import Reporter
from tutelage.rounds.settings import RunSettings
from tutelage.settings import load
from tutelage.specialist import artifact
from tutelage.specialist.network import build
from tutelage.specialist.plan import Plan, make_plan
from tutelage.specialist.settings import SpecialistSettings
from tutelage.storage import Place

pytestmark = [pytest.mark.torch, pytest.mark.files]

SETTINGS = TrainSettings(steps=3, warmup=1, checkpoint_every=2)
MAX_VOXELS = 10**8


@pytest.fixture(scope="module")
def cases(
    tmp_path_factory: pytest.TempPathFactory, write_tiny: Callable[[Path, str], Path]
) -> dict[Role, list[Case]]:
    """Phantoms by role."""
    from rich.console import Console

    settings = load(write_tiny(tmp_path_factory.mktemp("cases"), "workspace"), RunSettings)
    with opened(settings, Reporter(Console(quiet=True))) as campaign:
        return {role: list(campaign.catalog.of(role)) for role in Role}


@pytest.fixture
def job(cases: dict[Role, list[Case]], tmp_path: Path) -> TrainJob:
    return TrainJob(
        gold=tuple(cases[Role.GOLD]),
        pseudo=(),
        labels=str(tmp_path / "labels"),
        plan=make_plan(
            [case.grid for case in cases[Role.GOLD]], STRUCTURES, 1, SpecialistSettings(channels=(4, 8))
        ),
        settings=SETTINGS,
        seed=0,
        out=str(tmp_path / "specialist"),
        checkpoint=str(tmp_path / "checkpoint"),
        stage="r00",
        max_voxels=MAX_VOXELS,
        record=str(tmp_path / "training.json"),
    )


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Resources, list[Batch]]]:
    """A supervised method under any name, and what it was given."""
    given: list[tuple[Resources, list[Batch]]] = []

    class Spy(Supervised):
        def __init__(self, plan: Plan, settings: TrainSettings, resources: Resources) -> None:
            super().__init__(plan, settings, resources)
            self.first: dict[str, Tensor] = {}
            given.append((resources, []))

        def losses(self, batch: Batch, networks: nn.ModuleDict, step: int) -> dict[str, Tensor]:
            given[-1][1].append(batch)
            return super().losses(replace(batch, unlabeled=None), networks, step)

        def counts(self) -> dict[str, float]:
            return {"batches": float(len(given[-1][1]))}

    monkeypatch.setattr(training, "method_class", lambda name: Spy)
    return given


def believe(job: TrainJob, case: Case) -> None:
    mask = np.ones(case.grid.shape, np.uint8)
    pooled = np.zeros((len(STRUCTURES) + 1, 5), np.float16)
    label = PseudoLabel(case.case, mask, np.full(mask.shape, 51, np.uint8), (2,), (), pooled, None)
    write_label(Place.of(job.labels), label)


def test_where_volumes_lie_changes_nothing_that_is_learned(
    job: TrainJob, cases: dict[Role, list[Case]]
) -> None:
    one, *others = cases[Role.UNLABELED]
    believe(job, one)
    job = replace(job, pseudo=(one,), unlabeled=tuple(others))
    digests = []
    for memory_gb, disk_gb in ((8.0, 8.0), (0.0, 8.0), (0.0, 0.0)):
        settings = SETTINGS.model_copy(update={"max_gb": memory_gb, "disk_gb": disk_gb})
        checkpoint = f"{job.checkpoint}{memory_gb}{disk_gb}"
        digests.append(train(replace(job, settings=settings, checkpoint=checkpoint)))
    assert len(set(digests)) == 1


def test_a_specialist_is_left_and_what_it_took(job: TrainJob, tmp_path: Path) -> None:
    digest = train(job)
    assert artifact.digest_of(Place.of(job.out)) == digest
    told = json.loads((tmp_path / "training.json").read_text())
    assert (told["method"], told["selected"], told["digests"]) == ("supervised", "last", {"last": digest})
    assert told["seconds"] > 0
    assert told["peak_mib"] > 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "specialist", "training.json"]


@pytest.mark.parametrize(("select", "beside"), [("last", "best"), ("best", "last")])
def test_the_best_on_validation_and_the_last_are_both_kept(
    job: TrainJob,
    cases: dict[Role, list[Case]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    select: str,
    beside: str,
) -> None:
    scores = iter([0.4, 0.6, 0.5])
    monkeypatch.setattr(Validator, "__call__", lambda self, weights: iter([next(scores)]))
    settings = SETTINGS.model_copy(update={"validate_every": 1, "select": select})
    digest = train(replace(job, settings=settings, validation=tuple(cases[Role.VALIDATION])))
    told = json.loads((tmp_path / "training.json").read_text())
    assert told["validation_dice"] == [[1, 0.4], [2, 0.6], [3, 0.5]]
    assert told["best_step"] == 2
    assert told["digests"][select] == digest == artifact.digest_of(Place.of(job.out))
    assert told["digests"][beside] == artifact.digest_of(Place.of(f"{job.out}.{beside}"))
    assert len(set(told["digests"].values())) == 2


def test_looking_at_validation_cases_that_are_not_there_is_refused(job: TrainJob) -> None:
    settings = SETTINGS.model_copy(update={"validate_every": 1})
    with pytest.raises(TrainingError, match="no validation case"):
        train(replace(job, settings=settings))


def test_training_goes_on_from_the_checkpoint_it_left(job: TrainJob, tmp_path: Path) -> None:
    digest = train(job)
    taken: list[int] = []
    (tmp_path / "specialist" / "specialist.json").unlink()
    assert train(job, on_step=lambda report: taken.append(report.step)) == digest
    assert taken == [2]


@pytest.mark.parametrize("damage", ["cut", "one bit"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_gone_on_from(
    job: TrainJob, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    job = replace(job, settings=SETTINGS.model_copy(update={"steps": 5, "checkpoint_every": 2}))

    def written(report: StepReport) -> None:
        """A newer checkpoint takes the place of one that still waits: have the first one written before."""
        while report.step == 3 and not any((tmp_path / "checkpoint").glob("*.pt")):
            time.sleep(0.01)

    digest = train(job, on_step=written)
    older, newest = sorted((tmp_path / "checkpoint").iterdir())
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data[: len(data) // 2] if damage == "cut" else data)
    taken: list[int] = []
    assert train(job, on_step=lambda report: taken.append(report.step)) == digest
    assert taken == [2, 3, 4]
    assert f"{newest} is damaged" in caplog.text
    left = {path.name for path in (tmp_path / "checkpoint").iterdir()}
    assert {older.name, f"{newest.name}.damaged"} < left
    for path in (tmp_path / "checkpoint").glob("*.pt"):
        path.write_bytes(b"damaged")
    assert train(job, on_step=lambda report: taken.append(report.step)) == digest
    assert taken == [2, 3, 4, 0, 1, 2, 3, 4]
    assert "training starts over" in caplog.text


def test_asked_to_end_training_says_where_it_goes_on(job: TrainJob, tmp_path: Path) -> None:
    digest = train(replace(job, out=str(tmp_path / "unbroken"), checkpoint=str(tmp_path / "other")))
    with pytest.raises(
        Preempted, match=r"asked to end after 1 of 3 steps. The same command goes on from step 1"
    ):
        train(job, stop=lambda: True)
    assert [path.name[:11] for path in (tmp_path / "checkpoint").iterdir()] == ["step-000001"]
    assert not Path(job.out).exists()
    taken: list[int] = []
    assert train(job, on_step=lambda report: taken.append(report.step)) == digest
    assert taken == [1, 2]


def nowhere(job: TrainJob, tmp_path: Path) -> TrainJob:
    """The same with checkpoints beneath a file, where nothing can be written."""
    (tmp_path / "file").write_text("no folder")
    return replace(job, checkpoint=str(tmp_path / "file" / "checkpoint"))


def test_asked_to_end_training_does_not_promise_what_it_could_not_keep(job: TrainJob, tmp_path: Path) -> None:
    job = nowhere(job, tmp_path)
    with pytest.raises(Preempted, match=r"could not be kept \(\w+Error.*\)\. The same command starts over"):
        train(job, stop=lambda: True)


def test_a_place_that_cannot_be_written_ends_no_training(
    job: TrainJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = nowhere(job, tmp_path)
    assert train(job) == artifact.digest_of(Place.of(job.out))
    assert "checkpoint of step 2 could not be saved" in caplog.text


def test_cases_of_a_loss_that_is_no_number_are_written_down(job: TrainJob, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"learning_rate": 1e30, "clip": 1e30})
    job = replace(job, settings=settings, failure=str(tmp_path / "failure.json"))
    with pytest.raises(DivergedError) as found:
        train(job)
    told = json.loads((tmp_path / "failure.json").read_text())
    assert (told["step"], told["what"], told["value"]) == (found.value.step, found.value.what, "nan")
    assert told["cases"]
    assert set(told["cases"]) <= {case.case for case in job.gold}
    assert told["workers"] == [{"rank": 0, "cases": list(found.value.cases)}]
    train(replace(job, settings=SETTINGS, checkpoint=str(tmp_path / "new")))
    assert not (tmp_path / "failure.json").exists()


def test_a_loss_that_is_no_number_is_told_also_where_nothing_can_be_written(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(place: Place, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Place, "write_text", refused)
    settings = SETTINGS.model_copy(update={"learning_rate": 1e30, "clip": 1e30})
    with pytest.raises(DivergedError, match="expected a number"):
        train(replace(job, settings=settings, failure=str(tmp_path / "failure.json")))
    assert "failure.json cannot be written" in caplog.text


def test_numbers_that_are_too_large_only_together_are_told_too(job: TrainJob) -> None:
    error = DivergedError("the loss is inf in step 3 in another process")
    assert training._recorded(error, job, Workers()) is error


def test_a_generalist_in_another_place_is_asked_in_its_stead(
    job: TrainJob, spy: list[tuple[Resources, list[Batch]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere: Any = object()
    asks: Any = "whom to ask"
    needing(monkeypatch, asker=True)
    asked: list[object] = []

    def ask(job: object) -> Any:
        asked.append(job)
        return elsewhere

    train(replace(job, asks=asks), ask=ask)
    assert (asked, spy[0][0].asker) == ([asks], elsewhere)


# --- what methods need ----------------------------------------------------------------------


def needing(monkeypatch: pytest.MonkeyPatch, **needs: Any) -> None:
    monkeypatch.setattr(TrainJob, "needs", property(lambda job: Needs(mixes=False, **needs)))


def test_a_method_without_needs_is_given_nothing(
    job: TrainJob, spy: list[tuple[Resources, list[Batch]]]
) -> None:
    train(job)
    resources, seen = spy[0]
    assert (resources.texts_KTF, resources.asker) == (None, None)
    assert len(seen) == 3
    assert json.loads(Place.of(job.record or "").read_text())["counts"] == {"batches": 3.0}


def test_vectors_come_in_the_order_of_the_plan(
    job: TrainJob, spy: list[tuple[Resources, list[Batch]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tutelage.priors import vectors

    names = ("background", *reversed(STRUCTURES), "something else")
    array = np.arange(len(names), dtype=np.float32)[:, None, None].repeat(2, 1).repeat(4, 2)

    class Stored:
        structures, array_KTF = names, array

    monkeypatch.setattr(vectors, "read", lambda place: Stored)
    needing(monkeypatch, text=True)
    train(replace(job, texts="vectors.parquet"))
    texts = spy[0][0].texts_KTF
    assert texts is not None
    assert texts.shape == (len(STRUCTURES) + 1, 2, 4)
    assert texts[:, 0, 0].tolist() == [0, *range(len(STRUCTURES), 0, -1)]
    Stored.structures = names[:-3]
    Stored.array_KTF = array[:-3]
    with pytest.raises(TrainingError, match=f"no vectors of {STRUCTURES[0]}"):
        train(replace(job, texts="vectors.parquet"))


@pytest.mark.parametrize(("need", "message"), [("text", "names no file"), ("asker", "job names none")])
def test_what_a_method_needs_and_nobody_gives_is_told(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch, need: str, message: str
) -> None:
    needing(monkeypatch, **{need: True})
    with pytest.raises(TrainingError, match=message):
        train(job)


def test_a_method_that_goes_on_starts_from_the_specialist_before(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"learning_rate": 1e-12, "weight_decay": 0.0})
    job = replace(job, settings=settings)
    torch.manual_seed(7)
    before = build(job.plan).state_dict()
    artifact.save(Place.of(tmp_path / "before"), before, job.plan, {})
    needing(monkeypatch, continues=True)
    train(replace(job, start=str(tmp_path / "before")))
    after = artifact.load(Place.of(job.out))[0].state_dict()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    other = job.plan.model_copy(update={"channels": (8, 8)})
    with pytest.raises(TrainingError, match=r"cannot go on from .*before"):
        train(replace(job, plan=other, start=str(tmp_path / "before"), checkpoint=str(tmp_path / "new")))


@pytest.mark.parametrize("text", ["bottleneck", "head"])
def test_ours_goes_on_from_labels_alone_and_what_reads_text_starts_afresh(
    job: TrainJob, cases: dict[Role, list[Case]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    from tutelage.priors import vectors

    class Stored:
        structures = ("background", *STRUCTURES)
        array_KTF = np.eye(len(STRUCTURES) + 1, dtype=np.float32)[:, None]

    monkeypatch.setattr(vectors, "read", lambda place: Stored)
    torch.manual_seed(7)
    before = build(job.plan)
    artifact.save(Place.of(tmp_path / "before"), before.state_dict(), job.plan, {})
    settings = TrainSettings.model_validate(
        {
            **SETTINGS.model_dump(),
            **{"method": "tutelage", "learning_rate": 1e-12, "weight_decay": 0.0},
            "tutelage": {"text": text, "continues": True},
        }
    )
    goes_on = replace(
        job,
        settings=settings,
        unlabeled=tuple(cases[Role.UNLABELED]),
        texts="vectors.parquet",
        start=str(tmp_path / "before"),
    )
    train(goes_on)
    after, plan, _ = artifact.load(Place.of(job.out))
    assert plan.text is not None
    assert plan.text.kind == text
    known, learned = before.state_dict(), after.state_dict()
    taken = [name for name in known if name in learned and known[name].shape == learned[name].shape]
    assert all(torch.allclose(known[name], learned[name], atol=1e-6) for name in taken)
    assert len(taken) > len(known) / 2
    if text == "bottleneck":  # what is fused there changes nothing yet
        image = torch.randn(1, 1, *job.plan.patch)
        assert torch.allclose(before.eval()(image), after(image), atol=1e-3)
    flat = build(plan.model_copy(update={"text": None, "network": "vnet"}))
    artifact.save(
        Place.of(tmp_path / "other"), flat.state_dict(), job.plan.model_copy(update={"network": "vnet"}), {}
    )
    with pytest.raises(TrainingError, match=r"cannot go on from .*other"):
        train(replace(goes_on, start=str(tmp_path / "other"), checkpoint=str(tmp_path / "new")))


# --- validation -----------------------------------------------------------------------------


class Knows(nn.Module):
    """Answers with the first channel of the image, rounded, as the class."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = nn.Parameter(torch.arange(classes, dtype=torch.float32))

    def forward(self, image_BCDHW: Tensor) -> Tensor:
        return -(image_BCDHW - self.classes[:, None, None, None]).square()


@pytest.mark.parametrize("shape", [(4, 8, 8), (8, 24, 40)], ids=["whole", "in windows"])
def test_validation_is_mean_dice_over_structures_case_by_case(shape: tuple[int, int, int]) -> None:
    plan = Plan(
        structures=("a", "b"),
        spacing=(1, 1, 1),
        patch=(4, 8, 8),
        network="unet",
        channels=(4, 8),
        strides=((2, 2, 2),),
    )
    label = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)
    right = Sample("right", label[None].astype(np.float32), label, None, (), gold=True)
    wrong = np.where(label == 2, 0, label)
    half = Sample("half", wrong[None].astype(np.float32), label, None, (), gold=True)
    network = Knows(3)
    validate = Validator([right, half], plan, network)
    assert [*validate(network.state_dict())] == pytest.approx([1, (1 + 0) / 2])
    assert network.training


def test_a_weight_that_is_one_number_is_not_divided(job: TrainJob) -> None:
    settings = job.settings.model_copy(update={"method": "llm_segnet"})
    with pytest.raises(TrainingError, match=r"cluster\.shard is true, but llm_segnet .* take one"):
        train(replace(job, settings=settings), shard=True)


def test_kernels_lie_channels_last_and_are_the_same_numbers(job: TrainJob) -> None:
    network = build(job.plan)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    training.laid_out(nn.ModuleDict({SPECIALIST: network, "flat": nn.Conv2d(3, 4, 3)}))
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    kernels = [p for p in network.parameters() if p.dim() == 5 and p.shape[1] > 1 and p.shape[2] > 1]
    assert all(one.is_contiguous(memory_format=torch.channels_last_3d) for one in kernels)
