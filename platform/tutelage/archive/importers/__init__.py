"""How archives are laid out: which files are images, which are their labels, and whose they are.

One layout is one file and one line here. Importers list; they open descriptions, never images.
"""

from collections.abc import Iterator

from tutelage.archive.importers import bids, dicom, listing, msd, nnunet, pairs
from tutelage.archive.importers.base import Found, Importer, description, patients_told
from tutelage.archive.settings import ArchiveSettings
from tutelage.archive.synthetic import STRUCTURES
from tutelage.errors import ArchiveError
from tutelage.records import Quarantined
from tutelage.storage import Place

__all__ = ["IMPORTERS", "Found", "found_in", "labeled_at_most", "structures_of"]

IMPORTERS: dict[str, Importer] = {
    "msd": Importer(msd.structures, msd.cases),
    "nnunet": Importer(nnunet.structures, nnunet.cases),
    "pairs": Importer(pairs.structures, pairs.cases),
    "bids": Importer(bids.structures, bids.cases),
    "list": Importer(listing.structures, listing.cases),
    "dicom": Importer(dicom.structures, dicom.cases),
}


def structures_of(settings: ArchiveSettings) -> tuple[str, ...]:
    """Return the names of structures by label value, without looking at any image."""
    told: tuple[str, ...] = STRUCTURES
    if settings.importer != "synthetic":
        told = IMPORTERS[settings.importer].structures(settings, Place.of(settings.root or "."))
    if settings.structures and settings.structures != told:
        raise ArchiveError(
            f"structures are {', '.join(settings.structures)} by the settings and {', '.join(told)} by the "
            "dataset, expected the same; leave archive.structures out"
        )
    return told


def labeled_at_most(settings: ArchiveSettings) -> int | None:
    """Return how many patients with labels a description promises; None if that takes looking."""
    if settings.importer == "synthetic":
        return settings.synthetic.patients
    root = Place.of(settings.root or ".")
    if settings.importer not in ("msd", "nnunet") or (root / "splits.json").exists():
        return None
    told = description(root)
    listed = told.get("training", told.get("numTraining"))
    return len(listed) if isinstance(listed, list) else listed if isinstance(listed, int) else None


def found_in(settings: ArchiveSettings, root: Place) -> Iterator[Found | Quarantined]:
    """List what a folder holds; a synthetic archive is laid out like the Decathlon."""
    importer = IMPORTERS["msd" if settings.importer == "synthetic" else settings.importer]
    return patients_told(importer.cases(settings, root), root)
