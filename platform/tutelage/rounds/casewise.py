"""Doing a step case by case: only what has no row yet, and a row for everything.

It decides how a step resumes and what its rows amount to. Every row remembers in `of` what
it is about (the image's address and stamp, or the digest of what it was made from), so a
case that is new or has changed is worked on, and the others are not, whatever else has
happened to the archive. What the work is, the step says; where it runs, the runner knows.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tutelage.errors import WorkspaceError
from tutelage.labels.rows import Row, Rows, rows_of
from tutelage.records import Outcome
from tutelage.rounds.campaign import Campaign
from tutelage.rounds.pace import Pace
from tutelage.rounds.workspace import Step, read_manifest, stage_name

if TYPE_CHECKING:
    import pyarrow as pa

    from tutelage.archive.cases import Cases
    from tutelage.casework.base import Worker

_FLUSH_EVERY_S = 2.0
"""How often rows are written that come fast: at most this much finished work is repeated after a kill."""

_RARE_S = 0.5
"""Rows that come more seldom than that, in the mean, are written one by one."""

_COMPLAINTS = 20
"""Failed cases that are named one by one; all of them are in the rows and in the report."""


@dataclass(frozen=True)
class Worked:
    """The rows of a step about the cases that it is for."""

    table: "pa.Table"
    pace: Pace
    """How fast this attempt was."""

    def rows(self) -> Iterator[Row]:
        """Yield them in order of case."""
        return rows_of(self.table)

    def count(self, outcome: Outcome) -> int:
        """Count how many ended one way."""
        import pyarrow.compute as pc

        return int(pc.sum(pc.equal(self.table["outcome"], outcome.value)).as_py() or 0)

    def counts(self) -> dict[str, int]:
        """Count how cases ended."""
        return {"done": self.count(Outcome.DONE), "failed": self.count(Outcome.FAILED)}

    def total(self, column: str) -> float:
        """Add up a column of numbers; cases without one count nothing."""
        import pyarrow.compute as pc

        there = column in self.table.column_names
        return float(pc.sum(self.table[column]).as_py() or 0) if there else 0.0

    def content(self, column: str) -> str:
        """One digest of what rows say; in which time and order they were made does not count."""
        digest = hashlib.sha256()
        names = [name for name in ("case", column, "reason") if name in self.table.column_names]
        for batch in self.table.select(names).to_batches(max_chunksize=4096):
            for row in batch.to_pylist():
                digest.update(json.dumps([row["case"], row.get(column) or row["reason"]]).encode())
        return digest.hexdigest()[:12]


def already(campaign: Campaign, step: Step, number: int) -> dict[str, Any] | None:
    """Return the manifest of a step that is done, and say so."""
    manifest = step.manifest()
    if manifest is None or (campaign.retry_errors and manifest["outputs"].get("failed")):
        return None
    campaign.reporter.say(f"{stage_name(number)} {step.name}: done before")
    return manifest


def needed(campaign: Campaign, number: int, name: str) -> dict[str, Any]:
    """Return the manifest of a step that another one cannot do without.

    Raises:
        WorkspaceError: it is not finished.
    """
    manifest = read_manifest(campaign.workspace.stage(number), name)
    if manifest is None:
        raise WorkspaceError(
            f"{stage_name(number)} has no finished `{name}` step in {campaign.workspace.root}; "
            "run it first, or `tutelage run` for all of them"
        )
    return manifest


def each(
    campaign: Campaign,
    step: Step,
    number: int,
    build: "type[Worker]",
    job: object,
    cases: "Cases",
    of: "pa.ChunkedArray | None" = None,
) -> Worked:
    """Work on the cases that have no row yet and return the rows of all of them.

    `of` says for each case what a row must be about to count; without it, the image.
    """
    from tutelage.casework.base import Limit

    rows = Rows(step.stage / f"{step.name}.rows")
    marks = step.stage / f"{step.name}.attempts"
    step.begin(f"{step.name}.rows", f"{step.name}.attempts")
    if campaign.retry_errors or campaign.runner.outlives_workers:
        marks.remove()  # what is left there died with a run that was killed, or gets another chance
    about = _images(cases) if of is None else of
    pending = _pending(cases, about, rows, campaign.retry_errors)
    cluster = campaign.settings.cluster
    workers = cluster.actors_for(pending.num_rows) if cluster.backend == "ray" else 1
    pace = Pace(pending.num_rows, workers)
    if pending.num_rows:
        limit = Limit(campaign.settings.max_attempts, str(marks))
        answers = campaign.runner.each(build, job, pending, limit)
        name = f"{stage_name(number)} {step.name} {len(cases)} cases"
        _work(campaign, rows, name, len(cases), pace, answers)
    marks.remove()
    worked = Worked(_about(rows.table(), cases, about), pace)
    _complain(campaign, step, worked, len(cases))
    return worked


def again(
    campaign: Campaign,
    step: Step,
    number: int,
    build: "type[Worker]",
    job: object,
    cases: "Cases",
    worked: Worked,
    which: Sequence[str],
) -> Worked:
    """Work once more on some of the cases, about the same, and return the rows of all: later ones count."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from tutelage.casework.base import Limit

    marks = step.stage / f"{step.name}.attempts"
    table = worked.table
    waiting = table.filter(pc.is_in(table["case"], value_set=pa.array(which, pa.string())))
    items = cases.only(waiting["case"]).table.append_column("of", waiting["of"])
    rows = Rows(step.stage / f"{step.name}.rows")
    limit = Limit(campaign.settings.max_attempts, str(marks))
    name = f"{stage_name(number)} {step.name} once more {len(which)} cases"
    answers = campaign.runner.each(build, job, items, limit)
    _work(campaign, rows, name, len(which), Pace(len(which)), answers)
    marks.remove()
    whole = Worked(_about(rows.table(), cases, table["of"]), worked.pace)
    _complain(campaign, step, whole, len(cases))
    return whole


def _work(campaign: Campaign, rows: Rows, name: str, total: int, pace: Pace, answers: Iterator[Row]) -> None:
    before = total - pace.expected
    began = flushed = time.monotonic()
    with rows, campaign.reporter.task(name, total, before) as advance:
        for row in answers:
            rows.add(row)
            pace.add(row)
            advance(before + pace.done, pace.note())
            now = time.monotonic()
            # The one after this row may be hours away.
            if now - flushed > _FLUSH_EVERY_S or now - began > _RARE_S * pace.done:
                rows.flush()
                flushed = now


# --- what is to do ------------------------------------------------------------------------


def _images(cases: "Cases") -> "pa.ChunkedArray":
    """What an answer about an image must be about: its address and its label's, and how they were scanned."""
    import pyarrow.compute as pc

    shown = (pc.fill_null(column, "") for column in (cases.table["label"], cases.label_stamps()))
    return pc.binary_join_element_wise(cases.table["image"], cases.table["stamp"], *shown, "|")


def _pending(cases: "Cases", of: "pa.ChunkedArray", rows: Rows, retry_errors: bool) -> "pa.Table":
    """Catalog rows of cases without a row that counts, with what their answers must be about."""
    import pyarrow.compute as pc

    done = rows.table(["of", "outcome"])
    if retry_errors:
        done = done.filter(pc.equal(done["outcome"], Outcome.DONE.value))
    waiting = pc.invert(pc.is_in(_key(cases.ids(), of), value_set=_key(done["case"], done["of"])))
    return cases.where(waiting).table.append_column("of", of.filter(waiting))


def _about(rows: "pa.Table", cases: "Cases", of: "pa.ChunkedArray") -> "pa.Table":
    """Rows about these cases: those of cases that were dropped or have changed do not count."""
    import pyarrow.compute as pc

    if not rows.num_rows:
        return rows
    return rows.filter(pc.is_in(_key(rows["case"], rows["of"]), value_set=_key(cases.ids(), of)))


def _key(cases: "pa.ChunkedArray", of: "pa.ChunkedArray") -> "pa.ChunkedArray":
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.binary_join_element_wise(cases.cast(pa.string()), of.cast(pa.string()), "\n")


# --- what came of it ----------------------------------------------------------------------


def _complain(campaign: Campaign, step: Step, worked: Worked, expected: int) -> None:
    if worked.table.num_rows < expected:
        raise WorkspaceError(
            f"{step.name}: {expected - worked.table.num_rows} of {expected} cases came back without a row"
        )
    failures = _failures(worked)
    for named, row in enumerate(failures):
        if named == _COMPLAINTS:
            campaign.reporter.say(f"  {step.name}: ... and {len(failures) - named} more failed")
            break
        campaign.reporter.say(f"  {step.name} failed: {row['case']}: {row['reason']}")
    if failures and len(failures) == expected:
        raise WorkspaceError(
            f"{step.name}: all {expected} cases failed, the first because of {failures[0]['reason']}; "
            "correct the cause and run again with --retry-errors"
        )


def _failures(worked: Worked) -> list[Mapping[str, Any]]:
    import pyarrow.compute as pc

    which = pc.equal(worked.table["outcome"], Outcome.FAILED.value)
    found: list[Mapping[str, Any]] = worked.table.filter(which).select(["case", "reason"]).to_pylist()
    return found
