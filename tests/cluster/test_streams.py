"""Cases decoded by Ray Data are those that threads decode, in the order in which they are drawn."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tutelage.archive import formats
from tutelage.casework.gathering import Decoder, Item, Unreadable, shelves
from tutelage.casework.training import TrainJob
from tutelage.cluster.settings import ClusterSettings
from tutelage.cluster.streams import packed, reader, unpacked
from tutelage.errors import TrainingError
from tutelage.geometry import Grid
from tutelage.labels.arrays import file_of, write_label
from tutelage.methods.batches import Batches
from tutelage.methods.settings import TrainSettings
from tutelage.methods.shelves import Ready, Sample
from tutelage.records import Case, PseudoLabel, Role
from tutelage.specialist.plan import make_plan
from tutelage.specialist.settings import SpecialistSettings
from tutelage.storage import Place

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

GRID = Grid.from_spacing((4, 8, 8), (2.0, 1.0, 1.0))
ON_RAY = ClusterSettings(backend="ray", readers=2)


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    """Two annotated cases and eight others, of sizes that differ; no cache holds them all."""
    rng = np.random.default_rng(0)
    cases = []
    for number in range(10):
        grid = Grid.from_spacing((4, 8, 8 + number), (2.0, 1.0, 1.0))
        image, label = tmp_path / f"c{number}.nii.gz", tmp_path / f"c{number}-label.nii.gz"
        voxels = rng.integers(0, 3, grid.shape).astype(np.uint8)
        formats.write_image(str(image), rng.normal(size=grid.shape).astype(np.float32), grid)
        formats.write_image(str(label), voxels, grid)
        role, told = (Role.GOLD, str(label)) if number < 2 else (Role.UNLABELED, None)
        cases.append(Case(f"c{number}", f"p{number}", role, str(image), told, None, "CT", grid, 1, "0"))
        believed = PseudoLabel(f"c{number}", voxels, voxels * 80, (2,), (), np.zeros((3, 1), np.float16))
        write_label(Place.of(tmp_path / "labels"), believed)
    return TrainJob(
        gold=tuple(cases[:2]),
        pseudo=tuple(cases[2:7]),
        labels=str(tmp_path / "labels"),
        plan=make_plan([GRID], ["a", "b"], 1, SpecialistSettings(channels=(4, 8))),
        settings=TrainSettings(steps=40, batch=4, window=4, reuse=2, max_gb=0, disk_gb=3e-5),
        seed=0,
        out=str(tmp_path / "specialist"),
        checkpoint=str(tmp_path / "checkpoint"),
        stage="r00",
        max_voxels=10**8,
        unlabeled=tuple(cases[7:]),
    )


class Counting:
    """A reader that counts what it is given."""

    def __init__(self) -> None:
        made = reader(ON_RAY, world=1)
        assert made is not None
        self.made, self.count = made, 0

    def __call__(self, decoder: Decoder, items: Sequence[Item]) -> Iterator[Ready | Unreadable]:
        self.count += len(items)
        return self.made(decoder, items)


def test_batches_are_those_that_threads_give_to_the_bit(job: TrainJob) -> None:
    found, on_ray = [], Counting()
    for read in (None, on_ray):
        with shelves(job, read) as cases:
            batches = Batches(cases, job.plan, job.settings, job.seed)
            at = [one.on(torch.device("cpu")) for one in batches.ahead(0, 12)]
        streams = [stream for one in at for stream in (one.labeled, one.unlabeled) if stream is not None]
        found.append([(s.cases, s.image.numpy().tobytes(), s.weight.numpy().tobytes()) for s in streams])
    assert found[0] == found[1]
    assert on_ray.count >= 10
    assert len({case for cases, _, _ in found[0] for case in cases}) == 10


def test_a_case_that_vanished_is_named_from_a_task_too(job: TrainJob) -> None:
    file_of(Place.of(job.labels), "c5").remove()
    with (
        shelves(job, Counting()) as cases,
        pytest.raises(TrainingError, match=r"^c5 .*c5\.npz.* train\.missing to skip"),
    ):
        list(Batches(cases, job.plan, job.settings, job.seed).ahead(0, 40))


def test_a_volume_travels_as_it_is() -> None:
    rng = np.random.default_rng(0)
    shape = (3, 5, 7)
    bare = Sample("bare", rng.normal(size=(2, *shape)).astype(np.float32), None, None, (), gold=False)
    full = replace(
        bare,
        label_DHW=rng.integers(0, 3, shape).astype(np.uint8),
        weight_DHW=rng.random(shape).astype(np.float32),
        undecided=(1, 2),
        gold=True,
        features_DCHW=rng.normal(size=(3, 4, 2, 2)).astype(np.float16),
    )
    for sample, voxels in ((bare, ()), (full, (np.arange(5), np.arange(0)))):
        back = unpacked(packed(Ready(sample, voxels, -1.5)))
        assert isinstance(back, Ready)
        assert (back.sample.case, back.sample.undecided, back.sample.gold) == (
            sample.case,
            sample.undecided,
            sample.gold,
        )
        assert back.darkest == -1.5
        assert [one.tolist() for one in back.voxels] == [one.tolist() for one in voxels]
        for name in ("image_CDHW", "label_DHW", "weight_DHW", "features_DCHW"):
            mine, theirs = getattr(sample, name), getattr(back.sample, name)
            assert mine is theirs is None or (mine.dtype == theirs.dtype and np.array_equal(mine, theirs))
    assert unpacked(packed(Unreadable("c", "gone"))) == Unreadable("c", "gone")


def test_without_a_core_for_readers_threads_decode_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    import ray

    cores = int(ray.cluster_resources()["CPU"])  # type: ignore[no-untyped-call]
    assert reader(ON_RAY, world=cores - 1) is not None
    assert not caplog.records
    assert reader(ON_RAY, world=cores) is None
    assert "cluster.readers" in caplog.text
    assert reader(ClusterSettings(backend="ray"), world=1) is None
