"""What `tutelage table` does: several finished campaigns of one kind, joined over their seeds."""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from tutelage.cli.telling import Teller
from tutelage.errors import WorkspaceError
from tutelage.evaluation.scorecard import from_dict
from tutelage.records import Scorecard
from tutelage.rounds.workspace import LABELS_ONLY, Workspace, read_manifest, stage_name
from tutelage.storage import Place

_NOTHING = "-"


@dataclass(frozen=True)
class Line:
    """One stage over all workspaces that have it."""

    stage: str
    workspaces: int
    dice: tuple[float, ...]
    """Mean test Dice by workspace."""
    hd95_mm: tuple[float, ...]
    gain: tuple[float, ...]
    """Points of Dice over the labels-only specialist of the same workspace."""


def table(workspaces: Sequence[str], teller: Teller, as_markdown: bool) -> int:
    """Show mean and standard deviation over workspaces, stage by stage."""
    lines = joined([cards_of(Workspace(Place.of(address))) for address in workspaces])
    if as_markdown:
        teller.say(_markdown(lines))
    elif not teller.as_json:
        _show(lines, teller)
    teller.result({"workspaces": list(workspaces), "stages": [_json(line) for line in lines]})
    return 0


def cards_of(workspace: Workspace) -> list[Scorecard]:
    """Return the test scorecards of a workspace, labels-only first.

    Raises:
        WorkspaceError: it has none.
    """
    cards: list[Scorecard] = []
    number = LABELS_ONLY
    while (place := workspace.stage(number) / "scorecard.test.json").exists():
        card, trained = (
            from_dict(json.loads(place.read_text())),
            read_manifest(workspace.stage(number), "train"),
        )
        if trained is None or trained["outputs"]["specialist"] != card.specialist:
            break  # trained anew since, and not tested again
        cards.append(card)
        number += 1
    if not cards:
        raise WorkspaceError(
            f"{workspace.root} has no test scores of its specialists; "
            "`tutelage evaluate CONFIG --split test` makes them, once and for all stages"
        )
    return cards


def joined(campaigns: Sequence[Sequence[Scorecard]]) -> list[Line]:
    """Arrange scorecards by stage; a campaign with fewer rounds is missing from the later ones."""
    lines = []
    for i, cards in enumerate(zip_longest(*campaigns)):
        there = [
            (card.summaries[-1], cards_[0].summaries[-1])
            for card, cards_ in zip(cards, campaigns, strict=True)
            if card is not None
        ]
        lines.append(
            Line(
                stage=stage_name(LABELS_ONLY + i),
                workspaces=len(there),
                dice=tuple(mean.dice for mean, _ in there),
                hd95_mm=tuple(mean.hd95_mm for mean, _ in there),
                gain=tuple(100 * (mean.dice - first.dice) for mean, first in there),
            )
        )
    return lines


_HEADER = ("stage", "workspaces", "mean Dice", "HD95 mm", "gain, points")


def _cells(line: Line) -> tuple[str, ...]:
    gain = _NOTHING if line.stage == stage_name(LABELS_ONLY) else _spread(line.gain, "{:+.1f}".format)
    return (
        line.stage,
        str(line.workspaces),
        _spread(line.dice, "{:.3f}".format),
        _spread(line.hd95_mm, "{:.1f}".format),
        gain,
    )


def _spread(values: Sequence[float], shown: Callable[[float], str]) -> str:
    """Mean ± standard deviation of a sample, the latter from two workspaces on."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return _NOTHING
    mean = shown(statistics.fmean(finite))
    if len(finite) < 2:
        return mean
    return f"{mean} ± {shown(statistics.stdev(finite)).lstrip('+')}"


def _show(lines: Sequence[Line], teller: Teller) -> None:
    from rich.table import Table

    shown = Table(_HEADER[0], title="on the test split, mean ± standard deviation", title_justify="left")
    for name in _HEADER[1:]:
        shown.add_column(name, justify="right")
    for line in lines:
        shown.add_row(*_cells(line))
    teller.show(shown)


def _markdown(lines: Sequence[Line]) -> str:
    rows = [_HEADER, ("---", *["---:"] * (len(_HEADER) - 1)), *(_cells(line) for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _json(line: Line) -> dict[str, object]:
    finite = {
        key: [value if math.isfinite(value) else None for value in getattr(line, key)]
        for key in ("dice", "hd95_mm", "gain")
    }
    return {"stage": line.stage, "workspaces": line.workspaces, **finite}
