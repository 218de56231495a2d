"""The report page: complete, self-contained, and safe whatever names it is given."""

import base64
import re
from collections.abc import Iterator
from html.parser import HTMLParser

import numpy as np
import pytest

from tutelage.evaluation import charts
from tutelage.evaluation.campaign import Campaign, Curve, curation_of, example
from tutelage.evaluation.report import headline, render
from tutelage.evaluation.scorecard import scorecard
from tutelage.evaluation.settings import EvaluationSettings
from tutelage.geometry import Grid
from tutelage.records import Decision, Promotion, Quarantined, Role, Score, Scorecard

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


@pytest.fixture(scope="module")
def campaign() -> Campaign:
    rng = np.random.default_rng(0)
    mask = np.zeros((3, 24, 20), np.uint8)
    mask[1, 4:12, 4:12], mask[1, 0:3, :] = 1, 2
    image = rng.standard_normal(mask.shape).astype(np.float32)
    rows = [
        {"round": "r00", "case": str(i), "structure": name, "ruling": ruling, "weight": 0.5}
        for i, ruling in enumerate(("accept", "partial", "reject", "absent", "failed"))
        for name in STRUCTURES
    ]
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
            ("labels-only", Promotion(Decision.PROMOTE, "abc", None, ("the first",))),
            ("r00", Promotion(Decision.HOLD, "def", "abc", (NASTY,))),
        ),
        curation=curation_of(rows),
        curves=(Curve("labels-only", tuple(range(900)), tuple(1 / (i + 1) for i in range(900))),),
        examples=(example(NASTY, "r00", image, mask, mask, Grid.from_spacing(mask.shape, (9, 2, 3)), 0.7),),
        cases=(("gold", 4), ("test", 6)),
        quarantined=(Quarantined(NASTY, "truncated"),),
        failed=((NASTY, NASTY),),
        settings_yaml=f"name: {NASTY}",
        places=(("champion", "/runs/rounds/r00/specialist"),),
    )


@pytest.fixture(scope="module")
def html(campaign: Campaign) -> str:
    return render(campaign)


def test_the_page_has_every_section_and_every_element_is_closed(html: str) -> None:
    page = read(html)
    expected = {"results", "charts", "curation", "examples", "promotions", "trouble", "places", "settings"}
    assert expected <= set(page.ids)
    assert page.tags.count("svg") == 3
    assert page.tags.count("img") == 1


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
    assert {"results", "charts", "curation", "examples"}.isdisjoint(page.ids)


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


def pictures(html: str) -> Iterator[bytes]:
    for data in re.findall(r'src="data:image/png;base64,([^"]+)"', html):
        yield base64.b64decode(data, validate=True)


def test_pictures_are_png_as_wide_as_three_panels(html: str) -> None:
    (picture,) = pictures(html)
    assert picture.startswith(b"\x89PNG")
    width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
    # 24 voxels of 2 mm by 20 voxels of 3 mm.
    assert (width / 3) / height == pytest.approx((20 * 3) / (24 * 2), rel=0.01)


def test_long_curves_are_averaged_and_short_ones_left_alone() -> None:
    long = Curve("a", tuple(range(900)), tuple(float(i) for i in range(900)))
    steps, values = charts.thinned(long, 300)
    assert len(steps) == 300
    assert values[:2] == [1.0, 4.0]
    assert charts.thinned(Curve("a", (0, 1), (2.0, float("nan")))) == ([0.0], [2.0])
    assert charts.thinned(Curve("a", (), ())) == ([], [])
