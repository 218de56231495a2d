"""A campaign that is killed at any moment and started again ends as one that never was."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tutelage.labels.rows import Row, read_table
from tutelage.storage import Place

KILL_WHEN_THERE = [
    "archive/imagesTr/*",
    "rounds/labels-only/checkpoint*",
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


def killed_when(config: Path, workspace: Path, pattern: str) -> bool:
    """Start the run, kill it with everything it started as soon as a file is there; say whether it was."""
    process = subprocess.Popen(
        command(config), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
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
    tiny_config: Callable[[str], Path], tmp_path: Path
) -> None:
    subprocess.run(command(tiny_config("unbroken")), check=True, capture_output=True)
    config, workspace = tiny_config("broken"), tmp_path / "broken"
    killed = [killed_when(config, workspace, pattern) for pattern in KILL_WHEN_THERE]
    assert all(killed), dict(zip(KILL_WHEN_THERE, killed, strict=True))
    subprocess.run(command(config), check=True, capture_output=True)
    broken, unbroken = content(workspace), content(tmp_path / "unbroken")
    assert len(unbroken[0]) == 4 * 10
    assert broken[1] == unbroken[1]
    assert broken[0] == unbroken[0]
