"""Which cases a person should correct first, on verdicts written down by hand."""

from typing import Any

import numpy as np
import pytest

from tutelage.curation.review import Gain, choose, doubt, gain, proposed, rarities
from tutelage.records import Candidate, PseudoLabel, Region


def row(**told: Any) -> dict[str, Any]:
    """A row of the ledger about a mask that all are sure of."""
    sure = {"ruling": "accept", "specialist_ml": 10.0, "agreement": 1.0, "consensus": 1.0, "variance": 0.0}
    return {"structure": "liver", "predicted_dice": None, "dice_low": None} | sure | told


def one(case: str, **by_structure: float) -> Gain:
    return Gain(case, dict(by_structure), ())


def order(*gains: Gain, count: int = 9, vectors: dict[str, Any] | None = None) -> list[str]:
    return [chosen.gain.case for chosen in choose(gains, count, vectors)]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, 0.0),
        ({"agreement": 0.4}, 0.6),
        ({"agreement": 0.5, "consensus": 0.5}, 0.75),
        ({"variance": 0.25}, 0.25),
        ({"variance": None, "consensus": None}, 0.0),
        ({"predicted_dice": 0.9, "dice_low": 0.7}, 0.2),
        ({"predicted_dice": 0.9, "dice_low": None}, 0.1),
        ({"predicted_dice": 0.9, "dice_low": -0.5}, 0.8),
        ({"ruling": "reject", "specialist_ml": 0.0, "agreement": 1.0}, 1.0),
        ({"ruling": "absent", "specialist_ml": 0.0}, 0.0),
        ({"ruling": "reject", "agreement": 0.95, "relations_violated": 1.0}, 0.5),
        ({"ruling": "reject", "predicted_dice": 0.9, "dice_low": 0.9, "outside_prior": 0.4}, 0.5),
        ({"ruling": "reject", "agreement": 0.2, "relations_violated": 1.0}, 0.8),
        ({"ruling": "accept", "agreement": 0.95, "outside_prior": 0.01}, 0.05),
    ],
)
def test_doubt_is_what_a_prediction_or_else_any_disagreement_takes_off(
    told: dict[str, Any], expected: float
) -> None:
    assert doubt(row(**told)) == pytest.approx(expected)


def test_a_calibrated_prediction_is_believed_more_than_agreement() -> None:
    assert doubt(row(agreement=0.1, predicted_dice=0.95, dice_low=0.95)) == pytest.approx(0.05)


def test_a_structure_that_nothing_was_believed_of_is_worth_most() -> None:
    worth = rarities(4, {"liver": 45.0, "spleen": 0.0})
    assert worth["spleen"] == 1.0
    assert worth["liver"] == pytest.approx(0.1)


def test_a_gain_is_doubt_times_rarity_and_names_what_brings_most() -> None:
    rows = [row(structure="liver", agreement=0.2), row(structure="spleen", ruling="reject", agreement=0.5)]
    told = gain("a", rows, {"liver": 0.1, "spleen": 1.0})
    assert told.by_structure == pytest.approx({"liver": 0.08, "spleen": 0.5})
    assert told.total == pytest.approx(0.58)
    assert told.reasons[0] == "spleen: reject, doubt 0.50, rarity 1.00"


def test_the_largest_gain_comes_first_and_no_gain_never() -> None:
    assert order(one("a", liver=0.2), one("b", liver=0.9), one("c", liver=0.0)) == ["b", "a"]


def test_a_twin_waits_for_a_case_that_teaches_something_else() -> None:
    gains = [one("a", liver=1.0), one("twin", liver=0.9), one("other", spleen=0.6)]
    assert order(*gains) == ["a", "other", "twin"]
    assert [round(chosen.likeness, 2) for chosen in choose(gains, 3)] == [0.0, 0.0, 1.0]
    assert choose(gains, 3)[2].resembles == "a"


def test_where_all_are_doubted_alike_the_larger_gain_still_decides() -> None:
    assert order(one("a", liver=0.3), one("b", liver=0.8), one("c", liver=0.5)) == ["b", "c", "a"]


def test_among_like_doubts_looks_decide() -> None:
    gains = [one("a", liver=1.0), one("twin", liver=0.9), one("other", liver=0.8)]
    looks = {"a": np.array([9.0, 1.0]), "twin": np.array([9.0, 1.1]), "other": np.array([1.0, 9.0])}
    assert order(*gains) == ["a", "twin", "other"]
    assert order(*gains, vectors=looks) == ["a", "other", "twin"]


def test_equal_cases_come_in_order_of_name_however_they_are_given() -> None:
    gains = [one(name, liver=0.5) for name in ("c", "a", "b")]
    assert order(*gains, count=2) == order(*reversed(gains), count=2) == ["a", "b"]


def test_nothing_to_choose_from_is_no_failure() -> None:
    assert choose([], 5) == []


def test_what_is_proposed_is_believed_else_answered_else_asked_about() -> None:
    specialist_DHW = np.zeros((1, 1, 6), np.uint8)
    specialist_DHW[0, 0] = [1, 1, 2, 2, 3, 0]
    nothing = np.zeros((0, 0, 0), np.uint8)

    def region(*shares: int) -> Region:
        mean_DHW = np.array([[shares]], np.uint8)
        return Region((0, 0, 0), mean_DHW, np.zeros_like(mean_DHW))

    regions = (Region((0, 0, 0), nothing, nothing), region(255, 0, 0, 0, 0, 0), region(0, 0, 0, 200, 0, 200))
    candidate = Candidate(
        "a",
        specialist_DHW,
        (*regions, Region((0, 0, 0), nothing, nothing)),
        (0.0,) * 4,
        (1.0,) * 4,
        np.zeros((4, 2), np.float16),
    )
    believed_DHW = np.array([[[1, 0, 0, 0, 0, 0]]], np.uint8)
    label = PseudoLabel("a", believed_DHW, np.full((1, 1, 6), 255, np.uint8), (2, 3), (), candidate.pooled_KC)
    # 1 as it is believed, 2 as it was answered, 3, of which nothing was said, as it was asked about.
    assert proposed(candidate, label)[0, 0].tolist() == [1, 0, 0, 2, 3, 2]
