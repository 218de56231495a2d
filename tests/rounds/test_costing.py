"""What steps took, as manifests, rows and journals have it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tutelage.cluster.settings import ClusterSettings
from tutelage.labels.rows import Rows
from tutelage.rounds.costing import Training, training, work
from tutelage.rounds.telling import journal_of
from tutelage.rounds.workspace import Workspace
from tutelage.storage import Place
from tutelage.tracking.journal import Journal

pytestmark = pytest.mark.files

LABELED = {
    "done": 6, "failed": 2, "slices_embedded": 30, "cache_hits": 10, "volumes_per_hour": 720.0,
}  # fmt: skip


def campaign(folder: Path, **cluster: Any) -> Any:
    """Make a campaign that has labeled, trained, promoted and measured once."""
    told = SimpleNamespace(
        workspace=Workspace(Place.of(folder)), settings=SimpleNamespace(cluster=ClusterSettings(**cluster))
    )
    stage = folder / "rounds" / "r00"
    stage.mkdir(parents=True)
    steps = {
        "label": LABELED,
        "train": {"pseudo_labels": 6},
        "promote": {},
        "truth": {"done": 6, "failed": 0},
    }
    for name, outputs in steps.items():
        (stage / f"{name}.manifest.json").write_text(json.dumps({"outputs": outputs, "seconds": 40.0}))
    with Rows(Place.of(stage / "label.rows")) as rows:
        for i in range(8):
            rows.add({"case": str(i), "outcome": "done", "seconds": None if i == 7 else 2.0})
    with Journal(journal_of(Place.of(stage))) as journal:
        for step in range(1000):
            row = {"step": step, "loss": 1.0, "seconds": 0.5, "waited": 0.1, "memory_mib": float(step)}
            journal.add(row)
    return told


def test_a_journal_is_read_once_for_curve_time_and_memory(tmp_path: Path) -> None:
    found = training(campaign(tmp_path), 0)
    assert found.seconds == pytest.approx(600)
    assert found.memory_mib == 999
    assert 150 <= len(found.curve.steps) <= 300


def test_time_is_told_of_every_finished_step(tmp_path: Path) -> None:
    told = campaign(tmp_path, backend="local")
    found = {one.step: one for one in work(told, 0, training(told, 0))}
    assert list(found) == ["label", "train", "promote", "truth"]
    label = found["label"]
    assert (label.cases, label.failed, label.worked_s, label.per_hour) == (8, 2, 14.0, 720.0)
    assert label.hit_share == 0.25
    assert found["train"].worked_s == pytest.approx(600)
    assert found["train"].gpu_s == pytest.approx(600), "memory of a GPU was used, in this process"
    assert found["label"].gpu_s == 40.0
    assert [found[name].gpu_s for name in ("promote", "truth")] == [None] * 2


@pytest.mark.parametrize(
    ("cluster", "seconds"),
    [
        ({"actors": 1, "gpus_per_actor": 0.5, "gpus_per_train_worker": 1, "train_workers": 2}, (20.0, 80.0)),
        ({"actors": 4, "gpus_per_actor": 0.5}, (40.0, None)),
        ({"actors": 4, "train_workers": (1, 3), "gpus_per_train_worker": 1}, (None, 120.0)),
        ({"actors": 4}, (None, None)),
    ],
    ids=["shared", "only as many as eight cases want", "training only", "none"],
)
def test_on_a_cluster_gpus_count_as_long_as_they_are_held(
    tmp_path: Path, cluster: dict[str, Any], seconds: tuple[float | None, ...]
) -> None:
    told = campaign(tmp_path, backend="ray", **cluster)
    found = {one.step: one.gpu_s for one in work(told, 0, Training(training(told, 0).curve, 1.0, 0.0))}
    assert (found["label"], found["train"]) == seconds
    assert (found["promote"], found["truth"]) == (None, None)
