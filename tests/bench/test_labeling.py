"""The pieces of benches of whole labeling rounds that could measure the wrong thing."""

import os
import sys
import time
from pathlib import Path

import pytest

from tutelage.archive.cases import Cases
from tutelage.archive.catalog import load
from tutelage.archive.rows import write_rows
from tutelage.bench.labeling import Archive, is_worker, started
from tutelage.errors import WorkspaceError
from tutelage.geometry import Grid
from tutelage.labels.rows import Rows
from tutelage.records import Case, Role
from tutelage.rounds.workspace import Workspace
from tutelage.storage import Place

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


def case(name: str, role: Role) -> Case:
    grid = Grid.from_spacing((1, 2, 2), (1.0, 1.0, 1.0))
    return Case(name, name, role, f"{name}.nii", None, None, "CT", grid, 1, "0")


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    workspace = Workspace(Place.of(tmp_path))
    cases = [case("a", Role.UNLABELED), case("b", Role.UNLABELED), case("g", Role.GOLD)]
    write_rows(workspace.catalog, Cases.of(cases).table, (), ("liver",))
    return Archive(tmp_path / "scale.yaml", workspace)


@pytest.mark.files
def test_a_grown_campaign_has_rows_about_nine_tenths_of_its_cases(archive: Archive) -> None:
    with Rows(archive.workspace.stage(0) / "label.rows") as rows:
        for name in "ab":
            rows.add({"case": name, "outcome": "done", "of": f"{name}.nii|0|"})

    archive.grow(50, done=45)

    catalog = load(archive.workspace.catalog)
    assert len(catalog.of(Role.UNLABELED)) == 50
    assert len(catalog.of(Role.GOLD)) == 1
    images = {one.case: one.image for one in catalog.cases}
    grown = rows.read()
    assert len(grown) == 45
    assert all(row["of"] == f"{images[row['case']]}|0|" for row in grown)


@pytest.mark.files
def test_volumes_that_were_not_measured_are_left_for_the_comparison(archive: Archive) -> None:
    whole = load(archive.workspace.catalog)
    left = []
    for start in (0, 1):
        archive.only(whole, start, start + 1)
        left.append([one.case for one in load(archive.workspace.catalog).of(Role.UNLABELED)])
        assert len(load(archive.workspace.catalog).of(Role.GOLD)) == 1
    assert left == [["a"], ["b"]]


def test_a_command_that_failed_is_not_measured(archive: Archive) -> None:
    archive.check(0)
    with pytest.raises(WorkspaceError, match=r"ended with 3 in .*, expected 0; it said: no room"):
        archive.check(3, "no room")


@linux
@pytest.mark.process
def test_memory_counts_what_a_command_starts_and_it_all_ends() -> None:
    hold = "import subprocess, sys, time; x = b'1' * 64 * 2**20; time.sleep(60)"
    nest = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    with started([sys.executable, "-c", nest]) as watched:
        while watched.process.poll() is None and watched.peak_mib < 64:
            time.sleep(0.05)
        assert watched.peak_mib >= 64
        assert max(look.own_mib for look in watched.looks) < 64  # what it started is not its own
    assert watched.process.poll() is not None
    assert not is_worker(os.getpid())


@linux
@pytest.mark.process
def test_looks_tell_how_busy_a_command_is() -> None:
    busy = "import time; until = time.monotonic() + 1.2\nwhile time.monotonic() < until: pass"
    with started([sys.executable, "-c", busy]) as watched:
        watched.wait()
    assert watched.process.returncode == 0
    assert watched.looks[-1].cpu_s > watched.looks[0].cpu_s
