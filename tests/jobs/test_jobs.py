"""Scripts for `ray job submit`: each is a command, and finds the package without installing it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from tests.jobs.heads import head
from tutelage.cli.app import app
from tutelage.rounds.progress import Reporter
from tutelage.rounds.run import step
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.workspace import LABELS_ONLY
from tutelage.settings import load
from tutelage.storage import Place
from tutelage.tracking.journal import read

ROOT = Path(__file__).parents[2]
JOBS = sorted((ROOT / "jobs").glob("*.py"))

NOT_YET = ("No available agent", "RemoteDisconnected")
"""What `ray job submit` says of a cluster that is up and whose agents are not."""

PATIENCE_S = 300


def test_there_is_a_job_for_every_step() -> None:
    names = {path.stem for path in JOBS}
    steps = {"catalog", "priors", "label", "calibrate", "curate", "train", "evaluate", "promote"}
    assert {"run", "report", *steps} <= names


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_is_a_command_and_says_how_to_submit_it(path: Path) -> None:
    commands = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert path.stem in commands
    text = path.read_text()
    assert f"-- python jobs/{path.name} configs/" in text
    assert f'job("{path.stem}")' in text


@pytest.mark.process
def test_a_job_runs_where_the_package_is_not_installed(
    tiny_config: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "platform", tmp_path / "co/platform", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "jobs", tmp_path / "co/jobs")
    runtime = yaml.safe_load((ROOT / "configs/runtime_env.yaml").read_text())
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | runtime["env_vars"]
    done = subprocess.run(
        [sys.executable, "jobs/catalog.py", str(tiny_config("ws")), "--json"],
        cwd=tmp_path / "co", env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert sum(json.loads(done.stdout)["cases"].popitem()[1].values()) == 8


@pytest.mark.process
def test_a_job_keeps_a_relative_workspace_where_ray_does_not_delete_it(
    tiny_config: Callable[[str], Path], tmp_path: Path
) -> None:
    config = tiny_config("ws")
    config.write_text(config.read_text().replace(str(tmp_path / "ws"), "runs/ws"))
    runtime = yaml.safe_load((ROOT / "configs/runtime_env.yaml").read_text())
    environment = (
        os.environ | runtime["env_vars"] | {"RAY_ADDRESS": "nowhere", "HOME": str(tmp_path / "home")}
    )
    subprocess.run(
        [sys.executable, "jobs/catalog.py", str(config)], cwd=ROOT, env=environment, check=True, timeout=100
    )
    assert (tmp_path / "home/runs/ws/catalog/cases.parquet").is_file()


def submitted(cluster: str, job: str, arguments: list[str], *how: str) -> subprocess.CompletedProcess[str]:
    """Submit a job as README does, again while the cluster is not ready to take one."""
    command = [
        str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", cluster, *how,
        "--runtime-env", "configs/runtime_env.yaml", "--", "python", f"jobs/{job}.py", *arguments,
    ]  # fmt: skip
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    until = time.monotonic() + PATIENCE_S
    while True:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        ready = not any(word in done.stdout + done.stderr for word in NOT_YET)
        if ready or time.monotonic() > until:
            return done
        time.sleep(1)


def succeeded(done: subprocess.CompletedProcess[str]) -> bool:
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return "succeeded" in done.stdout


def kill_driver(config: Path, when: Callable[[], bool]) -> None:
    """Kill the process that a job is, and nothing that it started, as soon as something is so."""
    until = time.monotonic() + PATIENCE_S
    while not when():
        assert time.monotonic() < until, "the job did not get there"
        time.sleep(0.01)
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"jobs/train.py" in words and bytes(config) in words:
                os.kill(int(entry.name), signal.SIGKILL)


def safe(workspace: Path) -> int:
    """Return after how many steps the newest checkpoint of a training was made."""
    kept = workspace.glob("rounds/labels-only/checkpoint/step-*.pt")
    return max((int(file.stem.split("-")[1]) for file in kept), default=0)


def reached(workspace: Path, steps: int) -> bool:
    return safe(workspace) >= steps


def steps_told(workspace: Path) -> list[dict[str, Any]]:
    return list(read(Place.of(workspace / "rounds/labels-only/steps")))


def weights(workspace: Path) -> dict[str, Any]:
    from tutelage.specialist import artifact

    network, _, _ = artifact.load(Place.of(workspace / "rounds/labels-only/specialist"))
    return dict(network.state_dict())


def same_as_unbroken(tmp_path: Path, tiny_config: Callable[[str], Path], longer: list[str]) -> None:
    import torch

    told = [row["step"] for row in steps_told(tmp_path / "ws")]
    assert told[-1] == 299
    assert len(set(told)) == len(told)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as Ray has a worker of one core do
    step(
        load(tiny_config("unbroken"), RunSettings, longer),
        Reporter(Console(quiet=True)),
        "train",
        LABELS_ONLY,
    )
    torch.set_num_threads(threads)
    here = weights(tmp_path / "unbroken")
    assert all(torch.equal(tensor, here[name]) for name, tensor in weights(tmp_path / "ws").items())


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.torch
def test_a_job_that_is_killed_and_submitted_again_ends_as_one_that_never_was(
    tiny_config: Callable[[str], Path], tmp_path: Path
) -> None:
    """First its own process is killed, then Ray's head and all that is there; another head has the rest.

    Steps enough that it is not through before it is killed.
    """
    longer = ["train.steps=300", "train.checkpoint_every=10", "cluster.train_workers=1"]
    config = tiny_config("ws")
    with head(tmp_path / "head.log") as cluster:
        assert submitted(cluster, "train", [str(config), *longer], "--no-wait").returncode == 0
        kill_driver(config, lambda: reached(tmp_path / "ws", 10))
        assert submitted(cluster, "train", [str(config), *longer], "--no-wait").returncode == 0
        until = time.monotonic() + PATIENCE_S
        while not (reached(tmp_path / "ws", 20) and steps_told(tmp_path / "ws")):
            assert time.monotonic() < until, "the job did not go on"
            time.sleep(0.01)
    assert not (tmp_path / "ws/rounds/labels-only/train.manifest.json").exists()
    done = safe(tmp_path / "ws")
    before = [row for row in steps_told(tmp_path / "ws") if row["step"] < done]
    assert before
    with head(tmp_path / "another.log") as cluster:
        assert succeeded(submitted(cluster, "train", [str(config), *longer]))
    after = steps_told(tmp_path / "ws")
    assert after[: len(before)] == before, "steps were repeated, in other seconds"
    assert after[len(before)]["step"] == done, "it did not go on from the newest checkpoint"
    same_as_unbroken(tmp_path, tiny_config, longer)
