"""Predicted Dice and its bound: arithmetic by hand, what is left out, what is said where there is none."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.curation.test_rules import GOOD, GRID, SPLEEN, candidate
from tutelage.curation import CurationSettings, curate
from tutelage.curation.calibration import (
    Calibration,
    Prediction,
    Trial,
    calibrated,
    from_dict,
    needed,
    quantile,
    rank_of,
    to_dict,
)
from tutelage.curation.coverage import resampled
from tutelage.curation.doubts import NAMES, Sight, doubts_of, usual
from tutelage.curation.rules import judge
from tutelage.curation.settings import CalibrationSettings
from tutelage.records import Ruling

ON = CurationSettings(calibration=CalibrationSettings(enabled=True))


def made(patients: int, seed: int = 0, structures: Sequence[str] = ("liver", "spleen")) -> list[Trial]:
    """Answers whose agreement tells of their Dice, of patients who are each a little easier or harder."""
    chance, trials = np.random.default_rng(seed), []
    for patient in range(patients):
        ease = chance.normal(0, 0.05)
        for place, structure in enumerate(structures):
            dice = float(np.clip(0.85 - 0.1 * place + ease + chance.normal(0, 0.06), 0, 1))
            seen = float(np.clip(dice / (2 - dice) + chance.normal(0, 0.06), 0.01, 1))
            grown = {"generalist_ml": 150 * float(np.exp(chance.normal(0, 0.2)))}
            trials.append(Trial(f"p{patient:02d}", structure, GOOD | grown | {"agreement": seen}, dice))
    return trials


# --- arithmetic -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "alpha", "rank"),
    [(9, 0.1, 9), (8, 0.1, None), (19, 0.1, 18), (4, 0.2, 4), (3, 0.2, None), (19, 0.05, 19), (9, 0.2, 8)],
)
def test_a_conformal_quantile_is_the_score_of_this_rank(n: int, alpha: float, rank: int | None) -> None:
    assert rank_of(n, alpha) == rank
    assert quantile(range(n, 0, -1), alpha) == rank


def test_how_many_patients_a_bound_takes() -> None:
    assert [needed(alpha) for alpha in (0.05, 0.1, 0.2, 0.25)] == [19, 9, 4, 3]


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_level_that_is_no_share_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="expected a share"):
        rank_of(9, alpha)


def test_a_bound_is_the_lowest_of_what_lines_without_each_patient_say_when_patients_are_just_enough() -> None:
    trials = made(9)
    model = calibrated(trials)
    features = trials[0].features
    told = model.predict("liver", features, 0.1)
    lows = [
        model.without[who].dice("liver", doubts_of(features)) - over
        for who, over in model.short["liver"].items()
    ]
    assert told.low == pytest.approx(min(lows))
    assert told.dice is not None
    assert told.low is not None
    assert told.low < told.dice


def test_all_trials_of_a_patient_are_left_out_of_the_line_that_judges_them() -> None:
    trials = made(9)
    changed = [replace(t, dice=0.01) if t.patient == "p03" else t for t in trials]
    before, after = calibrated(trials), calibrated(changed)
    assert after.without["p03"] == before.without["p03"]
    assert after.without["p04"] != before.without["p04"]
    moved = {t.structure: t.dice - 0.01 for t in trials if t.patient == "p03"}
    for structure, by in moved.items():
        assert after.short[structure]["p03"] == pytest.approx(before.short[structure]["p03"] + by)


def test_cases_of_one_patient_are_one_observation_and_the_worst_of_them_counts() -> None:
    trials = made(8)
    twice = [replace(t, dice=t.dice - 0.2) for t in trials if t.patient == "p00"]
    model = calibrated([*trials, *twice])
    assert len(model.short["liver"]) == 8
    assert model.predict("liver", GOOD, 0.1).low is None
    assert model.short["liver"]["p00"] > calibrated(trials).short["liver"]["p00"]


def test_more_doubt_never_raises_a_prediction() -> None:
    lucky = [replace(t, features={**t.features, "variance": t.dice / 4}) for t in made(12)]
    model = calibrated(lucky)
    assert model.line is not None
    assert dict(zip(NAMES, model.line.costs_F, strict=True))["variance"] == 0
    assert min(model.line.costs_F) == 0
    told = [model.predict("liver", GOOD | {"agreement": share}, 0.1).dice for share in (0.9, 0.6, 0.3)]
    worse = [dice for dice in told if dice is not None]
    assert worse == sorted(worse, reverse=True)
    assert worse[0] != worse[-1]


def test_a_doubt_that_labeled_cases_never_had_takes_nothing_off_and_one_beyond_them_not_without_end() -> None:
    model = calibrated(made(12))
    plain = model.predict("liver", GOOD, 0.1)
    assert model.predict("liver", GOOD | {"relations_violated": 1.0}, 0.1) == plain
    far, farther = (model.predict("liver", GOOD | {"agreement": share}, 0.1) for share in (0.02, 0.01))
    assert far == farther


def test_what_is_learned_survives_a_file() -> None:
    model = calibrated(
        made(9), [Sight("p00", "liver", 90.0, (1.0, 0.0)), Sight("p01", "liver", 110.0)], (3, None)
    )
    again = from_dict(json.loads(json.dumps(to_dict(model))))
    assert again == model
    with pytest.raises(ValueError, match="it rests on other"):
        from_dict(to_dict(model) | {"doubts": ["other"]})


# --- beside labeled cases -------------------------------------------------------------------


def test_an_answer_is_held_beside_the_labels_of_other_patients_only() -> None:
    seen = [Sight(f"p{n}", "liver", 100.0 + n, (1.0, 0.0)) for n in range(4)] + [
        Sight("odd", "liver", 900.0, (0.0, 1.0))
    ]
    without, with_ = usual(seen, without="odd")["liver"], usual(seen)["liver"]
    assert without.beside(900.0, (0.0, 2.0)) == {
        "unusual_volume": pytest.approx(np.log(900 / np.prod([100, 101, 102, 103]) ** 0.25) / 0.1),
        "distance": pytest.approx(1.0),
    }
    assert with_.beside(900.0, (0.0, 2.0))["distance"] == pytest.approx(0.8)
    assert with_.beside(900.0, (0.0, 0.0)).keys() == {"unusual_volume"}
    assert usual(seen[:1]) == {}


# --- verdicts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dice", "low", "ruling"),
    [
        (0.9, 0.8, Ruling.ACCEPT),
        (0.9, 0.75, Ruling.ACCEPT),
        (0.9, 0.7, Ruling.PARTIAL),
        (0.5, 0.4, Ruling.REJECT),
    ],
)
def test_the_bound_decides_whatever_agreement_would_have_said(
    dice: float, low: float, ruling: Ruling
) -> None:
    told = Prediction(dice, low, "so it is")
    for agreement in (0.2, 0.99):
        verdict = judge("spleen", GOOD | {"agreement": agreement}, SPLEEN, ON, prediction=told)
        assert verdict.ruling is ruling
        assert verdict.reasons[0].startswith("so it is")
        assert (verdict.features["predicted_dice"], verdict.features["dice_low"]) == (dice, low)


def test_what_is_known_of_anatomy_still_rejects() -> None:
    verdict = judge(
        "spleen", GOOD | {"generalist_ml": 0.5}, SPLEEN, ON, prediction=Prediction(0.9, 0.9, "fine")
    )
    assert verdict.ruling is Ruling.REJECT
    assert verdict.reasons == ("spleen is 0.5 ml, expected 80 to 300 ml", "fine")


def test_with_too_few_labeled_cases_the_rules_decide_and_the_verdict_says_uncalibrated() -> None:
    model = calibrated(made(4, structures=("one", "two")))
    label = curate(candidate(), GRID, ("one", "two"), {}, ON, calibration=model)
    plain = curate(candidate(), GRID, ("one", "two"), {}, CurationSettings())
    assert [v.ruling for v in label.verdicts] == [v.ruling for v in plain.verdicts]
    assert np.array_equal(label.mask_DHW, plain.mask_DHW)
    for verdict in label.verdicts:
        assert verdict.reasons[-1] == (
            f"uncalibrated: 4 labeled patients with {verdict.structure}, expected 9 or more for a bound at "
            "a level of 90%"
        )
        assert "dice_low" not in verdict.features
        assert "predicted_dice" in verdict.features


def test_with_hardly_any_there_is_no_prediction_either() -> None:
    told = Calibration(1).predict("one", GOOD, 0.1)
    assert (told.dice, told.low, told.features) == (None, None, {})
    assert told.why.startswith("uncalibrated: 1 labeled patient with one, expected 9 or more")
    assert calibrated(made(2)).line is None


def test_calibrated_acceptance_replaces_agreement_in_a_whole_case() -> None:
    trials = [replace(t, dice=0.95) for t in made(12, structures=("one", "two"))]
    label = curate(candidate(), GRID, ("one", "two"), {}, ON, calibration=calibrated(trials))
    assert [v.ruling for v in label.verdicts] == [Ruling.ACCEPT, Ruling.ACCEPT]
    rules = curate(candidate(), GRID, ("one", "two"), {}, CurationSettings())
    assert [v.ruling for v in rules.verdicts] == [Ruling.ACCEPT, Ruling.REJECT]


def test_what_nobody_found_needs_no_prediction() -> None:
    gone = candidate()
    gone.specialist_DHW[gone.specialist_DHW == 2] = 0
    label = curate(gone, GRID, ("one", "two"), {}, ON, calibration=calibrated(made(12, structures=("one",))))
    assert label.verdicts[1].reasons == ("the specialist did not find two, so nothing could be asked",)


# --- coverage -------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "patients"), [(0.1, 9), (0.2, 9), (0.2, 4)])
def test_bounds_hold_as_often_as_they_say_over_two_hundred_resamplings(alpha: float, patients: int) -> None:
    told = resampled(made(24, seed=patients), alpha, patients, resamplings=200)
    assert told.bounded == 1.0
    assert told.covered >= 1 - alpha - 0.03
    assert min(told.by_structure.values()) >= 1 - alpha - 0.05
    assert told.room < 0.2
    assert told.error < 0.08


def test_a_bound_that_did_not_leave_patients_out_would_be_found_out() -> None:
    """The measure itself must be able to fail: of patients of another kind bounds do not hold."""
    strangers = [replace(t, patient=f"x{t.patient}", dice=t.dice - 0.3) for t in made(12)]
    model = calibrated(made(12))
    hits = [t.dice >= (model.predict(t.structure, t.features, 0.1).low or 0.0) for t in strangers]
    assert np.mean(hits) < 0.5


def test_too_few_patients_to_measure_is_said() -> None:
    with pytest.raises(ValueError, match="8 of 24 patients would calibrate, expected 9 or more"):
        resampled(made(24), 0.1, 8)
