"""Scripts for `ray job submit`: each is a command, and finds the package without installing it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tutelage.cli.app import app

ROOT = Path(__file__).parents[2]
JOBS = sorted((ROOT / "jobs").glob("*.py"))


def test_there_is_a_job_for_every_step() -> None:
    names = {path.stem for path in JOBS}
    assert {"run", "label", "curate", "train", "evaluate", "promote", "report", "catalog", "priors"} <= names


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


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """Have a Ray of its own that takes jobs; yields the address to submit to."""
    gcs, dashboard, agent = free_port(), free_port(), free_port()
    binaries = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    head = subprocess.Popen(
        [
            binaries / "ray", "start", "--head", "--block", f"--port={gcs}", f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={agent}",  # the default may be another Ray's
            "--node-ip-address=127.0.0.1", "--num-cpus=6", f"--object-store-memory={200 * 2**20}",
        ],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(dashboard)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        # By group, never `ray stop`: that would end every Ray on this machine.
        os.killpg(head.pid, signal.SIGKILL)
        head.wait(timeout=60)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def wait_for(port: int) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(f"no dashboard on port {port}")


def submitted(cluster: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Submit jobs/run.py as README does, again while the cluster's agent is not up yet."""
    command = [
        str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", cluster,
        "--runtime-env", "configs/runtime_env.yaml", "--", "python", "jobs/run.py", *arguments,
    ]  # fmt: skip
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    until = time.monotonic() + 120
    while True:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
        if "No available agent" not in done.stdout + done.stderr or time.monotonic() > until:
            return done
        time.sleep(1)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.torch
def test_a_submitted_job_works_on_the_cluster_it_was_submitted_to(
    cluster: str, tiny_config: Callable[[str], Path], tmp_path: Path
) -> None:
    done = submitted(cluster, [str(tiny_config("ws")), "--rounds", "0"])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "succeeded" in done.stdout
    settings = yaml.safe_load((tmp_path / "ws/settings.yaml").read_text())
    assert settings["cluster"]["address"] == "auto"
    assert json.loads((tmp_path / "ws/champion.json").read_text())["stage"] == "labels-only"
