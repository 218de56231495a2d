"""A command as a job on a Ray elsewhere: what travels, and how it is followed and stopped.

It decides what goes along: this package, the script, the campaign's YAML with what it extends, and the
small files that the YAML names, in one folder that Ray unpacks on every node; no node needs the package
installed, and the folder that a person stands in does not matter. Scans, labels and results do not
travel: a job and its nodes find them under the same addresses. It does not know what a command does.
"""

import asyncio
import contextlib
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import tutelage
from tutelage.cluster.session import quiet
from tutelage.errors import SettingsError, WorkspaceError

_WORKSPACE = "workspace"
_CONFIG = "campaign"
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_PAUSE_S = 1.0
_AGENT_S = 60.0
"""A head that has just started takes jobs a while after it answers."""


@dataclass(frozen=True, slots=True)
class Order:
    """One job to be submitted."""

    script: Path
    config: Path
    values: Mapping[str, Any]
    """What the campaign's YAML says, with what it extends."""
    arguments: tuple[str, ...]
    """Overrides and options of the command."""
    files: Mapping[str, Path]
    """Small files that settings name: where they lie in the job's folder, and where here."""
    workspace: str
    cpus: float = 0.0
    """Cores that the script itself occupies; its work asks for its own."""

    @property
    def entrypoint(self) -> str:
        """The command line of the job."""
        return shlex.join(
            ["python", f"jobs/{self.script.name}", f"configs/{self.config.name}", *self.arguments]
        )


@dataclass(frozen=True, slots=True)
class Job:
    """What a cluster knows of a job."""

    id: str
    state: str
    entrypoint: str
    workspace: str
    started: float
    """Seconds since 1970, 0 before it started."""
    ended: float
    told: str
    exit_code: int | None

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.state not in _ENDED


class Cluster:
    """The jobs of a Ray, by the address of its dashboard."""

    def __init__(self, address: str) -> None:
        quiet()
        from ray.job_submission import JobSubmissionClient

        self.address = address
        try:
            self._client = JobSubmissionClient(address)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise WorkspaceError(
                f"no Ray takes jobs at {address} ({_first(error)}); give the address of its dashboard, "
                "like http://127.0.0.1:8265, and start one with `ray start --head --dashboard-host 127.0.0.1`"
            ) from error

    def submit(self, order: Order) -> str:
        """Send a job, and return the name that the cluster gives it.

        Raises:
            WorkspaceError: a job on the same workspace has not ended.
        """
        for other in self.jobs():
            if other.running and other.workspace == order.workspace:
                raise WorkspaceError(
                    f"{other.id} is {other.state.lower()} on {order.workspace} already; follow it with "
                    f"`tutelage jobs follow {other.id}`, or stop it with `tutelage jobs stop {other.id}`"
                )
        with bundle(order) as folder:
            return self._sent(order, folder)

    def jobs(self) -> list[Job]:
        """List all jobs, the last first."""
        listed = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(listed, key=lambda job: -job.started)

    def find(self, job: str) -> Job:
        """Return one job.

        Raises:
            SettingsError: there is none of that name.
        """
        with self._known(job):
            return _job(self._client.get_job_info(job))

    def stop(self, job: str) -> None:
        """Ask a job to end; training saves a checkpoint first."""
        with self._known(job):
            self._client.stop_job(job)

    def follow(self, job: str, say: Callable[[str], None]) -> Job:
        """Tell what a job writes until it has ended, across lost connections."""
        told = 0
        while True:
            with self._known(job):
                state = _job(self._client.get_job_info(job))
            with contextlib.suppress(ConnectionError, OSError, RuntimeError):
                told = asyncio.run(self._tail(job, told, say))
            if not state.running:
                return state
            time.sleep(_PAUSE_S)

    async def _tail(self, job: str, told: int, say: Callable[[str], None]) -> int:
        """Say what goes beyond what was told before: a new connection begins at the beginning."""
        seen = 0
        async for text in self._client.tail_job_logs(job):
            fresh = text[max(0, told - seen) :]
            seen += len(text)
            if fresh:
                say(fresh)
            told = max(told, seen)
        return told

    def _sent(self, order: Order, folder: Path) -> str:
        until = time.monotonic() + _AGENT_S
        while True:
            try:
                return self._client.submit_job(
                    entrypoint=order.entrypoint,
                    runtime_env={"working_dir": str(folder), "env_vars": {"PYTHONPATH": "platform"}},
                    metadata={_WORKSPACE: order.workspace, _CONFIG: str(order.config)},
                    entrypoint_num_cpus=order.cpus,
                )
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > until:
                    raise WorkspaceError(
                        f"{self.address} took no job: {_first(error)}; see the log of its dashboard"
                    ) from error
                time.sleep(_PAUSE_S)

    @contextlib.contextmanager
    def _known(self, job: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise SettingsError(
                f"{self.address} has no job {job} ({_first(error)}); `tutelage jobs list` shows those it has"
            ) from error


@contextlib.contextmanager
def bundle(order: Order) -> Iterator[Path]:
    """Have the folder that a job takes with it."""
    with tempfile.TemporaryDirectory(prefix="tutelage-job-") as temporary:
        folder = Path(temporary)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(tutelage.__file__).parent, folder / "platform" / "tutelage", ignore=ignored)
        _copied(order.script, folder / "jobs" / order.script.name)
        for inside, file in order.files.items():
            _copied(file, folder / inside)
        config = folder / "configs" / order.config.name
        config.parent.mkdir(exist_ok=True)
        config.write_text(yaml.safe_dump(dict(order.values), sort_keys=False))
        yield folder


def scripts() -> Path:
    """Return the checkout's folder of jobs; it need not be there."""
    return Path(tutelage.__file__).parents[2] / "jobs"


def tell(text: str) -> None:
    """Write a job's own words as they are."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _copied(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, to)


def _job(details: Any) -> Job:
    metadata: Mapping[str, str] = details.metadata or {}
    return Job(
        id=str(details.submission_id),
        state=str(getattr(details.status, "value", details.status)),
        entrypoint=str(details.entrypoint),
        workspace=metadata.get(_WORKSPACE, ""),
        started=(details.start_time or 0) / 1000,
        ended=(details.end_time or 0) / 1000,
        told=str(details.message or ""),
        exit_code=details.driver_exit_code,
    )


def _first(error: BaseException) -> str:
    lines: Sequence[str] = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
