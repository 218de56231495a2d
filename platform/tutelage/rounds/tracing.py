"""The story of one case: who was asked about it, what was believed and why, and who learned from it.

It reads the ledger, the manifests and the catalog of a workspace, and decides nothing. Which label a
specialist saw is what the manifest of its training vouches for: digests of the labels
that it learned from. Where labels were made anew since, it says that instead of guessing. The
specialists that calibrate a round are told of beside those that the campaign goes on with.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tutelage.archive.cases import Cases
from tutelage.archive.catalog import Catalog, load
from tutelage.errors import WorkspaceError
from tutelage.labels.rows import Row
from tutelage.records import Case, Role
from tutelage.rounds import champion, recounting
from tutelage.rounds.corrected import Correction, Corrections
from tutelage.rounds.workspace import LABELS_ONLY, Workspace, read_manifest, stage_name


@dataclass(frozen=True)
class Asked:
    """What was asked and believed in one round."""

    round: str
    prompted_by: str
    """Stage of the specialist that prompted."""
    specialist: str | None
    generalist: str | None
    image: str | None
    """Digest of the image as it was then."""
    label: str | None
    """Digest of the pseudo-label."""
    prompts: int | None
    rows: tuple[Row, ...]
    """By structure."""


@dataclass(frozen=True)
class Learned:
    """What one specialist knows of the case."""

    stage: str
    specialist: str
    """Its digest."""
    method: str
    saw: str
    """In words."""
    label: str | None
    """Digest of the label that it learned from, if it did."""
    structures: tuple[str, ...]
    """What that label says something about."""
    champion: bool
    start: str | None
    """Digest of the specialist whose weights it started from, if it did not start fresh."""
    start_stage: str | None
    """The stage that has these weights; None as well where it was trained anew since."""


@dataclass(frozen=True)
class Calibrated:
    """What one of the specialists that calibrate a round knows of the case."""

    round: str
    fold: str
    specialist: str
    """Its digest."""
    left_out: bool
    """Whether the case was kept from it: its patient was to be tried."""
    saw: str
    """In words."""
    label: str | None
    """Digest of the label that it learned from, if it did."""
    structures: tuple[str, ...]
    """What that label says something about."""


@dataclass(frozen=True)
class Story:
    """All there is to tell about one case."""

    case: str
    role: str
    """What it is for by the archive."""
    address: str
    asked: tuple[Asked, ...]
    corrections: tuple[Correction, ...]
    learned: tuple[Learned, ...]
    calibrated: tuple[Calibrated, ...]
    """None for cases that no fold could have learned from."""


def story(workspace: Workspace, case: str) -> Story:
    """Tell the story of a case.

    Raises:
        WorkspaceError: there is no catalog yet, or it knows no such case.
    """
    catalog = load(workspace.catalog)
    found = _found(catalog, case, workspace)
    asked = tuple(_asked(workspace, case))
    every = Corrections.of(workspace.root)
    corrections = tuple(one for one in every.every if one.case == case)
    learned = tuple(_learned(workspace, found, asked, corrections))
    knows = _Knows(workspace, catalog, every, found, asked)
    rounds = range(len(learned))  # of those that are trained, and of the one that comes next
    calibrated = tuple(fold for number in rounds for fold in knows.folds(number))
    return Story(case, found.role.value, found.image, asked, corrections, learned, calibrated)


def _found(catalog: Catalog, case: str, workspace: Workspace) -> Case:
    index = catalog.cases.find(case)
    if index is None:
        some = ", ".join(catalog.cases.ids()[:3].to_pylist())
        raise WorkspaceError(
            f"{workspace.root} knows no case {case!r}; check the name, its cases are called {some} and so on"
        )
    return catalog.cases[index]


def _asked(workspace: Workspace, case: str) -> Iterator[Asked]:
    try:
        numbers = recounting.rounds_of(workspace)
    except WorkspaceError:  # nothing was curated: that is a story too
        return
    for number in numbers:
        rows = tuple(recounting.rows(workspace, recounting.Wanted(case=case, round=number)))
        if rows:
            told = ("specialist", "generalist", "image", "label", "prompts")
            facts = {name: rows[0][name] for name in told}
            yield Asked(stage_name(number), stage_name(number - 1), rows=rows, **facts)


# --- who learned from it ------------------------------------------------------------------


def _learned(
    workspace: Workspace, case: Case, asked: tuple[Asked, ...], corrections: tuple[Correction, ...]
) -> Iterator[Learned]:
    best = champion_of(workspace)
    number = LABELS_ONLY
    while (trained := read_manifest(workspace.stage(number), "train")) is not None:
        held = next((one for one in reversed(corrections) if one.since <= number), None)
        saw, label, structures = _saw(workspace, number, case, trained, _of(asked, number), held)
        start = trained["inputs"].get("start")
        before = read_manifest(workspace.stage(number - 1), "train") if start else None
        still = before is not None and before["outputs"]["specialist"] == start
        yield Learned(
            stage=stage_name(number),
            specialist=str(trained["outputs"]["specialist"]),
            method=str(trained["settings"].get("train", {}).get("method", "unknown")),
            saw=saw,
            label=label,
            structures=structures,
            champion=stage_name(number) == best,
            start=start,
            start_stage=stage_name(number - 1) if still else None,
        )
        number += 1


def _of(asked: tuple[Asked, ...], number: int) -> Asked | None:
    return next((one for one in asked if one.round == stage_name(number)), None)


def _saw(
    workspace: Workspace,
    number: int,
    case: Case,
    trained: Mapping[str, Any],
    answer: Asked | None,
    held: Correction | None,
) -> tuple[str, str | None, tuple[str, ...]]:
    """Say what a training saw of the case, the digest of the label if it saw one, and of which structures."""
    if case.role in (Role.VALIDATION, Role.TEST):
        return f"nothing: it is for {case.role.value}", None, ()
    if case.role is Role.GOLD:
        return f"its label by people, {case.label}", None, ()
    if held is not None:
        return f"its label, corrected by {held.by}", held.digest, ()
    inputs = trained["inputs"]
    if inputs.get("labels", "none") == "none" or answer is None:
        return ("its image, and no label" if "unlabeled" in inputs else "nothing"), None, ()
    curated = read_manifest(workspace.stage(number), "curate") or {"outputs": {}}
    if curated["outputs"].get("labels") != inputs["labels"]:
        return "a label that was made anew since; it is not trained with the new one yet", None, ()
    believed = tuple(str(row["structure"]) for row in answer.rows if row["weight"])
    if not believed:
        return "nothing: no structure was believed" if "unlabeled" not in inputs else "its image", None, ()
    return "its pseudo-label", answer.label, believed


@dataclass(frozen=True)
class _Knows:
    """What there is to find out what folds know of a case."""

    workspace: Workspace
    catalog: Catalog
    corrections: Corrections
    case: Case
    asked: tuple[Asked, ...]

    def folds(self, number: int) -> Iterator[Calibrated]:
        """Tell what the folds of a round know; where there is nothing that they could, tell nothing."""
        if self.case.role in (Role.VALIDATION, Role.TEST):
            return
        gold = self.corrections.applied(self.catalog, number).of(Role.GOLD)
        for index in itertools.count():
            name = f"fold-{index}"
            trained = read_manifest(self.workspace.stage(number) / "calibration", name)
            if trained is None:
                return
            if gold.find(self.case.case) is not None or trained["inputs"]["labels"] != "none":
                left_out = self.case.case in trained["outputs"].get("left_out", ())
                saw = self._saw(number, trained, gold)
                specialist = str(trained["outputs"]["specialist"])
                yield Calibrated(stage_name(number), name, specialist, left_out, *saw)

    def _saw(
        self, number: int, trained: Mapping[str, Any], gold: Cases
    ) -> tuple[str, str | None, tuple[str, ...]]:
        """Say the same of a fold as of a stage. Its pseudo-labels are those of the round before."""
        if gold.find(self.case.case) is not None:
            left_out = trained["outputs"].get("left_out")
            if left_out is None:
                return "unknown: it was trained before folds told whom they left out", None, ()
            if self.case.case in left_out:
                return "nothing: its patient was left out", None, ()
            if gold.without(left_out).identity() != trained["inputs"]["gold"]:
                return "unknown: annotated cases have changed since, it is not calibrated anew yet", None, ()
        held = self.corrections.within(number).get(self.case.case)
        return _saw(self.workspace, number - 1, self.case, trained, _of(self.asked, number - 1), held)


def champion_of(workspace: Workspace) -> str | None:
    """Return the champion's stage, if there is one."""
    try:
        return champion.champion(workspace).parent.name
    except WorkspaceError:
        return None
