from dataclasses import replace

import numpy as np
import pytest

from tests.curation.test_rules import GOOD, GRID, SPLEEN
from tutelage.curation import CurationSettings, curate
from tutelage.curation.rules import judge
from tutelage.records import Candidate, PseudoLabel, Region, Ruling

MINING = CurationSettings(
    min_agreement=0.7,
    partial_agreement=0.0,
    partial_weight=1.0,
    min_predicted_iou=0.8,
    volume_ratio=(0.5, 2.0),
    partial_rest="ignored",
    weight_by_agreement=True,
)
"""As knowledge mining is reconstructed."""


def candidate() -> Candidate:
    """One structure, of which the generalist sees a column of voxels more, and another one apart from it."""
    specialist_DHW = np.zeros(GRID.shape, np.uint8)
    specialist_DHW[1:3, 2:8, 2:8] = 1
    specialist_DHW[1:3, 12:16, 12:16] = 2
    nothing = np.zeros((0, 0, 0), np.uint8)
    first = np.full((2, 6, 7), 230, np.uint8)
    second = np.full((2, 4, 4), 230, np.uint8)
    varying = np.zeros((2, 6, 7), np.uint8)
    varying[:, :, 6] = 51
    return Candidate(
        "a",
        specialist_DHW,
        (
            Region((0, 0, 0), nothing, nothing),
            Region((1, 2, 2), first, varying),
            Region((1, 12, 12), second, np.zeros((2, 4, 4), np.uint8)),
        ),
        (0.0, 0.9, 0.9),
        (1.0, 1.0, 1.0),
        np.zeros((3, 2), np.float16),
    )


def curated(settings: CurationSettings, one: Candidate | None = None) -> PseudoLabel:
    return curate(one or candidate(), GRID, ("liver", "spleen"), {}, settings)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"predicted_iou": 0.79}, "the generalist expects IoU 0.79 < 0.80"),
        ({"generalist_ml": 74.0}, "the mask is 0.49 times the specialist's, expected 0.5 to 2"),
        ({"generalist_ml": 303.0}, "the mask is 2.02 times the specialist's, expected 0.5 to 2"),
        ({"agreement": 0.69}, "specialist and generalist agree 0.69 < 0.70"),
    ],
    ids=["unsure of itself", "too small", "too large", "disagreed"],
)
def test_a_gate_that_refuses_a_mask_leaves_what_both_see(change: dict[str, float], why: str) -> None:
    verdict = judge("spleen", GOOD | change, None, MINING)
    assert (verdict.ruling, verdict.weight) == (Ruling.PARTIAL, 1.0)
    assert verdict.reasons == (why,)


def test_what_passes_all_gates_counts_as_much_as_both_agree() -> None:
    verdict = judge("spleen", GOOD, None, MINING)
    assert (verdict.ruling, verdict.weight) == (Ruling.ACCEPT, GOOD["agreement"])


def test_gates_are_open_and_weights_are_full_unless_somebody_closes_them() -> None:
    odd = GOOD | {"predicted_iou": 0.0, "generalist_ml": 290.0}
    verdict = judge("spleen", odd, SPLEEN, CurationSettings())
    assert (verdict.ruling, verdict.weight) == (Ruling.ACCEPT, 1.0)
    assert (curated(CurationSettings()).weight_DHW == 255).all()


def test_masks_weigh_what_both_agree_on_and_background_the_least_of_them() -> None:
    label = curated(MINING)
    assert label.undecided == ()
    assert set(label.weight_DHW[label.mask_DHW == 1].tolist()) == {round(255 * 6 / 7)}
    assert set(label.weight_DHW[label.mask_DHW == 2].tolist()) == {255}
    assert set(label.weight_DHW[label.mask_DHW == 0].tolist()) == {round(255 * 6 / 7)}


def test_voxels_on_which_both_differ_are_ignored_and_those_on_which_they_agree_are_not() -> None:
    unsure = replace(candidate(), predicted_iou=(0.0, 0.5, 0.9))
    label = curated(MINING, unsure)
    assert label.undecided == ()
    assert (label.mask_DHW[1:3, 2:8, 2:8] == 1).all()
    assert (label.weight_DHW[1:3, 2:8, 2:8] == 255).all()
    assert (label.weight_DHW[1:3, 2:8, 8] == 0).all()
    ignored = np.count_nonzero(label.weight_DHW == 0)
    assert ignored == 12


def test_without_that_a_half_believed_structure_stays_undecided() -> None:
    unsure = replace(candidate(), predicted_iou=(0.0, 0.5, 0.9))
    label = curated(MINING.model_copy(update={"partial_rest": "undecided"}), unsure)
    assert label.undecided == (1,)
    assert (label.weight_DHW > 0).all()


def test_a_rejected_structure_stays_undecided_whatever_becomes_of_half_believed_ones() -> None:
    apart = replace(candidate(), specialist_DHW=np.roll(candidate().specialist_DHW, 9, axis=1))
    label = curated(MINING.model_copy(update={"partial_agreement": 0.4}), apart)
    assert label.undecided == (1, 2)


def test_where_answers_differ_voxels_count_less() -> None:
    settings = CurationSettings(weight_by_variance=True)
    label = curated(settings)
    assert (label.weight_DHW[1:3, 2:8, 8] == 204).all()
    assert np.count_nonzero(label.weight_DHW < 255) == 12
