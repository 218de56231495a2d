from dataclasses import replace

import numpy as np
import pytest

from tutelage.curation import CurationSettings, curate
from tutelage.curation.rules import judge, measure
from tutelage.curation.settings import StructureSettings
from tutelage.geometry import Grid
from tutelage.records import Candidate, Prior, Region, Ruling

SPLEEN = Prior("spleen", volume_ml=(80.0, 300.0), may_be_absent=True)
GOOD = {
    "agreement": 0.9,
    "specialist_ml": 150.0,
    "generalist_ml": 160.0,
    "components": 1.0,
    "variance": 0.1,
    "predicted_iou": 0.9,
    "consensus": 0.6,
}
GRID = Grid.from_spacing((4, 20, 20), (10.0, 10.0, 10.0))  # one voxel is one millilitre


@pytest.mark.parametrize(
    ("change", "ruling"),
    [
        ({}, Ruling.ACCEPT),
        ({"agreement": 0.6}, Ruling.PARTIAL),
        ({"agreement": 0.2}, Ruling.REJECT),
        ({"generalist_ml": 20.0}, Ruling.REJECT),
        ({"generalist_ml": 900.0}, Ruling.REJECT),
        ({"components": 3.0}, Ruling.REJECT),
        ({"variance": 0.8}, Ruling.REJECT),
        ({"specialist_ml": 0.0, "generalist_ml": 0.0, "agreement": 1.0}, Ruling.ABSENT),
    ],
    ids=["agreed", "half agreed", "disagreed", "too small", "too large", "in pieces", "wobbly", "not found"],
)
def test_a_structure_is_judged(change: dict[str, float], ruling: Ruling) -> None:
    assert judge("spleen", GOOD | change, SPLEEN, CurationSettings()).ruling is ruling


def test_a_rejection_says_why() -> None:
    verdict = judge("spleen", GOOD | {"generalist_ml": 0.5}, SPLEEN, CurationSettings())
    assert verdict.reasons == ("spleen is 0.5 ml, expected 80 to 300 ml",)


def test_without_a_prior_any_volume_goes() -> None:
    assert judge("spleen", GOOD | {"generalist_ml": 5000.0}, None, CurationSettings()).ruling is Ruling.ACCEPT


def test_an_exception_holds_for_its_structure_only() -> None:
    settings = CurationSettings(structures={"spleen": StructureSettings(min_agreement=0.95)})
    assert judge("spleen", GOOD, None, settings.of("spleen")).ruling is Ruling.PARTIAL
    assert judge("liver", GOOD, None, settings.of("liver")).ruling is Ruling.ACCEPT


def candidate() -> Candidate:
    """Two structures: on 1 both agree, 2 the specialist saw elsewhere."""
    specialist = np.zeros(GRID.shape, np.uint8)
    specialist[1:3, 2:8, 2:8] = 1
    specialist[1:3, 12:18, 12:18] = 2
    regions = (
        Region((0, 0, 0), np.zeros((0, 0, 0), np.uint8), np.zeros((0, 0, 0), np.uint8)),
        Region((1, 2, 2), np.full((2, 6, 7), 230, np.uint8), np.zeros((2, 6, 7), np.uint8)),
        Region((1, 2, 7), np.full((2, 6, 2), 204, np.uint8), np.full((2, 6, 2), 51, np.uint8)),
    )
    pooled_KC = np.arange(6, dtype=np.float16).reshape(3, 2)
    return Candidate("a", specialist, regions, (0.0, 0.9, 0.9), (1.0, 1.0, 0.6), pooled_KC)


def test_an_accepted_structure_takes_the_generalists_border() -> None:
    label = curate(candidate(), GRID, ("one", "two"), {}, CurationSettings())
    assert [v.ruling for v in label.verdicts] == [Ruling.ACCEPT, Ruling.REJECT]
    assert (label.mask_DHW == 1).sum() == 2 * 6 * 7


def test_a_structure_that_is_not_accepted_stays_undecided_and_unpainted() -> None:
    label = curate(candidate(), GRID, ("one", "two"), {}, CurationSettings())
    assert label.undecided == (2,)
    assert not (label.mask_DHW == 2).any()
    assert (label.weight_DHW == 255).all()


def test_where_two_accepted_structures_overlap_the_more_probable_wins() -> None:
    two = candidate()
    two.specialist_DHW[two.specialist_DHW == 2] = 0
    two.specialist_DHW[1:3, 2:8, 7:9] = 2
    label = curate(two, GRID, ("one", "two"), {}, CurationSettings(min_agreement=0.5, partial_agreement=0.2))
    assert [v.ruling for v in label.verdicts] == [Ruling.ACCEPT, Ruling.ACCEPT]
    assert (label.mask_DHW[1, 2, 7:9] == 1).all()


def test_half_believed_voxels_carry_their_weight() -> None:
    settings = CurationSettings(min_agreement=0.99, partial_agreement=0.5, partial_weight=0.4)
    label = curate(candidate(), GRID, ("one", "two"), {}, settings)
    both = label.mask_DHW == 1
    assert both.sum() == 2 * 6 * 6
    assert (label.weight_DHW[both] == 102).all()
    assert label.undecided == (1, 2)


def test_from_the_second_round_on_more_agreement_is_asked() -> None:
    settings = CurationSettings()
    seen = GOOD | {"agreement": 0.75}
    rulings = [judge("spleen", seen, SPLEEN, settings.in_round(n).of("spleen")).ruling for n in (0, 1, 2)]
    assert rulings == [Ruling.ACCEPT, Ruling.PARTIAL, Ruling.PARTIAL]
    assert CurationSettings(min_agreement=0.9).in_round(1).min_agreement == 0.9


def test_what_is_measured_does_not_depend_on_how_tight_a_region_is() -> None:
    tight = candidate()
    padded = [np.pad(r.mean_DHW, ((1, 0), (2, 3), (2, 4))) for r in tight.regions[1:]]
    spread = [np.pad(r.variance_DHW, ((1, 0), (2, 3), (2, 4))) for r in tight.regions[1:]]
    starts = [(r.start[0] - 1, r.start[1] - 2, r.start[2] - 2) for r in tight.regions[1:]]
    roomy = replace(
        tight,
        regions=(tight.regions[0], *map(Region, starts, padded, spread)),
    )
    assert [measure(roomy, k, GRID) for k in (1, 2)] == [measure(tight, k, GRID) for k in (1, 2)]
    assert measure(tight, 1, GRID) == {
        "agreement": pytest.approx(6 / 7),
        "specialist_ml": pytest.approx(72.0),
        "generalist_ml": pytest.approx(84.0),
        "components": 1.0,
        "variance": 0.0,
        "entropy": pytest.approx(0.4627, abs=1e-4),
        "predicted_iou": 0.9,
        "consensus": 1.0,
    }
    assert measure(tight, 2, GRID)["variance"] == pytest.approx(0.2)


def test_a_mask_on_which_generalists_differ_is_rejected_where_that_is_asked_for() -> None:
    asked = CurationSettings(min_consensus=0.7)
    assert judge("spleen", GOOD, SPLEEN, CurationSettings()).ruling is Ruling.ACCEPT
    verdict = judge("spleen", GOOD, SPLEEN, asked)
    assert (verdict.ruling, verdict.reasons) == (Ruling.REJECT, ("generalists agree 0.60 < 0.70",))
    exception = CurationSettings(structures={"spleen": StructureSettings(min_consensus=0.7)})
    assert judge("spleen", GOOD, SPLEEN, exception.of("spleen")).ruling is Ruling.REJECT


def test_features_go_along_with_the_label() -> None:
    before = replace(candidate(), grid_DCHW=np.ones((4, 2, 1, 1), np.float16))
    label = curate(before, GRID, ("one", "two"), {}, CurationSettings())
    assert np.array_equal(label.pooled_KC, before.pooled_KC)
    assert label.grid_DCHW is before.grid_DCHW
