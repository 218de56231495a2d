"""Jobs: scans that are segmented while nobody holds a connection. Any copy on a node answers for any of them.

    jobs-UID/copies/COPY            held locked while that copy lives
    jobs-UID/JOB/state.json         replaced whole
    jobs-UID/JOB/nifti, nifti.json  an answer and what goes with it, likewise json
    jobs-UID/JOB/dicom-seg.json     what goes with an answer that quotes headers, and where it is

The folder is one that all copies of a node see. The scan itself is in no file that has a name:
what a copy had not finished when it died is lost, and its jobs are told as failed. A DICOM SEG
says whose scan it was, so it is in none either: other copies read it while the one that made it
lives, and then it is gone, while the other forms stay. A job whose folder is gone was cancelled,
by whichever copy was asked to. Results are removed `keep_s` seconds after they were made. It
knows no HTTP and does no work.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import TypeAdapter

from serve import unnamed
from serve.answers import Answer, Kind
from serve.owning import is_held, own
from serve.problems import ProblemError
from serve.uploads import spool
from tutelage.cluster.settings import ServingSettings
from tutelage.errors import StoppedError

State = Literal["queued", "running", "done", "failed"]

_ID = re.compile(r"[0-9a-f]{32}")
_COPIES = "copies"
_STATE = "state.json"
_NEW = ".new"
_NEW_S = 60.0
"""Seconds that what has only just been made is left alone."""

_SWEEP_S = 30.0
"""Most seconds between two looks at what can go."""

LOST: Final = {
    "type": "urn:tutelage:job-failed",
    "title": "The job failed",
    "status": 500,
    "detail": "the copy of the server that worked on it ended before it was done; send the scan again",
}
"""What is told of a job whose copy died."""

_UNWRITTEN: Final = {
    **LOST,
    "detail": "it ended, and how could not be written, as on a disk that is full; send the scan again later",
}
"""What the copy that worked on a job tells of it, where the file still says that it runs."""

_QUOTING: Final[frozenset[Kind]] = frozenset({"dicom-seg"})
"""Forms that repeat what the scan's headers say of a patient."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """What is known about one job."""

    id: str
    owner: str
    """Name of the token that made it; empty where there are none."""

    copy: str
    """Which process works on it."""

    state: State = "queued"
    share: float = 0.0
    """How much of it is done, 0 to 1."""

    problem: Mapping[str, Any] | None = None
    """Why it failed."""

    kinds: tuple[Kind, ...] = ()
    """Forms in which its result can be had."""

    at: float = field(default_factory=time.time)
    """When it last changed, in seconds since 1970."""

    @property
    def over(self) -> bool:
        """Whether it will not change any more."""
        return self.state in ("done", "failed")


_JOB = TypeAdapter(Job)


class Jobs:
    """The jobs of one node, as one copy sees them."""

    def __init__(self, settings: ServingSettings, folder: Path | None = None) -> None:
        """Join the other copies of the node, and remove what dead ones left.

        Raises:
            WorkspaceError: the folder is not this user's own.
        """
        self.settings = settings
        self.folder = folder or spool() / f"tutelage-jobs-{os.getuid()}"
        self.copy = secrets.token_hex(8)
        own(self.folder)
        (self.folder / _COPIES).mkdir(mode=0o700, exist_ok=True)
        self._lock = self._locked()
        self._active: set[str] = set()
        self._unnamed = unnamed.Unnamed(self.folder)
        self._closed = threading.Event()
        self.sweep()
        threading.Thread(target=self._sweeping, name="jobs", daemon=True).start()

    # --- of this copy's own jobs ------------------------------------------------------------

    def begin(self, owner: str) -> Job:
        """Make a job that waits.

        Raises:
            ProblemError: as many wait or run in this copy as may.
        """
        if len(self._active) >= self.settings.jobs:
            raise ProblemError(
                f"{len(self._active)} jobs wait or run, expected fewer than {self.settings.jobs}; send it "
                "again later, or serve with a larger serving.jobs",
                "busy",
            )
        job = Job(secrets.token_hex(16), owner, self.copy)
        self._active.add(job.id)
        try:
            (self.folder / job.id).mkdir(mode=0o700)
            self._write(job)
        except BaseException:
            self.remove(job.id)
            raise
        return job

    def update(self, job: Job, state: State, share: float) -> Job:
        """Note how far a job is.

        Raises:
            StoppedError: it was cancelled.
        """
        job = replace(job, state=state, share=round(share, 4), at=time.time())
        self._write(job)
        return job

    def finish(self, job: Job, answers: Mapping[Kind, Answer]) -> Job:
        """Keep the answers of a job.

        Raises:
            StoppedError: it was cancelled.
        """
        for kind, answer in answers.items():
            values = {"media_type": answer.media_type, "name": answer.name, "headers": answer.headers}
            if kind in _QUOTING:
                values["kept"] = self._unnamed.keep(job.id, answer.body)
            else:
                self._replaced(job.id, kind, answer.body)
            self._replaced(job.id, f"{kind}.json", json.dumps(values).encode())
        job = replace(job, state="done", share=1.0, kinds=tuple(answers), at=time.time())
        self._write(job)
        self._active.discard(job.id)
        return job

    def fail(self, job: Job, problem: Mapping[str, Any]) -> None:
        """Note why a job failed; of one that was cancelled there is nothing to note.

        On a full disk it may not be written, and has failed all the same: `get` tells so here.
        """
        try:
            # What there is of its answers goes first: their room may be what is missing.
            for file in (self.folder / job.id).iterdir():
                if file.name != _STATE:
                    file.unlink()
            self._write(replace(job, state="failed", problem=problem, at=time.time()))
        except (StoppedError, OSError):
            return
        finally:
            self.forget(job)

    def forget(self, job: Job) -> None:
        """Have room for another: this one was cancelled, or failed."""
        self._active.discard(job.id)
        self._unnamed.drop(job.id)

    def cancelled(self, job: Job) -> bool:
        """Whether somebody has removed a job."""
        return not (self.folder / job.id).is_dir()

    # --- of anybody's -----------------------------------------------------------------------

    def get(self, name: str) -> Job | None:
        """Return a job by its id, if there is one; one that nobody works on any more has failed."""
        job = self._read(name)
        if job is None or job.over or self._worked_on(job):
            return job
        # It may have finished, and its copy ended, since it was read.
        job = self._read(name)
        if job is None or job.over:
            return job
        return replace(job, state="failed", problem=_UNWRITTEN if job.copy == self.copy else LOST)

    def result(self, job: Job, kind: Kind) -> Answer | None:
        """Return an answer of a job that is done; None if it has none of this form, or not any more.

        Raises:
            ProblemError: it quoted headers, and the copy that kept it has ended.
        """
        folder = self.folder / job.id
        try:
            values = json.loads((folder / f"{kind}.json").read_bytes())
            kept = values.pop("kept", None)
            body = (folder / kind).read_bytes() if kept is None else unnamed.read(kept, job.id)
        except FileNotFoundError:
            return None
        if body is None:
            raise ProblemError(
                f"the result as {values['media_type']} is gone, expected the copy of the server that made it "
                "to keep it: it says whose scan it was, so it is in no file that outlives that copy; send "
                "the scan again, or accept another form",
                "result-gone",
            )
        return Answer(body, **values)

    def remove(self, name: str) -> None:
        """Cancel a job and forget it. The copy that works on it notices."""
        folder = self.folder / name
        # Renamed first: whoever still writes into it fails at once, and sees it as cancelled.
        gone = folder.with_name(f"gone-{secrets.token_hex(8)}")
        try:
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        except FileNotFoundError:
            return
        finally:
            self._active.discard(name)
            self._unnamed.drop(name)

    # --- what can go ------------------------------------------------------------------------

    def sweep(self) -> None:
        """Remove results that nobody fetched in time, and what dead copies left."""
        for folder in self._folders():
            with _going_on(folder):
                self._sweep_job(folder)
        for name in self._unnamed.names:
            if not (self.folder / name).is_dir():  # another copy was asked to remove it
                self._unnamed.drop(name)
        for item in os.scandir(self.folder / _COPIES):
            with _going_on(Path(item.path)):
                self._sweep_copy(Path(item.path))

    def close(self) -> None:
        """Leave. What this copy has not finished is told as failed from now on."""
        self._closed.set()
        (self.folder / _COPIES / self.copy).unlink(missing_ok=True)
        os.close(self._lock)
        for name in self._unnamed.names:
            self._unnamed.drop(name)

    def _sweeping(self) -> None:
        while not self._closed.wait(min(self.settings.keep_s / 4, _SWEEP_S)):
            # A folder that cannot be listed now, as without free descriptors, can be the next time.
            with _going_on(self.folder):
                self.sweep()

    def _sweep_job(self, folder: Path) -> None:
        if folder.name.startswith("gone-"):
            shutil.rmtree(folder, ignore_errors=True)
        elif _ID.fullmatch(folder.name) and self._expired(folder):
            self.remove(folder.name)

    def _sweep_copy(self, file: Path) -> None:
        young = file.name.endswith(_NEW) and time.time() - file.stat().st_mtime < _NEW_S
        if not young and not self._alive(file.name):
            file.unlink(missing_ok=True)

    def _expired(self, folder: Path) -> bool:
        job = self.get(folder.name)
        try:
            age_s = time.time() - (folder.stat().st_mtime if job is None else job.at)
        except FileNotFoundError:
            return False
        if job is None:
            return age_s > _NEW_S
        return job.over and age_s > self.settings.keep_s

    def _folders(self) -> Iterator[Path]:
        return (Path(item.path) for item in os.scandir(self.folder) if item.is_dir(follow_symlinks=False))

    # --- files ------------------------------------------------------------------------------

    def _locked(self) -> int:
        """Make the file by which others see that this copy lives; it gets its name when it is locked."""
        file = self.folder / _COPIES / self.copy
        new = file.with_name(file.name + _NEW)
        lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        new.rename(file)
        return lock

    def _worked_on(self, job: Job) -> bool:
        return job.id in self._active if job.copy == self.copy else self._alive(job.copy)

    def _alive(self, copy: str) -> bool:
        return is_held(self.folder / _COPIES / copy)

    def _read(self, name: str) -> Job | None:
        if not _ID.fullmatch(name):
            return None
        try:
            return _JOB.validate_json((self.folder / name / _STATE).read_bytes())
        except (FileNotFoundError, ValueError):
            return None  # cut off by a crash of the machine, or of another version: no job, and swept as that

    def _write(self, job: Job) -> None:
        self._replaced(job.id, _STATE, json.dumps(asdict(job)).encode())

    def _replaced(self, name: str, file: str, data: bytes) -> None:
        folder = self.folder / name
        temporary = folder / f"{file}.writing"
        try:
            temporary.write_bytes(data)
            temporary.replace(folder / file)
        except FileNotFoundError:
            raise StoppedError("the job was cancelled") from None


@contextlib.contextmanager
def _going_on(path: Path) -> Iterator[None]:
    """Have what cannot be swept keep nobody from sweeping the rest, nor a server from starting."""
    try:
        yield
    except FileNotFoundError:
        return  # another copy removed it, or gave it its name, at the same moment
    except Exception as error:  # whatever it is: without sweeping, what is said of patients stays on the disk
        _log.warning(
            "%s cannot be swept (%s: %s); if it stays so, remove it", path, type(error).__name__, error
        )
