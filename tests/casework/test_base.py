import pickle

import pytest

from tutelage.casework.base import Worker
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
