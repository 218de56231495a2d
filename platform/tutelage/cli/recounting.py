"""What `tutelage ledger` and `tutelage rollback` do: words and tables for people, JSON and CSV for others."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from tutelage.archive.catalog import load
from tutelage.cli.telling import Teller
from tutelage.errors import SettingsError, WorkspaceError
from tutelage.labels.rows import Row
from tutelage.rounds import recounting, tracing
from tutelage.rounds import rollback as rolling
from tutelage.rounds.ledger import CORRECTED, GATES
from tutelage.rounds.recounting import Change, Wanted
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.workspace import LABELS_ONLY, Workspace, stage_name
from tutelage.storage import Place

_STYLES = {"accept": "green", "partial": "yellow", "reject": "red", "failed": "bold red", CORRECTED: "cyan"}


_HEADS = {"dice_low": "Dice at least"}

_WIDE = 140
"""Characters of a line where no terminal says how many it has: reasons are long."""


@dataclass(frozen=True)
class How:
    """How a command answers."""

    teller: Teller
    as_csv: bool


def how(as_json: bool, as_csv: bool) -> How:
    """Return how to answer.

    Raises:
        SettingsError: in two ways at once.
    """
    if as_json and as_csv:
        raise SettingsError("--json and --csv were both given; choose one")
    teller = Teller(as_json or as_csv)
    if not teller.console.is_terminal:
        teller.console.width = _WIDE
    return How(teller, as_csv)


def workspace_of(settings: RunSettings) -> Workspace:
    """Return a campaign's workspace."""
    return Workspace(Place.of(settings.workspace))


def round_number(name: str) -> int:
    """Return the number of a round that a person names: 1, r1 or r01; -1 is labels-only.

    Raises:
        SettingsError: it is no name of a round.
    """
    if name in ("-1", "labels-only"):
        return LABELS_ONLY
    digits = name.removeprefix("r")
    if not digits.isdecimal():
        raise SettingsError(f"{name!r} is no round, expected r00, r01 and so on; correct it")
    return int(digits)


def wanted(case: str | None, structure: str | None, round_: str | None, verdict: str | None) -> Wanted:
    """Return which rows a person wants."""
    return Wanted(case, structure, None if round_ is None else round_number(round_), verdict)


# --- show ---------------------------------------------------------------------------------


def show(settings: RunSettings, which: Wanted, limit: int, how: How) -> int:
    """Show rows of the ledger."""
    workspace = workspace_of(settings)
    _check(workspace, which.structure, which.case)
    rows = recounting.rows(workspace, which)
    if how.as_csv:
        _write_csv(rows)
    elif how.teller.as_json:
        _write_json(rows)
    else:
        shown = list(islice(rows, limit)) if limit else list(rows)
        how.teller.show(_table(shown))
        more = sum(1 for _ in rows)
        how.teller.say(f"{len(shown) + more} rows" + (f", {more} of them not shown" if more else ""))
    return 0


def _check(workspace: Workspace, structure: str | None, case: str | None = None) -> None:
    """Complain about names that nothing has: an empty answer would look like one."""
    catalog = load(workspace.catalog)
    if structure is not None and structure not in catalog.structures:
        told = ", ".join(catalog.structures)
        raise SettingsError(f"--structure is {structure}, the archive has {told}; name one of these")
    if case is not None and catalog.cases.find(case) is None:
        raise WorkspaceError(f"{workspace.root} knows no case {case!r}; check the name")


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("round", "case", "structure", "verdict"):
        table.add_column(name, no_wrap=True)
    numbers = ["weight", "agreement", *(["dice_low"] if any(row["dice_low"] for row in rows) else [])]
    for name in numbers:
        table.add_column(_HEADS.get(name, name), justify="right")
    table.add_column("reasons", overflow="fold")
    for row in rows:
        table.add_row(
            *(Text(str(row[name])) for name in ("round", "case", "structure")),
            _verdict(row),
            *(_number(row[name]) for name in numbers),
            Text("; ".join(row["reasons"] or [])),
        )
    return table


def _verdict(row: Mapping[str, Any]) -> Text:
    ruling = str(row["ruling"])
    return Text(ruling, style=_STYLES.get(ruling, ""))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _write_csv(rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as they come; nested values as JSON."""
    writer = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(sys.stdout, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow({name: _cell(value) for name, value in row.items()})


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _write_json(rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object with all rows, as they come."""
    count = 0
    print('{"rows": [', end="")
    for row in rows:
        print(",\n" if count else "\n", json.dumps(row), sep="", end="")
        count += 1
    print(f'],\n"count": {count}}}')


# --- diff ---------------------------------------------------------------------------------


def diff(settings: RunSettings, before: int, after: int, structure: str | None, limit: int, how: How) -> int:
    """Tell what changed between two rounds."""
    workspace = workspace_of(settings)
    _check(workspace, structure)
    if how.as_csv:
        changes = recounting.compared(workspace, before, after, structure)
        _write_csv(_facts(change) for change in changes if change.kind != recounting.SAME)
        return 0
    found = recounting.difference(workspace, before, after, limit, structure)
    structures = load(workspace.catalog).structures
    changes_ = [recounting.with_overlap(workspace, before, after, c, structures) for c in found.changes]
    how.teller.show(_counts(found, f"{stage_name(before)} to {stage_name(after)}"))
    for kind in dict.fromkeys(change.kind for change in changes_):
        of_kind = [change for change in changes_ if change.kind == kind]
        how.teller.say()
        total = found.counts[kind]
        how.teller.say(f"{kind}: {total}" + (f", of which {len(of_kind)}" if len(of_kind) < total else ""))
        how.teller.show(_changes(of_kind))
    how.teller.result(
        {
            "before": stage_name(before),
            "after": stage_name(after),
            "counts": found.counts,
            "by_structure": found.by_structure,
            "agreement": {name: list(both) for name, both in found.agreement.items()},
            "changes": [_facts(change) for change in changes_],
        }
    )
    return 0


def _counts(found: recounting.Difference, title: str) -> Table:
    kinds = list(found.counts)
    table = Table("structure", title=title, title_justify="left")
    for kind in kinds:
        table.add_column(kind, justify="right")
    table.add_column("agreement", justify="right")
    for name, counted in found.by_structure.items():
        both = found.agreement.get(name)
        told = "" if both is None else f"{both[0]:.2f} > {both[1]:.2f}"
        table.add_row(Text(name), *(str(counted.get(kind, 0)) for kind in kinds), told)
    table.add_row("all", *(str(found.counts[kind]) for kind in kinds), "", style="bold")
    return table


def _changes(changes: Sequence[Change]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("case", "structure", "before", "after"):
        table.add_column(name, no_wrap=True)
    table.add_column("agreement", justify="right", no_wrap=True)
    table.add_column("overlap", justify="right")
    table.add_column("reasons now", overflow="fold")
    for change in changes:
        before, after = change.before or {}, change.after or {}
        agreed = [
            _number(row["agreement"]) for row in (before, after) if row and row["agreement"] is not None
        ]
        table.add_row(
            Text(change.case),
            Text(change.structure),
            *(_verdict(row) if row else "" for row in (before, after)),
            " > ".join(agreed),
            _number(change.overlap),
            Text("; ".join(after.get("reasons") or [])),
        )
    return table


def _facts(change: Change) -> dict[str, Any]:
    facts: dict[str, Any] = {"case": change.case, "structure": change.structure, "kind": change.kind}
    for when, row in (("before", change.before), ("after", change.after)):
        for name in ("ruling", "weight", "agreement", "predicted_dice", "mask", "reasons"):
            facts[f"{name}_{when}"] = None if row is None else row[name]
    return facts | {"overlap": change.overlap}


# --- trace --------------------------------------------------------------------------------


def trace(settings: RunSettings, case: str, teller: Teller) -> int:
    """Tell the story of one case."""
    told = tracing.story(workspace_of(settings), case)
    for line in _story(told):
        teller.say(line)
    teller.result(asdict(told))
    return 0


def _story(told: tracing.Story) -> Iterator[str]:
    yield f"{told.case} is for {told.role}: {told.address}"
    for asked in told.asked:
        yield ""
        yield from _asked(asked)
    for one in told.corrections:
        yield ""
        changed = ", ".join(one.changed) or "nothing: it was confirmed as it was"
        yield f"corrected by {one.by} on {one.when} UTC after {one.round}, label {one.digest}"
        yield f"  changed {changed}; annotated from {stage_name(one.since)} on"
    if told.learned:
        yield ""
        yield "who learned from it"
    for learned in told.learned:
        best = ", the champion" if learned.champion else ""
        how = f"{learned.method}{_started(learned)}{best}"
        yield f"  {learned.stage} {learned.specialist} ({how}): {_saw(learned)}"
    if told.calibrated:
        yield ""
        yield "who learned from it, or not, to calibrate answers"
    for fold in told.calibrated:
        yield f"  {fold.round} {fold.fold} {fold.specialist}: {_saw(fold)}"


def _saw(one: tracing.Learned | tracing.Calibrated) -> str:
    label = f" {one.label}" if one.label else ""
    return f"{one.saw}{label}" + (f" of {', '.join(one.structures)}" if one.structures else "")


def _started(learned: tracing.Learned) -> str:
    if learned.start is None:
        return ""
    stage = learned.start_stage
    whose = f"{stage}'s weights" if stage else "weights made anew since,"
    return f", started from {whose} {learned.start}"


def _asked(asked: tracing.Asked) -> Iterator[str]:
    if asked.specialist is None:
        yield f"{asked.round}: nobody was asked, image {asked.image or 'unknown'}"
    else:
        prompts = "" if asked.prompts is None else f" by {asked.prompts} prompts"
        yield f"{asked.round}: image {asked.image}"
        yield f"  {asked.prompted_by}'s specialist {asked.specialist} asked{prompts}"
        yield f"  {asked.generalist} answered; pseudo-label {asked.label or 'none'}"
    for row in asked.rows:
        gates = {name: row[name] for name in GATES if row[name] is not None} | (row["other_gates"] or {})
        numbers = ", ".join(f"{name} {value:.3g}" for name, value in gates.items())
        reasons = "; ".join(row["reasons"] or [])
        yield f"  {row['structure']}: {row['ruling']}, weight {row['weight']:.2f}" + (
            f", because {reasons}" if reasons else ""
        )
        if numbers:
            yield f"    {numbers}"


# --- rollback -----------------------------------------------------------------------------


def rollback(
    settings: RunSettings, config: Path, round_: str | None, undo: str | None, dry_run: bool, teller: Teller
) -> int:
    """Go back to a round, or forward again."""
    if (round_ is None) == (undo is None):
        raise SettingsError("name a round to go back to, as r00, or --undo with what was set aside")
    workspace = workspace_of(settings)
    with workspace.locked():
        if undo is not None:
            moved = rolling.forward(workspace, undo, dry_run)
        else:
            moved = rolling.back(workspace, round_number(str(round_)), dry_run)
    would = "would have been " if dry_run else ""
    stages = ", ".join(moved.stages)
    if undo is None:
        teller.say(f"{stages} {would}set aside in {moved.folder}; nothing is deleted")
    else:
        teller.say(f"{stages} {would}brought back from {moved.folder}")
    teller.say(f"champion  {moved.champion or 'none'}, before {moved.champion_before or 'none'}")
    teller.say(f"ledger    {moved.ledger_rounds} rounds")
    teller.say(f"page and MLflow follow with `tutelage report {config}`")
    if undo is None and not dry_run:
        teller.say(f"undo it   tutelage rollback {config} --undo {moved.aside}")
    teller.result(asdict(moved) | {"dry_run": dry_run})
    return 0
