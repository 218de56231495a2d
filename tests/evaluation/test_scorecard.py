"""Scorecards: what counts, what does not, and that JSON gives back the same card."""

import json
import math
from collections.abc import Mapping

import numpy as np
import pytest

from tutelage.evaluation.scorecard import (
    MEASURES,
    from_dict,
    largest_pieces,
    mean_dice,
    means,
    score_case,
    scorecard,
    to_dict,
)
from tutelage.evaluation.settings import EvaluationSettings
from tutelage.geometry import Grid
from tutelage.records import Role, Score, Scorecard

GRID = Grid.from_spacing((4, 10, 10), (5.0, 1.0, 2.0))
NAMES = ("liver", "spleen")
QUICK = EvaluationSettings(bootstrap=200)


def score(case: str, structure: str, dice: float, absent: bool = False) -> Score:
    return Score(case, structure, dice, dice / (2 - dice), 10 * (1 - dice), 1.0, dice, 1.0, 1.0, absent)


def card(rows: Mapping[str, tuple[float | None, ...]], names: tuple[str, ...] = NAMES) -> Scorecard:
    """Make a card of Dice by case and structure; None is absent."""
    scores = [
        score(case, name, 1.0 if dice is None else dice, dice is None)
        for case, values in rows.items()
        for name, dice in zip(names, values, strict=True)
    ]
    return scorecard("abc", Role.VALIDATION, scores, names, QUICK)


def test_a_case_is_scored_structure_by_structure() -> None:
    reference = np.zeros(GRID.shape, np.uint8)
    reference[1:3, 2:6, 2:6] = 1
    mask = reference.copy()
    mask[1:3, 2:4, 2:6] = 2
    liver, spleen = score_case("a", mask, reference, GRID, NAMES, QUICK)
    assert (liver.structure, spleen.structure) == NAMES
    assert liver.dice == pytest.approx(2 / 3)
    assert (liver.hd95_mm, liver.absent) == (2.0, False)
    assert (spleen.dice, spleen.nsd, spleen.absent) == (0.0, 0.0, False)


def test_the_tolerance_is_the_settings_own() -> None:
    reference = np.zeros(GRID.shape, np.uint8)
    reference[:, 2:6, 2:6] = 1
    mask = np.roll(reference, 1, axis=2)
    found = [
        score_case("a", mask, reference, GRID, ("liver",), EvaluationSettings(nsd_tolerance_mm=mm))[0].nsd
        for mm in (1.0, 2.0)
    ]
    assert found[0] < found[1] == 1.0


def test_a_mask_of_another_shape_is_refused() -> None:
    full = np.zeros(GRID.shape, np.uint8)
    with pytest.raises(ValueError, match=r"a: the mask has shape \(4, 10, 9\)"):
        score_case("a", full[..., :9], full, GRID, NAMES, QUICK)


def test_structures_count_the_same_however_many_cases_have_them() -> None:
    found = card({"a": (0.9, 0.5), "b": (0.9, None), "c": (0.6, None)})
    liver, spleen, mean = found.summaries
    assert [liver.cases, spleen.cases, mean.cases] == [3, 1, 3]
    assert [liver.dice, spleen.dice, mean.dice] == pytest.approx([0.8, 0.5, 0.65])
    assert mean.structure == "mean"
    assert mean_dice(found) == mean.dice
    assert mean.hd95_mm == pytest.approx((2.0 + 5.0) / 2)


def test_what_both_lack_is_no_evidence() -> None:
    _, spleen, mean = card({"a": (0.8, None), "b": (0.6, None)}).summaries
    assert spleen.cases == 0
    assert math.isnan(spleen.dice)
    assert math.isnan(spleen.dice_low)
    assert mean.dice == pytest.approx(0.7)


def test_nothing_scored_is_a_card_without_numbers() -> None:
    found = scorecard("abc", Role.TEST, [], NAMES, QUICK)
    assert [s.cases for s in found.summaries] == [0, 0, 0]
    assert math.isnan(mean_dice(found))
    assert from_dict(json.loads(json.dumps(to_dict(found), allow_nan=False))).scores == ()


def test_an_interval_holds_its_mean_and_shrinks_with_more_cases() -> None:
    rng = np.random.default_rng(0)
    few, many = (
        card({f"{i:03d}": tuple(rng.uniform(0.5, 0.9, 2)) for i in range(n)}).summaries[-1] for n in (5, 100)
    )
    assert few.dice_low < few.dice < few.dice_high
    assert many.dice_high - many.dice_low < few.dice_high - few.dice_low


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        found = card({str(i): (v,) for i, v in enumerate(rng.normal(0.7, 0.1, 25))}, ("liver",)).summaries[-1]
        hits += found.dice_low <= 0.7 <= found.dice_high
    assert 85 <= hits <= 100


def test_one_case_has_an_interval_of_no_width() -> None:
    mean = card({"a": (0.8, 0.6)}).summaries[-1]
    assert mean.dice_low == mean.dice == mean.dice_high == pytest.approx(0.7)


def test_the_same_scores_give_the_same_card_in_any_order() -> None:
    rows = {"b": (0.9, 0.5), "a": (0.7, None), "c": (0.6, 0.4)}
    # A NaN is not equal to itself, but its text is.
    assert repr(card(rows)) == repr(card(dict(sorted(rows.items()))))


def test_a_card_comes_back_from_json() -> None:
    found = card({"a": (0.9, None), "b": (0.7, None)})
    again = from_dict(json.loads(json.dumps(to_dict(found), allow_nan=False)))
    assert repr(again) == repr(found)
    assert again.role is Role.VALIDATION


@pytest.mark.parametrize(
    ("scores", "names", "told"),
    [
        ([score("a", "liver", 0.5)] * 2, ("liver",), "score every case once"),
        ([score("a", "liver", 0.5)], NAMES, "one for each of 2 structures"),
        ([score("a", "lung", 0.5)], ("liver",), "unknown structure 'lung'"),
        ([score("a", "mean", 0.5)], ("mean",), "rename it"),
    ],
    ids=["twice", "half a case", "unknown structure", "a structure named mean"],
)
def test_scores_that_do_not_fit_together_are_refused(
    scores: list[Score], names: tuple[str, ...], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        scorecard("abc", Role.TEST, scores, names, QUICK)


def test_the_largest_piece_of_each_structure_is_kept_alone() -> None:
    mask_DHW = np.zeros((1, 6, 8), np.uint8)
    mask_DHW[0, 0:2, 0:2] = 1
    mask_DHW[0, 4:5, 6:8] = 1
    mask_DHW[0, 4, 0] = 2
    kept_DHW = largest_pieces(mask_DHW, structures=3)
    assert kept_DHW[0, 0:2, 0:2].tolist() == [[1, 1], [1, 1]]
    assert (kept_DHW == 1).sum() == 4
    assert (kept_DHW == 2).sum() == 1
    assert (kept_DHW == 3).sum() == 0


def test_means_of_any_measure_are_over_cases_then_over_structures() -> None:
    mask_DHW = np.zeros((4, 8, 8), np.uint8)
    mask_DHW[1:3, 2:6, 2:6] = 1
    other_DHW = np.zeros_like(mask_DHW)
    other_DHW[1:3, 2:6, 2:5] = 1
    grid = Grid.from_spacing((4, 8, 8), (2.0, 1.0, 1.0))
    scores = [
        *score_case("one", mask_DHW, mask_DHW, grid, ("a", "b"), EvaluationSettings()),
        *score_case("two", other_DHW, mask_DHW, grid, ("a", "b"), EvaluationSettings()),
    ]
    found = {measure: means(scores, ("a", "b"), measure) for measure in MEASURES}
    assert found["jaccard"]["a"] == pytest.approx((1 + 0.75) / 2)
    assert found["jaccard"]["mean"] == found["jaccard"]["a"]
    assert np.isnan(found["jaccard"]["b"]), "a structure that no case holds has no mean"
    assert found["hd95_mm"]["a"] == pytest.approx(0.5)
