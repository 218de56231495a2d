import pickle
from pathlib import Path

import pytest

from tutelage.archive.cases import row_of
from tutelage.casework.base import Guard, Limit, Worker, answered
from tutelage.errors import ArchiveError
from tutelage.geometry import Grid
from tutelage.labels.rows import Row
from tutelage.records import Case, Role


def case(name: str) -> Case:
    grid = Grid.from_spacing((1, 2, 2), (1.0, 1.0, 1.0))
    return Case(name, name, Role.UNLABELED, f"{name}.nii", None, None, "CT", grid, 1, "0")


class Fragile(Worker):
    """Breaks on what its job names."""

    def __init__(self, job: dict[str, Exception]) -> None:
        self.job = job

    def work(self, case: Case) -> Row:
        if case.case in self.job:
            raise self.job[case.case]
        return {"seen": case.case}


@pytest.mark.parametrize(
    "error",
    [ArchiveError("voxels are NaN"), ValueError("odd"), MemoryError(), KeyError("x")],
    ids=["ours", "a stranger's", "memory", "a bug"],
)
def test_a_case_that_fails_becomes_a_row_with_its_reason(error: Exception) -> None:
    row = Fragile({"b": error})(case("b"))
    assert row["outcome"] == "failed"
    assert type(error).__name__ in row["reason"]


def test_the_cases_around_it_go_on() -> None:
    worker = Fragile({"b": ValueError("odd")})
    assert [worker(case(name))["outcome"] for name in "abc"] == ["done", "failed", "done"]


def test_a_reason_is_cut_before_it_fills_the_ledger() -> None:
    assert len(Fragile({"a": ValueError("x" * 10_000)})(case("a"))["reason"]) <= 500


def test_cases_travel_to_workers() -> None:
    assert pickle.loads(pickle.dumps(case("a"))) == case("a")


def guarded(tmp_path: Path, attempts: int = 2) -> tuple[Guard, Path]:
    return Guard(Fragile({}), Limit(attempts, str(tmp_path))), tmp_path


def test_a_case_that_took_its_process_down_too_often_is_set_aside(tmp_path: Path) -> None:
    guard, folder = guarded(tmp_path)
    (folder / "a").write_text("2")  # what a process leaves that dies twice over this case
    row = guard(case("a"))
    assert row["outcome"] == "failed"
    assert "2 times" in row["reason"]
    assert guard(case("b"))["outcome"] == "done"


def test_a_case_that_died_fewer_times_gets_another_chance(tmp_path: Path) -> None:
    guard, folder = guarded(tmp_path)
    (folder / "a").write_text("1")
    assert guard(case("a"))["outcome"] == "done"
    assert not list(folder.iterdir())


def test_a_case_is_counted_while_it_is_worked_on(tmp_path: Path) -> None:
    seen: list[str] = []

    class Curious(Worker):
        def work(self, case: Case) -> Row:
            seen.extend(f"{mark.name} {mark.read_text()}" for mark in tmp_path.iterdir())
            return {}

    Guard(Curious(), Limit(2, str(tmp_path)))(case("ct/1"))
    assert seen == ["ct%2F1 1"]


def test_stopping_by_hand_blames_no_case(tmp_path: Path) -> None:
    class Stopped(Worker):
        def work(self, case: Case) -> Row:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Guard(Stopped(), Limit(2, str(tmp_path)))(case("a"))
    assert not list(tmp_path.iterdir())


def test_an_answer_says_what_it_is_about() -> None:
    assert answered(Fragile({}), row_of(case("a")) | {"of": "digest"})["of"] == "digest"
