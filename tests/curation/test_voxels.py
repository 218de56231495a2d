"""Conformal sets of voxels: what a threshold misses is counted patient by patient."""

import numpy as np
import pytest

from tests.curation.test_rules import GRID, candidate
from tutelage.curation import CurationSettings, curate
from tutelage.curation.calibration import Calibration
from tutelage.curation.coverage import resampled_voxels
from tutelage.curation.settings import CalibrationSettings
from tutelage.curation.voxels import counted, doubtful, least
from tutelage.records import Candidate, Region


def counts(*shares: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """One class of one patient, a voxel a share."""
    return np.bincount(np.array(shares), minlength=256)[None]


def test_a_threshold_keeps_what_patients_miss_in_the_mean_below_alpha() -> None:
    # Nine patients of ten voxels, the i-th of which is i * 10 probable: a threshold of 10 t misses t of ten.
    alike = {f"p{n}": counts(*range(0, 100, 10)) for n in range(9)}
    # 9 * missed + 1 <= 10 * alpha: for 0.3 that is 2 of ten voxels, for 0.4 three.
    assert least(alike, 0.3) == (20,)
    assert least(alike, 0.4) == (30,)
    assert least(alike, 0.1) == (None,)


def test_a_large_patient_counts_no_more_than_a_small_one() -> None:
    small = {f"p{n}": counts(100) for n in range(8)}
    large = {"big": counts(*[10] * 5000)}
    # One of nine patients misses everything at 100: 9 * (1/9) + 1 <= 10 * alpha from 0.2 on.
    assert least(small | large, 0.2) == (100,)
    assert least(small | large, 0.15) == (10,)


@pytest.mark.parametrize("seed", range(3))
def test_true_classes_of_a_new_patients_voxels_are_in_their_sets(seed: int) -> None:
    chance, alpha, shares = np.random.default_rng(seed), 0.2, []
    for _ in range(200):
        patients = {}
        for who in range(13):
            mean = chance.uniform(20, 110)
            patients[f"p{who}"] = counts(*np.clip(chance.normal(mean, 20, 40), 0, 255).astype(int))
        new = patients.pop("p12")
        threshold = least(patients, alpha)[0] or 0
        shares.append(new[0, threshold:].sum() / new.sum())
    assert np.mean(shares) >= 1 - alpha - 0.03


def test_drawing_who_calibrates_measures_how_often_sets_hold() -> None:
    chance, patients, nobody = np.random.default_rng(0), {}, np.zeros((1, 256), np.int64)
    for who in range(20):
        classes = [chance.normal(chance.uniform(60, 110), 20, 40).clip(0, 255).astype(int) for _ in range(2)]
        patients[f"p{who}"] = np.concatenate([*(counts(*one) for one in classes), nobody])
    told = resampled_voxels(patients, 0.2, 9)
    assert told.covered >= 0.8 - 0.03
    assert min(told.by_class[:2]) >= 0.8 - 0.05
    assert np.isnan(told.by_class[2])
    assert told.known == pytest.approx(2 / 3, abs=0.02)
    assert (told.patients, told.resamplings) == (9, 200)
    with pytest.raises(ValueError, match="20 of 20 patients would calibrate"):
        resampled_voxels(patients, 0.2, 20)


def test_a_class_that_is_in_every_set_says_nothing() -> None:
    assert least({f"p{n}": counts(0, 0, 0, 200) for n in range(20)}, 0.2) == (None,)
    assert least({f"p{n}": np.zeros((1, 256), np.int64) for n in range(20)}, 0.2) == (None,)
    assert least({}, 0.2) == ()


def test_voxels_are_counted_by_how_probable_their_class_is_there() -> None:
    one = candidate()
    label_DHW = np.zeros(GRID.shape, np.uint8)
    label_DHW[1, 2, 2:4] = 1  # inside the region of 1, which is 230 there
    label_DHW[0, 0, 0:3] = 2  # outside the region of 2
    told = counted(one, label_DHW)
    assert (told[1, 230], told[1].sum()) == (2, 2)
    assert (told[2, 0], told[2].sum()) == (3, 3)
    assert told[0].sum() == label_DHW.size - 5
    assert told[0, 255 - 230] == 2 * 6 * 7 - 2


def overlapping() -> Candidate:
    """One structure, sure in the middle, half sure at its end."""
    mean_DHW = np.full((1, 1, 6), 230, np.uint8)
    mean_DHW[0, 0, 4:] = (140, 110)
    specialist_DHW = np.zeros((1, 1, 10), np.uint8)
    specialist_DHW[0, 0, 2:8] = 1
    nothing = np.zeros((0, 0, 0), np.uint8)
    regions = (Region((0, 0, 0), nothing, nothing), Region((0, 0, 2), mean_DHW, np.zeros_like(mean_DHW)))
    return Candidate("a", specialist_DHW, regions, (0.0, 0.9), (1.0, 1.0), np.zeros((2, 1), np.float16))


def test_voxels_whose_set_is_not_the_one_painted_class_are_doubtful() -> None:
    one = overlapping()
    mask_DHW = np.zeros((1, 1, 10), np.uint8)
    mask_DHW[0, 0, 2:7] = 1
    assert doubtful(one, mask_DHW, (100, 100), ())[0, 0].nonzero()[0].tolist() == [6, 7]
    assert doubtful(one, mask_DHW, (128, 128), ())[0, 0].nonzero()[0].tolist() == []
    assert doubtful(one, mask_DHW, (128, 100), ())[0, 0].nonzero()[0].tolist() == [7]
    assert not doubtful(one, mask_DHW, (None, None), ()).any()


def test_of_an_undecided_structure_nothing_is_known_anywhere() -> None:
    one = overlapping()
    empty_DHW = np.zeros((1, 1, 10), np.uint8)
    found = doubtful(one, empty_DHW, (128, 100), (1,))
    assert found[0, 0].nonzero()[0].tolist() == [2, 3, 4, 5, 6]


def test_doubtful_voxels_do_not_count_where_that_is_wanted() -> None:
    settings = CurationSettings(min_agreement=0.3, calibration=CalibrationSettings(enabled=True, voxels=True))
    grid = GRID
    model = Calibration(least=(250, 128, 128))
    label = curate(candidate(), grid, ("one", "two"), {}, settings, calibration=model)
    plain = curate(candidate(), grid, ("one", "two"), {}, CurationSettings(), calibration=model)
    assert (plain.weight_DHW == 255).all()
    assert (label.weight_DHW[label.mask_DHW == 1] == 255).all()
    assert (label.weight_DHW[1:3, 2:8, 7][label.mask_DHW[1:3, 2:8, 7] == 0] == 0).all()
