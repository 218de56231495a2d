"""What the archive room can be told.

Knows the folder only as far as its description: no image is opened to check settings.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator

from tutelage.errors import ArchiveError
from tutelage.settings import Settings
from tutelage.storage import Place

_STYLES = ("ct", "t1", "t2")


class SyntheticSettings(Settings):
    """The torso phantom."""

    seed: int = Field(default=0, ge=0)
    """Names the archive: the same seed makes the same patients."""

    patients: int = Field(default=30, ge=1)
    """How many."""

    styles: tuple[str, ...] = Field(default=_STYLES, min_length=1)
    """Scanners to imitate: ct, t1, t2."""

    spacing: tuple[float, float, float] = (9.0, 3.0, 3.0)
    """Millimeters along (D, H, W); each patient differs a little."""

    variety: float = Field(default=1.0, ge=0, le=3)
    """How much patients differ in shape and brightness."""

    @field_validator("spacing")
    @classmethod
    def _positive(cls, spacing: tuple[float, float, float]) -> tuple[float, float, float]:
        if not all(0.5 <= s <= 50 for s in spacing):
            raise ValueError("expected three values of 0.5 to 50 mm")
        return spacing

    @field_validator("styles")
    @classmethod
    def _known(cls, styles: tuple[str, ...]) -> tuple[str, ...]:
        for style in styles:
            if style not in _STYLES:
                raise ValueError(f"no style named {style!r}, expected some of {', '.join(_STYLES)}")
        return styles


class BidsSettings(Settings):
    """Which files of a BIDS dataset are images and labels."""

    datatypes: tuple[str, ...] = Field(default=("anat",), min_length=1)
    """Folders of a subject or session whose images are taken: anat, ct, pet and so on."""

    suffixes: tuple[str, ...] = ()
    """Last words of the names of images, as T1w or FLAIR; none takes all but masks."""

    pipeline: str = ""
    """Folder below derivatives whose labels are taken; empty takes those of any."""

    desc: str | None = None
    """What labels' names say after `desc-`: empty for those without it, None for any."""


class SplitSettings(Settings):
    """How many patients do what."""

    seed: int = Field(default=0, ge=0)
    """Of the draw."""

    gold: int = Field(default=4, ge=1)
    """Patients whose labels are learned from."""

    validation: int = Field(default=3, ge=1)
    """Patients who decide what is promoted."""

    test: int = Field(default=6, ge=1)
    """Patients who are only reported."""

    unlabeled: int | None = Field(default=None, ge=0)
    """At most this many of the others are pseudo-labeled; None takes all."""


class ArchiveSettings(Settings):
    """Where images and labels are, and which patient does what."""

    importer: Literal["synthetic", "msd", "nnunet", "pairs", "bids", "list", "dicom"]
    """How the folder is laid out; `synthetic` makes its own."""

    root: str | None = None
    """The folder, or the file of `list`; for all but `synthetic`."""

    structures: tuple[str, ...] = ()
    """Names by label value, for `pairs`, `list` and `dicom`; other datasets describe theirs."""

    modality: str = ""
    """For layouts that do not say."""

    synthetic: SyntheticSettings = SyntheticSettings()
    """Used by `synthetic` alone."""

    bids: BidsSettings = BidsSettings()
    """Used by `bids` alone."""

    split: SplitSettings = SplitSettings()
    """Used where the folder has no splits.json."""

    max_voxels: int = Field(default=2**29, ge=1)
    """Larger volumes are refused before memory is taken."""

    rescan: bool = True
    """Whether every command looks for new and changed files; without it only `tutelage catalog` does,
    which an archive of millions is grateful for."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Complain about a folder or a description that cannot be used, and about too large a split."""
        if self.importer != "synthetic" and self.root is None:
            yield "root", f"missing; importer {self.importer} needs the folder of the dataset"
            return
        if self.importer != "synthetic" and not Place.of(self.root or "").exists():
            yield "root", f"found {self.root}, which does not exist; correct the path"
            return
        # Importers know these settings, so they cannot be known to this file before.
        from tutelage.archive.importers import labeled_at_most, structures_of

        try:
            structures_of(self)
            labeled = labeled_at_most(self)
        except ArchiveError as error:
            yield "structures" if str(error).startswith("archive.structures") else "root", str(error)
            return
        wanted = self.split.gold + self.split.validation + self.split.test
        if labeled is not None and wanted > labeled:
            yield (
                "split",
                f"asks for {wanted} patients with labels (gold, validation, test), expected at most the "
                f"{labeled} there are; lower one",
            )
