"""Charts as files: complete, readable by themselves, and named the same in every campaign."""

import re
from xml.etree import ElementTree

import pytest

from tutelage.evaluation.believing import Tally, curation_of
from tutelage.evaluation.campaign import Calibrated, Campaign, Curve
from tutelage.evaluation.plots import plots, plots_of
from tutelage.evaluation.report import drawings, render
from tutelage.evaluation.scorecard import scorecard
from tutelage.evaluation.settings import EvaluationSettings
from tutelage.records import Role, Score, Scorecard

pytestmark = pytest.mark.heavy

STRUCTURES = ("liver", "<b>$spleen$</b>")


def card(dice: float) -> Scorecard:
    scores = [
        Score(f"{i}", name, dice, 0.5, 4.0, 1.0, 0.5, 1.0, 1.0, False)
        for i in range(2)
        for name in STRUCTURES
    ]
    return scorecard("abc", Role.VALIDATION, scores, STRUCTURES, EvaluationSettings(bootstrap=20))


@pytest.fixture(scope="module")
def campaign() -> Campaign:
    cards = tuple((name, card(dice)) for name, dice in (("labels-only", 0.6), ("r00", 0.7), ("r01", 0.7)))
    tallies = [
        Tally(stage, name, ruling, count)
        for stage in ("r00", "r01")
        for name in STRUCTURES
        for ruling, count in (("accept", 6), ("partial", 2), ("reject", 1), ("failed", 1))
    ]
    return Campaign(
        name="quick",
        workspace="/runs",
        made="today",
        version="1",
        structures=STRUCTURES,
        champion="r00",
        validation=cards,
        test=(),
        curation=curation_of(tallies),
        calibration=tuple(Calibrated(stage, 0.2, 9, 2, 0.1, ((0.7, 0.8),)) for stage in ("r00", "r01")),
        curves=tuple(Curve(name, (0.0, 1.0), (1.0, 0.5)) for name, _ in cards),
    )


def words(svg: str) -> set[str]:
    """What a picture says; fails if it is no XML."""
    return {
        "".join(text.itertext()).strip()
        for text in ElementTree.fromstring(svg).iter()
        if text.tag.endswith("text")
    }


def test_the_charts_of_the_page_and_what_was_believed_are_files(campaign: Campaign) -> None:
    drawn = drawings(campaign)
    files = plots(campaign, drawn)
    assert list(files) == [
        "dice-by-stage.svg",
        "dice-by-structure.svg",
        "predicted-dice.svg",
        "training-loss.svg",
        "believed.svg",
    ]
    assert {"labels-only", "r00", "r01"} <= words(files["training-loss.svg"])
    assert words(files["believed.svg"]) >= {"r00", "r01", "accepted", "rejected", "% of answers"}
    assert render(campaign, drawn) == render(campaign)


def test_a_stage_has_charts_of_its_own_and_before_the_first_round_nothing_was_believed(
    campaign: Campaign,
) -> None:
    files = plots_of(campaign, "r01")
    assert list(files) == ["predicted-dice.svg", "training-loss.svg", "believed.svg"]
    assert "r00" not in words(files["training-loss.svg"]) | words(files["predicted-dice.svg"])
    assert set(STRUCTURES) <= words(files["believed.svg"])
    assert list(plots_of(campaign, "labels-only")) == ["training-loss.svg"]


def test_a_file_needs_no_page_around_it(campaign: Campaign) -> None:
    for name, svg in plots(campaign, drawings(campaign)).items():
        root = ElementTree.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg", name
        assert float(root.attrib["width"]) > float(root.attrib["height"]) * 0.9
        assert "var(" not in svg
        assert root[0].attrib["fill"] == "#ffffff"


def test_bars_of_what_was_believed_are_as_long_as_their_shares(campaign: Campaign) -> None:
    svg = plots_of(campaign, "r00")["believed.svg"]
    spans = {}
    for color, ruling in (("#2fa36b", "accepted"), ("#8fcfae", "partial"), ("#e08a3c", "rejected")):
        (path, *_) = re.findall(rf'<path d="([^"]*)"[^>]*style="fill: {color}"', svg)
        x = [float(found) for found in re.findall(r"[ML] ([\d.]+) ", path)]
        spans[ruling] = max(x) - min(x)
    assert spans["partial"] / spans["accepted"] == pytest.approx(2 / 6, rel=0.01)
    assert spans["rejected"] / spans["accepted"] == pytest.approx(1 / 6, rel=0.01)
