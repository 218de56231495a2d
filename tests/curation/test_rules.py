import numpy as np
import pytest

from tutelage.curation import CurationSettings, curate
from tutelage.curation.rules import judge
from tutelage.curation.settings import StructureSettings
from tutelage.geometry import Grid
from tutelage.records import Candidate, Prior, Ruling

SPLEEN = Prior("spleen", volume_ml=(80.0, 300.0), may_be_absent=True)
GOOD = {
    "agreement": 0.9,
    "specialist_ml": 150.0,
    "generalist_ml": 160.0,
    "components": 1.0,
    "variance": 0.1,
    "predicted_iou": 0.9,
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
    generalist = np.zeros((3, *GRID.shape), np.float32)
    generalist[1, 1:3, 2:8, 2:9] = 0.9
    generalist[2, 1:3, 2:8, 7:9] = 0.8
    return Candidate("a", specialist, generalist, np.zeros_like(generalist), (0.0, 0.9, 0.9))


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
