"""A campaign that is killed at any moment and started again ends as one that never was."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tutelage.labels.rows import Row, Rows, read_table
from tutelage.storage import Place

KILL_WHEN_THERE = [
    "archive/imagesTr/*",
    "rounds/labels-only/checkpoint/step-*.pt",
    "rounds/labels-only/train.manifest.json",
    "rounds/r00/candidates/*.npz",
    "rounds/r00/labels/*.npz",
    "rounds/r00/train.settings.json",
    "rounds/r00/scorecard.validation.json",
]
"""Files whose first appearance is a moment to die."""


def command(config: Path) -> list[str]:
    return [sys.executable, "-m", "tutelage.cli", "run", str(config)]


def content(workspace: Path) -> tuple[list[Row], dict[str, bytes]]:
    ledger = list(read_table(Place.of(workspace / "ledger.parquet")))
    labels = sorted((workspace / "rounds").glob("*/labels/*.npz"))
    return ledger, {str(file.relative_to(workspace)): file.read_bytes() for file in labels}


def killed_when(started: list[str], workspace: Path, pattern: str) -> bool:
    """Start the run, kill it with everything it started as soon as a file is there; say whether it was."""
    process = subprocess.Popen(
        started, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while process.poll() is None:
        if any(workspace.glob(pattern)):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.002)
    return False


@pytest.mark.slow
def test_a_run_killed_at_seven_steps_ends_as_one_that_never_was(
    tiny_config: Callable[[str], Path], tiny_campaign: Path, tmp_path: Path
) -> None:
    config, workspace = tiny_config("broken"), tmp_path / "broken"
    killed = [killed_when(command(config), workspace, pattern) for pattern in KILL_WHEN_THERE]
    assert all(killed), dict(zip(KILL_WHEN_THERE, killed, strict=True))
    subprocess.run(command(config), check=True, capture_output=True)
    broken, unbroken = content(workspace), content(tiny_campaign.parent / "workspace")
    assert len(unbroken[0]) == 4 * 10
    assert broken[1] == unbroken[1]
    assert broken[0] == unbroken[0]


DIE_AT_COMMIT = """
import os, sys
from pathlib import Path
from tutelage.cli import main

replace = Path.replace

def die(self, target):
    if "label.rows" in str(target):
        os._exit(9)  # the shard is written under another name and not yet in place
    return replace(self, target)

Path.replace = die
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_kill_between_write_and_commit_loses_rows_but_repeats_to_the_same(
    tiny_config: Callable[[str], Path], tiny_campaign: Path, tmp_path: Path
) -> None:
    config, workspace = tiny_config("broken"), tmp_path / "broken"
    died = subprocess.run([sys.executable, "-c", DIE_AT_COMMIT, "run", str(config)], capture_output=True)
    assert died.returncode == 9
    assert not list(workspace.glob("rounds/r00/label.rows/*.parquet"))
    subprocess.run(command(config), check=True, capture_output=True)
    assert content(workspace) == content(tiny_campaign.parent / "workspace")


@pytest.mark.slow
@pytest.mark.ray
def test_a_driver_killed_on_ray_goes_on_with_what_its_actors_finished(
    tiny_config: Callable[[str], Path], tiny_campaign: Path, tmp_path: Path
) -> None:
    config, workspace = tiny_config("broken"), tmp_path / "broken"
    train = [sys.executable, "-m", "tutelage.cli", "train", str(config), "--round", "labels-only"]
    subprocess.run(train, check=True, capture_output=True)
    label = [sys.executable, "-m", "tutelage.cli", "label", str(config), "--round", "0"]
    label += ["cluster.backend=ray", "archive.split.unlabeled=4", "cluster.actors=1"]
    assert killed_when(label, workspace, "rounds/r00/label.rows/*.parquet")
    kept = {row["case"] for row in Rows(Place.of(workspace / "rounds/r00/label.rows")).read()}
    subprocess.run(label, check=True, capture_output=True)
    rows = Rows(Place.of(workspace / "rounds/r00/label.rows")).read()
    assert kept <= {row["case"] for row in rows}
    assert len(rows) == 4
    names = {name for name in content(tiny_campaign.parent / "workspace")[1] if "/r00/" in name}
    assert {n: (workspace / n).read_bytes() for n in names} == {
        n: (tiny_campaign.parent / "workspace" / n).read_bytes() for n in names
    }
