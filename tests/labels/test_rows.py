from pathlib import Path

import pytest

from tutelage.labels.rows import Row, Rows, read_table, write_table
from tutelage.storage import Place

pytestmark = pytest.mark.files


def test_rows_that_were_flushed_survive_and_others_do_not(tmp_path: Path) -> None:
    rows = Rows(Place.of(tmp_path))
    rows.add({"case": "b", "outcome": "done"})
    rows.flush()
    rows.add({"case": "a", "outcome": "done"})
    assert Rows(Place.of(tmp_path)).cases() == {"b"}


def test_rows_come_back_in_order_of_case_over_shards(tmp_path: Path) -> None:
    for case in ("c", "a", "b"):
        with Rows(Place.of(tmp_path)) as rows:
            rows.add({"case": case, "outcome": "done"})
    assert [row["case"] for row in Rows(Place.of(tmp_path)).read()] == ["a", "b", "c"]


def test_leaving_by_an_exception_keeps_what_was_done(tmp_path: Path) -> None:
    try:
        with Rows(Place.of(tmp_path)) as rows:
            rows.add({"case": "a", "outcome": "done"})
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert Rows(Place.of(tmp_path)).cases() == {"a"}


def test_nested_values_and_gaps_come_back(tmp_path: Path) -> None:
    place = Place.of(tmp_path) / "t.parquet"
    told: list[Row] = [
        {"case": "a", "verdicts": [{"weight": 0.5, "reasons": []}]},
        {"case": "b", "verdicts": None},
    ]
    write_table(place, told)
    assert list(read_table(place)) == told


def test_a_folder_that_is_not_there_holds_no_rows(tmp_path: Path) -> None:
    assert Rows(Place.of(tmp_path / "none")).read() == []


def test_the_latest_row_of_a_case_counts(tmp_path: Path) -> None:
    for outcome in ("failed", "done"):
        with Rows(Place.of(tmp_path)) as rows:
            rows.add({"case": "a", "outcome": outcome, "prompts": 3 if outcome == "done" else None})
    assert Rows(Place.of(tmp_path)).read() == [{"case": "a", "outcome": "done", "prompts": 3}]


def test_columns_that_no_row_has_come_back_empty(tmp_path: Path) -> None:
    with Rows(Place.of(tmp_path)) as rows:
        rows.add({"case": "a", "outcome": "failed"})
    assert Rows(Place.of(tmp_path)).table(["verdicts"]).to_pylist() == [{"case": "a", "verdicts": None}]
    assert Rows(Place.of(tmp_path / "none")).table(["of"]).to_pylist() == []


def test_many_small_shards_become_few_and_say_the_same(tmp_path: Path) -> None:
    told: list[Row] = [{"case": f"{n:04d}", "outcome": "done", "verdicts": [n]} for n in range(300)]
    rows = Rows(Place.of(tmp_path))
    for row in told:
        rows.add(row)
        rows.flush()
    assert len(list(tmp_path.glob("*.parquet"))) < 150
    assert rows.read() == told


def test_shards_that_a_kill_left_beside_their_join_count_once(tmp_path: Path) -> None:
    rows = Rows(Place.of(tmp_path))
    for n in range(3):
        rows.add({"case": str(n), "outcome": "done"})
        rows.flush()
    whole = rows.read()
    write_table(Place.of(tmp_path) / "00000003.parquet", whole)
    assert rows.read() == whole


def test_a_failed_case_that_comes_first_hides_nothing_of_others(tmp_path: Path) -> None:
    with Rows(Place.of(tmp_path)) as rows:
        rows.add({"case": "a", "outcome": "failed"})
        rows.add({"case": "b", "outcome": "done", "candidate": "d1"})
    assert Rows(Place.of(tmp_path)).table(["candidate"])["candidate"].to_pylist() == [None, "d1"]
