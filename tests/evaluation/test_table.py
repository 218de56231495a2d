"""The table of results, on a terminal and as markdown."""

import io
import re

import pytest
from rich.console import Console

from tutelage.evaluation.believing import EVERY, Curation
from tutelage.evaluation.scorecard import scorecard
from tutelage.evaluation.settings import EvaluationSettings
from tutelage.evaluation.table import caption, curation_table, markdown, rich_table
from tutelage.records import Role, Score, Scorecard


def card(dice: float, hd95: float, names: tuple[str, ...] = ("liver", "lung [left]")) -> Scorecard:
    scores = [
        Score("a", names[0], dice, 0.5, hd95, 1.0, 0.5, 1.0, 1.0, False),
        Score("a", names[1], 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, True),
    ]
    return scorecard("abc", Role.TEST, scores, names, EvaluationSettings(bootstrap=1))


CARDS = [("labels-only", card(0.6, 9.0)), ("r00", card(0.75, 12.0))]


def shown(ansi: bool) -> str:
    out = io.StringIO()
    Console(file=out, width=120, force_terminal=ansi, color_system="standard" if ansi else None).print(
        rich_table(CARDS, "on test [draft]")
    )
    return out.getvalue()


def test_a_terminal_shows_names_and_numbers_as_they_are() -> None:
    text = shown(ansi=False)
    for word in ("on test [draft]", "lung [left]", "labels-only", "0.600", "0.750", "12.0", "1 test cases"):
        assert word in text


def test_the_best_of_a_row_is_bold() -> None:
    text = shown(ansi=True)
    assert set(re.findall(r"\x1b\[1m *([\d.]+)", text)) == {"0.750", "9.0"}


def test_markdown_is_a_table_that_github_reads() -> None:
    assert markdown(CARDS).splitlines() == [
        "| structure | labels-only Dice | labels-only HD95 mm | r00 Dice | r00 HD95 mm |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| liver | 0.600 | 9.0 | 0.750 | 12.0 |",
        "| lung [left] | - | - | - | - |",
        "| mean | 0.600 | 9.0 | 0.750 | 12.0 |",
        "",
        "1 test cases; mean Dice with its interval over cases: labels-only 0.600 (0.600 to 0.600), "
        "r00 0.750 (0.750 to 0.750)",
    ]


def test_a_bar_in_a_name_does_not_break_markdown() -> None:
    assert "| a\\|b |" in markdown([("x", card(0.5, 1.0, ("a|b", "c")))])


def test_nothing_scored_is_said() -> None:
    assert caption([]) == "nothing scored yet"
    assert rich_table([]).row_count == 0


def test_cards_of_other_structures_cannot_share_a_table() -> None:
    with pytest.raises(ValueError, match="different structures"):
        markdown([("x", card(0.5, 1.0)), ("y", card(0.5, 1.0, ("liver", "spleen")))])


def test_what_was_believed_fits_a_terminal_of_eighty_columns() -> None:
    row = Curation("r00", EVERY, 10000, 10000, 10000, 10000, 10000, 0.5, 0.6071, None)
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(curation_table([row]))
    told = console.export_text()
    assert "…" not in told
    assert all(word in told for word in ("all", "accepted", "rejected", "0.607", "10000"))
