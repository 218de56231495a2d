"""BIDS: sub-01/ses-1/anat/sub-01_ses-1_run-1_T1w.nii.gz, with labels and their names below derivatives.

A case is an image and named like its file, its patient is the subject. Its modality is the
suffix, after what JSON sidecars call Modality: those of its folder and of all above it whose
entities it has, the nearest last. A label (dseg, else mask) is that of the image with the same
entities besides those that describe a segmentation; one in another space is none of ours.
"""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

from tutelage.archive.formats import SUFFIXES, stem, suffix
from tutelage.archive.importers.base import Found, names_by_value, read_json
from tutelage.archive.parallel import each_in_turn
from tutelage.archive.settings import ArchiveSettings, BidsSettings
from tutelage.errors import ArchiveError
from tutelage.records import Quarantined
from tutelage.storage import Place

_ENTITY = re.compile(r"^[A-Za-z]+-[A-Za-z0-9+]+$")
_COMPANIONS = (".json", ".tsv", ".tsv.gz", ".bval", ".bvec", ".txt", ".md")
"""What lies beside images and is none."""

_LABELS = ("dseg", "mask")
"""Suffixes of labels; the first one that is there counts."""

_NO_IMAGES = (*_LABELS, "probseg")
"""Ends of suffixes of what lies among images and is none, as defacemask."""

_DESCRIBING = {"space", "res", "den", "desc", "label", "seg", "atlas", "hemi"}
"""Entities of a segmentation that its image does not have."""

_SIDECARS = 1024
"""Files whose words are remembered; those of the whole dataset are asked about every image."""


@dataclass(frozen=True, slots=True)
class _File:
    """A file whose name follows the rules."""

    address: str
    depth: int
    """Folders below the dataset's own."""

    entities: Mapping[str, str]
    suffix: str

    def same(self) -> frozenset[tuple[str, str]]:
        """What it shares with the labels of one image."""
        return frozenset(item for item in self.entities.items() if item[0] not in _DESCRIBING)


@dataclass(slots=True)
class _Subject:
    """What lies in a subject's folder."""

    images: list[_File] = field(default_factory=list)
    others: list[_File] = field(default_factory=list)
    """Images that the settings do not ask for."""

    sidecars: list[_File] = field(default_factory=list)
    bad: list[Quarantined] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Dataset:
    """What concerns every subject."""

    settings: BidsSettings
    root: Place
    pipelines: Sequence[Place]
    sidecars: Sequence[_File]
    said: Callable[[str], str]
    """What a sidecar calls the modality."""


def structures(settings: ArchiveSettings, root: Place) -> tuple[str, ...]:
    """Return what the settings say, or the names in dseg.tsv, of the dataset or of a pipeline."""
    if settings.structures:
        return settings.structures
    told = {}
    for folder in (root, *_pipelines(settings.bids, root)):
        for name in folder.names("dseg.tsv"):
            file = _file(folder / name, 0)
            if file is not None and file.suffix == "dseg" and _wanted(file, settings.bids):
                told[str(folder / name)] = _names(folder / name)
    if len(set(told.values())) > 1:
        raise ArchiveError(
            f"{' and '.join(told)} name different structures, expected the same; set archive.bids.pipeline "
            "or archive.bids.desc to those that count"
        )
    if not told:
        raise ArchiveError(
            f"archive.structures is empty and {root} has no dseg.tsv of its own or of a pipeline in "
            "derivatives, expected names of label values; add either"
        )
    return next(iter(told.values()))


def cases(settings: ArchiveSettings, root: Place) -> Iterator[Found | Quarantined]:
    """List images subject by subject."""
    subjects = _subjects(root)
    if not subjects:
        raise ArchiveError(f"{root} has no folders sub-LABEL, expected a BIDS dataset; correct archive.root")
    dataset = _Dataset(
        settings=settings.bids,
        root=root,
        pipelines=_pipelines(settings.bids, root),
        sidecars=[file for name in root.names(".json") if (file := _file(root / name, 0))],
        said=lru_cache(_SIDECARS)(_said),
    )
    yield from _strangers(root, dataset.pipelines, set(subjects))
    named, passed = 0, set[str]()
    for items, suffixes in each_in_turn(partial(_listed, dataset), subjects):
        named += len(items)
        passed |= suffixes
        yield from items
    if not named and passed:
        raise ArchiveError(
            f"{root} has images of {', '.join(sorted(passed))}, expected some of "
            f"{' or '.join(settings.bids.suffixes) or 'any'} in {' or '.join(settings.bids.datatypes)}; "
            "correct archive.bids"
        )


def _strangers(root: Place, pipelines: Sequence[Place], subjects: set[str]) -> Iterator[Quarantined]:
    """Set aside people and labels without a folder of images."""
    table = root / "participants.tsv"
    for row in _rows(table, "participant_id") if table.exists() else ():
        if row["participant_id"] not in subjects:
            yield Quarantined(
                f"{root}/{row['participant_id']}",
                "participants.tsv names it, expected its folder; add it, or remove the line",
            )
    for pipeline in pipelines:
        for name in _subjects(pipeline):
            if name not in subjects:
                yield Quarantined(f"{pipeline}/{name}", "it has no subject of its name; add its images")


def _listed(dataset: _Dataset, name: str) -> tuple[list[Found | Quarantined], set[str]]:
    """List one subject: its cases, and the suffixes of images that were passed over."""
    subject = _subject(dataset, name)
    labels_of, bad = _labels(dataset, subject, name)
    items: list[Found | Quarantined] = [*subject.bad, *bad]
    items += [_found(dataset, name, image, labels_of[image.address], subject) for image in subject.images]
    return items, {file.suffix for file in subject.others}


def _found(
    dataset: _Dataset, patient: str, image: _File, labels: Sequence[_File], subject: _Subject
) -> Found | Quarantined:
    if len(labels) > 1:
        told = " and ".join(label.address.removeprefix(f"{dataset.root}/") for label in labels)
        return Quarantined(
            image.address,
            f"it has {len(labels)} labels, {told}, expected one; "
            "set archive.bids.pipeline or archive.bids.desc",
        )
    try:
        modality = _modality(dataset, image, subject.sidecars)
    except ArchiveError as error:
        return Quarantined(image.address, str(error))
    label = labels[0].address if labels else None
    return Found(stem(Place(image.address).name), patient, image.address, label, modality)


def _subject(dataset: _Dataset, name: str) -> _Subject:
    """Sort the files of a subject."""
    found, settings = _Subject(), dataset.settings
    for path, file in _beneath(dataset.root / name, depth=1):
        if path.endswith(_COMPANIONS):
            found.sidecars += [file] if file and path.endswith(".json") else []
            continue
        asked = path.rpartition("/")[0].rpartition("/")[2] in settings.datatypes
        if suffix(path) is None or file is None or f"sub-{file.entities.get('sub')}" != name:
            found.bad += [Quarantined(f"{dataset.root}/{name}/{path}", _odd(path, name))] if asked else []
        elif file.suffix.endswith(_NO_IMAGES):
            continue
        elif asked and file.suffix in (settings.suffixes or (file.suffix,)):
            found.images.append(file)
        else:
            found.others.append(file)
    return found


def _odd(file: str, subject: str) -> str:
    if suffix(file) is None:
        return f"its suffix is unknown, expected one of {', '.join(SUFFIXES)}; convert it"
    return f"it is not named like an image of its subject, expected {subject}_KEY-VALUE_SUFFIX; rename it"


def _labels(
    dataset: _Dataset, subject: _Subject, name: str
) -> tuple[dict[str, list[_File]], list[Quarantined]]:
    """Return labels by the address of their image, and those that have none or several."""
    labels_of: dict[str, list[_File]] = defaultdict(list)
    bad: list[Quarantined] = []
    for label in _segmentations(dataset, name):
        space = label.entities.get("space", "orig")
        fitting = [image for image in subject.images if image.same() == label.same()]
        if space != "orig":
            fitting = [image for image in fitting if image.suffix == space]
        if len(fitting) == 1:
            labels_of[fitting[0].address].append(label)
        elif len(fitting) > 1:
            told = " and ".join(Place(image.address).name for image in fitting)
            reason = (
                f"it fits {len(fitting)} images, {told}, expected one; "
                f"add space-{fitting[0].suffix} to its name, or ask for one of archive.bids.suffixes"
            )
            bad.append(Quarantined(label.address, reason))
        elif space == "orig" and not any(image.same() == label.same() for image in subject.others):
            bad.append(Quarantined(label.address, "it has no image of its entities; add it, or rename it"))
    for labels in labels_of.values():
        kind = min((label.suffix for label in labels), key=_LABELS.index)
        labels[:] = [label for label in labels if label.suffix == kind]
    return labels_of, bad


def _segmentations(dataset: _Dataset, name: str) -> Iterator[_File]:
    for pipeline in dataset.pipelines:
        for path, file in _beneath(pipeline / name, depth=3):
            if suffix(path) and file and file.suffix in _LABELS and _wanted(file, dataset.settings):
                yield file


def _modality(dataset: _Dataset, image: _File, sidecars: Sequence[_File]) -> str:
    told = ""
    for sidecar in sorted((*dataset.sidecars, *sidecars), key=lambda file: (file.depth, len(file.entities))):
        above = image.address.startswith(f"{Place(sidecar.address).parent}/")
        if above and sidecar.suffix == image.suffix and sidecar.entities.items() <= image.entities.items():
            told = dataset.said(sidecar.address) or told
    return f"{told} {image.suffix}".strip()


def _said(sidecar: str) -> str:
    return str(read_json(Place(sidecar), "scan again").get("Modality", ""))


# --- names and tables ---------------------------------------------------------------------


def _file(place: Place, depth: int) -> _File | None:
    """Read a file's name, or return None if it does not follow the rules."""
    *pairs, last = (stem(place.name) if suffix(place.name) else place.name.partition(".")[0]).split("_")
    if not last.isalnum() or not all(_ENTITY.match(pair) for pair in pairs):
        return None
    return _File(place.uri, depth, dict(pair.split("-", 1) for pair in pairs), last)


def _wanted(label: _File, settings: BidsSettings) -> bool:
    return settings.desc is None or label.entities.get("desc", "") == settings.desc


def _pipelines(settings: BidsSettings, root: Place) -> list[Place]:
    folders = (root / "derivatives").folders()
    chosen = [folder for folder in folders if settings.pipeline in ("", folder.name)]
    if settings.pipeline and not chosen:
        told = ", ".join(folder.name for folder in folders) or "nothing"
        raise ArchiveError(
            f"{root}/derivatives holds {told}, expected {settings.pipeline}; correct archive.bids.pipeline"
        )
    return chosen


def _subjects(root: Place) -> list[str]:
    return [folder.name for folder in root.folders() if folder.name.startswith("sub-")]


def _beneath(folder: Place, depth: int) -> Iterator[tuple[str, _File | None]]:
    """Yield path, and what its name says, of every file that nobody hides, in order."""
    for path in sorted(path for path, _, _ in folder.beneath()):
        if not any(part.startswith(".") for part in path.split("/")):
            yield path, _file(folder / path, depth + path.count("/"))


def _names(place: Place) -> tuple[str, ...]:
    """Return the structures of a table of label values; the background needs no line."""
    value_of = {"background": 0}
    for row in _rows(place, "index", "name"):
        index, name = row["index"], row["name"]
        if not index.isdigit() or not name or (name in value_of and int(index)):
            raise ArchiveError(
                f"{place} has index {index!r} named {name!r}, expected whole numbers and a name each, told "
                "once; correct it"
            )
        if int(index):
            value_of[name] = int(index)
    return names_by_value(value_of, place)


def _rows(place: Place, *columns: str) -> list[dict[str, str]]:
    """Return these columns of a table with tabs."""
    try:
        table = csv.DictReader(io.StringIO(place.read_text(), newline=""), delimiter="\t", restval="")
        names = [name.strip("\ufeff") for name in table.fieldnames or ()]
        table.fieldnames = names
        rows = (
            [{name: row[name].strip() for name in columns} for row in table]
            if set(columns) <= set(names)
            else None
        )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ArchiveError(f"{place} is no table of text in UTF-8 ({error}); correct it") from None
    if rows is None:
        raise ArchiveError(
            f"{place} has columns {', '.join(names) or 'none'}, expected {' and '.join(columns)} with tabs "
            "between them; correct it"
        )
    return rows
