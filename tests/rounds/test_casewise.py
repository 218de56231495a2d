"""What is worked on again and what is not: new, changed, dropped and failed cases."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tutelage.archive.cases import Cases
from tutelage.archive.catalog import Catalog
from tutelage.casework.base import Guard, Limit, Worker, answered
from tutelage.errors import PREEMPTED, WorkspaceError
from tutelage.geometry import Grid
from tutelage.labels.rows import Row, Rows
from tutelage.records import Case, Role
from tutelage.rounds.campaign import Campaign
from tutelage.rounds.casewise import Worked, each
from tutelage.rounds.progress import Reporter
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.workspace import Step, Workspace
from tutelage.settings import load
from tutelage.storage import Place

pytestmark = pytest.mark.files


def case(name: str, stamp: str = "1") -> Case:
    grid = Grid.from_spacing((1, 2, 2), (1.0, 1.0, 1.0))
    return Case(name, name, Role.UNLABELED, f"{name}.nii", None, None, "CT", grid, 1, stamp)


class Echo(Worker):
    """Says the stamp of a case, and fails on cases that its job names."""

    def __init__(self, job: Sequence[str]) -> None:
        self.job = job

    def work(self, case: Case) -> Row:
        if case.case in self.job:
            raise ValueError("broken")
        return {"said": case.stamp}


class Here:
    """A runner that remembers what it was given."""

    outlives_workers = False

    def __init__(self) -> None:
        self.given: list[str] = []

    def each(self, build: type[Worker], job: object, items: Any, limit: Limit) -> Iterator[Row]:
        work = Guard(build(job), limit)  # type: ignore[call-arg]
        for item in items.to_pylist():
            self.given.append(item["case"])
            yield answered(work, item)

    def train(self, job: object, on_step: object, on_pace: object = None) -> str:
        raise AssertionError("steps of cases train nobody")

    def close(self) -> None:
        pass


@pytest.fixture
def campaign(tiny_config: Callable[[str], Path], tmp_path: Path) -> Campaign:
    settings = load(tiny_config("workspace"), RunSettings)
    workspace = Workspace(Place.of(settings.workspace))
    catalog = Catalog(Cases.of([]), (), ("liver",))
    return Campaign(settings, workspace, catalog, Here(), Reporter(Console(quiet=True)))


def worked(campaign: Campaign, cases: Sequence[Case], broken: Sequence[str] = (), setting: int = 0) -> Worked:
    step = Step(campaign.workspace.stage(0), "label", {"setting": setting}, {"specialist": "a"})
    return each(campaign, step, 0, Echo, broken, Cases.of(cases))


def given(campaign: Campaign) -> list[str]:
    """Cases that were worked on since the last time one asked."""
    runner = campaign.runner
    assert isinstance(runner, Here)
    names, runner.given = runner.given, []
    return names


def test_only_cases_without_a_row_are_worked_on(campaign: Campaign) -> None:
    worked(campaign, [case("a"), case("b")])
    assert given(campaign) == ["a", "b"]
    found = worked(campaign, [case("a"), case("b"), case("c")])
    assert given(campaign) == ["c"]
    assert [row["case"] for row in found.rows()] == ["a", "b", "c"]
    assert found.counts() == {"done": 3, "failed": 0}


def test_a_case_whose_image_changed_is_worked_on_again(campaign: Campaign) -> None:
    worked(campaign, [case("a"), case("b")])
    given(campaign)
    found = worked(campaign, [case("a"), case("b", stamp="2")])
    assert given(campaign) == ["b"]
    assert [row["said"] for row in found.rows()] == ["1", "2"]


def test_a_case_that_left_the_archive_does_not_count(campaign: Campaign) -> None:
    before = worked(campaign, [case("a"), case("b")])
    after = worked(campaign, [case("a")])
    assert [row["case"] for row in after.rows()] == ["a"]
    assert after.content("said") != before.content("said")


def test_other_settings_make_all_rows_worthless(campaign: Campaign) -> None:
    worked(campaign, [case("a"), case("b")])
    given(campaign)
    worked(campaign, [case("a"), case("b")], setting=1)
    assert given(campaign) == ["a", "b"]


def test_failed_cases_stay_failed_until_somebody_asks(campaign: Campaign) -> None:
    cases = [case("a"), case("b")]
    assert worked(campaign, cases, broken=["b"]).counts() == {"done": 1, "failed": 1}
    given(campaign)
    assert worked(campaign, cases).counts() == {"done": 1, "failed": 1}
    assert given(campaign) == []
    again = replace(campaign, retry_errors=True)
    assert worked(again, cases).counts() == {"done": 2, "failed": 0}
    assert given(campaign) == ["b"]


class Seldom(Here):
    """A runner whose rows come after a while; it looks at what was written of the one before."""

    def __init__(self, rows: Place) -> None:
        super().__init__()
        self.rows, self.written = rows, [0]

    def each(self, build: type[Worker], job: object, items: Any, limit: Limit) -> Iterator[Row]:
        for row in super().each(build, job, items, limit):
            time.sleep(0.6)
            yield row
            self.written.append(Rows(self.rows).table().num_rows)


def test_a_row_is_written_before_the_next_one_comes_where_they_are_rare(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tutelage.rounds.casewise._FLUSH_EVERY_S", 3600.0)
    runner = Seldom(campaign.workspace.stage(0) / "label.rows")
    worked(replace(campaign, runner=runner), [case("a"), case("b")])
    assert runner.written == [0, 1, 2]


ENDLESS = """
import sys, time
import pyarrow as pa
from tutelage.archive.cases import Cases
from tutelage.casework.base import Limit, Worker
from tutelage.geometry import Grid
from tutelage.records import Case, Role
from tutelage.rounds.local import LocalRunner

class Endless(Worker):
    def __init__(self, job):
        pass

    def work(self, case):
        print("begun", flush=True)
        time.sleep(600)

grid = Grid.from_spacing((1, 2, 2), (1.0, 1.0, 1.0))
cases = Cases.of([Case("a", "a", Role.UNLABELED, "a.nii", None, None, "CT", grid, 1, "1")])
items = cases.table.append_column("of", pa.array(["x"]))
list(LocalRunner().each(Endless, None, items, Limit(1, sys.argv[1])))
"""


@pytest.mark.process
def test_a_case_is_not_to_blame_where_somebody_ends_the_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ENDLESS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "begun\n"
        assert len(list(tmp_path.iterdir())) == 1
        run.terminate()
        assert run.wait(60) == PREEMPTED
    assert not list(tmp_path.iterdir())


def test_when_every_case_fails_the_step_fails(campaign: Campaign) -> None:
    with pytest.raises(WorkspaceError, match=r"broken.*--retry-errors"):
        worked(campaign, [case("a")], broken=["a"])


def test_a_case_that_died_too_often_is_a_failed_row_that_can_be_retried(campaign: Campaign) -> None:
    step = Step(campaign.workspace.stage(0), "label", {"setting": 0}, {"specialist": "a"})
    step.begin()
    marks = campaign.workspace.stage(0) / "label.attempts"
    (marks / "a").write_text("3")  # as three killed runs leave it
    found = worked(campaign, [case("a"), case("b")])
    assert found.counts() == {"done": 1, "failed": 1}
    assert not marks.files()
    assert worked(replace(campaign, retry_errors=True), [case("a"), case("b")]).counts() == {
        "done": 2,
        "failed": 0,
    }
