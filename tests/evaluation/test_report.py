"""The report page: complete, self-contained, and safe whatever names it is given."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.browser import tab
from tutelage.evaluation import charts
from tutelage.evaluation.believing import Tally, curation_of
from tutelage.evaluation.campaign import (
    Calibrated,
    Campaign,
    Curve,
    Overlay,
    Stage,
    Trouble,
    Work,
)
from tutelage.evaluation.planes import planes
from tutelage.evaluation.report import MOST_BYTES, render
from tutelage.evaluation.scorecard import scorecard
from tutelage.evaluation.settings import EvaluationSettings
from tutelage.evaluation.story import headline, story
from tutelage.geometry import Grid
from tutelage.records import Decision, Ground, Promotion, Reason, Role, Score, Scorecard

pytestmark = pytest.mark.heavy

NASTY = "<script>alert('x')</script> & \"$x_{\" {{ 7*7 }}"
STRUCTURES = ("liver", NASTY)
VOID = {"meta", "link", "br", "img", "hr", "input", "path", "use"}


class Page(HTMLParser):
    """Reads a page; every element must be closed. Remembers ids, text and what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for key, value in attrs if key == "id"]
        self.addresses += [
            value or "" for key, value in attrs if key in {"href", "src", "xlink:href", "srcset"}
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


def card(dice: float, role: Role) -> Scorecard:
    scores = [
        Score(f"{NASTY} {i}", name, dice + 0.05 * i, 0.5, 4.0, 1.0, 0.5, 1.0, 1.0, False)
        for i in range(3)
        for name in STRUCTURES
    ]
    return scorecard("abc", role, scores, STRUCTURES, EvaluationSettings(bootstrap=20))


def cards(role: Role) -> tuple[tuple[str, Scorecard], ...]:
    return tuple((name, card(dice, role)) for name, dice in (("labels-only", 0.6), ("r00", 0.7)))


FIRST = Reason(Ground.EVIDENCE, True, "the first")
LOST = Reason(Ground.STRUCTURE, False, NASTY, NASTY, -0.1, -0.05)


def overlay(case: str, rank: str) -> Overlay:
    mask = np.zeros((3, 24, 20), bool)
    mask[1, 4:12, 4:12] = True
    image = np.random.default_rng(0).standard_normal(mask.shape)
    cut = planes(image, mask, np.roll(mask, 2, axis=1), Grid.from_spacing(mask.shape, (9, 2, 3)))
    return Overlay(case, STRUCTURES[1], 1, rank, 0.7, cut)


@pytest.fixture(scope="module")
def campaign() -> Campaign:
    rulings = ("accept", "partial", "reject", "absent", "failed")
    tallies = [Tally("r00", name, ruling, 1, 1, 0.5, 1, 0.8) for ruling in rulings for name in STRUCTURES]
    return Campaign(
        name=NASTY,
        workspace=f"/runs/{NASTY}",
        made="2026-11-21",
        version="0.1.0",
        structures=STRUCTURES,
        champion="r00",
        validation=cards(Role.VALIDATION),
        test=cards(Role.TEST),
        promotions=(
            ("labels-only", Promotion(Decision.PROMOTE, "abc", None, (FIRST,))),
            ("r00", Promotion(Decision.HOLD, "def", "abc", (LOST,))),
        ),
        stages=(
            Stage("labels-only", "supervised", 4, 0, (("annotated cases", "a1b2"), ("specialist", "abc"))),
            Stage("r00", NASTY, 4, 5, (("specialist that prompted", "abc"), (NASTY, NASTY))),
        ),
        stopped=NASTY,
        curation=curation_of(tallies),
        calibration=(
            Calibrated("r00", 0.2, 9, 2, 0.08, ((0.7, 0.8), (0.4, 0.3)), ((0.65, 0.7, 5),), 10, 0.9),
        ),
        work=(
            Work("labels-only", "train", None, 0, 61.0, 60.0, None, None, None),
            Work("r00", "label", 5, 1, 36.0, 20.0, 500.0, 0.25, 72.0),
        ),
        curves=(Curve("labels-only", tuple(range(900)), tuple(1 / (i + 1) for i in range(900))),),
        overlays=(overlay(NASTY, "best"), overlay("b", "worst")),
        cases=(("gold", 4), ("test", 6)),
        quarantined=2,
        failed=1,
        troubles=(Trouble(NASTY, NASTY), Trouble("2 files in quarantine", "truncated")),
        settings_yaml=f"name: {NASTY}",
        places=(("champion", "/runs/rounds/r00/specialist"),),
    )


@pytest.fixture(scope="module")
def html(campaign: Campaign) -> str:
    return render(campaign)


def test_the_page_has_every_section_and_every_element_is_closed(html: str) -> None:
    page = read(html)
    expected = {"story", "results", "charts", "promotions", "curation", "calibration", "overlays", "work"}
    assert expected | {"lineage", "trouble", "places", "settings"} <= set(page.ids)
    assert page.tags.count("svg") == 4
    assert page.tags.count("img") == 2


def test_ids_are_unique_and_links_lead_to_them(html: str) -> None:
    page = read(html)
    assert len(page.ids) == len(set(page.ids))
    inside = {address[1:] for address in page.addresses if address.startswith("#")}
    assert inside <= set(page.ids)


def test_nothing_is_fetched(html: str) -> None:
    page = read(html)
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
    assert {"script", "link", "iframe", "object"}.isdisjoint(page.tags)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_names_are_text_and_never_markup(html: str) -> None:
    assert "<script" not in html
    text = "".join(read(html).text)
    assert f"/runs/{NASTY}" in text
    assert f"name: {NASTY}" in text
    # The chart of structures shows the name too, not a formula made of it.
    assert text.count("$x_{") >= 8


def test_the_same_campaign_gives_the_same_page(campaign: Campaign, html: str) -> None:
    assert render(campaign) == html


def test_a_campaign_that_has_done_nothing_has_a_page() -> None:
    html = render(Campaign("new", "/runs/new", "today", "0.1.0", STRUCTURES, None, (), ()))
    page = read(html)
    assert "There is no champion yet." in html
    assert {"story", "results", "charts", "curation", "overlays", "work"}.isdisjoint(page.ids)


def test_scores_of_nothing_have_a_page() -> None:
    empty = scorecard("abc", Role.TEST, [], STRUCTURES, EvaluationSettings(bootstrap=20))
    only = (("labels-only", empty),)
    read(render(Campaign("new", "/runs/new", "today", "0.1.0", STRUCTURES, "labels-only", only, only)))


def test_the_headline_says_what_came_out(campaign: Campaign) -> None:
    told = headline(campaign)
    assert told.startswith("r00 is the champion: mean Dice 0.750 (")
    assert told.endswith("on 3 test cases, +10.0 points against labels-only.")


def test_charts_take_the_colors_of_the_page(html: str) -> None:
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert "var(--muted)" in drawn
    assert "var(--line)" in drawn
    assert not any(stand_in in drawn for stand_in in ("#010203", "#040506", "#070809"))


def test_long_curves_are_averaged_and_short_ones_left_alone() -> None:
    long = charts.thinned("a", ((i, float(i)) for i in range(100_000)), 300)
    assert 150 <= len(long.steps) <= 300
    assert np.ptp(np.diff(long.steps)[:-1]) == 0, "every point stands for as many steps"
    assert long.losses[0] == np.mean(range(round(2 * long.losses[0]) + 1))
    assert charts.thinned("a", [(0, 2.0), (1, float("nan"))]) == Curve("a", (0.0,), (2.0,))
    assert charts.thinned("a", []) == Curve("a", (), ())


# --- the story ----------------------------------------------------------------------------


def test_the_story_goes_through_stages_in_order_with_their_numbers(campaign: Campaign) -> None:
    told = {name: " ".join(sentences) for name, sentences in story(campaign)}
    assert list(told) == ["labels-only", "r00", "the end"]
    assert told["labels-only"].endswith("on 3 validation cases: it became the champion.")
    assert "asked about 5 unlabeled cases, of which 1 failed; 25% of slices it had seen before" in told["r00"]
    assert "On 9 labeled patients Dice was predicted with a mean error of 0.080; 2 structures" in told["r00"]
    assert "Of 10 answers 2 were accepted (20%), 2 half believed, 2 rejected" in told["r00"]
    assert "from 4 annotated cases and 5 pseudo-labels" in told["r00"]
    assert told["r00"].endswith(f"it was held back ({NASTY}).")
    assert told["the end"] == f"It stopped early: {NASTY}."


def test_too_few_labeled_cases_are_called_uncalibrated(campaign: Campaign) -> None:
    few = replace(campaign, calibration=(Calibrated("r00", 0.1, 3, 0, None),))
    told = " ".join(dict(story(few))["r00"])
    assert "Uncalibrated: 3 labeled patients cannot tell" in told
    assert "Uncalibrated" in render(few)


# --- how large ----------------------------------------------------------------------------


def test_a_page_of_any_archive_fits_into_a_mail_and_says_what_it_leaves_out(campaign: Campaign) -> None:
    names = tuple(f"structure number {i}" for i in range(120))
    scores = [
        Score(f"case {i}", name, 0.5, 0.5, 4.0, 1.0, 0.5, 1.0, 1.0, False) for i in range(3) for name in names
    ]
    whole = scorecard("abc", Role.TEST, scores, names, EvaluationSettings(bootstrap=2))
    rounds = [f"r{i:02d}" for i in range(30)]
    tallies = [Tally(name, structure, "accept", 9) for name in rounds for structure in names]
    lost = tuple(Reason(Ground.STRUCTURE, False, f"{name} lost", name, -1.0, -0.1) for name in names)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((40, 90, 90))
    cut = planes(noise, noise > 0, noise > 1, Grid.from_spacing(noise.shape, (2, 1, 1)))
    large = replace(
        campaign,
        structures=names,
        validation=tuple((name, whole) for name in rounds),
        test=tuple((name, whole) for name in rounds),
        promotions=tuple((name, Promotion(Decision.HOLD, "b", "a", lost)) for name in rounds),
        stages=tuple(Stage(name, "supervised", 4, 5) for name in rounds),
        curation=curation_of(tallies),
        work=tuple(Work(name, "label", 5, 1, 36.0, 20.0, 500.0, 0.25, 72.0) for name in rounds * 8),
        overlays=(Overlay("a", names[0], 0, "best", 0.7, cut),) * 160,
        troubles=tuple(Trouble(f"case {i}", "x" * 300) for i in range(100)),
        failed=1_000_000,
        settings_yaml="name: x\n" * 1_000_000,
    )
    page = render(large)
    assert len(page.encode()) <= MOST_BYTES
    for said in ("more pictures are left out", "22 stages between", "rows); the ledger", "and 108 more"):
        assert said in page
    assert "characters more" in page
    read(page)


# --- in a real browser --------------------------------------------------------------------

TOO_WIDE = """[...document.querySelectorAll('main *')].filter(one => !one.closest('.scroll, pre, svg')
  && one.getBoundingClientRect().right > screen.width).map(one => one.outerHTML.slice(0, 80))"""
CONTRAST = """(() => {
  const light = color => color.match(/[0-9.]+/g).slice(0, 3).map(Number)
    .map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const body = getComputedStyle(document.body);
  return [light(body.backgroundColor), light(body.color)];
})()"""


@pytest.mark.process
def test_a_browser_shows_the_page_in_light_and_dark_on_a_screen_and_on_a_phone(
    html: str, tmp_path: Path
) -> None:
    place = tmp_path / "report.html"
    place.write_text(html)
    papers = {}
    with tab(tmp_path / "profile") as shown:
        for width in (1280, 390):
            for dark in (False, True):
                shown.open(place, width, dark)
                assert shown.complaints() == []
                assert shown.fetched() == [place.as_uri()]
                drawn = "[...document.images].map(one => one.complete ? one.naturalWidth : 0)"
                assert shown.value(drawn) == [510, 510]
                assert shown.value("document.documentElement.scrollWidth <= screen.width")
                assert shown.value(TOO_WIDE) == []
                paper, ink = shown.value(CONTRAST)
                assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) > 7
                papers[dark] = paper
    assert papers[True] < 0.1 < 0.8 < papers[False]


@pytest.mark.process
def test_what_is_wrong_with_a_page_is_noticed(tmp_path: Path) -> None:
    place = tmp_path / "bad.html"
    place.write_text(
        "<meta name=viewport content='width=device-width'><main><p style='width:900px'>wide</p>"
        "<img src='gone.png'><script>console.error('oh')</script>"
        "<script>nobody.knows()</script></main>"
    )
    with tab(tmp_path / "profile") as shown:
        shown.open(place, 390, False)
        assert len(shown.complaints()) >= 2
        assert (tmp_path / "gone.png").as_uri() in shown.fetched()
        assert shown.value("document.images[0].naturalWidth") == 0
        assert shown.value(TOO_WIDE)


def test_a_champion_that_nobody_has_tested_is_told_on_validation(campaign: Campaign) -> None:
    told = headline(replace(campaign, test=campaign.test[:1]))
    assert told.startswith("r00 is the champion")
    assert "validation cases" in told
    assert "test cases" in headline(campaign)


def test_stages_stand_in_their_order_whichever_were_tested(campaign: Campaign) -> None:
    svg = charts.dice_by_stage([("test", campaign.test[1:]), ("validation", campaign.validation)], "r00")
    assert svg.index(">labels-only<") < svg.index(">r00<")
