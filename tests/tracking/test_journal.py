"""What a training told, kept through kills: every step once, in order."""

import json
import logging
from pathlib import Path

import pytest

from tutelage.storage import Place
from tutelage.tracking.journal import Journal, Row, read


def row(step: int, attempt: int = 0) -> Row:
    return {"step": step, "loss": 1 / (step + 1), "attempt": attempt}


def steps(folder: Path | Place) -> list[int]:
    return [row["step"] for row in read(Place.of(folder))]


def filled(folder: Path, count: int) -> Journal:
    journal = Journal(Place.of(folder))
    for step in range(count):
        journal.add(row(step))
    journal.flush()
    return journal


def test_rows_come_back_in_order_over_many_parts(tmp_path: Path) -> None:
    journal = Journal(Place.of(tmp_path))
    for step in range(3500):
        journal.add(row(step))
        if step % 100 == 99:
            journal.flush()
    assert steps(tmp_path) == list(range(3500))
    assert [len(part.read_text().splitlines()) for part in sorted(tmp_path.iterdir())] == [1000] * 3 + [500]


def test_a_journal_that_was_never_written_is_empty(tmp_path: Path) -> None:
    assert steps(tmp_path / "nowhere") == []
    assert Journal(Place.of(tmp_path / "nowhere")).last == -1


@pytest.mark.parametrize("back_to", [0, 1, 999, 1000, 1001, 2100, 2499])
@pytest.mark.parametrize("reopened", [True, False], ids=["another process", "the same process"])
def test_steps_that_are_repeated_are_there_once_as_they_were_told_last(
    tmp_path: Path, back_to: int, reopened: bool
) -> None:
    journal = Journal(Place.of(tmp_path))
    for step in range(2500):
        journal.add(row(step))
        if step % 100 == 99:
            journal.flush()
    if reopened:
        journal = Journal(Place.of(tmp_path))
    for step in range(back_to, back_to + 30):
        journal.add(row(step, attempt=1))
    journal.flush()
    found = list(read(Place.of(tmp_path)))
    assert [r["step"] for r in found] == list(range(back_to + 30))
    assert [r["attempt"] for r in found] == [0] * back_to + [1] * 30


def test_a_kill_loses_only_what_was_not_flushed_and_going_on_repeats_it(tmp_path: Path) -> None:
    killed = filled(tmp_path, 1200)
    for step in range(1200, 1250):
        killed.add(row(step))  # and never flushed
    again = Journal(Place.of(tmp_path))
    assert again.last == 1199
    for step in range(1100, 1300):
        again.add(row(step))
    again.flush()
    assert steps(tmp_path) == list(range(1300))


def test_it_flushes_by_itself_while_open_and_when_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tutelage.tracking.journal._FLUSH_EVERY_S", 0.01)
    with Journal(Place.of(tmp_path)) as journal:
        journal.add(row(0))
        for _ in range(500):
            if steps(tmp_path):
                break
            journal._closing.wait(0.01)
        assert steps(tmp_path) == [0]
        journal.add(row(1))
    assert steps(tmp_path) == [0, 1]


@pytest.mark.parametrize("asked", [-1, 0, 998, 999, 1000, 1500, 2399, 2400, 2600])
def test_what_came_after_a_step_is_found_in_files_and_in_memory(tmp_path: Path, asked: int) -> None:
    journal = Journal(Place.of(tmp_path))
    for step in range(2400):
        journal.add(row(step))
        if step % 1000 == 999:
            journal.flush()
    expected = list(range(asked + 1, 2400))
    assert [r["step"] for r in journal.after(asked, 9999)] == expected
    assert [r["step"] for r in journal.after(asked, 7)] == expected[:7]
    journal.flush()
    assert [r["step"] for r in Journal(Place.of(tmp_path)).after(asked, 9999)] == expected


def test_a_place_that_cannot_append_holds_it_too(tmp_path: Path) -> None:
    far = Place(f"file://{tmp_path}")  # which goes through pyarrow, as object stores do
    assert far.local is None
    with Journal(far) as journal:
        for step in range(1500):
            journal.add(row(step))
        journal.flush()
        for step in range(700, 1600):
            journal.add(row(step))
    assert steps(far) == list(range(1600))


def test_a_place_that_refuses_is_told_of_once_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "steps"
    folder.write_text("a file where the folder should be")
    journal = Journal(Place.of(folder))
    with caplog.at_level(logging.WARNING):
        for step in range(5):
            journal.add(row(step))
            journal.flush()
    assert len(caplog.records) == 1
    folder.unlink()
    journal.flush()
    assert steps(folder) == list(range(5))


def test_a_part_that_a_power_cut_emptied_hides_none_before_it(tmp_path: Path) -> None:
    filled(tmp_path, 1000)
    (tmp_path / "000001000.jsonl").write_bytes(b"")
    again = Journal(Place.of(tmp_path))
    assert again.last == 999
    for step in range(990, 1400):
        again.add(row(step, attempt=1))
    again.flush()
    again.add(row(1400))
    assert steps(tmp_path) == list(range(1400))
    assert [r["step"] for r in again.after(-1, 9999)] == list(range(1401))


def test_a_damaged_line_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "000000000.jsonl").write_text(json.dumps(row(0)) + '\n{"step": 1, "lo')
    with caplog.at_level(logging.WARNING):
        assert steps(tmp_path) == [0]
    assert "cannot be read" in caplog.text
