"""Ray and the plain loop must do the same work."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from tutelage.labels.rows import read_table
from tutelage.rounds.progress import Reporter
from tutelage.rounds.run import run, step
from tutelage.rounds.settings import RunSettings
from tutelage.settings import load
from tutelage.storage import Place
from tutelage.tracking.journal import read

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def quiet() -> Reporter:
    return Reporter(Console(quiet=True))


def test_ray_and_the_plain_loop_give_the_same_labels_and_ledger(
    tiny_config: Callable[[str], Path], tmp_path: Path
) -> None:
    settings = load(tiny_config("workspace"), RunSettings)
    run(settings, quiet())
    stage, ledger = tmp_path / "workspace/rounds/r00", Place.of(tmp_path / "workspace/ledger.parquet")
    labels = {file.name: file.read_bytes() for file in (stage / "labels").glob("*.npz")}
    rows = list(read_table(ledger))
    shutil.rmtree(stage)
    ledger.remove()

    on_ray = settings.model_copy(update={"cluster": settings.cluster.model_copy(update={"backend": "ray"})})
    for name in ("label", "curate"):
        step(on_ray, quiet(), name, 0)
    assert len(labels) == 4
    assert {file.name: file.read_bytes() for file in (stage / "labels").glob("*.npz")} == labels
    assert list(read_table(ledger)) == rows


def test_two_workers_learn_from_the_batch_that_one_would(
    tiny_config: Callable[[str], Path], tmp_path: Path
) -> None:
    """Each loss is a mean over a worker's half of the batch, so only the first digits can agree."""
    reported = []
    for name, backend in (("one", "local"), ("two", "ray")):
        overrides = [f"cluster.backend={backend}", "cluster.train_workers=2"]
        step(load(tiny_config(name), RunSettings, overrides), quiet(), "train", -1)
        reported.append(list(read(Place.of(tmp_path / name / "rounds/labels-only/steps"))))
    one, two = reported
    assert [row["step"] for row in two] == [row["step"] for row in one] == list(range(24))
    assert two[-1]["loss"] == pytest.approx(one[-1]["loss"], abs=0.3)
