"""Data on which methods are compared: which cases there are, and whose labels may be learned from.

A set fixes everything that a method must not choose: cases and their roles, network, spacing,
patch, steps and the generalist that is asked. Published splits stay as they are; where there is
no validation split it is taken off the end of the training cases, never off the test cases. The
images stay where they are: a set becomes a list for the importer of that name, in the folder of
the bench. It does not know what a method is.
"""

import contextlib
import csv
import functools
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from tutelage.errors import ArchiveError, SettingsError
from tutelage.records import Case, Role
from tutelage.settings import fingerprint
from tutelage.storage import Place

BudgetName = Literal["small", "full"]

ROOT = Path(__file__).parents[3]
"""The checkout, whose configs hold what is known about structures."""


@dataclass(frozen=True)
class Entry:
    """One case of a set."""

    case: str
    image: str
    label: str | None
    modality: str


@dataclass(frozen=True)
class Cases:
    """The cases of a set; the first training cases are the annotated ones."""

    structures: tuple[str, ...]
    train: tuple[Entry, ...]
    validation: tuple[Entry, ...]
    test: tuple[Entry, ...]


@dataclass(frozen=True)
class Set:
    """What is fixed when methods are compared."""

    name: str
    labeled: int
    """Annotated cases unless somebody asks for another number."""
    settings: Mapping[str, Any]
    """Of a campaign, as in its YAML."""
    budgets: Mapping[BudgetName, Mapping[str, Any]]
    """What a budget changes in them."""
    rare: tuple[str, ...] = ()
    """Small structures, whose mean is shown beside the others'."""
    structures: tuple[str, ...] = ()
    modality: str = ""
    image: str = ""
    """Where a published set keeps the image of a case."""
    label: str = ""
    held_out: int = 0
    """Cases taken off the end of the training cases to decide with, where the split has none."""
    unlabeled: Mapping[BudgetName, int] = field(default_factory=dict)
    """Most unlabeled cases, where a budget cannot ask the generalist about all."""
    dropped: frozenset[str] = field(default=frozenset())
    """Training cases that are left out, for a reason told beside them."""


_UNET = {"network": "unet", "channels": [16, 32, 64, 128]}

_HIPPOCAMPUS = Set(
    name="hippocampus",
    labeled=9,
    structures=("anterior", "posterior"),
    modality="MR",
    image="images/{case}.nii.gz",
    label="labels/{case}.nii.gz",
    settings={
        "priors": {"shelf": "hippocampus"},
        "evaluation": {"nsd_tolerance_mm": 1.0},
        # Its fifty pixels blown up to LiteMedSAM's square take four times as long and are answered worse.
        "generalist": {"magnify": 3.0},
        # Coronal slices: the hippocampus is long from front to back, and shows its section there.
        "prompts": {"axes": [1], "margin": 0.1, "jitter": 0.1, "variants": 2, "min_pixels": 4},
        "specialist": {**_UNET, "spacing": [1.0, 1.0, 1.0], "patch": [40, 56, 40]},
        # Both sides of the brain are among the crops.
        "train": {"augment": {"flips": [False, False, True]}},
    },
    budgets={
        "small": {"train": {"batch": 2, "steps": 600}},
        "full": {"train": {"batch": 4, "steps": 6000}},
    },
    # Asking about all 173 takes two CPU cores a quarter of an hour, in every row that asks.
    unlabeled={"small": 40},
)

_LEFT_ATRIUM = Set(
    name="la",
    labeled=8,
    structures=("left_atrium",),
    modality="MR",
    image="images/{case}.nii.bz2",
    label="labels/{case}.nii.gz",
    held_out=8,
    settings={
        "priors": {"shelf": "heart"},
        "evaluation": {"nsd_tolerance_mm": 2.0},
        "prompts": {"axes": [0], "margin": 0.05, "jitter": 0.05, "variants": 2},
        # As published: mirrored and turned in the plane.
        "train": {"augment": {"flips": [False, True, True], "quarter_turns": True}},
    },
    budgets={
        # Half the resolution: the published patch of 112 x 112 x 80 is a minute a step on a laptop.
        "small": {
            "specialist": {**_UNET, "spacing": [1.25, 1.25, 1.25], "patch": [40, 64, 64]},
            "train": {"batch": 2, "steps": 500},
        },
        "full": {
            "specialist": {"network": "vnet", "spacing": [0.625, 0.625, 0.625], "patch": [80, 112, 112]},
            "train": {"batch": 4, "steps": 6000},
        },
    },
)

_KVASIR = Set(
    name="kvasir_seg",
    labeled=80,
    structures=("polyp",),
    modality="endoscopy",
    image="images/{case}.jpg",
    label="masks/{case}.png",
    dropped=frozenset({"train_0222"}),  # nearly the same picture as test_0016
    settings={
        "priors": {"shelf": "polyp"},
        "prompts": {"axes": [0], "margin": 0.05, "jitter": 0.05, "variants": 2},
        "train": {"augment": {"flips": [False, True, True], "quarter_turns": True}},
    },
    budgets={
        "small": {
            "specialist": {
                "network": "unet",
                "channels": [16, 32, 64, 128, 256],
                "spacing": [1.0, 3.6, 3.6],
                "patch": [1, 96, 96],
            },
            # Three minutes on one core. With 400 steps of a U-Net++, which take half of that, and with 1600
            # of a U-Net all labels were worth no more than a tenth of them: nothing could be compared.
            "train": {"batch": 4, "steps": 4000},
        },
        "full": {
            "specialist": {
                "network": "unetplusplus",
                "channels": [32, 64, 128, 256, 512],
                "spacing": [1.0, 1.375, 1.375],
                "patch": [1, 256, 256],
            },
            "train": {"batch": 16, "steps": 8000},
        },
    },
    # As many as two CPU cores can ask about in minutes, in every round; of 719.
    unlabeled={"small": 200},
)

_PHANTOM = Set(
    name="phantom",
    labeled=4,
    rare=("gallbladder", "pancreas", "aorta"),
    settings={
        "archive": {
            "importer": "synthetic",
            "synthetic": {"patients": 40, "styles": ["ct"], "spacing": [12.0, 3.0, 3.0]},
            "split": {"gold": 4, "validation": 4, "test": 10},
        },
        "priors": {"shelf": "torso"},
        "specialist": {**_UNET, "spacing": [12.0, 4.5, 4.5]},
    },
    budgets={
        "small": {"train": {"batch": 2, "steps": 400}},
        "full": {"train": {"batch": 4, "steps": 4000}},
    },
)

SETS: dict[str, Set] = {one.name: one for one in (_HIPPOCAMPUS, _LEFT_ATRIUM, _KVASIR, _PHANTOM)}
"""Sets by the name that the command takes."""


def find(archive: str) -> Set:
    """Return a known set, or one made of a person's own campaign.

    Raises:
        SettingsError: there is no such set, no such file, or the set's shelf of priors is not here.
    """
    if archive in SETS:
        shelf(str(SETS[archive].settings["priors"]["shelf"]))
        return SETS[archive]
    if not archive.endswith((".yaml", ".yml")):
        raise SettingsError(
            f"--archive is {archive}, expected {', '.join(SETS)}, or the YAML of a campaign; correct it"
        )
    from tutelage.rounds.settings import RunSettings
    from tutelage.settings import load

    settings = load(Path(archive), RunSettings)
    told = settings.model_dump(mode="json", exclude={"workspace", "name", "seed", "rounds"})
    gold = settings.archive.split.gold
    # Two files of one name are two sets, and so is a file that was changed.
    name = f"{Path(archive).stem}-{fingerprint(told)[:8]}"
    return Set(name, gold, told, {"small": {}, "full": {}})


def budget_of(name: str) -> BudgetName:
    """Return a budget by its name.

    Raises:
        SettingsError: there is no such budget.
    """
    for known in get_args(BudgetName):
        if name == known:
            budget: BudgetName = known
            return budget
    raise SettingsError(f"--budget is {name}, expected {' or '.join(get_args(BudgetName))}; correct it")


def cases_of(one: Set, folder: Place) -> Cases:
    """Return the cases of a set; what has to be made for that (the phantom) is kept in `folder`.

    Raises:
        ArchiveError: the data are not on this machine.
    """
    return _scanned(one, folder) if "archive" in one.settings else _published(one)


def listed(cases: Cases, labeled: int | None, folder: Place, unlabeled: int | None = None) -> Place:
    """Write the list of a set's cases with so many annotated ones (None: all), and return the file.

    Of the others the first `unlabeled` are kept, or all.

    Raises:
        SettingsError: there are not so many.
    """
    annotated = [entry for entry in cases.train if entry.label]
    gold = {entry.case for entry in annotated[:labeled]}
    if labeled is not None and not 1 <= labeled <= len(annotated):
        raise SettingsError(f"--labeled is {labeled}, expected 1 to the {len(annotated)} there are; lower it")
    roles = [(e, Role.GOLD if e.case in gold else Role.UNLABELED) for e in cases.train]
    if labeled is None:
        roles = [(entry, role) for entry, role in roles if role is Role.GOLD]
    others = [entry for entry, role in roles if role is Role.UNLABELED]
    left_out = {entry.case for entry in others[unlabeled:]} if unlabeled is not None else set()
    roles = [(entry, role) for entry, role in roles if entry.case not in left_out]
    roles += [(entry, Role.VALIDATION) for entry in cases.validation]
    roles += [(entry, Role.TEST) for entry in cases.test]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("case", "image", "label", "modality", "role"))
    writer.writerows((e.case, e.image, e.label or "", e.modality, role.value) for e, role in roles)
    digest = hashlib.sha256(out.getvalue().encode()).hexdigest()[:8]
    place = folder / f"{'all' if labeled is None else labeled}-{digest}.csv"
    if not place.exists():
        place.write_text(out.getvalue())
    return place


def contents(place: Place) -> str:
    """Return a digest of what is in the files that a list names, wherever and whenever they were copied."""
    lines = csv.DictReader(io.StringIO(place.read_text()))
    return fingerprint([_content(line[column]) for line in lines for column in ("image", "label")])


def _content(address: str) -> str:
    """Digest of a file of this machine; a DICOM series and a file elsewhere go by size and time of change."""
    from tutelage.archive import formats

    place = Place.of(address) if address else None
    with contextlib.suppress(OSError):
        if place is not None and place.local is not None and place.local.is_file():
            return _digest(str(place.local), place.stamp())
    with contextlib.suppress(ArchiveError):
        return formats.stamp(address)
    return "absent"


@functools.cache
def _digest(file: str, stamp: tuple[int, int]) -> str:
    """Read a file once a process, and again when its stamp is another."""
    with Path(file).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def shelf(name: str) -> str:
    """Return the file of a shelf: one that comes with the checkout by its name, any other by its path.

    Raises:
        SettingsError: it is not there, as in a wheel.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = ROOT / "configs" / "priors" / f"{name}.yaml"
    if not path.exists():
        raise SettingsError(
            f"no shelf of priors at {path}, which this set needs; run the bench from a checkout, "
            "whose configs hold it, or correct priors.shelf"
        )
    return str(path)


# --- published sets -----------------------------------------------------------------------


def data() -> Path:
    """Return the folder of published sets: TUTELAGE_DATA, or shared/data beside the checkout."""
    told = os.environ.get("TUTELAGE_DATA")
    return Path(told) if told else ROOT.parent / "shared" / "data"


def _published(one: Set) -> Cases:
    folder = data() / one.name
    described = folder / "dataset.json"
    if not described.exists():
        raise ArchiveError(
            f"no {one.name} in {data()} (no {described}); set TUTELAGE_DATA to the folder that holds it, "
            "or leave it out of --archive"
        )
    splits: dict[str, list[str]] = json.loads(described.read_text())["splits"]
    train = [case for case in splits["train"] if case not in one.dropped]
    held_out = train[len(train) - one.held_out :] if one.held_out else splits["val"]

    def entries(names: Sequence[str]) -> tuple[Entry, ...]:
        return tuple(
            Entry(
                case,
                str(folder / one.image.format(case=case)),
                str(folder / one.label.format(case=case)),
                one.modality,
            )
            for case in names
        )

    learned = train[: len(train) - one.held_out]
    return Cases(one.structures, entries(learned), entries(held_out), entries(splits["test"]))


# --- a campaign's archive -----------------------------------------------------------------


def _scanned(one: Set, folder: Place) -> Cases:
    """Scan an archive with its own split; its annotated cases come first, then the others."""
    from tutelage.archive.catalog import scan
    from tutelage.archive.settings import ArchiveSettings

    settings = ArchiveSettings.model_validate(one.settings["archive"])
    catalog = scan(settings, folder / "catalog", folder / "archive")
    train = [*catalog.of(Role.GOLD), *catalog.of(Role.UNLABELED)]
    decide, test = catalog.of(Role.VALIDATION), catalog.of(Role.TEST)
    return Cases(
        catalog.structures,
        tuple(map(_entry, train)),
        tuple(map(_entry, decide)),
        tuple(map(_entry, test)),
    )


def _entry(case: Case) -> Entry:
    return Entry(case.case, case.image, case.label or case.hidden, case.modality)
