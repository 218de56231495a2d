"""Ray and the plain loop must give the same labels."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from tutelage.labels.rows import read_table
from tutelage.rounds.progress import Reporter
from tutelage.rounds.run import run
from tutelage.rounds.settings import RunSettings
from tutelage.settings import load
from tutelage.storage import Place

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def quiet() -> Reporter:
    return Reporter(Console(quiet=True))


def test_ray_and_the_plain_loop_give_the_same_labels_and_ledger(
    tiny_config: Callable[[str], Path], tmp_path: Path
) -> None:
    """One worker trains, because two sum their gradients in another order than one does."""
    for backend in ("local", "ray"):
        overrides = [f"cluster.backend={backend}", "cluster.train_workers=1"]
        run(load(tiny_config(backend), RunSettings, overrides), quiet())
    local, ray = (
        {file.name: file.read_bytes() for file in (tmp_path / backend / "rounds/r00/labels").glob("*.npz")}
        for backend in ("local", "ray")
    )
    assert len(local) == 4
    assert ray == local
    ledgers = [
        list(read_table(Place.of(tmp_path / backend / "ledger.parquet"))) for backend in ("local", "ray")
    ]
    assert ledgers[0] == ledgers[1]


def test_two_workers_train_what_one_trains_within_rounding(
    tiny_config: Callable[[str], Path], tmp_path: Path
) -> None:
    """Dice of the same global batch, divided; bf16 rounding grows, so scores may differ a little."""
    import json

    for name, backend in (("one", "local"), ("two", "ray")):
        overrides = [f"cluster.backend={backend}", "cluster.train_workers=2", "rounds=0"]
        run(load(tiny_config(name), RunSettings, overrides), quiet())
    first, last = [], []
    for name in ("one", "two"):
        losses = json.loads((tmp_path / name / "rounds/labels-only/losses.json").read_text())
        assert [row["step"] for row in losses] == list(range(24))
        first.append(losses[0]["loss"])
        last.append(losses[-1]["loss"])
    assert abs(last[0] - last[1]) < 0.5
