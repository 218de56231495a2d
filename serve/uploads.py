"""A stranger's upload: from the wire into a nameless file, from there into a volume. Knows no server.

What is too much is refused before memory is taken for it. A body lies in a file that has no
name, which the system forgets with the process. Files of a zip need names; they lie in a
folder that its owner holds locked, is removed with the request, and, where its owner was
killed, by `sweep` when a copy starts. Nothing of an upload's headers is kept or logged, and
no refusal quotes them; it may name the upload as its sender named it.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from serve import owning
from tutelage.archive import formats, zipped
from tutelage.archive.formats import Limits, Volume
from tutelage.archive.segmentation import Source
from tutelage.archive.streams import unpacked
from tutelage.archive.volume import refuse_packed
from tutelage.cluster.settings import ServingSettings
from tutelage.errors import ArchiveError, TutelageError
from tutelage.specialist.looking import Stop

SPOOL = "TUTELAGE_SPOOL"
"""Environment variable that names the folder for uploads; without it the system's for temporary files."""

ZIP = ".zip"

_MAGIC = (
    (0, b"\x1f\x8b", ".nii.gz"),
    (0, b"BZh", ".nii.bz2"),
    (344, b"n+1\0", ".nii"),
    (4, b"n+2\0", ".nii"),
    (0, b"NRRD", ".nrrd"),
    (0, b"\x89PNG", ".png"),
    (0, b"\xff\xd8\xff", ".jpg"),
    (0, b"PK\x03\x04", ZIP),
    (0, b"PK\x05\x06", ZIP),
)
"""Where which bytes give away a kind of file, for uploads without a name."""

_HEAD = 352
"""Bytes that are looked at to recognize a kind."""

_PART = 2**20
"""Bytes of a body that are written at a time."""

_NAME = 120
"""Letters of a file's name that are kept, from its end."""

_FLOAT = 4
"""Bytes of a voxel as it is worked with."""

_SERIES_VOXEL = 12
"""Bytes of a voxel while a series is read: as it is worked with, the same turned, stored and decoded."""

_LOCK = "owned"
_FOLDER = "scan-"


class TooLargeError(TutelageError):
    """An upload is larger than is allowed."""


class UnknownFormatError(ArchiveError):
    """An upload is of no kind that can be read."""


@dataclass(slots=True)
class Upload:
    """A body that was received whole."""

    file: BinaryIO
    """A temporary file without a name, at its start."""

    size: int
    """Bytes."""

    name: str
    """What its sender calls it, without folders; may be empty."""

    def close(self) -> None:
        """Give its bytes back."""
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Scan:
    """An upload that was read."""

    volume: Volume
    name: str
    """Stem of what answers to it are called."""

    series: Source | None = None
    """What a DICOM SEG refers to; None for other formats."""


# --- receiving ----------------------------------------------------------------------------


async def received(
    stream: AsyncIterator[bytes], announced: int | None, name: str, settings: ServingSettings
) -> Upload:
    """Take a body in, never whole in memory, and stop as soon as it is too large.

    `announced` is how many bytes its sender says it has. Whoever gets the upload closes it.

    Raises:
        TooLargeError: it is larger than is allowed, or says so.
        ArchiveError: it is empty, or shorter than announced.
    """
    most = int(settings.max_mb * 1e6)
    _refuse_long(announced or 0, most)
    file = tempfile.TemporaryFile(dir=spool())  # noqa: SIM115 - goes out as a part of the upload
    try:
        size, part = 0, bytearray()
        async for piece in stream:
            size += len(piece)
            _refuse_long(size, most)
            part += piece
            if len(part) >= _PART:
                await asyncio.to_thread(file.write, part)
                part = bytearray()
        await asyncio.to_thread(file.write, part)
        _refuse_short(size, announced)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return Upload(file, size, basename(name))


def _refuse_long(size: int, most: int) -> None:
    if size > most:
        raise TooLargeError(
            f"the upload has {size / 1e6:.1f} MB or more, at most {most / 1e6:.1f} MB are accepted; "
            "compress it, or serve with a larger serving.max_mb"
        )


def _refuse_short(size: int, announced: int | None) -> None:
    if not size:
        raise ArchiveError(
            "the upload is empty, expected a scan as the body; with curl use --data-binary @scan.nii.gz"
        )
    if announced is not None and size < announced:
        raise ArchiveError(f"the upload ended after {size} of {announced} bytes; send it again")


def basename(name: str) -> str:
    """Return a name without folders of whatever system, and no longer than a file's name may be."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(letter for letter in last if letter.isprintable())[-_NAME:]


# --- reading ------------------------------------------------------------------------------


def read(
    upload: Upload, settings: ServingSettings, memory: int | None = None, stop: Stop = lambda: False
) -> Scan:
    """Read an upload; its kind is told by the suffix of its name or by its first bytes.

    `memory` is how many bytes reading may take, where somebody counts them; `stop` is asked between the
    files and slices of a series.

    Raises:
        UnknownFormatError: it is of no kind that can be read.
        TooLargeError: reading it takes more memory, as its header says.
        ArchiveError: it cannot be read, or is more than is allowed once it is unpacked.
        StoppedError: `stop` said so.
    """
    suffix = _suffix(upload)
    name = upload.name if upload.name.lower().endswith(suffix) else (upload.name or "scan") + suffix
    limits = Limits(
        voxels=settings.max_voxels,
        unpacked=int(settings.max_unpacked_mb * 1e6),
        ratio=settings.max_ratio,
        entries=settings.max_entries,
    )
    if suffix != ZIP:
        if memory is not None:
            _refuse_vast(upload, suffix, limits, memory)
        upload.file.seek(0)
        volume = formats.read_image_stream(upload.file, upload.size, name, limits)
        return Scan(volume, formats.stem(name))
    if memory is not None:
        # Only its files, once they are taken out to the disk, say how many voxels there are.
        limits = replace(limits, voxels=min(limits.voxels, memory // _SERIES_VOXEL))
    upload.file.seek(0)
    with private(spool()) as folder:
        try:
            volume, source = zipped.read(upload.file, upload.size, folder, limits, stop)
        except ArchiveError as error:
            raise ArchiveError(f"{name}: {error}") from None
    return Scan(volume, name[: -len(ZIP)], source)


def _refuse_vast(upload: Upload, suffix: str, limits: Limits, memory: int) -> None:
    """Refuse by its header what would take more memory than there is, before any is taken."""
    if limits.most(upload.size) * (1 + _FLOAT) <= memory:  # whatever its header says, it is read no further
        return
    format_ = formats.FORMATS[suffix]
    upload.file.seek(0)
    try:
        found = format_.header(unpacked(upload.file, format_.compression))
        refuse_packed(found, upload.size, limits)
    except Exception:  # decoders raise anything; whoever reads it next says what is wrong, and of which file
        return
    need = found.unpacked + prod(found.grid.shape) * found.channels * _FLOAT
    if need > memory:
        raise TooLargeError(
            f"reading the scan takes about {need / 1e9:.1f} GB of memory, expected at most "
            f"{memory / 1e9:.1f} GB on this server; send a part of it, or with fewer bytes a voxel"
        )


def recognized(head: bytes) -> str:
    """Return the suffix that goes with the first bytes of a file."""
    for start, magic, suffix in _MAGIC:
        if head[start : start + len(magic)] == magic:
            return suffix
    if head[128:132] == b"DICM":
        raise UnknownFormatError("it is one DICOM file, expected a zip of all files of one series; zip them")
    raise UnknownFormatError(
        f"an upload that starts with {head[:8]!r} is of no known kind, expected one of "
        f"{', '.join(sorted((*formats.SUFFIXES, ZIP)))}; if it is, say so with ?name=scan.nii"
    )


def _suffix(upload: Upload) -> str:
    if upload.name.lower().endswith(ZIP):
        return ZIP
    if known := formats.suffix(upload.name):
        return known
    upload.file.seek(0)
    return recognized(upload.file.read(_HEAD))


# --- folders that do not outlive their process ---------------------------------------------


def spool() -> Path:
    """Return the folder in which uploads lie while they are worked on."""
    return Path(os.environ.get(SPOOL) or tempfile.gettempdir())


@contextlib.contextmanager
def private(folder: Path) -> Iterator[Path]:
    """Make a folder that nobody else may read, and remove it with all that is in it."""
    home = _home(folder)
    with _alone(home):
        own = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=home))
        lock = os.open(own / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)
        os.close(lock)


def sweep(folder: Path | None = None) -> int:
    """Remove what processes left that were killed; return how many folders that were."""
    home = _home(folder or spool())
    with _alone(home):
        left = [own for own in home.glob(f"{_FOLDER}*") if not owning.is_held(own / _LOCK)]
        for own in left:
            shutil.rmtree(own, ignore_errors=True)
    return len(left)


def _home(folder: Path) -> Path:
    """Return this user's folder of folders."""
    return owning.own(folder / f"tutelage-uploads-{os.getuid()}")


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Within, no folder is made or swept elsewhere: one just made has no lock yet."""
    descriptor = os.open(home / "making", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
