"""The pieces of the scale bench that could measure the wrong thing."""

import os
import sys
import time
from pathlib import Path

import pytest

from tutelage.archive.cases import Cases
from tutelage.archive.catalog import load
from tutelage.archive.rows import write_rows
from tutelage.bench.scale import _grow, _started, _tree_mib
from tutelage.geometry import Grid
from tutelage.labels.rows import Rows
from tutelage.records import Case, Role
from tutelage.rounds.workspace import Workspace
from tutelage.storage import Place

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


def case(name: str, role: Role) -> Case:
    grid = Grid.from_spacing((1, 2, 2), (1.0, 1.0, 1.0))
    return Case(name, name, role, f"{name}.nii", None, None, "CT", grid, 1, "0")


@pytest.mark.files
def test_a_grown_campaign_has_rows_about_nine_tenths_of_its_cases(tmp_path: Path) -> None:
    workspace = Workspace(Place.of(tmp_path))
    cases = [case("a", Role.UNLABELED), case("b", Role.UNLABELED), case("g", Role.GOLD)]
    write_rows(workspace.catalog, Cases.of(cases).table, (), ("liver",))
    with Rows(workspace.stage(0) / "label.rows") as rows:
        for name in "ab":
            rows.add({"case": name, "outcome": "done", "of": f"{name}.nii|0|"})

    _grow(workspace, 50)

    catalog = load(workspace.catalog)
    assert len(catalog.of(Role.UNLABELED)) == 50
    assert len(catalog.of(Role.GOLD)) == 1
    images = {one.case: one.image for one in catalog.cases}
    grown = rows.read()
    assert len(grown) == 45
    assert all(row["of"] == f"{images[row['case']]}|0|" for row in grown)


@linux
@pytest.mark.process
def test_memory_counts_what_a_command_starts_and_it_all_ends() -> None:
    hold = "import subprocess, sys, time; x = b'1' * 64 * 2**20; time.sleep(60)"
    nest = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    with _started([sys.executable, "-c", nest]) as watched:
        while watched.process.poll() is None and watched.peak_mib < 64:
            time.sleep(0.05)
        assert watched.peak_mib >= 64
        assert _tree_mib(os.getpid()) >= 64
    assert watched.process.poll() is not None
    assert _tree_mib(watched.process.pid) == 0
