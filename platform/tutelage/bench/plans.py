"""Which rows the methods bench does, and the campaign of each: what may differ between methods.

A row's settings are what all sets share, then the set's, then its budget's, then the method's
name and rounds, then what a variant changes. It writes campaigns and does not run them.
"""

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from tutelage.bench import rows, sets
from tutelage.bench.rows import Row
from tutelage.bench.sets import BudgetName
from tutelage.bench.tables import BASELINE, CEILING
from tutelage.errors import SettingsError
from tutelage.methods.needs import NEEDS, MethodName
from tutelage.rounds.settings import RunSettings
from tutelage.settings import fingerprint, load
from tutelage.storage import Place

ALL: tuple[str, ...] = (*get_args(MethodName), CEILING)
"""Every method, and the specialist that learns from all labels, in the order of the table."""

_OF_METHOD: Mapping[str, Mapping[str, Any]] = {
    # Reconstructed gates: a mask that overlaps counts as much as it does, else where both agree.
    "knowledge_mining": {
        "curation": {
            "min_agreement": 0.7,
            "min_agreement_later": 0.7,
            "partial_agreement": 0.0,
            "partial_weight": 1.0,
            "volume_ratio": [0.5, 2.0],
            "partial_rest": "ignored",
            "weight_by_agreement": True,
        },
    },
    "tutelage": {
        "generalist": {"keep_grid": True},
        # Hardly a mask is believed whole: what both see taught more, by the validation cases of hippocampi.
        "curation": {
            "min_agreement": 0.95,
            "min_agreement_later": 0.95,
            "partial_weight": 0.5,
            "partial_rest": "ignored",
            "weight_by_variance": True,
        },
        "train": {
            "fine_tuning": 1.0,
            "tutelage": {"text": "bottleneck", "distillation": 0.1, "continues": True},
        },
    },
}
"""Settings that belong to a method but are those of other rooms, or that switch its parts on."""

_TEXTS = {
    f"{encoder}_text": (f"priors.vectors.encoder={encoder}",)
    for encoder in ("random", "orthogonal", "one_hot")
}
_GENERALISTS = {"threshold": ("generalist.name=threshold", "generalist.magnify=null")}

VARIANTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "llm_segnet": _TEXTS,
    "tak": _TEXTS | {"no_contrast": ("train.tak.contrast=0",), "no_location": ("train.tak.location=0",)},
    "knowledge_mining": _GENERALISTS,
    "semisam_plus": _GENERALISTS | {"no_generalist": ("train.semisam_plus.weight=0",)},
    "tutelage": {
        **_TEXTS,
        **_GENERALISTS,
        "head_text": ("train.tutelage.text=head",),
        "no_text": ("train.tutelage.text=null",),
        "no_distillation": ("train.tutelage.distillation=0", "generalist.keep_grid=false"),
        "no_mixing": ("train.tutelage.mixing=false",),
        "no_voxel_weights": ("train.tutelage.voxel_weights=false",),
        # Without filling nothing else is said of unlabeled patches in the steps that self-reliance takes.
        "no_filling": ("train.tutelage.fill=0", "train.tutelage.self_reliance=0"),
        "no_self_reliance": ("train.tutelage.self_reliance=0",),
        "one_round": ("rounds=1",),
        "afresh": ("train.tutelage.continues=false",),
        "whole_masks": (
            "curation.min_agreement=0.7",
            "curation.min_agreement_later=0.8",
            "curation.partial_rest=undecided",
        ),
    },
}
"""Ablations by method and name: settings that differ, as on the command line."""


@dataclass(frozen=True)
class Spec:
    """A method as somebody asks for it: `tak`, `tak@random_text`, `tak@train.batch=4;train.steps=200`."""

    name: str
    method: MethodName
    overrides: tuple[str, ...]
    all_labels: bool = False


def spec(text: str) -> Spec:
    """Read how a method is asked for.

    Raises:
        SettingsError: there is no such method, no such variant of it, or it would be another row.
    """
    name, _, variant = text.partition("@")
    if name not in ALL:
        raise SettingsError(f"no method named {name!r} in --methods; there is {', '.join(ALL)}")
    method: Any = "supervised" if name == CEILING else name
    overrides: tuple[str, ...] = ()
    if "=" in variant:
        overrides = tuple(part.strip() for part in variant.split(";"))
        _refuse_other_rows(text, overrides)
    elif variant:
        there = VARIANTS.get(name, {})
        if variant not in there:
            told = f"it has {', '.join(there)}" if there else "it has none"
            raise SettingsError(
                f"no variant {variant!r} of {name} in --methods; {told}, or write {name}@key.key=value"
            )
        overrides = there[variant]
    return Spec(text, method, overrides, name == CEILING)


_OF_ROW: Mapping[str, str] = {
    "seed": "ask for more with --seeds",
    "archive": "choose the set with --archive",
    "workspace": "choose the folder with --out",
    "name": "rows are named after their method",
}
"""Settings that tell which row it is, and what to do instead of changing them for one method."""


def _refuse_other_rows(text: str, overrides: Sequence[str]) -> None:
    for override in overrides:
        key = override.partition("=")[0].strip()
        if instead := _OF_ROW.get(key.partition(".")[0]):
            raise SettingsError(
                f"{text!r} in --methods sets {key}, which all methods have in common; leave it out, {instead}"
            )


def plan(
    one: sets.Set,
    labeled: int | None,
    seeds: Sequence[int],
    budget: BudgetName,
    specs: Sequence[Spec],
    out: Path,
) -> list[Row]:
    """Write the campaign of every row of one set, and return the rows, the supervised first."""
    count = labeled or one.labeled
    about = _about(one, out)
    cases = sets.cases_of(one, about)
    found = []
    for seed in seeds:
        for each in dict.fromkeys((spec(BASELINE), *specs)):
            row, values = _row(one, cases, about, count, budget, each, seed)
            found.append(rows.ordered(row, yaml.safe_dump(values, sort_keys=False)))
            if each.overrides or seed == seeds[0]:
                _checked(Path(row.folder) / rows.CAMPAIGN, each)
    return found


def standing(one: sets.Set, out: Path) -> list[dict[str, Any]]:
    """Return results of one set below a folder, whichever call they are from, that would come out today.

    Raises:
        ArchiveError: the data are not on this machine, so nobody can tell.
    """
    about = _about(one, out)
    files = sorted(Path(about.parent.parent.uri).glob(f"{glob.escape(one.name)}-*/*/seed*/{rows.RESULT}"))
    if not files:
        return []
    cases = sets.cases_of(one, about)
    found = []
    for file in files:
        try:
            told = json.loads(file.read_text())
            key = (told["labeled"], told["budget"], spec(told["method"]), told["seed"])
            row, values = _row(one, cases, about, *key)
            held = rows.held(row, RunSettings.model_validate(values))
        except (ValueError, KeyError, TypeError, SettingsError):
            continue  # of another form, or of a method or set that is no longer what it was
        if held is not None and Path(row.folder) == file.parent:
            found.append(held)
    return found


def _about(one: sets.Set, out: Path) -> Place:
    """Return the folder of what rows of one set share."""
    return Place.of(out) / "sets" / one.name


def _row(
    one: sets.Set, cases: sets.Cases, about: Place, count: int, budget: BudgetName, each: Spec, seed: int
) -> tuple[Row, dict[str, Any]]:
    """Return one row and its campaign."""
    rows_of_set = f"{about.parent.parent}/{one.name}-{count}-{budget}"
    folder = f"{rows_of_set}/{_folder(each.name)}/seed{seed}"
    is_base = each.overrides == () and each.method == BASELINE
    row = Row(
        set=one.name,
        labeled=count,
        budget=budget,
        method=each.name,
        seed=seed,
        folder=folder,
        archive=fingerprint(one.settings.get("archive")),
        common=None if is_base or each.all_labels else f"{rows_of_set}/{BASELINE}/seed{seed}",
        embeddings=f"{about}/embeddings",
    )
    unlabeled = None if each.all_labels else one.unlabeled.get(budget)
    place = sets.listed(cases, None if each.all_labels else count, about, unlabeled)
    return row, campaign(one, budget, each, seed, place, cases.structures, f"{folder}/workspace")


def campaign(
    one: sets.Set,
    budget: BudgetName,
    each: Spec,
    seed: int,
    place: Place,
    structures: Sequence[str],
    workspace: str,
) -> dict[str, Any]:
    """Return the settings of one row, as a campaign's YAML holds them."""
    values = _merged(_merged(one.settings, one.budgets[budget]), _COMMON)
    values = _merged(values, _of_method(each, values))
    if isinstance(found := values.get("priors", {}).get("shelf"), str):
        values = _merged(values, {"priors": {"shelf": sets.shelf(found)}})
    values["archive"] = {"importer": "list", "root": str(place), "structures": list(structures)}
    return values | {"name": each.name, "workspace": workspace, "seed": seed}


_COMMON: Mapping[str, Any] = {
    "tracking": {"enabled": False},
    "cluster": {"backend": "local"},
    "evaluation": {"bootstrap": 100},
    # What is measured must not depend on which of two specialists a campaign would promote.
    "promotion": {"min_gain": -1.0, "max_structure_loss": 1.0},
}

_LOOKS = 5
"""How often validation cases are looked at while a specialist learns."""


def _of_method(each: Spec, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what differs between methods: which one it is, and how many rounds it takes."""
    steps = int(values.get("train", {}).get("steps", 800))
    told = _merged(
        {
            "rounds": _rounds(each.method),
            "train": {"method": each.method, "validate_every": max(1, steps // _LOOKS)},
        },
        _OF_METHOD.get(each.method, {}),
    )
    for override in each.overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise SettingsError(f"{each.name}: {override!r} is not key.key=value; correct --methods")
        value: Any = yaml.safe_load(text)
        for key in reversed(path.split(".")):
            value = {key: value}
        told = _merged(told, value)
    return told


def _rounds(method: MethodName) -> int:
    """Rounds after the specialist of labels alone, which is all that `supervised` is here."""
    if method == BASELINE:
        return 0
    return 2 if NEEDS[method].pseudo else 1


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(merged.get(key), Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _checked(file: Path, each: Spec) -> None:
    try:
        load(file, RunSettings)
    except SettingsError as error:
        raise SettingsError(f"{each.name} cannot be run: {error}") from None


def _folder(name: str) -> str:
    """A method as part of a path; overrides hold signs that paths should not."""
    return "".join(c if c.isalnum() or c in "-_.@=" else "_" for c in name)
