"""Promotions: who takes the champion's place, and the arithmetic that is told."""

import pytest

from tutelage.evaluation.promotion import decide
from tutelage.evaluation.scorecard import scorecard
from tutelage.evaluation.settings import EvaluationSettings, PromotionSettings
from tutelage.records import Decision, Role, Score, Scorecard

NAMES = ("liver", "spleen")
Row = tuple[float | None, ...]


def card(name: str, *rows: Row, role: Role = Role.VALIDATION, names: tuple[str, ...] = NAMES) -> Scorecard:
    """Make a card of cases 0, 1, ... with a Dice for each structure; None is absent."""
    scores = [
        Score(str(i), structure, 1.0 if d is None else d, 0.5, 1.0, 1.0, 0.5, 1.0, 1.0, d is None)
        for i, row in enumerate(rows)
        for structure, d in zip(names, row, strict=True)
    ]
    return scorecard(name, role, scores, names, EvaluationSettings(bootstrap=1))


TABLE: list[tuple[str, Scorecard, Scorecard | None, PromotionSettings, Decision, str]] = [
    ("the first", card("a", (0.7, 0.5)), None, PromotionSettings(), Decision.PROMOTE,
     "mean Dice 0.600 on 1 validation cases, and no champion to compare with"),
    ("better", card("b", (0.8, 0.6)), card("a", (0.7, 0.5)), PromotionSettings(), Decision.PROMOTE,
     "mean Dice 0.700 on validation, champion 0.600: +10.0 points, at least +0.0 points asked"),
    ("worse", card("b", (0.69, 0.5)), card("a", (0.7, 0.5)), PromotionSettings(), Decision.HOLD,
     "mean Dice 0.595 on validation, champion 0.600: -0.5 points"),
    ("as good", card("b", (0.7, 0.5)), card("a", (0.7, 0.5)), PromotionSettings(), Decision.PROMOTE,
     "+0.0 points"),
    ("not better enough", card("b", (0.71, 0.5)), card("a", (0.7, 0.5)), PromotionSettings(min_gain=0.01),
     Decision.HOLD, "+0.5 points, at least +1.0 points asked"),
    ("just better enough", card("b", (0.71, 0.51)), card("a", (0.7, 0.5)), PromotionSettings(min_gain=0.01),
     Decision.PROMOTE, "+1.0 points, at least +1.0 points asked"),
    ("allowed to lose", card("b", (0.69, 0.5)), card("a", (0.7, 0.5)), PromotionSettings(min_gain=-0.01),
     Decision.PROMOTE, "at least -1.0 points asked"),
    ("better, but not at one thing", card("b", (0.95, 0.44)), card("a", (0.7, 0.5)), PromotionSettings(),
     Decision.HOLD, "spleen: Dice 0.440, champion 0.500: -6.0 points, at most -5.0 points allowed"),
    ("a loss that is allowed", card("b", (0.95, 0.45)), card("a", (0.7, 0.5)), PromotionSettings(),
     Decision.PROMOTE, "+10.0 points"),
    ("the same weights", card("a", (0.7, 0.5)), card("a", (0.7, 0.5)), PromotionSettings(), Decision.HOLD,
     "its weights are the champion's own"),
    ("nothing scored", card("b"), card("a", (0.7, 0.5)), PromotionSettings(), Decision.HOLD,
     "no validation case shows what it can do"),
    ("nothing scored at all", card("b"), None, PromotionSettings(), Decision.HOLD,
     "no validation case shows what it can do"),
    ("a champion without scores", card("b", (0.7, 0.5)), card("a"), PromotionSettings(), Decision.PROMOTE,
     "no champion to compare with"),
    ("a case missing", card("b", (0.9, 0.9)), card("a", (0.9, 0.9), (0.1, 0.1)), PromotionSettings(),
     Decision.HOLD, "1 validation cases were scored for the champion only: 1"),
    ("a case more", card("b", (0.8, 0.8), (0.1, 0.1)), card("a", (0.7, 0.7)), PromotionSettings(),
     Decision.PROMOTE, "mean Dice 0.800 on validation, champion 0.700"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("challenger", "champion", "settings", "decision", "told"),
    [row[1:] for row in TABLE],
    ids=[row[0] for row in TABLE],
)
def test_a_decision_follows_from_scores_and_says_how(
    challenger: Scorecard,
    champion: Scorecard | None,
    settings: PromotionSettings,
    decision: Decision,
    told: str,
) -> None:
    found = decide(challenger, champion, settings)
    assert found.decision is decision, found.reasons
    assert told in " | ".join(found.reasons)
    assert found.challenger == challenger.specialist
    assert found.champion == (None if champion is None else champion.specialist)


@pytest.mark.parametrize(
    ("challenger", "champion"),
    [
        (card("b", (0.7, 0.5), role=Role.TEST), None),
        (card("b", (0.7, 0.5)), card("a", (0.7, 0.5), role=Role.TEST)),
    ],
    ids=["challenger", "champion"],
)
def test_test_scores_never_decide(challenger: Scorecard, champion: Scorecard | None) -> None:
    with pytest.raises(ValueError, match="on the test split, expected validation"):
        decide(challenger, champion, PromotionSettings())


def test_specialists_of_other_structures_are_not_compared() -> None:
    other = card("a", (0.7, 0.5), names=("liver", "lung"))
    with pytest.raises(ValueError, match="same structures"):
        decide(card("b", (0.7, 0.5)), other, PromotionSettings())


def test_finding_what_is_not_there_costs_and_leaving_it_out_does_not() -> None:
    """Absent in the reference: the champion draws it (Dice 0), the challenger does not (no evidence)."""
    challenger, champion = card("b", (0.8, None)), card("a", (0.8, 0.0))
    assert decide(challenger, champion, PromotionSettings()).decision is Decision.PROMOTE
    assert decide(champion, challenger, PromotionSettings()).decision is Decision.HOLD
