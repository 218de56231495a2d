"""Where the volumes of one training lie: in memory while there is room, then in files of the node.

It decides how much stays where, what gives way, and what the files are: nameless, so that
nothing of them is left however the process ends, and few, because a process may not open many.
Annotated cases are drawn most often and stay in memory first. Of the others the one that came
first goes from memory into a file. Of the files, annotated cases and others have their own, and the
oldest goes as a whole where more is taken: cases take turns in the order in which they come, so
those in it had theirs. It knows volumes by any key, and not what is learned from them.
"""

import contextlib
import logging
import mmap
import tempfile
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TrainingError
from tutelage.methods.shelves import Ready

_log = logging.getLogger(__name__)

_FILE_BYTES = 2**33
"""Length of a file at most; what is not written takes no room."""

_FILES = 8
"""At least so many files share the room on disk, of which the oldest gives way as a whole."""

_ALIGNED = 64

N = TypeVar("N", bound=np.generic)


class Volumes:
    """Keeps volumes under a bound. What it gave out stays readable, also when it is gone from here."""

    def __init__(self, max_gb: float, disk_gb: float) -> None:
        self._max_gb, self._disk_gb = max_gb, disk_gb
        self._room, self._disk = int(max_gb * 1e9), int(disk_gb * 1e9)
        self._gold: dict[Hashable, Ready] = {}
        self._in_gold = 0
        self._others: OrderedDict[Hashable, Ready] = OrderedDict()
        self._files: dict[bool, deque[_File]] = {True: deque(), False: deque()}
        """Of annotated cases and of others."""
        self.in_memory = 0
        """Bytes."""
        self.gone = 0
        """Volumes that gave way altogether."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for files in self._files.values():
            while files:
                files.popleft().close()

    def __len__(self) -> int:
        return len(self._gold) + len(self._others) + sum(len(file.kept) for file in self._all())

    @property
    def in_files(self) -> int:
        """Bytes, too."""
        return sum(file.end for file in self._all())

    def get(self, key: Hashable) -> Ready | None:
        """Return what is kept by a key."""
        for kept in (self._gold, self._others, *(file.kept for file in self._all())):
            if key in kept:
                return kept[key]
        return None

    def keep(self, key: Hashable, volume: Ready) -> Ready:
        """Return the same volume as it lies from now on: in memory, in a file, or with the caller alone.

        Raises:
            TrainingError: the disk has no room for the file.
        """
        needed = _bytes_of(volume)
        if needed + self._in_gold > self._room:
            return self._file(key, volume)
        while self.in_memory + needed > self._room:
            self._demote()
        if volume.sample.gold:
            self._gold[key] = volume
            self._in_gold += needed
        else:
            self._others[key] = volume
        self.in_memory += needed
        return volume

    def _demote(self) -> None:
        """Bring from memory into a file what came first."""
        key, volume = self._others.popitem(last=False)
        self.in_memory -= _bytes_of(volume)
        self._file(key, volume)

    def _file(self, key: Hashable, volume: Ready) -> Ready:
        needed = _bytes_of(volume)
        if needed > self._disk:
            self.gone += 1
            return volume
        try:
            return self._with_room(needed, self._files[volume.sample.gold]).keep(key, volume)
        except OSError as error:
            raise TrainingError(
                f"volumes beyond train.max_gb ({self._max_gb:g}) find no room beneath "
                f"{tempfile.gettempdir()} ({error}); let TMPDIR name a folder with more, "
                f"lower train.disk_gb ({self._disk_gb:g}), or raise train.max_gb"
            ) from error

    def _with_room(self, needed: int, files: deque["_File"]) -> "_File":
        """Return one of these files, that takes so many bytes more; older ones give way for it."""
        while self.in_files + needed > self._disk:
            oldest = max(self._files.values(), key=_end_of).popleft()
            self.gone += len(oldest.kept)
            oldest.close()
        if not files or files[-1].room < needed:
            if not any(self._all()):
                _log.info("volumes beyond %g GB lie beneath %s", self._max_gb, tempfile.gettempdir())
            files.append(_File(max(needed, min(_FILE_BYTES, self._disk // _FILES))))
        return files[-1]

    def _all(self) -> Iterator["_File"]:
        return chain.from_iterable(self._files.values())


class _File:
    """A file that volumes are read from where they lie; it is gone with the last of them."""

    def __init__(self, size: int) -> None:
        self.kept: dict[Hashable, Ready] = {}
        self.end = 0
        self._size = size
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`, its map with the last array
        self._file.truncate(size)
        self._map = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ)

    def close(self) -> None:
        """Forget what is kept; arrays that somebody still holds stay readable."""
        self.kept = {}
        with contextlib.suppress(OSError):  # of a full disk, once more: what it did not take is not needed
            self._file.close()

    @property
    def room(self) -> int:
        """Bytes that are left."""
        return self._size - self.end

    def keep(self, key: Hashable, volume: Ready) -> Ready:
        """Write a volume and return it as it lies there."""
        self.kept[key] = _each(volume, self._append)
        return self.kept[key]

    def _append(self, array: NDArray[N]) -> NDArray[N]:
        start = self.end
        self._file.seek(start)
        self._file.write(np.ascontiguousarray(array).data)  # through the map, a full disk would be a crash
        self._file.flush()
        self.end = start + _lying(array)
        return np.frombuffer(self._map, array.dtype, array.size, start).reshape(array.shape)


def _end_of(files: Iterable[_File]) -> int:
    return sum(file.end for file in files)


def _each(volume: Ready, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Ready:
    """Return a volume with all its arrays changed."""
    sample = volume.sample
    label, weight, features = (
        None if array is None else change(array)
        for array in (sample.label_DHW, sample.weight_DHW, sample.features_DCHW)
    )
    changed = replace(
        sample,
        image_CDHW=change(sample.image_CDHW),
        label_DHW=label,
        weight_DHW=weight,
        features_DCHW=features,
    )
    return replace(volume, sample=changed, voxels=tuple(change(array) for array in volume.voxels))


def _bytes_of(volume: Ready) -> int:
    found: list[int] = []

    def counted(array: NDArray[Any]) -> NDArray[Any]:
        found.append(_lying(array))
        return array

    _each(volume, counted)
    return sum(found)


def _lying(array: NDArray[Any]) -> int:
    """Bytes of an array up to where the next may begin."""
    return -(-array.nbytes // _ALIGNED) * _ALIGNED
