"""Image files in, volumes out, and masks back: which suffix is which format, and what is refused.

Every reader is told how many voxels are too many and asks the header first, so that a small
file which claims to be huge costs nothing; of a compressed file no more is unpacked than its
header declares. What one format means is in its own file: nifti, nrrd, raster. A DICOM
series is many files under one address, which `dicom` takes apart; it is read, never written.
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from tutelage.archive import dicom, nifti, nrrd, raster
from tutelage.archive.streams import Hashed, at_most, check_length, finish, packed, unpacked
from tutelage.archive.volume import (
    Header,
    Limits,
    Mask,
    Native,
    Volume,
    Voxels,
    from_frame,
    native_for,
    refuse_large,
    refuse_packed,
    to_frame,
)
from tutelage.errors import ArchiveError, MissingExtraError
from tutelage.geometry import Grid
from tutelage.storage import Place

__all__ = [
    "SUFFIXES",
    "Header",
    "Limits",
    "Native",
    "Volume",
    "header",
    "image_bytes",
    "mask_bytes",
    "read_image",
    "read_image_bytes",
    "read_image_stream",
    "read_label",
    "stamp",
    "stem",
    "suffix",
    "volume_of",
    "write_image",
    "write_mask",
]

Address = str | Path | Place

MAX_VOXELS = 2**29
"""Where nobody says otherwise."""


MAX_ENCODED = 2**30
"""Bytes of a PNG or JPEG that are looked at; what is longer is cut off and fails to decode."""


@dataclass(frozen=True, slots=True)
class Format:
    """How one kind of file is read and written."""

    header: Callable[[BinaryIO], Header]
    voxels: Callable[[BinaryIO, Header], Voxels]
    """Voxels in the file's own axes, channels last; the stream stands right after the header."""
    labels: Callable[[BinaryIO, Header], Voxels]
    encode: Callable[[Voxels, Native], bytes]
    compression: str = ""
    """Around the whole file: gzip, bzip2 or none."""
    rewinds: bool = False
    """Whether voxels are read from the start of the file again."""
    lossy: bool = False


_NIFTI = (nifti.header, nifti.voxels, nifti.voxels, nifti.encode)
_RASTER = (raster.header, raster.voxels, raster.label_voxels, raster.encode)

FORMATS: dict[str, Format] = {
    ".nii": Format(*_NIFTI),
    ".nii.gz": Format(*_NIFTI, compression="gzip"),
    ".nii.bz2": Format(*_NIFTI, compression="bzip2"),
    ".nrrd": Format(nrrd.header, nrrd.voxels, nrrd.voxels, nrrd.encode),
    ".png": Format(*_RASTER, rewinds=True),
    ".jpg": Format(*_RASTER, rewinds=True, lossy=True),
    ".jpeg": Format(*_RASTER, rewinds=True, lossy=True),
}
"""One line a suffix."""

SUFFIXES = tuple(FORMATS)


def suffix(name: str) -> str | None:
    """Return the suffix of a name if it is one of ours, lower case, else None."""
    return next((s for s in SUFFIXES if name.lower().endswith(s)), None)


def stem(name: str) -> str:
    """Return a file's name without its suffix; of a DICOM series' address the case in it."""
    if dicom.is_series(name):
        return dicom.parsed(name).case
    return name[: len(name) - len(suffix(name) or "")]


# --- reading ------------------------------------------------------------------------------


def stamp(address: Address) -> str:
    """Return what tells whether an image is still the same: its bytes, and when they were written.

    Starts with the number of bytes and a dash; what follows changes when it is copied again.

    Raises:
        ArchiveError: it is not there, empty, or of an unknown kind.
    """
    place = Place.of(address)
    with _telling(place.uri):
        if dicom.is_series(place.uri):
            return dicom.stamp(place.uri)
        _format(place.name)
        try:
            size, changed_ns = place.stamp()
        except OSError as error:
            told = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
            raise ArchiveError(f"it {told}, expected a file; copy it there, or correct the dataset") from None
        if size == 0:
            raise ArchiveError("it is empty, expected an image; copy it again")
    return f"{size}-{changed_ns}"


def header(address: Address) -> Header:
    """Read what a file says about itself, and check that it is as long as it should be."""
    place = Place.of(address)
    with _telling(place.uri):
        if dicom.is_series(place.uri):
            return dicom.header(place.uri)
        format_ = _format(place.name)
        with place.open() as stream:
            found = format_.header(unpacked(stream, format_.compression))
            check_length(stream, place.stamp()[0], found.size, format_.compression)
    return found


def read_image(address: Address, max_voxels: int = MAX_VOXELS) -> Volume:
    """Read an image.

    Raises:
        ArchiveError: it is not there, of an unknown kind, damaged, larger than `max_voxels`
            counting all channels, has no usable geometry, or voxels that are not numbers.
    """
    place = Place.of(address)
    with _telling(place.uri):
        if dicom.is_series(place.uri):
            found, voxels_ijkC, digest = dicom.voxels(place.uri, max_voxels)
            return volume_of(to_frame(voxels_ijkC, found.native), found, digest)
        with place.open() as stream:
            return _read_image(stream, place.name, max_voxels)


def read_image_bytes(data: bytes, name: str, max_voxels: int = MAX_VOXELS) -> Volume:
    """Read an image from the bytes of a file; its name tells the format."""
    with _telling(name):
        return _read_image(io.BytesIO(data), name, max_voxels)


def read_image_stream(stream: BinaryIO, size: int, name: str, limits: Limits) -> Volume:
    """Read an image that a stranger sent, of so many bytes; its name tells the format.

    Raises:
        ArchiveError: as above, or unpacked it is more than the limits allow.
    """
    with _telling(name):
        return _checked_image(stream, name, lambda found: refuse_packed(found, size, limits))


def read_label(address: Address, grid: Grid, values: int) -> Mask:
    """Read a label as (D, H, W), which must lie on its image's grid and hold 0 to `values`."""
    place = Place.of(address)

    def check(found: Header) -> None:
        # A palette counts as colors until its indices are read as a label.
        if found.channels != 1 and found.kind != "raster":
            raise ArchiveError(f"it has {found.channels} channels, expected one of label values; convert it")
        if difference := found.grid.difference(grid):
            raise ArchiveError(f"it does not lie on its image: {difference}; resample it to the image's grid")

    with _telling(place.uri), place.open() as stream:
        found, label_CDHW = _voxels(stream, place.name, check, labels=True)
        if len(label_CDHW) != 1:
            raise ArchiveError(f"it has {len(label_CDHW)} channels, expected one of label values; convert it")
        return _values(label_CDHW[0], values, found.kind)


def _read_image(stream: BinaryIO, name: str, max_voxels: int) -> Volume:
    return _checked_image(stream, name, lambda found: refuse_large(found.grid, found.channels, max_voxels))


def _checked_image(stream: BinaryIO, name: str, check: Callable[[Header], None]) -> Volume:
    hashed = Hashed(stream)
    found, voxels_CDHW = _voxels(cast(BinaryIO, hashed), name, check, labels=False)
    return volume_of(voxels_CDHW, found, hashed.digest())


def volume_of(voxels_CDHW: Voxels, found: Header, digest: str) -> Volume:
    """Have voxels as they are worked with, and refuse what is no number."""
    with np.errstate(over="ignore"):  # what does not fit becomes infinite and is refused below
        image_CDHW = np.ascontiguousarray(voxels_CDHW, np.float32)
    if not np.isfinite(image_CDHW).all():
        bad = int((~np.isfinite(image_CDHW)).sum())
        raise ArchiveError(f"{bad} of its voxels are no numbers (NaN or infinite); repair or remove it")
    return Volume(image_CDHW, found.grid, found.native, digest)


def _voxels(
    stream: BinaryIO, name: str, check: Callable[[Header], None], labels: bool
) -> tuple[Header, Voxels]:
    """Read header, ask `check`, and only then read voxels, into our axes."""
    format_ = _format(name)
    if format_.rewinds:
        stream = io.BytesIO(at_most(stream, MAX_ENCODED))
    content = unpacked(stream, format_.compression)
    found = format_.header(content)
    check(found)
    if format_.rewinds:
        stream.seek(0)
    array = (format_.labels if labels else format_.voxels)(content, found)
    if format_.compression:
        finish(content)
    return found, to_frame(array, found.native)


def _values(label_DHW: Voxels, values: int, kind: str) -> Mask:
    """Check that label values are what they should be, and return them as small integers."""
    if values == 1 and kind == "raster" and np.isin(label_DHW, (0, 255)).all():
        # Black and white is how one structure is drawn.
        label_DHW = label_DHW > 0
    if label_DHW.dtype.kind == "f":
        # Values that a header scales come out a hair off.
        whole = np.round(label_DHW)
        if not (np.abs(label_DHW - whole) < 1e-3).all():
            raise ArchiveError("it holds values that are not whole numbers, expected a label; check the file")
        label_DHW = whole
    low, high = float(label_DHW.min()), float(label_DHW.max())
    if low < 0 or high > values:
        raise ArchiveError(
            f"its values run from {low:g} to {high:g}, expected 0 to {values}; correct it, or name all "
            "of its structures"
        )
    if values <= 255:
        return np.ascontiguousarray(label_DHW.astype(np.uint8))
    return np.ascontiguousarray(label_DHW.astype(np.uint16))


# --- writing ------------------------------------------------------------------------------


def write_mask(address: Address, mask_DHW: Mask, like: Volume | Native) -> None:
    """Write a mask beside the image it was made for: same axes, same place in space."""
    place = Place.of(address)
    place.write_bytes(mask_bytes(mask_DHW, like, place.name))


def mask_bytes(mask_DHW: Mask, like: Volume | Native, name: str) -> bytes:
    """Return the bytes of a mask's file; a name or a suffix tells the format."""
    native = like.native if isinstance(like, Volume) else like
    ours = tuple(native.shape[axis] for axis in native.axes)
    if mask_DHW.shape != ours:
        raise ArchiveError(f"mask of shape {mask_DHW.shape} does not fit its image, {ours}; predict it again")
    return _encoded(mask_DHW[np.newaxis], native, name)


def write_image(address: Address, image_CDHW: NDArray[Any], grid: Grid) -> None:
    """Write a new image, (C, D, H, W) or (D, H, W), in the type it has if the format knows it."""
    place = Place.of(address)
    place.write_bytes(image_bytes(image_CDHW, grid, place.name))


def image_bytes(image_CDHW: NDArray[Any], grid: Grid, name: str) -> bytes:
    """Return the bytes of a new image's file; a name or a suffix tells the format."""
    image = image_CDHW if image_CDHW.ndim == 4 else image_CDHW[np.newaxis]
    if image.shape[1:] != grid.shape:
        raise ArchiveError(
            f"image of shape {image.shape} does not fit its grid, {grid.shape}; give both alike"
        )
    return _encoded(image, native_for("", grid), name)


def _encoded(image_CDHW: Voxels, native: Native, name: str) -> bytes:
    with _telling(name):
        format_ = _format(name)
        if format_.lossy:
            raise ArchiveError("JPEG changes values, expected a format that keeps them; write .png")
        return packed(format_.encode(from_frame(image_CDHW, native), native), format_.compression)


# --- both ---------------------------------------------------------------------------------


def _format(name: str) -> Format:
    known = suffix(name)
    if known is None:
        raise ArchiveError(f"its suffix is unknown, expected one of {', '.join(SUFFIXES)}; convert it")
    return FORMATS[known]


@contextlib.contextmanager
def _telling(name: str) -> Iterator[None]:
    """Say which file it was, whatever a decoder raises about it."""
    try:
        yield
    except ArchiveError as error:
        raise ArchiveError(f"{name}: {error}") from None
    except FileNotFoundError:
        raise ArchiveError(f"{name}: it does not exist; correct the path, or scan again") from None
    except EOFError:
        raise ArchiveError(f"{name}: it is cut off, expected more; copy it again") from None
    except (MemoryError, MissingExtraError):
        raise
    except Exception as error:  # decoders raise whatever hostile bytes make them raise
        told = str(error) or type(error).__name__
        raise ArchiveError(f"{name}: it cannot be decoded ({told}); check it, or copy it again") from error
