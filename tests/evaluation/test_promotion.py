"""Promotions: who takes the champion's place, and the arithmetic that is told."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from tutelage.evaluation.paired import FEWEST, gain
from tutelage.evaluation.promotion import Reliability, decide, from_dict
from tutelage.evaluation.scorecard import scorecard
from tutelage.evaluation.settings import EvaluationSettings, PromotionSettings
from tutelage.records import Decision, Ground, Promotion, Reason, Role, Score, Scorecard

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
    assert told in " | ".join(reason.told for reason in found.reasons)
    assert all(reason.passed for reason in found.reasons) is (decision is Decision.PROMOTE)
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


# --- what was asked, as data --------------------------------------------------------------


def of(promotion: Promotion, kind: Ground) -> Reason:
    """Return the one reason of a kind."""
    found = [reason for reason in promotion.reasons if reason.kind is kind]
    assert len(found) == 1
    return found[0]


def with_hd95(told: Scorecard, hd95_mm: float) -> Scorecard:
    """Return a card whose every score has this HD95."""
    scores = [replace(score, hd95_mm=hd95_mm) for score in told.scores]
    return scorecard(told.specialist, told.role, scores, NAMES, EvaluationSettings(bootstrap=1))


def test_every_question_is_answered_with_its_value_and_limit() -> None:
    found = decide(
        card("b", (0.8, 0.48)), card("a", (0.7, 0.5)), PromotionSettings(), labels=Reliability(0.1)
    )
    assert found.decision is Decision.PROMOTE
    assert [reason.kind for reason in found.reasons] == list(Ground)[1:]
    assert of(found, Ground.GAIN).value == pytest.approx(0.04)
    worst = of(found, Ground.STRUCTURE)
    assert (worst.structure, worst.limit) == ("spleen", -0.05)
    assert worst.value == pytest.approx(-0.02)
    assert (of(found, Ground.HD95).value, of(found, Ground.HD95).limit) == (1.0, 1.25)
    assert (of(found, Ground.CALIBRATION).value, of(found, Ground.CALIBRATION).limit) == (0.1, 0.2)


def test_a_promotion_survives_a_file() -> None:
    found = decide(card("b", (0.69, 0.3)), card("a", (0.7, 0.5)), PromotionSettings())
    assert from_dict(json.loads(json.dumps(asdict(found)))) == found


def test_reasons_of_an_earlier_version_are_still_told() -> None:
    told = {"decision": "hold", "challenger": "b", "champion": "a", "reasons": ["-0.5 points"]}
    assert from_dict(told).reasons == (Reason(Ground.EVIDENCE, False, "-0.5 points"),)


@pytest.mark.parametrize(
    ("hd95_mm", "allowed", "decision"),
    [
        (12.5, 0.25, Decision.PROMOTE),
        (12.6, 0.25, Decision.HOLD),
        (99.0, None, Decision.PROMOTE),
        (10.1, 0.0, Decision.HOLD),
    ],
)
def test_masks_that_lie_farther_off_are_held_back_whatever_dice_gains(
    hd95_mm: float, allowed: float | None, decision: Decision
) -> None:
    challenger = with_hd95(card("b", (0.9, 0.9)), hd95_mm)
    champion = with_hd95(card("a", (0.7, 0.5)), 10.0)
    assert decide(challenger, champion, PromotionSettings(max_hd95_rise=allowed)).decision is decision


def test_one_structure_sought_at_the_other_end_of_the_body_is_one_of_many() -> None:
    names = tuple(f"s{i}" for i in range(10))
    dice = tuple([0.7] * 10)
    champion, challenger = card("a", dice, names=names), card("b", tuple([0.8] * 10), names=names)
    moved = [replace(s, hd95_mm=300.0 if s.structure == "s3" else 9.0) for s in challenger.scores]
    placed = [replace(s, hd95_mm=10.0) for s in champion.scores]
    settings = EvaluationSettings(bootstrap=1)
    found = decide(
        scorecard("b", Role.VALIDATION, moved, names, settings),
        scorecard("a", Role.VALIDATION, placed, names, settings),
        PromotionSettings(max_hd95_rise=0.3),
    )
    assert found.decision is Decision.PROMOTE
    assert of(found, Ground.HD95).value == pytest.approx(0.9**0.9 * 30**0.1)


def test_nearer_than_a_millimeter_is_near_enough() -> None:
    challenger = with_hd95(card("b", (0.9, 0.9)), 0.9)
    champion = with_hd95(card("a", (0.7, 0.5)), 0.0)
    assert decide(challenger, champion, PromotionSettings()).decision is Decision.PROMOTE


@pytest.mark.parametrize(
    ("error", "allowed", "decision", "told"),
    [
        (0.2, 0.2, Decision.PROMOTE, "mean error of 0.200"),
        (0.21, 0.2, Decision.HOLD, "at most 0.200 allowed"),
        (None, 0.2, Decision.PROMOTE, "uncalibrated"),
    ],
    ids=["well enough", "badly", "not at all"],
)
def test_labels_whose_quality_was_badly_predicted_make_no_champion(
    error: float | None, allowed: float, decision: Decision, told: str
) -> None:
    settings = PromotionSettings(max_calibration_error=allowed)
    found = decide(card("b", (0.9, 0.9)), card("a", (0.7, 0.5)), settings, labels=Reliability(error))
    assert found.decision is decision
    assert told in of(found, Ground.CALIBRATION).told


def test_nobody_asks_about_calibration_where_it_is_not_enabled() -> None:
    found = decide(card("b", (0.9, 0.9)), card("a", (0.7, 0.5)), PromotionSettings())
    assert Ground.CALIBRATION not in {reason.kind for reason in found.reasons}


# --- how sure -----------------------------------------------------------------------------


def rising(cases: int) -> tuple[Scorecard, Scorecard]:
    """Two cards of which the first gains two points on most cases, and loses four on every fifth."""
    old = [(0.5 + 0.02 * i, 0.6) for i in range(cases)]
    new = [(a + (-0.04 if i % 5 == 4 else 0.02), b) for i, (a, b) in enumerate(old)]
    return card("b", *new), card("a", *old)


def test_a_gain_on_few_cases_is_no_certainty() -> None:
    challenger, champion = rising(FEWEST - 1)
    sure = PromotionSettings(min_certainty=0.5)
    found = decide(challenger, champion, sure)
    assert found.decision is Decision.HOLD
    assert of(found, Ground.CERTAINTY).value is None
    assert "too few to be sure" in of(found, Ground.CERTAINTY).told
    assert decide(challenger, champion, PromotionSettings()).decision is Decision.PROMOTE


def test_a_gain_that_most_draws_show_is_certain_as_far_as_that_goes() -> None:
    challenger, champion = rising(10)
    certainty = of(decide(challenger, champion, PromotionSettings()), Ground.CERTAINTY).value
    assert certainty is not None
    assert 0.8 < certainty < 0.99
    for asked, decision in ((certainty, Decision.PROMOTE), (0.99, Decision.HOLD)):
        assert decide(challenger, champion, PromotionSettings(min_certainty=asked)).decision is decision


def test_what_makes_cases_difficult_for_both_makes_no_gain_unsure() -> None:
    rng = np.random.default_rng(0)
    old = rng.uniform(0.2, 0.9, (12, 2))
    settings = EvaluationSettings(bootstrap=400)
    found = gain(old + 0.01, old, 0.0, settings)
    assert [found.low, found.high] == pytest.approx([0.01, 0.01])
    assert found.certainty == 1.0
    mixed = gain(np.roll(old, 1, axis=0) + 0.01, old, 0.0, settings)
    assert mixed.high - mixed.low > 0.1


def test_draws_that_hold_no_structure_are_left_out() -> None:
    old = np.full((6, 1), np.nan)
    old[0] = 0.5
    found = gain(old + 0.1, old, 0.0, EvaluationSettings(bootstrap=200))
    assert [found.dice, found.low, found.high] == pytest.approx([0.1, 0.1, 0.1])
