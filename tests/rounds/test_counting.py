"""Counting a ledger in passing: the same as adding up all of its rows at once, whatever lies between."""

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tutelage.evaluation.believing import curation_of
from tutelage.labels.rows import Rows
from tutelage.records import Ruling
from tutelage.rounds import counting, ledger
from tutelage.rounds.workspace import Workspace
from tutelage.storage import Place

pytestmark = pytest.mark.files

STRUCTURES = ("liver", "spleen", "never seen")
RULINGS = (*(ruling.value for ruling in Ruling), "failed", ledger.CORRECTED)


def campaign(folder: Path) -> Any:
    """Make as much of a campaign as counting asks for."""
    return SimpleNamespace(
        workspace=Workspace(Place.of(folder)), catalog=SimpleNamespace(structures=STRUCTURES)
    )


def rows_of(cases: int) -> Iterator[dict[str, Any]]:
    """Yield rows as a ledger has them, in order of case."""
    chance = random.Random(0)
    for case in sorted(f"case {i}" for i in range(cases)):
        for structure in STRUCTURES[:2]:
            ruling = chance.choice(RULINGS)
            calibrated = chance.random() < 0.7
            yield {
                "round": "r00",
                "case": case,
                "structure": structure,
                "ruling": ruling,
                "weight": chance.choice((0.0, 0.5, 1.0)),
                "without_priors": chance.choice((None, "accept", "reject")),
                "with_priors": None if ruling == "failed" else ruling,
                "predicted_dice": chance.random() if calibrated else None,
                "dice_low": chance.random() / 2 if calibrated and chance.random() < 0.5 else None,
                "specialist_ml": chance.choice((0.0, 5.0)),
                "generalist_ml": 5.0,
            }


def scores_of(case: str, chance: random.Random) -> list[dict[str, Any]]:
    return [
        {"case": case, "structure": name, "dice": chance.random(), "absent": chance.random() < 0.2}
        for name in STRUCTURES
    ]


@pytest.fixture
def made(tmp_path: Path) -> tuple[Any, list[dict[str, Any]], dict[tuple[str, str], float]]:
    """A round of forty cases, of which three in four have a hidden label, and some were measured twice."""
    rows, chance = list(rows_of(40)), random.Random(1)
    stage = tmp_path / "rounds" / "r00"
    stage.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, ledger.schema()), stage / "ledger.parquet", row_group_size=7)
    truth: dict[tuple[str, str], float] = {}
    with Rows(Place.of(stage / "truth.rows")) as written:
        for i in [*range(0, 30), *range(10, 20), 99]:
            case, scores = f"case {i}", scores_of(f"case {i}", chance)
            written.add({"case": case, "outcome": "done", "scores": scores})
            truth |= {(case, s["structure"]): np.nan if s["absent"] else s["dice"] for s in scores}
            if i % 8 == 0:
                written.flush()
        written.add({"case": "case 31", "outcome": "failed", "reason": "gone"})
    return campaign(tmp_path), rows, {key: dice for key, dice in truth.items() if np.isfinite(dice)}


def test_tallies_come_to_what_all_rows_at_once_come_to(
    made: tuple[Any, list[dict[str, Any]], dict[tuple[str, str], float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    told, rows, truth = made
    monkeypatch.setattr(counting, "_BATCH_ROWS", 5)
    tallies, _ = counting.counted(told, 0)
    ruled = {row.structure: row for row in curation_of(tallies)}
    assert list(ruled) == ["liver", "spleen", "all structures"]
    for structure in STRUCTURES[:2]:
        mine = [r for r in rows if r["structure"] == structure and r["ruling"] != ledger.CORRECTED]
        accepted = [r for r in mine if r["ruling"] == "accept"]
        row = ruled[structure]
        assert (row.total, row.accepted) == (len(mine), len(accepted))
        assert row.failed == len([r for r in mine if r["ruling"] == "failed"])
        assert row.mean_weight == pytest.approx(np.mean([r["weight"] for r in mine if r["weight"]]))
        dice = [truth[key] for r in accepted if (key := (r["case"], structure)) in truth]
        assert row.true_dice == pytest.approx(np.mean(dice))
        assert row.without_priors is not None
        assert row.without_priors.accepted == len([r for r in mine if r["without_priors"] == "accept"])


def test_bounds_are_counted_where_both_found_something_and_a_label_was_hidden(
    made: tuple[Any, list[dict[str, Any]], dict[tuple[str, str], float]],
) -> None:
    told, rows, truth = made
    _, held = counting.counted(told, 0)
    judged = [
        (r, truth[key])
        for r in rows
        if (key := (r["case"], r["structure"])) in truth
        and r["specialist_ml"]
        and r["predicted_dice"] is not None
    ]
    bounded = [(r["dice_low"], dice) for r, dice in judged if r["dice_low"] is not None]
    assert (held.bounded, held.covered) == (len(bounded), len([1 for low, dice in bounded if dice >= low]))
    assert sum(count for _, _, count in held.means()) == len(judged)
    predicted = sum(mean * count for mean, _, count in held.means())
    assert predicted == pytest.approx(sum(r["predicted_dice"] for r, _ in judged))


def test_a_ledger_of_an_earlier_version_is_counted_as_far_as_it_goes(tmp_path: Path) -> None:
    stage = tmp_path / "rounds" / "r00"
    stage.mkdir(parents=True)
    row = {"round": "r00", "case": "a", "structure": "liver", "ruling": "accept", "weight": 1.0}
    pq.write_table(pa.Table.from_pylist([row]), stage / "ledger.parquet")
    tallies, held = counting.counted(campaign(tmp_path), 0)
    assert [(t.ruling, t.count, t.measured) for t in tallies] == [("accept", 1, 0)]
    assert (held.bounded, held.means()) == (0, ())


def test_a_round_without_a_ledger_comes_to_nothing(tmp_path: Path) -> None:
    tallies, held = counting.counted(campaign(tmp_path), 0)
    assert (tallies, held.means()) == ([], ())
