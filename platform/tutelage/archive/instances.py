"""DICOM files by their addresses: what their headers say, read once while they stay the same.

Of late ones it is remembered while the process lives; during a scan, of all that earlier
scans read (`known`). Knows no header's inside (headers does) and no layout.
"""

import contextlib
import io
from collections import OrderedDict
from collections.abc import Iterator
from threading import Lock
from typing import Any, BinaryIO, cast

from tutelage.archive.headers import Instance, examined, seal
from tutelage.archive.known import Known
from tutelage.errors import MissingExtraError
from tutelage.storage import Place

_REMEMBERED = 2**16
"""Frames whose headers stay in memory."""

_AHEAD = 2**16
"""Bytes asked for at a time: a store far away is slow to answer, not to send."""


def look(place: Place) -> Instance:
    """Return what a file's header says; what is wrong with the file is in the answer.

    Raises:
        MissingExtraError: pydicom, or what unpacks these pixels, is not installed.
    """
    need_pydicom()
    known = _KNOWN[-1] if _KNOWN else None
    try:
        stamp = place.stamp()
        kept = known.get(place.uri, stamp) if known else None
        one = kept or _MEMORY.get(place.uri, stamp) or _read(place, stamp)
    except OSError as error:
        return Instance(place.uri, (0, 0), "damaged", f"it cannot be read ({error}); check its rights")
    _MEMORY.keep(one)
    if known and not kept:
        known.keep(one)
    return one


def look_once(place: Place) -> Instance:
    """The same of a file that is nobody's to remember."""
    need_pydicom()
    return _read(place, place.stamp())


@contextlib.contextmanager
def known_in(folder: Place) -> Iterator[None]:
    """Within, answer from what earlier scans into a folder read, and keep there what is read."""
    known = Known(folder)
    _KNOWN.append(known)
    try:
        yield
        known.settle()
    finally:
        _KNOWN.remove(known)


def settle() -> None:
    """Forget files that this scan has not met, for it has met all there are."""
    for known in _KNOWN[-1:]:
        known.settle()


def need_pydicom() -> None:
    """Complain at once if it is not there, and not about the first file."""
    try:
        from pydicom import config
    except ImportError:
        raise MissingExtraError(
            "DICOM needs pydicom, which is not installed; run `pip install 'tutelage[dicom]'`"
        ) from None
    # Its warnings quote values, and with them patients; what counts is checked here.
    config.settings.reading_validation_mode = config.IGNORE


# --- reading ------------------------------------------------------------------------------


def _read(place: Place, stamp: tuple[int, int]) -> Instance:
    with place.open() as stream:
        return examined(cast(BinaryIO, _Ahead(stream)), place.uri, stamp)


class _Ahead:
    """A stream that asks for much at a time; not a BufferedReader, which pydicom takes for a local file."""

    def __init__(self, stream: BinaryIO) -> None:
        buffered = io.BufferedReader(cast(Any, stream), _AHEAD)
        self.read, self.seek, self.tell = buffered.read, buffered.seek, buffered.tell


# --- remembering --------------------------------------------------------------------------


class _Memory:
    """Headers that were read lately, bounded by how many frames they describe."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], Instance] = OrderedDict()
        self._frames = 0
        self._lock = Lock()

    def get(self, file: str, stamp: tuple[int, int]) -> Instance | None:
        """Return what is known about a file, if it has not changed."""
        with self._lock:
            known = self._known.get((file, seal()))
            if known is None or known.stamp != stamp:
                return None
            self._known.move_to_end((file, seal()))
            return known

    def keep(self, one: Instance) -> None:
        """Remember a file, and forget those not asked for longest."""
        with self._lock:
            self._drop(self._known.pop((one.file, seal()), None))
            self._known[one.file, seal()] = one
            self._frames += max(1, len(one.frames))
            while self._frames > _REMEMBERED and len(self._known) > 1:
                self._drop(self._known.popitem(last=False)[1])

    def _drop(self, one: Instance | None) -> None:
        if one is not None:
            self._frames -= max(1, len(one.frames))


_MEMORY = _Memory()
_KNOWN: list[Known] = []
"""Of scans that run, the latest last."""
