"""Pixels of one DICOM file, a frame at a time, as the values they stand for.

Values are those after rescaling, frame by frame. MONOCHROME1, where small is bright, is
turned around because networks see brightness; in CT and PET it stays, for there values are
a measure and the word is about display alone. Colors of any kind become red, green, blue.
"""

import io
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.archive import codecs
from tutelage.archive.elements import decoding, syntax
from tutelage.archive.headers import Instance
from tutelage.archive.series import Frame
from tutelage.errors import ArchiveError

_MEASURES = ("CT", "PT")
"""Modalities whose values are a measure, however they are displayed."""


def pixels(one: Instance, data: bytes, frames: Sequence[Frame]) -> Iterator[NDArray[np.float32]]:
    """Decode frames from the bytes of a file, each (rows, columns, samples)."""
    from pydicom import dcmread
    from pydicom.dataset import FileMetaDataset
    from pydicom.pixels import pixel_array
    from pydicom.uid import UID

    with decoding():
        raw: Any = dcmread(io.BytesIO(data), force=True)
        told = syntax(raw)
        raw.file_meta = FileMetaDataset()
        raw.file_meta.TransferSyntaxUID = UID(told)
        plugin = codecs.plugin(told)
    turned = one.photometric == "MONOCHROME1" and one.modality not in _MEASURES
    for frame in frames:
        with decoding():
            stored = pixel_array(raw, index=frame.index, decoding_plugin=plugin)
            if stored.size != prod(frame.size):
                raise ArchiveError(
                    f"a frame of {stored.shape} pixels came out, expected {frame.size}; export it again"
                )
            values = stored.reshape(frame.size).astype(np.float32)
            if turned:
                values = np.float32(_brightest(raw)) - values
        values *= np.float32(frame.slope)
        values += np.float32(frame.intercept)
        yield values


def _brightest(raw: Any) -> int:
    """Return the sum of the smallest and the largest value that can be stored."""
    return -1 if raw.PixelRepresentation else int(2**raw.BitsStored) - 1
