"""Gathering what the report page shows: reads the workspace, decides nothing.

Of patients it hands on the names of cases and nothing else: addresses of files stay in the
workspace, also those inside reasons. Of settings it leaves out the password of MLflow's address.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tutelage import __version__
from tutelage.curation import calibration as calibrations
from tutelage.curation.doubts import doubts_of
from tutelage.evaluation import campaign as told
from tutelage.evaluation.believing import curation_of
from tutelage.evaluation.plots import plots, plots_of
from tutelage.evaluation.promotion import from_dict
from tutelage.evaluation.report import drawings, render
from tutelage.labels.rows import Rows
from tutelage.records import Outcome, Promotion, Role
from tutelage.rounds import calibrating, costing, counting, recording, showing, steps, stopping
from tutelage.rounds.campaign import Campaign
from tutelage.rounds.workspace import LABELS_ONLY, read_manifest, stage_name
from tutelage.tracking.store import yaml_fit_to_record

if TYPE_CHECKING:
    import pyarrow as pa

_TROUBLES = 50
"""Of either kind; how many there are in all is told."""

_REASON_CHARACTERS = 300
_PLACE = re.compile(r"(?:(?<![\w/])|\b\w+:/)/[^\s'\",;:()]+")


def write(campaign: Campaign, stages: Sequence[int], champion: int | None) -> None:
    """Write the page, and its charts as files: the campaign's and those of every stage."""
    gathered = _gathered(campaign, stages, champion)
    drawn, workspace = drawings(gathered), campaign.workspace
    workspace.report.write_text(render(gathered, drawn))
    showing.keep(workspace.root, plots(gathered, drawn))
    for number in stages:
        showing.keep(workspace.stage(number), plots_of(gathered, stage_name(number)))


def _gathered(campaign: Campaign, stages: Sequence[int], champion: int | None) -> told.Campaign:
    """Everything that the page shows."""
    rounds = [number for number in stages if number != LABELS_ONLY]
    counts = {number: counting.counted(campaign, number) for number in rounds}
    trained = {number: costing.training(campaign, number) for number in stages}
    validation = steps.scorecards(campaign, stages, Role.VALIDATION)
    shown = dict(validation).get("" if champion is None else stage_name(champion))
    failed, failures = _failures(campaign, stages)
    return told.Campaign(
        name=campaign.settings.name,
        workspace=str(campaign.workspace.root),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        structures=campaign.catalog.structures,
        champion=None if champion is None else stage_name(champion),
        validation=validation,
        test=steps.scorecards(campaign, stages, Role.TEST),
        promotions=tuple(_promotions(campaign, stages)),
        stages=tuple(costing.stages(campaign, stages)),
        stopped=stopped(campaign, stages),
        curation=curation_of(tally for tallies, _ in counts.values() for tally in tallies),
        calibration=tuple(
            one for n in rounds for one in [_calibrated(campaign, n, counts[n][1])] if one is not None
        ),
        work=tuple(work for n in stages for work in costing.work(campaign, n, trained[n])),
        curves=tuple(one.curve for one in trained.values() if one.curve.steps),
        overlays=() if champion is None or not shown else showing.overlays(campaign, champion, shown),
        cases=tuple((role.value, len(campaign.catalog.of(role))) for role in Role),
        quarantined=len(campaign.catalog.quarantined),
        failed=failed,
        troubles=(*failures, *_quarantine(campaign)),
        settings_yaml=yaml_fit_to_record(campaign.settings.to_yaml()),
        places=tuple(_places(campaign, champion)),
    )


def stopped(campaign: Campaign, stages: Sequence[int]) -> str | None:
    """Return why rounds ended before the last one; None if they did not."""
    following = max(stages, default=LABELS_ONLY) + 1
    return stopping.why(campaign, following) if following < campaign.settings.rounds else None


def _promotions(campaign: Campaign, stages: Sequence[int]) -> Iterator[tuple[str, Promotion]]:
    for number in stages:
        manifest = read_manifest(campaign.workspace.stage(number), "promote")
        if manifest:
            yield stage_name(number), from_dict(manifest["outputs"])


def _calibrated(campaign: Campaign, number: int, held: counting.Held) -> told.Calibrated | None:
    """What labeled cases said about a round's answers, and what hidden labels say about that."""
    stage = campaign.workspace.stage(number)
    manifest = read_manifest(stage, "calibrate")
    if manifest is None or "calibrate" not in steps.names(campaign.settings, number):
        return None
    outputs = manifest["outputs"]
    return told.Calibrated(
        round=stage_name(number),
        alpha=campaign.settings.curation.calibration.alpha,
        patients=outputs["patients"],
        bounded=len(outputs["bounded"]),
        error=outputs["error"],
        points=tuple(_points(campaign, number)),
        bins=held.means(),
        judged=held.bounded,
        covered=held.covered / held.bounded if held.bounded else None,
    )


def _points(campaign: Campaign, number: int) -> Iterator[tuple[float, float]]:
    """Predicted and true Dice of answers about labeled cases, each by the line without its patient."""
    from tutelage.casework.calibrating import trials_of

    stage = campaign.workspace.stage(number)
    model = calibrations.from_dict(json.loads(calibrating.file_of(stage).read_text()))
    if model.line is not None:
        for trial in trials_of(Rows(stage / "calibrate.rows").read()):
            if line := model.without.get(trial.patient):
                yield line.dice(trial.structure, doubts_of(trial.features)), trial.dice


# --- trouble ------------------------------------------------------------------------------


def _failures(campaign: Campaign, stages: Sequence[int]) -> tuple[int, list[told.Trouble]]:
    """How many cases failed, and the first of them."""
    count, found = 0, list[told.Trouble]()
    for number in stages:
        for step in ("label", "calibrate", "curate", "evaluate", "test"):
            rows = _failed(Rows(campaign.workspace.stage(number) / f"{step}.rows"))
            count += len(rows)
            for row in rows.slice(0, _TROUBLES - len(found)).to_pylist():
                what = f"{row['case']}, {stage_name(number)} {step}"
                found.append(told.Trouble(what, without_places(row["reason"])))
    return count, found


def _failed(rows: Rows) -> "pa.Table":
    import pyarrow.compute as pc

    table = rows.table(["outcome", "reason"])
    return table.filter(pc.equal(table["outcome"], Outcome.FAILED.value))


def _quarantine(campaign: Campaign) -> Iterator[told.Trouble]:
    """Files that cannot be used, together where the reason is the same."""
    reasons = Counter(without_places(bad.reason, bad.address) for bad in campaign.catalog.quarantined)
    for reason, count in reasons.most_common(_TROUBLES):
        yield told.Trouble(f"{count} file{'' if count == 1 else 's'} in quarantine", reason)


def without_places(reason: str, address: str = "") -> str:
    """Leave out where files lie and what they are called: people are named in both."""
    for name in filter(None, (address, address.rpartition("/")[2])):
        reason = reason.replace(name, "the file")
    reason = _PLACE.sub("a file", reason)
    return reason if len(reason) <= _REASON_CHARACTERS else f"{reason[:_REASON_CHARACTERS]}..."


def _places(campaign: Campaign, champion: int | None) -> Iterator[tuple[str, str]]:
    workspace = campaign.workspace
    yield "workspace", str(workspace.root)
    yield "ledger", str(workspace.ledger)
    if champion is not None:
        yield "specialist", str(workspace.specialist(champion))
    if campaign.catalog.quarantined:
        yield "what is in quarantine", str(workspace.catalog / "quarantine.parquet")
    if command := recording.command(campaign):
        yield "MLflow", command
