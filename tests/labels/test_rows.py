from pathlib import Path

from tutelage.labels.rows import Row, Rows, read_table, write_table
from tutelage.storage import Place


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
