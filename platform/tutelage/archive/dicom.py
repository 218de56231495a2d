"""A DICOM series as one volume, under an address like a file's.

    FOLDER#CASE?series=UID                  all of a series, its files directly in the folder
    FOLDER#CASE?series=UID&echo=4.6         one volume of several, by words of `series.TELLING`
    FOLDER#CASE?series=UID&in=A&in=B%2FC    files in folders below

Decides names of cases. Folders are named in addresses as they are. What a file means is in
`headers`, where slices lie in `series`.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote

import numpy as np

from tutelage.archive.elements import refuse_crowded
from tutelage.archive.headers import Instance, hashed
from tutelage.archive.instances import look
from tutelage.archive.pixels import pixels
from tutelage.archive.series import TELLING, Stack, Told, volumes
from tutelage.archive.volume import Header, Voxels, native_of, refuse_large
from tutelage.errors import ArchiveError, StoppedError
from tutelage.storage import Place

_READABLE = 32
"""Letters of a word in the name of a case."""

_ADDRESS = re.compile(r"^(?P<folder>.+)#(?P<case>[^#?/]+)\?(?P<query>series=[^/?#]+)$")


@dataclass(frozen=True, slots=True)
class Series:
    """A series, or one volume of it, and where its files are."""

    folder: Place
    """The deepest folder that holds all of it."""

    case: str
    uid: str
    told: Told = ()
    """What picks the volume."""

    within: tuple[str, ...] = ()
    """Folders below that hold files of it, `.` for the folder itself; empty means `.` alone."""

    @property
    def address(self) -> str:
        """What `parsed` reads."""
        pairs = [("series", self.uid), *self.told, *(("in", path) for path in self.within)]
        query = "&".join(f"{key}={quote(value, safe='')}" for key, value in pairs)
        return f"{self.folder.uri}#{self.case}?{query}"


def is_series(address: str) -> bool:
    """Whether an address, or the last part of one, is that of a series."""
    return _ADDRESS.match(address) is not None


def parsed(address: str) -> Series:
    """Take the address of a series apart."""
    match = _ADDRESS.match(address)
    if match is None:
        raise ArchiveError("it is no address of a series, expected FOLDER#CASE?series=UID; scan again")
    pairs = parse_qsl(match["query"], keep_blank_values=True)
    return Series(
        Place.of(match["folder"]),
        match["case"],
        pairs[0][1],
        tuple((key, value) for key, value in pairs if key in TELLING),
        tuple(value for key, value in pairs if key == "in"),
    )


def case_id(one: Instance, told: Told = ()) -> str:
    """Name a series, or a volume of it, readably and unlike any other: modality, number, hash of the UID."""
    words = [_plain(one.modality), _plain(one.number), hashed("series", one.series)]
    return "-".join(filter(None, [*words, *(f"{key}{_plain(value)}" for key, value in told)]))


def _plain(text: str) -> str:
    """Keep what a file's name may hold anywhere; what is long becomes a hash."""
    plain = re.sub(r"[^a-z0-9.]+", ".", text.lower()).strip(".")
    return plain if len(plain) <= _READABLE else hashed(text)


# --- reading ------------------------------------------------------------------------------


def stamp(address: str) -> str:
    """Return what tells whether all files of a series are still the same, bytes first."""
    told = sorted((one.file, *one.stamp) for one in files_of(parsed(address)))
    digest = hashlib.sha256(repr(told).encode()).hexdigest()[:16]
    return f"{sum(size for _, size, _ in told)}-{digest}"


def header(address: str) -> Header:
    """Put the headers of a series together, and check that no file was cut off."""
    series = parsed(address)
    found = files_of(series)
    return described(_picked(series, found), found)


def voxels(address: str, max_voxels: int) -> tuple[Header, Voxels, str]:
    """Read the pixels of a series, after asking its headers how many they are.

    Returns voxels in the series' own axes (columns, rows, slices, channels), and the digest
    of its files in the order of their slices.
    """
    series = parsed(address)
    found = files_of(series)
    return assembled(_picked(series, found), found, max_voxels)


def assembled(
    stack: Stack, files: Sequence[Instance], max_voxels: int, stop: Callable[[], bool] = lambda: False
) -> tuple[Header, Voxels, str]:
    """Read the pixels of a volume of these files, as `voxels` does; `stop` is asked between slices."""
    instances = {one.file: one for one in files}
    found = described(stack, files)
    refuse_large(found.grid, found.channels, max_voxels)
    columns, rows, count = stack.shape
    image_KHWC = np.empty((count, rows, columns, found.channels), np.float32)
    slices_of: dict[str, list[int]] = {}
    for slice_, frame in enumerate(stack.frames):
        slices_of.setdefault(frame.file, []).append(slice_)
    # Volumes of one file differ by which of its frames they are.
    sha = hashlib.sha256(repr(stack.told).encode() if stack.told else b"")
    for file, slices in slices_of.items():
        data = Place(file).read_bytes()
        sha.update(data)
        try:
            refuse_crowded(data)
            decoded = pixels(instances[file], data, [stack.frames[slice_] for slice_ in slices])
            for slice_, values_HWC in zip(slices, decoded, strict=True):
                image_KHWC[slice_] = values_HWC
                refuse_unwanted(stop)
        except ArchiveError as error:
            raise ArchiveError(f"{Place(file).name}: {error}") from None
    return found, image_KHWC.transpose(2, 1, 0, 3), sha.hexdigest()[:16]


def files_of(series: Series) -> list[Instance]:
    """Return the files of a series, by name."""
    folders = [series.folder if path == "." else series.folder / path for path in series.within or (".",)]
    looks = (look(file) for folder in folders for file in folder.files())
    found = [one for one in looks if one.series == series.uid]
    if not found:
        raise ArchiveError(
            "none of its files is there, expected them in its folder; copy them, or scan again"
        )
    return found


def stacks(found: Sequence[Instance]) -> tuple[Stack, ...]:
    """Return the volumes of one series' files.

    Raises:
        ArchiveError: a file is damaged, there are no scans, or they are no volume.
    """
    for one in found:
        if one.state == "damaged":
            raise ArchiveError(f"{Place(one.file).name}: {one.reason}")
    scans = [one for one in found if one.state == "scan" and not one.localizer]
    if not scans:
        told = next((one.reason for one in found if one.reason), "")
        raise ArchiveError(told or "it is a localizer (scout), expected a volume; nothing is read from it")
    kinds = sorted({one.photometric for one in scans})
    if len(kinds) > 1:
        raise ArchiveError(f"its images are of different kinds, {' and '.join(kinds)}; split the series")
    return volumes([frame for one in scans for frame in one.frames])


def _picked(series: Series, found: Sequence[Instance]) -> Stack:
    for stack in stacks(found):
        if stack.told == series.told:
            return stack
    told = " and ".join(f"{key} {value}" for key, value in series.told) or "a single one"
    raise ArchiveError(f"its files make other volumes than before, expected {told}; scan again")


def described(stack: Stack, files: Sequence[Instance]) -> Header:
    """Return what the headers of a volume of these files say."""
    native, grid = native_of("dicom", stack.shape, stack.matrix)
    own = {frame.file for frame in stack.frames}
    unpacked = sum(one.unpacked for one in files if one.file in own)
    return Header(grid, stack.frames[0].size[2], "dicom", native, None, unpacked)


def refuse_unwanted(stop: Callable[[], bool]) -> None:
    """End where nobody waits for the volume."""
    if stop():
        raise StoppedError("nobody waits for this volume any more; it was not read to its end")
