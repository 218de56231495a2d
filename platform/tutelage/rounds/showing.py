"""Pictures: the champion's masks of a few validation cases for the report page, and charts beside it."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from tutelage.errors import TutelageError
from tutelage.evaluation.campaign import Overlay
from tutelage.evaluation.planes import Choice, chosen, planes
from tutelage.records import Case, Role, Scorecard
from tutelage.rounds.campaign import Campaign
from tutelage.storage import Place

if TYPE_CHECKING:
    from tutelage.specialist.predictor import Predictor


def charts_of(folder: Place) -> Place:
    """Return where the charts of a campaign or a stage lie."""
    return folder / "charts"


def keep(folder: Place, drawn: Mapping[str, str]) -> None:
    """Have exactly these charts, by name of file, in a campaign's or a stage's folder."""
    charts = charts_of(folder)
    for name in set(charts.names()) - set(drawn):
        (charts / name).remove()
    for name, svg in drawn.items():
        (charts / name).write_text(svg)


def overlays(campaign: Campaign, champion: int, card: Scorecard) -> tuple[Overlay, ...]:
    """Draw the best and the worst case of each structure; each case is predicted once."""
    from tutelage.specialist.predictor import Predictor

    wanted = chosen(card)
    by_case: dict[str, list[Choice]] = {}
    for choice in wanted:
        by_case.setdefault(choice.case, []).append(choice)
    cases = {case.case: case for case in campaign.catalog.of(Role.VALIDATION)}
    predictor = Predictor(campaign.workspace.specialist(champion))
    drawn: dict[Choice, Overlay] = {}
    for name, choices in by_case.items():
        try:
            if name in cases:  # it was when it was scored
                drawn |= {c: one for c, one in _drawn(campaign, predictor, cases[name], choices)}
        except TutelageError as error:
            campaign.reporter.say(f"  report: no picture of {name}: {error}")
    return tuple(drawn[choice] for choice in wanted if choice in drawn)


def _drawn(
    campaign: Campaign, predictor: "Predictor", case: Case, choices: list[Choice]
) -> Iterator[tuple[Choice, Overlay]]:
    from tutelage.archive import formats

    structures = campaign.catalog.structures
    volume = formats.read_image(case.image, campaign.settings.archive.max_voxels)
    label_DHW = formats.read_label(case.label or "", volume.grid, len(structures))
    mask_DHW = predictor.mask(volume.image_CDHW, volume.grid)
    for choice in choices:
        place = structures.index(choice.structure)
        cut = planes(volume.image_CDHW[0], label_DHW == place + 1, mask_DHW == place + 1, volume.grid)
        yield choice, Overlay(choice.case, choice.structure, place, choice.rank, choice.dice, cut)
