"""Charts as files of their own, for whoever keeps them beside the page.

It decides which there are and what they are called; `charts` draws. A file has the same name in
every campaign, so that charts of two of them can be looked at side by side.
"""

from collections.abc import Sequence
from dataclasses import replace

from tutelage.evaluation import charts
from tutelage.evaluation.believing import EVERY, Curation
from tutelage.evaluation.campaign import Campaign
from tutelage.evaluation.report import Drawing, drawings

_BARS = 30


def plots(campaign: Campaign, drawn: Sequence[Drawing]) -> dict[str, str]:
    """Return SVG by name of file: the charts of the page, and what was believed in every round."""
    rounds = [(row.round, row) for row in campaign.curation if row.structure == EVERY]
    return _files(drawn, rounds[-_BARS:])


def plots_of(campaign: Campaign, stage: str) -> dict[str, str]:
    """Return the same about one stage: how it learned, and what it was given to learn from."""
    alone = replace(
        campaign,
        validation=(),
        test=(),
        calibration=tuple(one for one in campaign.calibration if one.round == stage),
        curves=tuple(one for one in campaign.curves if one.name == stage),
    )
    rulings = [(row.structure, row) for row in campaign.curation if row.round == stage]
    return _files(drawings(alone), rulings[-_BARS:])


def _files(drawn: Sequence[Drawing], rulings: Sequence[tuple[str, Curation]]) -> dict[str, str]:
    told = {one.name: one.svg for one in drawn}
    told |= {"believed": charts.believed(rulings)} if rulings else {}
    return {f"{name}.svg": charts.alone(svg) for name, svg in told.items()}
