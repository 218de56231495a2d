"""A command as a job on a Ray elsewhere: what travels, and how it is followed and stopped.

It decides what goes along: this package, the script, the campaign's YAML with what it extends, and the
small files that the YAML names, in one folder that Ray unpacks on every node; no node needs the package
installed, and the folder that a person stands in does not matter. Scans, labels and results do not
travel: a job and its nodes find them under the same addresses. It does not know what a command does.
"""

import asyncio
import contextlib
import logging
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

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
_LOST_S = 60.0
"""How long a cluster that was there a moment ago may not answer, as while a port-forward is started anew."""

ENVIRONMENT = {"PYTHONPATH": "platform", "RAY_JOB_STOP_WAIT_TIME_S": "600"}
"""Of a job. The seconds are from SIGTERM to SIGKILL when it is stopped: a training saves a checkpoint, and
workers that look at validation cases come to that only afterwards. Ray's own default is 3."""

_NOT_THERE = "status code 404"

T = TypeVar("T")


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
        from ray.exceptions import RayError
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray").setLevel(logging.ERROR)  # its import said otherwise
        self.address = address
        try:
            self._client = JobSubmissionClient(address)
        except RayError as error:
            raise self._refused(error) from error
        except (OSError, RuntimeError, ValueError) as error:
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
        with self._asked():
            listed = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(listed, key=lambda job: -job.started)

    def find(self, job: str) -> Job:
        """Return one job.

        Raises:
            SettingsError: there is none of that name.
        """
        with self._asked(job):
            return _job(self._client.get_job_info(job))

    def stop(self, job: str) -> None:
        """Ask a job to end; training saves a checkpoint first."""
        with self._asked(job):
            self._client.stop_job(job)

    def follow(self, job: str, say: Callable[[str], None]) -> Job:
        """Tell what a job writes until it has ended, across lost connections.

        Raises:
            SettingsError: there is no job of that name.
            WorkspaceError: nobody has answered for long; the job may go on.
        """
        log = _Log(say)
        while True:
            self._tailed(job, log)
            state = _patiently(lambda: self.find(job))
            if not state.running:
                # The end of a connection looks the same as that of a job: what came after it is read at once.
                with contextlib.suppress(WorkspaceError):  # the node that had it may be gone
                    log.begin()
                    log.hear(_patiently(lambda: self._log(job)))
                return state
            time.sleep(_PAUSE_S)

    def _tailed(self, job: str, log: "_Log") -> None:
        """Hear a job until it ends or the connection does."""
        from aiohttp import ClientError

        try:
            asyncio.run(self._tail(job, log))
        except BrokenPipeError:  # nobody listens to us
            raise
        except (ClientError, OSError, RuntimeError):
            return

    async def _tail(self, job: str, log: "_Log") -> None:
        log.begin()
        async for text in self._client.tail_job_logs(job):
            log.hear(text)

    def _log(self, job: str) -> str:
        with self._asked(job):
            return str(self._client.get_job_logs(job))

    def _sent(self, order: Order, folder: Path) -> str:
        until = time.monotonic() + _AGENT_S
        while True:
            try:
                with self._asked():
                    return self._client.submit_job(
                        entrypoint=order.entrypoint,
                        runtime_env={"working_dir": str(folder), "env_vars": ENVIRONMENT},
                        metadata={_WORKSPACE: order.workspace, _CONFIG: str(order.config)},
                        entrypoint_num_cpus=order.cpus,
                    )
            except WorkspaceError as error:
                if "No available agent" not in str(error.__cause__) or time.monotonic() > until:
                    raise
                time.sleep(_PAUSE_S)

    @contextlib.contextmanager
    def _asked(self, job: str | None = None) -> Iterator[None]:
        """Say in words of ours why a question came to nothing."""
        from ray.exceptions import RayError

        try:
            yield
        except RayError as error:
            raise self._refused(error) from error
        except (OSError, RuntimeError) as error:
            if job is not None and _NOT_THERE in str(error):
                raise SettingsError(
                    f"{self.address} has no job {job} ({_first(error)}); "
                    "`tutelage jobs list` shows those it has"
                ) from error
            raise WorkspaceError(
                f"{self.address} did not do what it was asked ({_first(error)}); jobs that run there go on "
                "without us. See whether the cluster and the way to it are up, and the log of its dashboard, "
                "then ask again"
            ) from error

    def _refused(self, error: Exception) -> SettingsError:
        return SettingsError(
            f"{self.address} wants a token, or another one ({_first(error)}); set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN to the cluster's, or put that into ~/.ray/auth_token"
        )


class _Log:
    """What a job writes, told once, however often it is heard from its beginning."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._told = 0
        self._heard = 0

    def begin(self) -> None:
        """Expect the beginning again."""
        self._heard = 0

    def hear(self, text: str) -> None:
        """Tell what goes beyond what was told before."""
        fresh = text[max(0, self._told - self._heard) :]
        self._heard += len(text)
        self._told = max(self._told, self._heard)
        if fresh:
            self._say(fresh)


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


def _patiently(ask: Callable[[], T]) -> T:
    """Ask a cluster that answered before until it answers again, or for too long."""
    until = time.monotonic() + _LOST_S
    while True:
        try:
            return ask()
        except WorkspaceError:
            if time.monotonic() > until:
                raise
            time.sleep(_PAUSE_S)


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
