"""Gathering what the report page shows: reads the workspace, decides nothing."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import numpy as np

from tutelage import __version__
from tutelage.evaluation import campaign as told
from tutelage.evaluation.report import render
from tutelage.labels.rows import Rows, read_table
from tutelage.records import Decision, Outcome, Promotion, Role, Score, Scorecard
from tutelage.rounds import recording, steps
from tutelage.rounds.campaign import Campaign
from tutelage.rounds.workspace import LABELS_ONLY, read_manifest, stage_name

_EXAMPLES = 3


def page(campaign: Campaign, stages: Sequence[int], champion: int | None) -> str:
    """Return the HTML of the report."""
    test = _cards(campaign, stages, Role.TEST)
    return render(
        told.Campaign(
            name=campaign.settings.name,
            workspace=str(campaign.workspace.root),
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=__version__,
            structures=campaign.catalog.structures,
            champion=None if champion is None else stage_name(champion),
            validation=_cards(campaign, stages, Role.VALIDATION),
            test=test,
            promotions=tuple(_promotions(campaign, stages)),
            curation=told.curation_of(
                list(read_table(campaign.workspace.ledger)) if campaign.workspace.ledger.exists() else [],
                {stage_name(n): true_scores(campaign, n) for n in stages if n != LABELS_ONLY},
            ),
            curves=tuple(_curves(campaign, stages)),
            examples=tuple(_examples(campaign, champion, dict(test))),
            cases=tuple((role.value, len(campaign.catalog.of(role))) for role in Role),
            quarantined=campaign.catalog.quarantined,
            failed=tuple(_failed(campaign, stages)),
            settings_yaml=campaign.settings.to_yaml(),
            places=tuple(_places(campaign, champion)),
        )
    )


def _cards(campaign: Campaign, stages: Sequence[int], role: Role) -> tuple[tuple[str, Scorecard], ...]:
    return tuple((stage_name(n), steps.read_scorecard(campaign, n, role)) for n in stages)


def _promotions(campaign: Campaign, stages: Sequence[int]) -> Iterator[tuple[str, Promotion]]:
    for number in stages:
        manifest = read_manifest(campaign.workspace.stage(number), "promote")
        if manifest:
            said = manifest["outputs"]
            yield (
                stage_name(number),
                Promotion(
                    Decision(said["decision"]), said["challenger"], said["champion"], tuple(said["reasons"])
                ),
            )


def true_scores(campaign: Campaign, number: int) -> list[Score]:
    """Return how a round's answers compare with hidden labels, where there are any."""
    rows = Rows(campaign.workspace.stage(number) / "truth.rows").read()
    return [Score(**score) for row in rows for score in row.get("scores") or []]


def _curves(campaign: Campaign, stages: Sequence[int]) -> Iterator[told.Curve]:
    for number in stages:
        losses = recording.losses(campaign, number)
        if losses:
            known, values = zip(*losses, strict=True)
            yield told.Curve(stage_name(number), known, values)


def _failed(campaign: Campaign, stages: Sequence[int]) -> Iterator[tuple[str, str]]:
    for number in stages:
        for step in ("label", "curate", "evaluate", "test"):
            for row in Rows(campaign.workspace.stage(number) / f"{step}.rows").read():
                if row["outcome"] == Outcome.FAILED.value:
                    yield f"{stage_name(number)} {step} {row['case']}", row["reason"]


def _examples(campaign: Campaign, champion: int | None, test: dict[str, Scorecard]) -> Iterator[told.Example]:
    """The champion's best, middle and worst test case."""
    if champion is None or stage_name(champion) not in test:
        return
    from tutelage.archive import formats
    from tutelage.specialist.predictor import Predictor

    by_case: dict[str, list[float]] = {}
    for score in test[stage_name(champion)].scores:
        if not score.absent:
            by_case.setdefault(score.case, []).append(score.dice)
    ranked = sorted(by_case, key=lambda case: -float(np.mean(by_case[case])))
    chosen = dict.fromkeys(
        ranked[round(i * (len(ranked) - 1) / max(1, _EXAMPLES - 1))] for i in range(_EXAMPLES)
    )
    predictor = Predictor(campaign.workspace.specialist(champion))
    cases = {case.case: case for case in campaign.catalog.of(Role.TEST)}
    limit = campaign.settings.archive.max_voxels
    for name in chosen:
        case = cases[name]
        volume = formats.read_image(case.image, limit)
        reference_DHW = formats.read_label(case.label or "", volume.grid, len(campaign.catalog.structures))
        mask_DHW = predictor.mask(volume.image_CDHW, volume.grid)
        yield told.example(
            name,
            stage_name(champion),
            volume.image_CDHW[0],
            reference_DHW,
            mask_DHW,
            volume.grid,
            float(np.mean(by_case[name])),
        )


def _places(campaign: Campaign, champion: int | None) -> Iterator[tuple[str, str]]:
    workspace = campaign.workspace
    yield "workspace", str(workspace.root)
    yield "ledger", str(workspace.ledger)
    if champion is not None:
        yield "specialist", str(workspace.specialist(champion))
    if command := recording.command(campaign):
        yield "MLflow", command
