import json
from pathlib import Path

import pytest

from tutelage.bench import BENCHES, load
from tutelage.bench.base import Bench, Measured, medians, same_losses
from tutelage.errors import TrainingError
from tutelage.storage import Place

ROW = Measured("label.first_round", "a loop", 1.0, 3.0, 3.0, 2.0, "higher", "seconds")


@pytest.mark.parametrize(
    ("ratio", "better", "met"),
    [(3.0, "higher", True), (1.0, "higher", False), (1.0, "lower", True), (3.0, "lower", False)],
)
def test_a_goal_is_met_on_the_side_that_is_better(ratio: float, better: str, met: bool) -> None:
    assert Measured("m", "p", 1.0, 1.0, ratio, 2.0, better, "").met is met  # type: ignore[arg-type]


def test_a_bench_writes_one_object_with_every_key(tmp_path: Path) -> None:
    Bench("label", (ROW,)).write(Place.of(tmp_path / "bench.json"))
    written = json.loads((tmp_path / "bench.json").read_text())
    assert set(written) == {"bench", "commit", "machine", "rows"}
    assert set(written["rows"][0]) == {
        *("measure", "peer", "ours", "theirs", "ratio", "goal", "better", "met", "note")
    }


def test_things_are_measured_in_turn() -> None:
    order: list[str] = []
    assert len(medians([lambda: order.append("a"), lambda: order.append("b")], 3)) == 2
    assert order == ["a", "b"] * 3


def test_losses_that_hardly_differ_are_the_same() -> None:
    assert same_losses([2.0, 1.0], [2.0, 1.000001], "two loops") == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize(
    ("ours", "theirs"), [([2.0, 1.0], [2.0, 1.001]), ([2.0], [2.0, 1.0]), ([], [])], ids=str
)
def test_other_losses_are_not_compared(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(TrainingError, match="losses of two loops differ by"):
        same_losses(ours, theirs, "two loops")


@pytest.mark.torch
@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_can_be_loaded(name: str) -> None:
    assert callable(load(name))
