"""Segmenting files: a folder of scans in, masks on the same grids out, no campaign needed.

It decides what counts as an input, what the outputs are called and what is told beside
them. Masks are NIfTI whatever the scan was, with the scan's own geometry.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tutelage import __version__
from tutelage.archive import formats
from tutelage.archive.streams import Hashed
from tutelage.errors import ArchiveError, SettingsError, TutelageError
from tutelage.geometry import Grid
from tutelage.storage import Place

if TYPE_CHECKING:
    from tutelage.specialist.predictor import Predictor

MASK = ".nii.gz"
"""Suffix of every mask."""

_ARCHIVE = ".zip"
"""Suffix of a DICOM series as one file, which servers take."""


@dataclass(frozen=True, slots=True)
class Order:
    """One scan and where its mask goes."""

    image: Path
    mask: Path

    @property
    def description(self) -> Path:
        """The file beside the mask that says what is in it."""
        return self.mask.with_name(self.mask.name.removesuffix(MASK) + ".json")


@dataclass(frozen=True, slots=True)
class Found:
    """One structure in one mask."""

    structure: str
    value: int
    """Label value."""
    voxels: int
    volume_ml: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """How one order ended."""

    image: str
    mask: str | None
    """None if there is no mask, for the reason given."""
    reason: str
    found: tuple[Found, ...]


def beside(scan: Path) -> Path:
    """Return where the mask of a scan lies if nobody says where."""
    return scan.with_name(f"{_stem(scan.name)}_mask{MASK}")


def orders(source: Path, out: Path, archives: bool = False) -> list[Order]:
    """List what there is to segment, before anything heavy is loaded.

    A folder is searched with the folders in it, and their layout is kept; with `archives`
    zipped series are scans too. `out` is a folder, or for a single file also the name of its mask.

    Raises:
        SettingsError: the input is not there or the output would overwrite it.
        ArchiveError: there is nothing to segment.
    """
    if not source.exists():
        raise SettingsError(f"{source} does not exist; name a scan or a folder of scans")
    if source.is_file():
        mask = out if out.name.endswith(MASK) else out / (_stem(source.name) + MASK)
        listed = [Order(source, mask)]
    else:
        listed = _of_folder(source, out, (*formats.SUFFIXES, _ARCHIVE) if archives else formats.SUFFIXES)
    for order in listed:
        if order.mask.resolve() == order.image.resolve():
            raise SettingsError(f"the mask of {order.image} would overwrite it; name another output")
    return listed


def predict(predictor: "Predictor", listed: Sequence[Order], max_voxels: int) -> Iterator[Prediction]:
    """Segment one scan after another; one that fails becomes a row with the reason."""
    for order in listed:
        try:
            yield _predict(predictor, order, max_voxels)
        except Exception as error:  # a stranger's file can raise anything; the row says what it was
            told = str(error) if isinstance(error, TutelageError) else f"{type(error).__name__}: {error}"
            yield Prediction(str(order.image), None, told, ())


def segment(predictor: "Predictor", volume: formats.Volume) -> tuple[NDArray[np.uint8], tuple[Found, ...]]:
    """Return the mask of a volume, and the measure of every structure in it, absent ones included.

    Raises:
        ArchiveError: the specialist learned from images with another number of channels.
    """
    channels, expected = len(volume.image_CDHW), predictor.plan.channels_in
    if channels != expected:
        raise ArchiveError(
            f"it has {channels} channels, expected {expected} as the specialist learned from; convert it"
        )
    mask_DHW = predictor.mask(volume.image_CDHW, volume.grid)
    return mask_DHW, _found(mask_DHW, predictor.structures, volume.grid)


def answered(order: Order, structures: Sequence[str], digest: str) -> Prediction:
    """Measure and describe a mask that somebody else wrote, a server for example.

    Raises:
        ArchiveError: it cannot be read, or holds other values than those of the structures.
    """
    grid = formats.header(order.mask).grid
    mask_DHW = formats.read_label(order.mask, grid, len(structures))
    found = _found(mask_DHW, structures, grid)
    with order.image.open("rb") as image:
        image_digest = Hashed(image).digest()
    _describe(order, image_digest, grid, found, digest)
    return Prediction(str(order.image), str(order.mask), "", found)


def _predict(predictor: "Predictor", order: Order, max_voxels: int) -> Prediction:
    volume = formats.read_image(str(order.image), max_voxels)
    mask_DHW, found = segment(predictor, volume)
    formats.write_mask(Place.of(order.mask), mask_DHW, volume)
    _describe(order, volume.digest, volume.grid, found, predictor.digest)
    return Prediction(str(order.image), str(order.mask), "", found)


def _found(mask_DHW: NDArray[np.integer], structures: Sequence[str], grid: Grid) -> tuple[Found, ...]:
    counts = np.bincount(mask_DHW.ravel(), minlength=len(structures) + 1)
    return tuple(
        Found(structure, value, int(counts[value]), round(float(counts[value]) * grid.voxel_ml, 4))
        for value, structure in enumerate(structures, start=1)
    )


def _describe(order: Order, image_digest: str, grid: Grid, found: Sequence[Found], digest: str) -> None:
    description = {
        "image": order.image.name,
        "image_digest": image_digest,
        "mask": order.mask.name,
        "shape_DHW": grid.shape,
        "spacing_DHW_mm": [round(mm, 6) for mm in grid.spacing],
        "structures": [asdict(one) for one in found],
        "specialist": digest,
        "version": __version__,
    }
    Place.of(order.description).write_text(json.dumps(description, indent=1) + "\n")


def _of_folder(source: Path, out: Path, suffixes: Sequence[str]) -> list[Order]:
    if out.is_file() or out.name.endswith(MASK):
        raise SettingsError(f"{source} is a folder and {out} a file; name a folder for the masks")
    if out.resolve() == source.resolve():
        raise SettingsError(f"masks and scans would lie together in {source}; name another output folder")
    images = [path for path in sorted(source.rglob("*")) if _is_scan(path, out, suffixes)]
    if not images:
        raise ArchiveError(
            f"{source} holds no scans, expected files that end in {', '.join(sorted(suffixes))}"
        )
    stems = [path.parent / _stem(path.name) for path in images]
    # Two scans of one name but different kinds keep their whole names, so that neither mask is lost.
    names = [
        path.name if stems.count(stem) > 1 else stem.name for path, stem in zip(images, stems, strict=True)
    ]
    return [
        Order(path, out / path.parent.relative_to(source) / (name + MASK))
        for path, name in zip(images, names, strict=True)
    ]


def _is_scan(path: Path, out: Path, suffixes: Sequence[str]) -> bool:
    known = path.name.lower().endswith(tuple(suffixes)) and not path.name.startswith(".")
    return known and path.is_file() and out not in path.parents


def _stem(name: str) -> str:
    return name[: -len(_ARCHIVE)] if name.lower().endswith(_ARCHIVE) else formats.stem(name)
