"""The journal of a training: what every step told, on disk before anybody else hears of it.

It is the truth that MLflow and the report copy. Rows are lines of JSON in parts of about a
thousand, each written whole and named after its first step: object stores cannot append, and
a kill leaves no half line. A step is in it once: a training that goes on from a checkpoint
repeats steps, and the first of them takes out all that followed before. It knows nothing of
what a row says but its step.
"""

import json
import logging
import threading
from collections.abc import Iterable, Iterator
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

from tutelage.storage import Place

Row = dict[str, Any]
"""What one step told; `step` counts from 0."""

Line = tuple[int, str]
"""A step, and its row as text: a part is written many times, and turned into text once."""

_PART = 1000
"""Rows after which a part is left as it is and the next begins."""

_FLUSH_EVERY_S = 1.0
_FLUSH_FAR_EVERY_S = 10.0
"""The same on an object store, where every write costs a request."""

_SUFFIX = ".jsonl"

_log = logging.getLogger(__name__)


def read(folder: Place) -> Iterator[Row]:
    """Yield the rows of a journal in order of their steps; none if there is no journal."""
    for name in folder.names(_SUFFIX):
        yield from _rows_of(folder / name)


class Journal:
    """One journal, open for adding. As a context manager it flushes by itself in a thread of its own."""

    def __init__(self, folder: Place) -> None:
        """Go on with what is in the folder."""
        self.folder = folder
        self._files = threading.Lock()
        self._memory = threading.Lock()
        self._closing = threading.Event()
        self._flusher: threading.Thread | None = None
        self._complained = False
        self._changed = False
        self._lines = _newest_part(folder)
        """The part that still grows; older ones are in files only."""
        self.last = self._lines[-1][0] if self._lines else -1
        """The newest step in it."""

    def __enter__(self) -> Self:
        self._flusher = threading.Thread(target=self._flush_by_itself, name="journal", daemon=True)
        self._flusher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        if self._flusher is not None:
            self._flusher.join()
        self.flush()

    def add(self, row: Row) -> None:
        """Add what a step told; waits for no file unless the step is in here already."""
        step = int(row["step"])
        if step <= self.last:
            self._forget(step)
        with self._memory:
            self._lines += _lines([row])
            self.last = step
            self._changed = True

    def flush(self) -> None:
        """Write what is not in a file yet. A place that refuses is told of once, and tried again later."""
        try:
            with self._files:
                self._write()
        except OSError as error:
            if not self._complained:
                _log.warning("%s cannot be written (%s); steps are kept in memory", self.folder, error)
            self._complained = True

    def after(self, step: int, most: int) -> list[Row]:
        """Return about `most` rows, the oldest ones, of steps after this one."""
        with self._files:
            with self._memory:
                growing = list(self._lines)
            found: list[Row] = []
            for name in self._shelved(step, growing):
                found += [row for row in _rows_of(self.folder / name) if row["step"] > step]
                if len(found) >= most:
                    return found[:most]
        wanted = [line for its, line in growing if its > step]
        return found + [json.loads(line) for line in wanted[: most - len(found)]]

    def _shelved(self, step: int, growing: list[Line]) -> list[str]:
        """Names of the finished parts that may hold a step after this one."""
        if growing and growing[0][0] <= step + 1:
            return []
        names = [name for name in self.folder.names(_SUFFIX) if not growing or name < _name(growing)]
        following = pairwise([*names, None])
        return [name for name, after in following if name and (after is None or _first(after) > step + 1)]

    def _forget(self, step: int) -> None:
        """Take out this step and those after it; newest parts first, so that a kill leaves no hole."""
        with self._files:
            self._write()
            kept: list[Line] = []
            for name in reversed(self.folder.names(_SUFFIX)):
                place = self.folder / name
                if _first(name) < step:
                    kept = [line for line in _lines(_rows_of(place)) if line[0] < step]
                    place.write_bytes(_bytes(kept), lasting=False)
                    break
                place.remove()
            with self._memory:
                self._lines = kept

    def _write(self) -> None:
        with self._memory:
            lines, changed = list(self._lines), self._changed
            self._changed = False
        if not changed or not lines:
            return
        try:
            (self.folder / _name(lines)).write_bytes(_bytes(lines), lasting=False)
        except BaseException:
            self._changed = True
            raise
        if len(lines) >= _PART:
            with self._memory:
                del self._lines[: len(lines)]

    def _flush_by_itself(self) -> None:
        every = _FLUSH_FAR_EVERY_S if self.folder.local is None else _FLUSH_EVERY_S
        while not self._closing.wait(every):
            self.flush()


def _newest_part(folder: Place) -> list[Line]:
    """Return the lines of the last part; one in which a power cut left nothing is deleted."""
    for name in reversed(folder.names(_SUFFIX)):
        if lines := _lines(_rows_of(folder / name)):
            return lines
        (folder / name).remove()
    return []


def _name(lines: list[Line]) -> str:
    return f"{lines[0][0]:09}{_SUFFIX}"


def _first(name: str) -> int:
    return int(name.removesuffix(_SUFFIX))


def _lines(rows: Iterable[Row]) -> list[Line]:
    return [(int(row["step"]), json.dumps(row)) for row in rows]


def _bytes(lines: list[Line]) -> bytes:
    return "".join(f"{text}\n" for _, text in lines).encode()


def _rows_of(place: Place) -> Iterator[Row]:
    """Rows of one part; a line that a power cut has damaged is left out, and said so."""
    for line in place.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            _log.warning("%s has a line that cannot be read, which is left out", place)
