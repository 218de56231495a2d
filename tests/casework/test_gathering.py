"""Cases on their way to what learns from them: decoded ahead, kept under a bound, lost on the way."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tutelage.archive import formats
from tutelage.casework import gathering
from tutelage.casework.gathering import Decoder, Item, Streamed, Unreadable, in_threads, shelves
from tutelage.casework.training import TrainJob
from tutelage.errors import TrainingError
from tutelage.geometry import Grid
from tutelage.labels.arrays import file_of, write_label
from tutelage.methods.batches import Batches
from tutelage.methods.needs import Needs
from tutelage.methods.settings import AugmentSettings, TrainSettings
from tutelage.methods.shelves import Ready, Sample, Shelf, Shelves, ready
from tutelage.records import Case, PseudoLabel, Role
from tutelage.specialist.plan import make_plan
from tutelage.specialist.settings import SpecialistSettings
from tutelage.storage import Place

pytestmark = [pytest.mark.torch, pytest.mark.files]

GRID = Grid.from_spacing((4, 8, 8), (2.0, 1.0, 1.0))
STRUCTURES = ["a", "b"]
SETTINGS = TrainSettings(
    steps=8, batch=4, window=8, reuse=2, augment=AugmentSettings(foreground_share=0.5, noise=0)
)
VOLUME_GB = 4000 / 1e9
"""More than one volume, and less than two."""


def case_of(folder: Path, name: str, role: Role) -> Case:
    rng = np.random.default_rng(list(name.encode()))
    image, label = folder / f"{name}.nii.gz", folder / f"{name}-label.nii.gz"
    formats.write_image(str(image), rng.normal(size=GRID.shape).astype(np.float32), GRID)
    if role is Role.GOLD:
        formats.write_image(str(label), rng.integers(0, 3, GRID.shape).astype(np.uint8), GRID)
    told = str(label) if role is Role.GOLD else None
    return Case(name, name, role, str(image), told, None, "CT", GRID, 1, "0")


def believe(job: TrainJob, case: Case, features: int = 0) -> None:
    rng = np.random.default_rng(list(case.case.encode()))
    mask = rng.integers(0, 3, GRID.shape).astype(np.uint8)
    grid = np.ones((GRID.shape[0], features, 8, 8), np.float16) if features else None
    pooled = np.zeros((3, max(1, features)), np.float16)
    label = PseudoLabel(case.case, mask, np.full(mask.shape, 51, np.uint8), (2,), (), pooled, grid)
    write_label(Place.of(job.labels), label)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Case], list[Case]]:
    """Two annotated cases and sixty others."""
    folder = tmp_path_factory.mktemp("archive")
    gold = [case_of(folder, f"g{n}", Role.GOLD) for n in range(2)]
    return gold, [case_of(folder, f"u{n}", Role.UNLABELED) for n in range(60)]


@pytest.fixture
def job(archive: tuple[list[Case], list[Case]], tmp_path: Path) -> TrainJob:
    """Forty cases with a pseudo-label and twenty without."""
    gold, others = archive
    made = TrainJob(
        gold=tuple(gold),
        pseudo=tuple(others[:40]),
        labels=str(tmp_path / "labels"),
        plan=make_plan([GRID], STRUCTURES, 1, SpecialistSettings(channels=(4, 8))),
        settings=SETTINGS,
        seed=0,
        out=str(tmp_path / "specialist"),
        checkpoint=str(tmp_path / "checkpoint"),
        stage="r00",
        max_voxels=10**8,
        unlabeled=tuple(others[40:]),
    )
    for case in made.pseudo:
        believe(made, case)
    return made


def told(job: TrainJob, **values: object) -> TrainJob:
    return replace(job, settings=job.settings.model_copy(update=values))


def drawn(
    job: TrainJob, cases: Shelves, start: int = 0, stop: int = 60, rank: int = 0, world: int = 1
) -> list[bytes]:
    """What each step is learned from, to the bit."""
    batches = Batches(cases, job.plan, job.settings, job.seed, rank, world)
    found = []
    for one in batches.ahead(start, stop):
        at = one.on(torch.device("cpu"))
        assert at.unlabeled is not None
        parts = [
            (p.cases, p.image.numpy().tobytes(), p.weight.numpy().tobytes())
            for p in (at.labeled, at.unlabeled)
        ]
        found.append(repr(parts).encode())
    return found


class Noting:
    """A reader that notes what it is given and what is taken from it."""

    def __init__(self) -> None:
        self.given: list[str] = []
        self.taken: list[str] = []

    def __call__(self, decoder: Decoder, items: Sequence[Item]) -> Iterator[Ready | Unreadable]:
        self.given += [item.case.case for item in items]
        for item in items:
            self.taken.append(item.case.case)
            yield decoder(item)


# --- what a case carries --------------------------------------------------------------------


def every(shelf: Shelf) -> dict[str, Ready]:
    found = [shelf.at(index) for index in range(len(shelf))]
    return {one.sample.case: one for one in found if one is not None}


def test_each_kind_of_case_carries_what_is_known_of_it(job: TrainJob) -> None:
    with shelves(job) as cases:
        gold, others = every(cases.gold), every(cases.others)
    assert (len(gold), len(others)) == (2, 60)
    annotated, believed, unknown = gold["g0"].sample, others["u0"].sample, others["u40"].sample
    assert annotated.gold
    assert annotated.weight_DHW is None
    assert believed.weight_DHW == pytest.approx(0.2)
    assert believed.undecided == (2,)
    assert (unknown.label_DHW, unknown.weight_DHW, unknown.gold, believed.gold) == (None, None, False, False)
    assert believed.image_CDHW.min() == others["u0"].darkest


def test_no_label_of_an_unlabeled_case_is_opened(job: TrainJob) -> None:
    one = replace(job.unlabeled[0], label="nowhere.nii.gz", hidden="nowhere.nii.gz")
    with shelves(replace(job, pseudo=(), unlabeled=(one,))) as cases:
        found = cases.others.at(0)
    assert found is not None
    assert found.sample.label_DHW is None


def test_only_a_method_that_needs_features_reads_them(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, case in enumerate(job.pseudo[:3]):
        believe(job, case, features=5 if number else 0)
    with shelves(job) as cases:
        assert cases.width == 0
        assert every(cases.others)["u1"].sample.features_DCHW is None
    monkeypatch.setattr(TrainJob, "needs", property(lambda job: Needs(features=True)))
    with shelves(job) as cases:
        assert cases.width == 5
        assert every(cases.others)["u1"].sample.width == 5
        assert every(cases.others)["u0"].sample.width == 0
    believe(job, job.pseudo[7], features=4)
    with (
        shelves(job) as cases,
        pytest.raises(TrainingError, match="features of u7 have 4 channels, expected 5"),
    ):
        cases.others.at(7)


def test_a_label_with_more_structures_than_the_plan_is_refused_when_it_is_drawn(job: TrainJob) -> None:
    narrow = make_plan([GRID], ["a"], 1, SpecialistSettings(channels=(4, 8)))
    with (
        shelves(replace(job, plan=narrow)) as cases,
        pytest.raises(TrainingError, match=r"u0 has .* label it again"),
    ):
        cases.others.at(0)


# --- ahead of need --------------------------------------------------------------------------


def test_batches_are_the_same_whatever_is_kept_and_whoever_reads(job: TrainJob) -> None:
    found = []
    for read in (None, Noting()):
        for room in (
            {},
            {"max_gb": 0.0},
            {"max_gb": 4 * VOLUME_GB, "disk_gb": 3 * VOLUME_GB},
            {"max_gb": 0.0, "disk_gb": 0.0},
        ):
            one = told(job, **room)
            with shelves(one, read) as cases:
                found.append(drawn(one, cases, 0, 24))
    assert all(other == found[0] for other in found)
    assert len(set(found[0])) == 24


def test_going_on_in_the_middle_draws_what_would_have_been_drawn(job: TrainJob) -> None:
    with shelves(job) as cases:
        whole = drawn(job, cases)
    for start in (1, 17, 59):
        with shelves(job) as cases:
            assert drawn(job, cases, start) == whole[start:]


def test_cases_are_read_in_the_order_in_which_they_are_drawn_and_not_far_ahead(job: TrainJob) -> None:
    reader = Noting()
    with shelves(job, reader) as cases:
        batches = Batches(cases, job.plan, job.settings, job.seed)
        first: dict[str, None] = {}
        for number, one in enumerate(batches.ahead(0, 60)):
            at = one.on(torch.device("cpu"))
            first |= dict.fromkeys((*at.labeled.cases, *(at.unlabeled.cases if at.unlabeled else ())))
            most = 2 * (gathering._READ_AHEAD + 1) + 4  # of both streams, and the next step is drawn already
            assert len(set(reader.taken) - first.keys()) <= most, number
    read = [case for case in reader.taken if case.startswith("u")]
    assert read[:40] == [case for case in first if case.startswith("u")][:40]


def test_with_room_for_the_window_each_case_is_decoded_once_a_pass(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two patches a step and two a case, of sixty cases: sixty steps are a pass."""
    decoded: Counter[str] = Counter()

    def counted(sample: Sample) -> Ready:
        decoded[sample.case] += 1
        return ready(sample)

    monkeypatch.setattr(gathering, "ready", counted)
    with shelves(told(job, max_gb=0.0, disk_gb=16 * VOLUME_GB)) as cases:
        drawn(job, cases, 0, 240)
    assert len(decoded) == 62
    assert max(decoded.values()) <= 5, "four passes, and the window into the fifth"
    assert sum(decoded[case] for case in decoded if case.startswith("u")) <= 60 * 4 + 8


def test_memory_is_flat_however_long_an_archive_is_learned_from(job: TrainJob) -> None:
    small = told(job, max_gb=6 * VOLUME_GB, disk_gb=8 * VOLUME_GB)
    with shelves(small) as cases:
        assert isinstance(cases.others, Streamed)
        volumes, held = cases.others._volumes, []
        for _ in Batches(cases, job.plan, job.settings, job.seed).ahead(0, 300):
            waiting = sum(
                len(shelf._there) for shelf in (cases.gold, cases.others) if isinstance(shelf, Streamed)
            )
            held.append(volumes.in_memory + volumes.in_files)
            assert waiting <= 2 * gathering._READ_AHEAD
        assert volumes.gone > 200
    assert max(held) <= 14e9 * VOLUME_GB
    slope = np.polyfit(np.arange(250), held[50:], 1)[0]
    assert abs(slope) < 1e9 * VOLUME_GB / 100, "bytes a step"


def test_a_bound_below_the_window_is_told_once(job: TrainJob, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING, "tutelage"),
        shelves(told(job, max_gb=0.0, disk_gb=4 * VOLUME_GB)) as cases,
    ):
        drawn(job, cases)
    assert [r.getMessage() for r in caplog.records if "lower train.window" in r.getMessage()] != []
    assert sum("lower train.window" in r.getMessage() for r in caplog.records) == 1


def test_what_goes_wrong_in_a_reader_is_told_where_it_is_drawn(job: TrainJob) -> None:
    def broken(decoder: Decoder, items: Sequence[Item]) -> Iterator[Ready | Unreadable]:
        yield decoder(items[0])
        raise RuntimeError("no cluster any more")

    with shelves(job, broken) as cases, pytest.raises(RuntimeError, match="no cluster any more"):
        drawn(job, cases)


def test_nothing_reads_on_when_training_is_over(job: TrainJob) -> None:
    before = set(threading.enumerate())
    with shelves(job) as cases:
        ahead = Batches(cases, job.plan, job.settings, job.seed).ahead(0, 60)
        next(ahead)
        del ahead
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


def test_who_draws_on_when_training_is_over_waits_for_nobody(job: TrainJob) -> None:
    with shelves(job) as cases:
        pass
    cases.others.soon([0, 1])
    drawing = threading.Thread(target=lambda: cases.others.at(1), daemon=True)
    drawing.start()
    drawing.join(60)
    assert not drawing.is_alive()


def test_threads_yield_in_order_and_do_not_run_off(job: TrainJob) -> None:
    decoded: list[str] = []
    reader = Decoder(job.plan, job.labels, job.max_voxels, False)

    class Slow(Decoder):
        def __call__(self, item: Item) -> Ready | Unreadable:
            decoded.append(item.case.case)
            return reader(item)

    items = [Item(case, "unlabeled") for case in job.unlabeled]
    found = in_threads(Slow(job.plan, job.labels, job.max_voxels, False), items)
    first = next(found)
    assert isinstance(first, Ready)
    assert len(decoded) <= gathering._THREADS
    rest = [one.sample.case for one in found if isinstance(one, Ready)]
    assert [first.sample.case, *rest] == [case.case for case in job.unlabeled]


# --- what vanishes --------------------------------------------------------------------------


def lose_label(job: TrainJob) -> Path:
    found = file_of(Place.of(job.labels), "u7").local
    assert found is not None
    return found


def lose_image(job: TrainJob) -> Path:
    return Path(job.pseudo[7].image)


@pytest.mark.parametrize("what", [lose_label, lose_image], ids=["label", "image"])
@pytest.mark.parametrize("damaged", [False, True], ids=["gone", "damaged"])
def test_a_case_that_vanishes_ends_the_training_and_is_named(
    job: TrainJob, what: Callable[[TrainJob], Path], damaged: bool
) -> None:
    file = what(job)
    kept = file.read_bytes()
    try:
        with shelves(job) as cases:
            ahead = Batches(cases, job.plan, job.settings, job.seed).ahead(0, 200)
            next(ahead)
            file.write_bytes(kept[:50]) if damaged else file.unlink()
            with pytest.raises(TrainingError, match=rf"(?s)^u7 .*{file.name}.* train\.missing to skip"):
                list(ahead)
    finally:
        file.write_bytes(kept)


def test_or_another_case_stands_in_which_is_counted_and_told_once(
    job: TrainJob, caplog: pytest.LogCaptureFixture
) -> None:
    skipping = told(job, missing="skip")
    with shelves(skipping) as cases:
        whole = drawn(skipping, cases)
    lose_label(job).unlink()
    with caplog.at_level(logging.WARNING, "tutelage"), shelves(skipping) as cases:
        batches = Batches(cases, job.plan, skipping.settings, job.seed)
        seen = {
            patch.ready.sample.case
            for one in batches.ahead(0, 60)
            for patch in (one.unlabeled.patches if one.unlabeled else ())
        }
        again = drawn(skipping, cases)
    lost = sum(b"'u7'" in one for one in whole)
    assert lost > 0
    assert "u7" not in seen
    assert batches.counts()["skipped"] >= lost
    assert [one == other for one, other in zip(whole, again, strict=True)] == [
        b"'u7'" not in one for one in whole
    ]
    assert (
        sum("u7 is passed over" in r.getMessage() and "u7.npz" in r.getMessage() for r in caplog.records) == 1
    )


def test_labels_that_were_gone_before_are_no_reason_not_to_begin(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainJob, "needs", property(lambda job: Needs(features=True)))
    for case in job.pseudo:
        believe(job, case, features=5)
    file = file_of(Place.of(job.labels), "u0")
    file.remove()
    with pytest.raises(TrainingError, match=r"^u0 .*u0\.npz"), shelves(job):
        pass
    with shelves(told(job, missing="skip")) as cases:
        assert cases.width == 5
