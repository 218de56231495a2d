"""Actors that die over a case: the others are all done once, and the one is set aside."""

import os
from pathlib import Path

import pytest

from tutelage.archive.cases import Cases
from tutelage.casework.base import Limit, Worker
from tutelage.cluster.settings import ClusterSettings
from tutelage.errors import ClusterError, GeneralistError
from tutelage.geometry import Grid
from tutelage.labels.rows import Row
from tutelage.records import Case, Role

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

POISON, ONCE = "c03", "c05"


class Mortal(Worker):
    """Dies at every attempt on one case, and at the first attempt on another."""

    def __init__(self, job: str) -> None:
        self.folder = Path(job)

    def work(self, case: Case) -> Row:
        before = len(list(self.folder.glob(f"{case.case}-*")))
        (self.folder / f"{case.case}-{before}").touch()
        if case.case == POISON or (case.case == ONCE and before == 0):
            os._exit(1)
        return {"attempts": before + 1}


@pytest.mark.usefixtures("known_to_actors")
def test_a_case_that_kills_actors_is_set_aside_and_no_other_is_lost(tmp_path: Path) -> None:
    import pyarrow as pa

    from tutelage.cluster.cases import each

    grid = Grid.from_spacing((1, 2, 2), (1.0, 1.0, 1.0))
    cases = [
        Case(f"c{n:02d}", f"p{n}", Role.UNLABELED, f"{n}.nii", None, None, "CT", grid, 1, "0")
        for n in range(10)
    ]
    tried = tmp_path / "tried"
    tried.mkdir()
    items = Cases.of(cases).table.append_column("of", pa.array(["x"] * len(cases)))
    limit = Limit(2, str(tmp_path / "marks"))
    rows = list(each(Mortal, str(tried), items, limit, ClusterSettings(actors=2)))

    assert sorted(row["case"] for row in rows) == [case.case for case in cases]
    failed = [row for row in rows if row["outcome"] == "failed"]
    assert [row["case"] for row in failed] == [POISON]
    assert "2 times" in failed[0]["reason"]
    attempts = {row["case"]: row["attempts"] for row in rows if row["outcome"] == "done"}
    assert attempts.pop(ONCE) == 2
    assert set(attempts.values()) == {1}, "finished work was repeated"
    assert [mark.name for mark in (tmp_path / "marks").iterdir()] == [POISON]


class Unready(Worker):
    """Cannot be made: a person is told why, or it is a defect."""

    def __init__(self, job: Exception) -> None:
        raise job

    def work(self, case: Case) -> Row:
        raise AssertionError


@pytest.mark.usefixtures("known_to_actors")
@pytest.mark.parametrize(
    ("why", "expected", "told"),
    [
        (
            GeneralistError("weights.pth is damaged; pull it again"),
            GeneralistError,
            r"^weights.pth is damaged",
        ),
        (
            ValueError("a defect"),
            ClusterError,
            r"Ray gave up on Unready: ValueError: a defect; finished cases",
        ),
    ],
)
def test_what_is_wrong_before_any_case_is_told_as_without_ray(
    tmp_path: Path, why: Exception, expected: type[Exception], told: str
) -> None:
    import pyarrow as pa

    from tutelage.cluster.cases import each

    grid = Grid.from_spacing((1, 2, 2), (1.0, 1.0, 1.0))
    case = Case("c", "p", Role.UNLABELED, "c.nii", None, None, "CT", grid, 1, "0")
    items = Cases.of([case]).table.append_column("of", pa.array(["x"]))
    with pytest.raises(expected, match=told):
        list(each(Unready, why, items, Limit(2, str(tmp_path / "marks")), ClusterSettings()))
