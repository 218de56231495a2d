"""Segmenting files: a folder of scans in, masks on the same grids out, no campaign needed.

It decides what counts as an input, what the outputs are called and what is told beside
them. Masks are NIfTI whatever the scan was, with the scan's own geometry.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tutelage import __version__
from tutelage.archive import formats
from tutelage.errors import ArchiveError, SettingsError, TutelageError
from tutelage.specialist.predictor import Predictor
from tutelage.storage import Place

MASK = ".nii.gz"
"""Suffix of every mask."""


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


def orders(source: Path, out: Path) -> list[Order]:
    """List what there is to segment, before anything heavy is loaded.

    A folder is searched with the folders in it, and their layout is kept. `out` is a
    folder, or for a single file also the name of its mask.

    Raises:
        SettingsError: the input is not there or the output would overwrite it.
        ArchiveError: there is nothing to segment.
    """
    if not source.exists():
        raise SettingsError(f"{source} does not exist; name a scan or a folder of scans")
    if source.is_file():
        mask = out if out.name.endswith(MASK) else out / (formats.stem(source.name) + MASK)
        listed = [Order(source, mask)]
    else:
        listed = _of_folder(source, out)
    for order in listed:
        if order.mask.resolve() == order.image.resolve():
            raise SettingsError(f"the mask of {order.image} would overwrite it; name another output")
    return listed


def predict(predictor: Predictor, listed: Sequence[Order], max_voxels: int) -> Iterator[Prediction]:
    """Segment one scan after another; one that fails becomes a row with the reason."""
    for order in listed:
        try:
            yield _predict(predictor, order, max_voxels)
        except Exception as error:  # a stranger's file can raise anything; the row says what it was
            told = str(error) if isinstance(error, TutelageError) else f"{type(error).__name__}: {error}"
            yield Prediction(str(order.image), None, told, ())


def segment(predictor: Predictor, volume: formats.Volume) -> tuple[NDArray[np.uint8], tuple[Found, ...]]:
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
    counts = np.bincount(mask_DHW.ravel(), minlength=predictor.plan.classes)
    return mask_DHW, tuple(
        Found(structure, value, int(counts[value]), round(float(counts[value]) * volume.grid.voxel_ml, 4))
        for value, structure in enumerate(predictor.structures, start=1)
    )


def _predict(predictor: Predictor, order: Order, max_voxels: int) -> Prediction:
    volume = formats.read_image(str(order.image), max_voxels)
    mask_DHW, found = segment(predictor, volume)
    formats.write_mask(Place.of(order.mask), mask_DHW, volume)
    description = {
        "image": order.image.name,
        "image_digest": volume.digest,
        "mask": order.mask.name,
        "shape_DHW": volume.grid.shape,
        "spacing_DHW_mm": [round(mm, 6) for mm in volume.grid.spacing],
        "structures": [asdict(one) for one in found],
        "specialist": predictor.digest,
        "version": __version__,
    }
    Place.of(order.description).write_text(json.dumps(description, indent=1) + "\n")
    return Prediction(str(order.image), str(order.mask), "", found)


def _of_folder(source: Path, out: Path) -> list[Order]:
    if out.is_file() or out.name.endswith(MASK):
        raise SettingsError(f"{source} is a folder and {out} a file; name a folder for the masks")
    if out.resolve() == source.resolve():
        raise SettingsError(f"masks and scans would lie together in {source}; name another output folder")
    images = [path for path in sorted(source.rglob("*")) if _is_scan(path, out)]
    if not images:
        raise ArchiveError(
            f"{source} holds no scans, expected files that end in {', '.join(sorted(formats.SUFFIXES))}"
        )
    stems = [path.parent / formats.stem(path.name) for path in images]
    # Two scans of one name but different kinds keep their whole names, so that neither mask is lost.
    names = [
        path.name if stems.count(stem) > 1 else stem.name for path, stem in zip(images, stems, strict=True)
    ]
    return [
        Order(path, out / path.parent.relative_to(source) / (name + MASK))
        for path, name in zip(images, names, strict=True)
    ]


def _is_scan(path: Path, out: Path) -> bool:
    hidden = path.name.startswith(".")
    return path.is_file() and not hidden and formats.suffix(path.name) is not None and out not in path.parents
