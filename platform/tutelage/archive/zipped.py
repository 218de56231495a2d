"""A zip of one DICOM series, from a stranger: what is taken out of it, and what is refused.

Names in it are looked at to refuse what means harm, and never used: files are written as
numbers, into a folder that the caller made and removes. How much comes out is counted as it
comes, whatever the directory of the zip claims; what compressed pixels come to is asked of
the headers. Refusals tell entries by their numbers, because names of files are often names of
patients. Knows no header's inside.
"""

import re
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from tutelage.archive import dicom, formats
from tutelage.archive.headers import NO_DICOM, Instance
from tutelage.archive.instances import look_once
from tutelage.archive.segmentation import Source, source_of
from tutelage.archive.volume import Limits, Volume, refuse_packed, to_frame
from tutelage.errors import ArchiveError
from tutelage.storage import Place

_PART = 2**20
"""Bytes taken out at a time."""

_NAMED = 2**10
"""Bytes of the directory that a file may take, its name and all."""

_ZIPS = (b"PK\x03\x04", b"PK\x05\x06")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Others unpack without asking how much is wanted."""

_ENCRYPTED = 0x41
"""Flags: encrypted, and strongly so."""

_ELSEWHERE = re.compile(r"^(/|[A-Za-z]:)|(^|/)\.\.(/|$)")


def read(
    stream: BinaryIO, size: int, folder: Path, limits: Limits, stop: Callable[[], bool] = lambda: False
) -> tuple[Volume, Source]:
    """Read the series in a zip of so many bytes, by way of an empty folder.

    `stop` is asked between files and between slices.

    Raises:
        ArchiveError: it is no sound zip, means harm, holds no series or several, is more than
            the limits allow, or its images are no volume.
        MissingExtraError: pydicom is not installed.
        StoppedError: `stop` said so.
    """
    files = []
    for path in unpacked(stream, size, folder, limits):
        dicom.refuse_unwanted(stop)
        files.append(look_once(Place.of(path)))
    series = _only(files)
    stacks = dicom.stacks(series)
    if len(stacks) > 1:
        words = " and ".join(word for word, _ in stacks[0].told)
        raise ArchiveError(f"it holds {len(stacks)} volumes, told apart by {words}, expected one; send one")
    refuse_packed(dicom.described(stacks[0], series), size, limits)
    found, voxels_ijkC, digest = dicom.assembled(stacks[0], series, limits.voxels, stop)
    volume = formats.volume_of(to_frame(voxels_ijkC, found.native), found, digest)
    return volume, source_of(stacks[0])


def _only(files: Sequence[Instance]) -> list[Instance]:
    """Return the files of the one series there is; folders of films, reports and the like are passed over."""
    images = [one for one in files if one.series and one.state != "other" and not one.localizer]
    counts = Counter(one.series for one in images)
    if not counts:
        reasons = [one.reason for one in sorted(files, key=lambda one: not one.series)]
        told = next(filter(_tells, reasons), "none of them is a DICOM image")
        raise ArchiveError(f"of its {len(files)} files, {told}; send all files of one series")
    if len(counts) > 1:
        numbers = " and ".join(str(count) for _, count in counts.most_common())
        raise ArchiveError(
            f"it holds {len(counts)} series, of {numbers} files, expected one; send one of them"
        )
    return images


def _tells(reason: str) -> bool:
    """Whether a reason says more than that a file is something else altogether."""
    return reason not in ("", NO_DICOM)


# --- taking out ----------------------------------------------------------------------------


def unpacked(stream: BinaryIO, size: int, folder: Path, limits: Limits) -> list[Path]:
    """Take all files out of a zip of so many bytes, under numbers; return where they are."""
    bounded = _Bounded(stream, limits.entries * _NAMED + 2**17)
    left = limits.most(size)
    paths = []
    with _archive(bounded) as archive:
        entries = archive.infolist()
        _refuse_entries(entries, limits.entries, left)
        for number, entry in enumerate(entries, start=1):
            if entry.is_dir():
                continue
            path = folder / f"entry-{number:05d}"
            with path.open("xb") as file:
                for part in _parts(archive, entry, number):
                    left -= len(part)
                    if left < 0:
                        raise ArchiveError(_much(limits.most(size)))
                    file.write(part)
            paths.append(path)
    if not paths:
        raise ArchiveError("it holds no files, expected those of one DICOM series; zip the folder again")
    return paths


def _archive(bounded: "_Bounded") -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(cast(BinaryIO, bounded))
    except (ArchiveError, MemoryError):
        raise
    except Exception as error:  # a hostile directory makes it raise anything, and names are quoted in it
        raise ArchiveError(f"it is no sound zip ({type(error).__name__}); zip the folder again") from None


def _refuse_entries(entries: Sequence[zipfile.ZipInfo], most: int, most_bytes: int) -> None:
    """Refuse by the directory alone what needs no look at the files."""
    if len(entries) > most:
        raise ArchiveError(f"it holds {len(entries)} files, expected at most {most}; send one series")
    if sum(entry.file_size for entry in entries) > most_bytes:
        raise ArchiveError(_much(most_bytes))
    seen: dict[str, int] = {}
    for number, entry in enumerate(entries, start=1):
        if told := _harm(entry):
            raise ArchiveError(f"its entry {number} {told}; zip the files of the series again")
        if seen.setdefault(entry.filename, number) != number:
            raise ArchiveError(
                f"its entries {seen[entry.filename]} and {number} have one name; zip the folder again"
            )


def _harm(entry: zipfile.ZipInfo) -> str:
    """Say what is wrong with an entry; empty if nothing is."""
    if entry.flag_bits & _ENCRYPTED:
        return "is encrypted, expected one that can be read"
    if entry.compress_type not in _METHODS:
        return f"is compressed by method {entry.compress_type}, expected none or deflate (8)"
    if _ELSEWHERE.search(entry.filename.replace("\\", "/")):
        return "would lie outside of the zip's folder, expected names below it"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device, expected files alone"
    return ""


def _parts(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, number: int) -> Iterator[bytes]:
    """Take one file out; its checksum is verified at its end."""
    came = 0
    try:
        with archive.open(entry) as content:
            while part := content.read(_PART):
                if not came and part.startswith(_ZIPS):
                    raise ArchiveError(f"its entry {number} is a zip, expected DICOM files; unpack it first")
                came += len(part)
                yield part
    except (ArchiveError, MemoryError, GeneratorExit):
        raise
    except Exception as error:  # as above
        raise ArchiveError(
            f"its entry {number} is damaged ({type(error).__name__}); zip the folder again"
        ) from None
    if came != entry.file_size:
        raise ArchiveError(
            f"its entry {number} holds {came} bytes, expected {entry.file_size} as its directory says; "
            "zip the folder again"
        )


def _much(most: int) -> str:
    return f"its files are more than {most / 1e6:.1f} MB when unpacked, as many are accepted; send one series"


class _Bounded:
    """A stream that gives no more at a time than the directory of a zip may take: it is read at once."""

    def __init__(self, stream: BinaryIO, most: int) -> None:
        self._stream = stream
        self._most = most
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1) -> bytes:
        """Read on."""
        data = self._stream.read(self._most + 1 if size < 0 else min(size, self._most + 1))
        if len(data) > self._most:
            raise ArchiveError(
                f"its directory is longer than {self._most} bytes, expected fewer files; send one series"
            )
        return data
