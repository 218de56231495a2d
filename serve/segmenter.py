"""Bytes of a scan in, bytes of a mask out, by one specialist that stays loaded. Knows no HTTP and no Ray."""

import threading
from dataclasses import dataclass
from typing import Any

from tutelage import __version__
from tutelage.archive import formats
from tutelage.casework.predicting import MASK, Found, segment
from tutelage.errors import ArchiveError
from tutelage.specialist.predictor import Predictor
from tutelage.storage import Place

_MAGIC = (
    (0, b"\x1f\x8b", ".nii.gz"),
    (0, b"BZh", ".nii.bz2"),
    (344, b"n+1\0", ".nii"),
    (4, b"n+2\0", ".nii"),
    (0, b"NRRD", ".nrrd"),
    (0, b"\x89PNG", ".png"),
    (0, b"\xff\xd8\xff", ".jpg"),
)
"""Where which bytes give away a kind of file, for uploads without a name."""


class UnknownFormatError(ArchiveError):
    """An upload is of no kind that can be read."""


@dataclass(frozen=True, slots=True)
class Segmented:
    """The answer to one upload."""

    mask: bytes
    """A compressed NIfTI on the upload's own grid."""
    name: str
    """What to call that file."""
    found: tuple[Found, ...]


class Segmenter:
    """A loaded specialist. One scan at a time: a second would only halve the speed of both."""

    def __init__(self, folder: str, max_voxels: int) -> None:
        self.predictor = Predictor(Place.of(folder))
        self.max_voxels = max_voxels
        self._one = threading.Lock()

    def __call__(self, data: bytes, name: str = "") -> Segmented:
        """Segment one upload; without a name its kind is recognized by its first bytes.

        Raises:
            UnknownFormatError: it is of no kind that can be read.
            ArchiveError: it cannot be read.
        """
        name = name.rsplit("/", 1)[-1] or f"scan{recognized(data)}"
        if formats.suffix(name) is None:
            raise UnknownFormatError(
                f"{name!r} has no known suffix, expected one of {', '.join(sorted(formats.SUFFIXES))}"
            )
        with self._one:
            volume = formats.read_image_bytes(data, name, self.max_voxels)
            mask_DHW, found = segment(self.predictor, volume)
            mask = formats.mask_bytes(mask_DHW, volume, MASK)
        return Segmented(mask, formats.stem(name) + MASK, found)

    def describe(self) -> dict[str, Any]:
        """Say which specialist answers and what its label values mean."""
        plan = self.predictor.plan
        return {
            "specialist": self.predictor.digest,
            "structures": [
                {"value": value, "structure": name} for value, name in enumerate(plan.structures, start=1)
            ],
            "spacing_DHW_mm": list(plan.spacing),
            "max_voxels": self.max_voxels,
            "version": __version__,
        }


def recognized(data: bytes) -> str:
    """Return the suffix that goes with the first bytes of a file."""
    for start, magic, suffix in _MAGIC:
        if data[start : start + len(magic)] == magic:
            return suffix
    raise UnknownFormatError(
        f"an upload that starts with {data[:8]!r} is of no known kind, expected one of "
        f"{', '.join(sorted(formats.SUFFIXES))}; if it is, say so with ?name=scan.nii"
    )


def volumes(found: tuple[Found, ...]) -> dict[str, float]:
    """Return milliliters by structure."""
    return {one.structure: one.volume_ml for one in found}
