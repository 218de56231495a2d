"""The cases of one training on their shelves: decoded ahead of need, kept under a bound.

Of each stream the next cases are known, and decoded in that order by whoever reads: threads of
this process, or what is given from outside. A case that is drawn without having been told, or
that had to give way in between, is decoded on the spot: slower, and the same. It decides how
far reading runs ahead, and what happens to a case that cannot be read any more. It does not know
which cases are drawn, and not where readers run.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Literal

from tutelage.casework import samples
from tutelage.casework.volumes import Volumes
from tutelage.errors import ArchiveError, TrainingError, WorkspaceError
from tutelage.labels.arrays import read_label
from tutelage.methods.settings import TrainSettings
from tutelage.methods.shelves import Ready, Shelves, check, ready
from tutelage.records import Case
from tutelage.specialist.plan import Plan
from tutelage.storage import Place

if TYPE_CHECKING:
    from tutelage.casework.training import TrainJob

_log = logging.getLogger(__name__)

_THREADS = 4
"""That decode, for each stream; more would take the cores from what learns."""

_READ_AHEAD = 4
"""Volumes of a stream that may be there before they are drawn."""

_END_WITHIN_S = 5.0
"""A reader may end what it is at when training is over, but nobody waits for long."""

_LOOKED_AT = 16
"""Pseudo-labels that are asked how wide the generalist's features are; they are all of one generalist."""

Kind = Literal["annotated", "believed", "unlabeled"]


@dataclass(frozen=True, slots=True)
class Item:
    """A case to decode, and what may be read of it."""

    case: Case
    kind: Kind


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A case that cannot be read."""

    case: str
    reason: str
    """Names the file."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """Decodes items. Pickles, for it runs wherever there are cores."""

    plan: Plan
    labels: str
    """Folder of pseudo-labels."""
    max_voxels: int
    features: bool

    def __call__(self, item: Item) -> Ready | Unreadable:
        """Read a case and find what is found once."""
        case, labels = item.case, Place.of(self.labels)
        try:
            if item.kind == "annotated":
                return ready(samples.annotated(case, self.plan, self.max_voxels))
            if item.kind == "believed":
                return ready(samples.believed(case, self.plan, self.max_voxels, labels, self.features))
            return ready(samples.unlabeled(case, self.plan, self.max_voxels))
        except (ArchiveError, WorkspaceError, OSError) as error:
            return Unreadable(case.case, str(error))


Reader = Callable[[Decoder, Sequence[Item]], Iterator[Ready | Unreadable]]
"""Decodes items and yields them in their order, some of them before they are asked for."""


@contextmanager
def shelves(job: "TrainJob", read: Reader | None = None) -> Iterator[Shelves]:
    """Have the cases of a training, validation cases left out; within, they are decoded ahead of need."""
    settings = job.settings
    decoder = Decoder(job.plan, job.labels, job.max_voxels, job.needs.features)
    gold = Stream("annotated", [(job.gold, "annotated")])
    others = Stream("others", [(job.pseudo, "believed"), (job.unlabeled, "unlabeled")])
    width = _width(job) if job.needs.features else 0
    with ExitStack() as stack:
        volumes = stack.enter_context(Volumes(settings.max_gb, settings.disk_gb))
        both = [
            Streamed(stream, decoder, read or in_threads, volumes, settings, width)
            for stream in (gold, others)
        ]
        for shelf in both:
            stack.callback(shelf.close)
        yield Shelves(*both)


def in_threads(decoder: Decoder, items: Sequence[Item]) -> Iterator[Ready | Unreadable]:
    """Decode in a few threads of this process: a Reader."""
    under_way: deque[Future[Ready | Unreadable]] = deque()
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="decoding")
    try:
        for item in items:
            under_way.append(pool.submit(decoder, item))
            if len(under_way) >= _THREADS:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _width(job: "TrainJob") -> int:
    """Channels of the generalist's features, as the first label tells that has some."""
    labels = Place.of(job.labels)
    for number in range(min(_LOOKED_AT, len(job.pseudo))):
        try:
            grid_DCHW = read_label(labels, job.pseudo[number].case).grid_DCHW
        except WorkspaceError as error:
            if job.settings.missing == "refuse":
                raise _refused(job.pseudo[number].case, str(error)) from error
            continue
        if grid_DCHW is not None:
            return int(grid_DCHW.shape[1])
    return 0


def _refused(case: str, reason: str) -> TrainingError:
    return TrainingError(
        f"{case} cannot be learned from: {reason}; restore the file and train again, which goes on from "
        "the last checkpoint, or set train.missing to skip"
    )


# --- one stream -----------------------------------------------------------------------------


class Stream:
    """Cases of one stream one after another, kind by kind."""

    def __init__(self, name: str, parts: Sequence[tuple[Sequence[Case], Kind]]) -> None:
        self.name, self._parts = name, parts

    def __len__(self) -> int:
        return sum(len(cases) for cases, _ in self._parts)

    def __getitem__(self, index: int) -> Item:
        for cases, kind in self._parts:
            if index < len(cases):
                return Item(cases[index], kind)
            index -= len(cases)
        raise IndexError(f"there are {len(self)} cases in the stream, none at {index + len(self)}")


class Streamed:
    """A shelf whose cases are decoded ahead of need; see Shelf. One thread draws from it."""

    def __init__(
        self,
        stream: Stream,
        decoder: Decoder,
        read: Reader,
        volumes: Volumes,
        settings: TrainSettings,
        width: int,
    ) -> None:
        self.width = width
        self._stream, self._decoder, self._read = stream, decoder, read
        self._volumes, self._settings = volumes, settings
        self._missing: set[int] = set()
        self._narrow = False
        self._change = threading.Condition()
        self._awaited: set[int] = set()
        """Told, and not there yet."""
        self._there: dict[int, Ready | Unreadable] = {}
        """There, and not drawn yet."""
        self._told: SimpleQueue[list[int] | None] = SimpleQueue()
        self._reading: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._stream)

    def at(self, index: int) -> Ready | None:
        """See Shelf."""
        if index in self._missing:
            return None
        kept = self._volumes.get(self._key(index))
        if kept is not None:
            return kept
        found = self._taken(index) or self._decoder(self._stream[index])
        if isinstance(found, Unreadable):
            self._pass_over(index, found)
            return None
        check(found.sample, self._decoder.plan.classes, self.width)
        kept = self._volumes.keep(self._key(index), found)
        self._tell_if_too_narrow()
        return kept

    def soon(self, indices: Sequence[int]) -> None:
        """See Shelf."""
        with self._change:
            if self._closed:  # nobody reads what would be awaited then
                return
            had = self._missing | self._awaited | self._there.keys()
            wanted = [
                index
                for index in dict.fromkeys(indices)
                if index not in had and self._volumes.get(self._key(index)) is None
            ]
            self._awaited.update(wanted)
        if wanted:
            self._told.put(wanted)
        if wanted and self._reading is None:
            self._reading = threading.Thread(target=self._run, name="reading ahead", daemon=True)
            self._reading.start()

    def close(self) -> None:
        """Stop reading ahead."""
        with self._change:
            self._closed = True
            self._awaited.clear()
            self._there.clear()
            self._change.notify_all()
        self._told.put(None)
        if self._reading is not None:
            self._reading.join(_END_WITHIN_S)

    def _key(self, index: int) -> tuple[str, int]:
        return self._stream.name, index

    def _taken(self, index: int) -> Ready | Unreadable | None:
        """Return what was read ahead; None if it was not, or would not come before others are drawn."""
        with self._change:
            while index in self._awaited and len(self._there) < _READ_AHEAD and self._failure is None:
                self._change.wait()
            if index in self._awaited and self._failure is not None:
                raise self._failure
            self._awaited.discard(index)
            found = self._there.pop(index, None)
            self._change.notify_all()
            return found

    def _run(self) -> None:
        """Read what was told, as long as there is anything."""
        try:
            while (wanted := self._told.get()) is not None and not self._closed:
                self._fetch(wanted)
        except BaseException as error:  # carried to whoever draws, who raises it
            with self._change:
                self._failure = error
                self._change.notify_all()

    def _fetch(self, wanted: Sequence[int]) -> None:
        found = self._read(self._decoder, [self._stream[index] for index in wanted])
        for index, one in zip(wanted, found, strict=True):
            self._put(index, one)
            if self._closed:
                return

    def _put(self, index: int, found: Ready | Unreadable) -> None:
        with self._change:
            while index in self._awaited and len(self._there) >= _READ_AHEAD:
                self._change.wait()
            if index in self._awaited:
                self._awaited.discard(index)
                self._there[index] = found
                self._change.notify_all()

    def _pass_over(self, index: int, found: Unreadable) -> None:
        if self._settings.missing == "refuse":
            raise _refused(found.case, found.reason)
        _log.warning("%s is passed over, other cases stand in for it: %s", found.case, found.reason)
        self._missing.add(index)

    def _tell_if_too_narrow(self) -> None:
        """Cases that give way while they are still drawn are decoded over and over."""
        kept, needed = len(self._volumes), min(self._settings.window, len(self))
        if self._volumes.gone and kept < needed and not self._narrow:
            self._narrow = True
            _log.warning(
                "%d volumes lie within train.max_gb and train.disk_gb, expected %d, among which patches are "
                "drawn; volumes are decoded more often: raise them, or lower train.window",
                kept,
                needed,
            )
