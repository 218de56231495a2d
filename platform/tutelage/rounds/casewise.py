"""Doing a step case by case: only what has no row yet, and a row for everything.

It decides how a step resumes and what its rows amount to. What the work is, the step says;
where it runs, the runner knows.
"""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tutelage.errors import WorkspaceError
from tutelage.labels.rows import Row, Rows
from tutelage.records import Case, Outcome
from tutelage.rounds.campaign import Campaign
from tutelage.rounds.workspace import Step, stage_name
from tutelage.settings import fingerprint

if TYPE_CHECKING:
    from tutelage.casework.base import Worker

_FLUSH_EVERY_S = 2.0
"""At most this much finished work is repeated after a kill."""


def already(campaign: Campaign, step: Step, number: int) -> dict[str, Any] | None:
    """Return the manifest of a step that is done, and say so."""
    manifest = step.manifest()
    if manifest is not None:
        campaign.reporter.say(f"{stage_name(number)} {step.name}: done before")
    return manifest


def each(
    campaign: Campaign, step: Step, number: int, build: "type[Worker]", job: object, cases: Sequence[Case]
) -> list[Row]:
    """Work on the cases that have no row yet and return the rows of all of them."""
    rows = Rows(step.stage / f"{step.name}.rows")
    if not step.begin():
        rows.folder.remove()
    finished = rows.cases()
    pending = [case for case in cases if case.case not in finished]
    flushed = time.monotonic()
    name = f"{stage_name(number)} {step.name} {len(cases)} cases"
    with rows, campaign.reporter.task(name, len(cases), len(finished)) as advance:
        for done, row in enumerate(campaign.runner.each(build, job, pending) if pending else [], start=1):
            rows.add(row)
            advance(len(finished) + done, row["case"])
            if time.monotonic() - flushed > _FLUSH_EVERY_S:
                rows.flush()
                flushed = time.monotonic()
    everything = rows.read()
    _complain(campaign, step, everything, len(cases))
    return everything


def _complain(campaign: Campaign, step: Step, rows: Sequence[Row], expected: int) -> None:
    failed = [row for row in rows if row["outcome"] == Outcome.FAILED.value]
    for row in failed:
        campaign.reporter.say(f"  {step.name} failed: {row['case']}: {row['reason']}")
    if len(rows) < expected:
        raise WorkspaceError(
            f"{step.name}: {expected - len(rows)} of {expected} cases came back without a row"
        )
    if failed and len(failed) == expected:
        raise WorkspaceError(
            f"{step.name}: all {expected} cases failed, the first because of {failed[0]['reason']}; "
            f"correct the cause, delete {step.stage} and run again"
        )


def counts(rows: Sequence[Row]) -> dict[str, int]:
    """Count how cases ended."""
    failed = sum(row["outcome"] == Outcome.FAILED.value for row in rows)
    return {"done": len(rows) - failed, "failed": failed}


def content(rows: Sequence[Row], key: str) -> str:
    """One digest of what rows say, in which time and order do not count."""
    return fingerprint(sorted((str(row["case"]), str(row.get(key) or row["reason"])) for row in rows))


def identity(cases: Sequence[Case]) -> str:
    """One digest of which cases these are, and of their files as they were scanned."""
    told: list[Mapping[str, Any]] = [
        {"case": c.case, "image": c.image, "label": c.label, "stamp": c.stamp} for c in cases
    ]
    return fingerprint(told)
