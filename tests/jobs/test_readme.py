"""README's section on clusters, followed line by line on two Ray nodes, and what else `submit` does there.

The lines are README's; ports, addresses and the campaign are others, since this machine may have more Rays
and no time. Its `ray start` lines are started as tests start nodes, so that they can be ended alone.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.conftest import free_port
from tests.jobs.heads import nodes, own_ports

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.process]

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^### On a cluster$(?:\n(?! {4}|#).*)*\n((?: {4}.*\n)+)", re.MULTILINE)
FOLLOWED = ("export", "tutelage", "JOB=$(tutelage", "curl")
"""What lines may begin with to be followed here. `ray stop`, as it ends every Ray of a machine, never."""
ON_BOTH_NODES = """
cluster: {actors: 2, cpus_per_actor: 2, train_workers: 2, cpus_per_train_worker: 2}
"""
"""Of three cores on each: two that take two do not fit one node. Jobs say themselves that they run on Ray;
what README does beside them, on a few cases, is sooner done in a loop."""
PATIENCE_S = 240
_LIMIT_S = 1100
SCRIPT = """
import sys
import ray, tutelage
print("driver", tutelage.__file__)
ray.init(logging_level="ERROR")
print("worker", ray.get(ray.remote(lambda: __import__("tutelage").__file__).remote()))
print("settings", open(sys.argv[1]).read().count("threshold"))
sys.exit(3)
"""


@dataclass(frozen=True)
class Followed:
    """Nodes that were started as README says, and what it says to do next."""

    folder: Path
    config: Path
    lines: str
    environment: dict[str, str]

    def shell(self, script: str) -> "subprocess.CompletedProcess[str]":
        """Run lines from a folder that is no checkout, up to the first that fails."""
        end = "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT; ray() { return 1; }"
        process = subprocess.Popen(
            ["bash", "-c", f"set -eo pipefail; {end}\n{script}"], cwd=self.folder, env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            told, errors = process.communicate(timeout=_LIMIT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):  # nothing is left, unless it took too long
                os.killpg(process.pid, signal.SIGKILL)
        return subprocess.CompletedProcess(script, process.returncode, told, errors)


@pytest.fixture(scope="module")
def readme(
    write_tiny: Callable[[Path, str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Followed]:
    folder = tmp_path_factory.mktemp("readme")
    config = write_tiny(folder, "elsewhere")
    config.write_text(config.read_text().replace("steps: 24", "steps: 8") + ON_BOTH_NODES)
    (found,) = BLOCK.findall((ROOT / "README.md").read_text())
    dashboard, port = free_port(), free_port()
    ports = own_ports(dashboard)
    address = f"127.0.0.2:{ports[1].partition('=')[2]}"
    text = replaced(
        found,
        {
            "$PWD/.venv/bin": str(Path(sys.executable).parent),
            "--head": shlex.join(ports),
            "127.0.0.2:6379": address,
            "--address auto": f"--address {address}",
            "address=auto": f"address={address}",
            "52366": str(free_port()),
            "configs/quickstart.yaml": str(config),
            "--open": f"--open --port {port}",
            "127.0.0.1:8000": f"127.0.0.1:{port}",
        },
    )
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    starts = [shlex.split(line, comments=True)[2:] for line in lines if line.startswith("ray start ")]
    rest = [line for line in lines if not line.startswith("ray start ")]
    for line in rest:
        assert line.split()[0] in FOLLOWED and "`" not in line and "ray stop" not in line, line  # noqa: PT018
    assert len(starts) == 2
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"HOME": str(folder), "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    with nodes(folder / "node", *starts):
        yield Followed(folder, config, "\n".join(rest), environment)


def replaced(text: str, by: dict[str, str]) -> str:
    for what, other in by.items():
        assert what in text, f"README has no {what} any more: change what this test puts in its place"
        text = text.replace(what, other)
    return text


@pytest.mark.timeout(1200)  # it starts some thirty processes, beside what other tests start
def test_the_lines_of_readme_label_train_evaluate_promote_and_serve_on_two_nodes(readme: Followed) -> None:
    done = readme.shell(readme.lines)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "2 of 2 answered" in done.stdout
    assert "2 of 2 nodes with cores can work" in done.stdout
    assert done.stdout.count("succeeded") >= 2, "followed, then asked to end"
    assert "on the test split" in done.stdout
    workspace = readme.folder / "runs/q"
    assert json.loads((workspace / "champion.json").read_text())["stage"]
    assert (workspace / "rounds/r00/promote.manifest.json").is_file()
    assert (workspace / "ledger.parquet").is_file()
    is_mask_of(readme.folder / "mask.nii.gz", workspace / "archive/imagesTr/patient_000.nii.gz")


def is_mask_of(mask: Path, scan: Path) -> None:
    from tutelage.archive import formats

    assert formats.header(mask).grid.difference(formats.header(scan).grid) is None


def test_a_script_runs_with_the_package_that_travelled_and_its_end_is_told(readme: Followed) -> None:
    (readme.folder / "where.py").write_text(SCRIPT)
    done = readme.shell(f"{path(readme)}\ntutelage submit where.py {readme.config} workspace=runs/script")
    told = dict(
        line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("driver", "work"))
    )
    assert done.returncode == 3, done.stdout + done.stderr
    for who in ("driver", "worker"):
        assert "working_dir_files" in told[who], done.stdout
    assert "settings 1" in done.stdout
    assert "home folder of the job's node" in done.stdout, "a relative workspace on several nodes"
    (job, *_) = json.loads(readme.shell(f"{path(readme)}\ntutelage jobs list --json").stdout)["jobs"]
    assert (job["state"], job["workspace"]) == ("FAILED", "runs/script")


def test_a_training_that_is_stopped_saves_a_checkpoint_though_it_takes_longer_than_ray_would_wait(
    readme: Followed,
) -> None:
    """And is not submitted a second time while it runs."""
    workspace = readme.folder / "stopped"
    lasting = f"workspace={workspace} train.steps=100000 train.checkpoint_every=100000"
    submit = f"{path(readme)}\ntutelage submit train {readme.config} {lasting}"
    job = json.loads(readme.shell(f"{submit} --no-wait --json").stdout)["job"]
    again = readme.shell(submit)
    assert again.returncode == 1
    assert f"{job} is " in again.stderr
    until = time.monotonic() + PATIENCE_S
    while not list(workspace.glob("rounds/labels-only/steps/*")):
        assert time.monotonic() < until, "the job trains nothing"
        time.sleep(0.1)
    followed = readme.shell(f"{path(readme)}\ntutelage jobs stop {job}; tutelage jobs follow {job}")
    assert followed.returncode == 1
    assert f"{job} stopped" in followed.stdout
    assert "asked to end after" in followed.stdout, "it was killed before it could say so"
    assert list(workspace.glob("rounds/labels-only/checkpoint/step-*.pt")), followed.stdout
    assert yaml.safe_load((workspace / "settings.yaml").read_text())["cluster"]["address"] == "auto"


def path(readme: Followed) -> str:
    """Return README's first line, which says where commands are."""
    return readme.lines.splitlines()[0].strip()
