"""PNG and JPEG: flat images of one slice, one channel or three.

Their spacing is not known and taken for 1 mm; turns that a camera noted beside the pixels
are not applied, because the masks drawn on them do not know of them. An image's opacity
is dropped. Masks are written as PNG only, which loses nothing.
"""

import io
from math import prod
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from tutelage.archive.volume import Header, Native, Voxels, native_for
from tutelage.errors import ArchiveError
from tutelage.geometry import Grid

if TYPE_CHECKING:
    from PIL.Image import Image

_GRAY = {"1", "L", "I;16", "I;16L", "I;16B", "I", "F"}
"""Pillow's words for one channel, of 1 to 32 bits."""


def header(stream: BinaryIO) -> Header:
    """Read the header alone."""
    with _opened(stream) as image:
        return _described(image)


def voxels(stream: BinaryIO, found: Header) -> Voxels:
    """Decode the pixels, as (W, H, 1, C)."""
    with _opened(stream) as image:
        pixels = np.asarray(image if _channels(image) == 1 else image.convert("RGB"))
    return pixels.reshape(*pixels.shape[:2], -1).transpose(1, 0, 2)[:, :, np.newaxis]


def label_voxels(stream: BinaryIO, found: Header) -> Voxels:
    """Decode a mask: a palette's indices are its values, not its colors."""
    with _opened(stream) as image:
        pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1).transpose(1, 0, 2)[:, :, np.newaxis]


def encode(array_ijkC: Voxels, native: Native) -> bytes:
    """Return a PNG of these pixels, whole numbers of 8 or 16 bits."""
    from PIL import Image

    if array_ijkC.shape[2] != 1 or array_ijkC.dtype not in (np.uint8, np.uint16):
        raise ArchiveError(
            f"{array_ijkC.shape[2]} slices of {array_ijkC.dtype} do not fit in a PNG, expected one slice "
            "of 8 or 16 bits; write .nii.gz"
        )
    pixels = array_ijkC[:, :, 0].transpose(1, 0, 2)
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def _opened(stream: BinaryIO) -> "Image":
    from PIL import Image, UnidentifiedImageError

    try:
        # Only what the suffix promises: Pillow knows many more formats, and their bugs.
        return Image.open(stream, formats=("PNG", "JPEG"))
    except UnidentifiedImageError:
        raise ArchiveError("it is neither PNG nor JPEG inside; check what it is, or rename it") from None


def _channels(image: "Image") -> int:
    return 1 if image.mode in _GRAY else 3


def _described(image: "Image") -> Header:
    w, h = image.size
    grid = Grid.from_spacing((1, h, w), (1.0, 1.0, 1.0))
    native = native_for("raster", grid)
    channels = _channels(image)
    if prod(grid.shape) < 1:
        raise ArchiveError(f"it is {w} x {h} pixels, expected some; export it again")
    return Header(grid, channels, "raster", native, None, prod(grid.shape) * channels)
