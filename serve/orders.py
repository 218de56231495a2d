"""One scan from the wire to its answers: received, read, segmented, put into the forms that were asked for.

It decides in which order and thread that happens, and what is measured of it. All addresses that
take scans come here; how they are asked and how they answer is not known.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from fastapi import Request
from starlette.requests import ClientDisconnect

from serve import answers, problems, uploads
from serve.answers import Answer, Kind, NotAcceptableError
from serve.jobs import Job, Jobs
from serve.logs import Notes, notes_of, tell_failure, tell_job
from serve.meters import Meters
from serve.models import Models, UnknownModelError
from serve.room import Part, Room
from serve.segmenter import Segmented
from serve.uploads import Scan, UnknownFormatError, Upload
from serve.working import Crew, Deadline, Piece
from tutelage.archive import formats
from tutelage.cluster.settings import ServingSettings
from tutelage.errors import MissingExtraError, StoppedError
from tutelage.specialist.looking import Stop

_TELL_S = 0.5
"""Least seconds between two notes of how far a job is, and between two looks whether it was cancelled."""

_READ = 0.1
"""Share of a job that is done when its scan has been read."""

Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for."""

    upload: Upload
    model: str
    kinds: tuple[Kind, ...]
    """Forms of the answer; of a job all that its scan allows."""

    request_id: str

    version: str = ""
    """In which version the model has to be; empty for whichever is served."""


@dataclass(slots=True)
class Done:
    """What came of it."""

    answers: dict[Kind, Answer] = field(default_factory=dict)
    model: str = ""
    version: str = ""
    digest: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage."""


class Desk:
    """What all addresses of one copy share."""

    def __init__(self, models: Models, settings: ServingSettings, jobs: Jobs) -> None:
        self.models, self.settings, self.jobs = models, settings, jobs
        self.crew = Crew(settings)
        self.room = Room()
        self.meters = Meters()
        self._running: dict[str, tuple[Piece[Done], asyncio.Task[Done]]] = {}

    # --- asked by somebody who waits --------------------------------------------------------

    @contextmanager
    def door(self) -> Iterator[Deadline]:
        """Let a request in before its body is read; its time begins.

        Raises:
            BusyError: too many are inside.
        """
        with self.crew.turns.door():
            yield Deadline(self.settings.timeout_s)

    def check_model(self, name: str) -> None:
        """Refuse a name before a body is read for it.

        Raises:
            UnknownModelError: no model of that name is served.
        """
        if name and name not in self.models.names:
            raise UnknownModelError(
                f"no model is called {name[:80]!r}, expected one of {', '.join(self.models.names)}"
            )

    async def receive(
        self, request: Request, name: str, deadline: Deadline, body: AsyncIterator[bytes] | None = None
    ) -> Upload:
        """Take the body of a request in, or what is left of it.

        Raises:
            ProblemError: the time was over before.
            StoppedError: the client left before.
            TutelageError: it is too large, empty, or of no use at all.
        """
        kind = request.headers.get("content-type", "")
        if kind.startswith("multipart/"):
            raise UnknownFormatError(
                "the body is a form of several parts, expected the scan itself; with curl use --data-binary "
                "@scan.nii.gz in place of -F"
            )
        began = time.monotonic()
        announced = None if body else announced_bytes(request)
        try:
            async with asyncio.timeout(deadline.left_s()):
                upload = await uploads.received(body or request.stream(), announced, name, self.settings)
        except TimeoutError:
            raise deadline.error() from None
        except ClientDisconnect:
            raise StoppedError("the client left before its scan was whole") from None
        notes_of(request.scope).seconds["receive"] = time.monotonic() - began
        return upload

    async def answer(self, request: Request, order: Order, deadline: Deadline) -> Done:
        """Have a scan segmented while the client waits.

        Raises:
            Exception: whatever goes wrong on the way.
        """
        notes = notes_of(request.scope)

        def work(stop: Stop) -> Done:
            return self._carried_out(order, stop, notes, lambda share: None)

        def waited(seconds: float) -> None:
            notes.seconds["queue"] = seconds
            self.follow()

        try:
            done = await self.crew.attended(request, deadline, Piece(work, order.upload.close), waited)
        finally:
            self.follow()
        notes.model, notes.digest = done.model, done.digest
        return done

    # --- jobs -------------------------------------------------------------------------------

    def start(self, job: Job, order: Order) -> None:
        """Have a scan segmented for a job, whenever it is its turn, however long it takes."""
        watch = _Watch(self.jobs, job)
        notes = Notes(order.request_id)

        def work(stop: Stop) -> Done:
            done = self._carried_out(order, lambda: stop() or watch.cancelled(), notes, watch.advanced)
            notes.model, notes.digest = done.model, done.digest
            self.jobs.finish(watch.job, done.answers)
            return done

        piece = Piece(work, order.upload.close)
        task = self.crew.unattended(piece, watch.began)
        self._running[job.id] = (piece, task)
        task.add_done_callback(lambda ended: self._finished(watch.job, order, notes, ended))
        self.follow()

    def cancel(self, name: str) -> None:
        """End a job wherever it runs, and forget it."""
        self.jobs.remove(name)
        if name in self._running:
            piece, task = self._running[name]
            piece.over.set()
            if not piece.began:
                task.cancel()

    async def close(self) -> None:
        """Finish the jobs that have begun, as far as there is time, and leave."""
        if self._running:
            tasks = [task for _, task in self._running.values()]
            await asyncio.wait(tasks, timeout=self.settings.drain_s)
        for piece, task in self._running.values():
            piece.over.set()
            task.cancel()
        self.jobs.close()
        self.crew.close()

    def _finished(self, job: Job, order: Order, notes: Notes, task: "asyncio.Task[Done]") -> None:
        self._running.pop(job.id, None)
        error = None if task.cancelled() else task.exception()
        state = "done"
        if task.cancelled() or isinstance(error, StoppedError):
            state = "cancelled"
            self.jobs.forget(job)
        elif error is not None:
            state, notes.problem = "failed", problems.kind_of(error)
            if not problems.expected(error):
                tell_failure(error, order.request_id)
            self.jobs.fail(job, problems.told(error, order.request_id))
        tell_job(notes, state)
        self.meters.jobs_over.labels(state).inc()
        self.meters.observe_stages(notes.seconds)
        self.follow()

    # --- in a thread ------------------------------------------------------------------------

    def _carried_out(self, order: Order, stop: Stop, notes: Notes, advanced: Progress) -> Done:
        with self.room.part() as part:
            return self._segmented(order, stop, notes, advanced, part)

    def _segmented(self, order: Order, stop: Stop, notes: Notes, advanced: Progress, part: Part) -> Done:
        with _timed(notes, "room"):
            part.read(order.upload.size, self.settings, stop)
        with _timed(notes, "read"):
            scan = uploads.read(order.upload, self.settings, self.room.readable(), stop)
        if order.kinds == ("dicom-seg",) and scan.series is None:
            raise NotAcceptableError(
                "a DICOM SEG refers to a DICOM series, and the scan is none; send a zip of the series, or "
                "accept application/gzip or application/json"
            )
        advanced(_READ)
        if stop():
            raise StoppedError("nobody waits for the answer any more")
        with _timed(notes, "model"):
            segmenter = self.models.get(order.model)
            check_version(segmenter.name, segmenter.version, order.version)
        with _timed(notes, "room"):
            part.work(scan.volume, segmenter.describe(), stop)
        segmented = segmenter(
            scan.volume, stop, lambda done, total: advanced(_READ + (1 - _READ) * done / max(total, 1))
        )
        notes.seconds.update(segmented.seconds)
        self._count(segmenter.name, segmenter.digest, segmenter.windows_seen, segmenter.batches)
        segmented = replace(segmented, seconds=dict(notes.seconds))
        with _timed(notes, "answer"):
            made = _answers(order, scan, segmented)
        return Done(made, segmented.model, segmented.version, segmented.digest, notes.seconds)

    def follow(self) -> None:
        """Have the measurements follow the queue and the models."""
        running = sum(piece.began for piece, _ in self._running.values())
        self.meters.follow(self.crew.turns, {"queued": len(self._running) - running, "running": running})
        self.meters.follow_models(self.models.describe())

    def _count(self, model: str, digest: str, windows: int, batches: int) -> None:
        self.meters.advanced(self.meters.windows, model, digest, windows)
        self.meters.advanced(self.meters.batches, model, digest, batches)


class _Watch:
    """Notes how far a job is, and sees whether it was cancelled; not more often than is of use."""

    def __init__(self, jobs: Jobs, job: Job) -> None:
        self.jobs, self.job = jobs, job
        self._told = self._looked = 0.0
        self._cancelled = False

    def began(self) -> None:
        self.job = self.jobs.update(self.job, "running", 0.0)

    def advanced(self, share: float) -> None:
        now = time.monotonic()
        if now - self._told >= _TELL_S:
            self._told = now
            self.job = self.jobs.update(self.job, "running", share)

    def cancelled(self) -> bool:
        now = time.monotonic()
        if now - self._looked >= _TELL_S:
            self._looked = now
            self._cancelled = self.jobs.cancelled(self.job)
        return self._cancelled


def check_version(model: str, served: str, asked: str) -> None:
    """Refuse a version that is not the one that is served; an empty one is any.

    Raises:
        UnknownModelError: it is another one.
    """
    if asked and asked != served:
        raise UnknownModelError(
            f"{model} is served in version {served}, found that {asked[:40]!r} is asked for; leave the "
            "version out to ask whichever is served"
        )


def nameless(name: str) -> str:
    """Return what is kept of a file's name, which may be a patient's, where it would lie on a disk."""
    suffix = uploads.ZIP if name.lower().endswith(uploads.ZIP) else formats.suffix(name)
    return f"scan{suffix}" if suffix else ""


def announced_bytes(request: Request) -> int | None:
    """Return how long a body says it is."""
    announced = request.headers.get("content-length", "")
    return int(announced) if announced.isascii() and announced.isdigit() and len(announced) < 19 else None


def _answers(order: Order, scan: Scan, segmented: Segmented) -> dict[Kind, Answer]:
    """Return the answers that were asked for; of several those that there can be."""
    made: dict[Kind, Answer] = {}
    for kind in order.kinds:
        try:
            made[kind] = answers.answered(kind, scan, segmented, order.request_id)
        except (NotAcceptableError, MissingExtraError) as error:
            if len(order.kinds) == 1:
                raise NotAcceptableError(str(error)) from error
    return made


@contextmanager
def _timed(notes: Notes, stage: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        notes.seconds[stage] = notes.seconds.get(stage, 0.0) + time.monotonic() - began
