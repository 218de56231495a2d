from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tutelage.curation import CurationSettings, curate
from tutelage.curation.anatomy import NOWHERE, Placed, objections, placed, relations
from tutelage.geometry import Grid
from tutelage.records import Candidate, Expectation, Prior, Region, Relation, Ruling, Verdict

GRID = Grid.from_spacing((6, 24, 24), (10.0, 10.0, 10.0))  # one voxel is one millilitre
NAMES = ("liver", "spleen", "spine")
# W runs to the patient's left, so the liver lies right of the spleen.
PLACES = {"liver": (2, 8), "spleen": (16, 20), "spine": (11, 13)}
SHELF = {
    "liver": Prior(
        "liver", (10, 500), relations=(Relation("right-of", "spleen"), Relation("right-of", "spine"))
    ),
    "spleen": Prior("spleen", (10, 500), relations=(Relation("left-of", "spine"),)),
    "spine": Prior("spine", (1, 500)),
}
SETTINGS = CurationSettings()


def candidate(**moved: tuple[int, int]) -> Candidate:
    """Specialist and generalist agree on every structure, wherever it is."""
    specialist = np.zeros(GRID.shape, np.uint8)
    regions = [Region((0, 0, 0), *[np.zeros((0, 0, 0), np.uint8)] * 2)]
    for value, name in enumerate(NAMES, start=1):
        start, stop = moved.get(name, PLACES[name])
        specialist[1:5, 8:12, start:stop] = value
        mean = np.full((4, 4, stop - start), 230, np.uint8)
        regions.append(Region((1, 8, start), mean, np.zeros_like(mean)))
    return Candidate(
        "a", specialist, tuple(regions), (0.0, *[0.9] * 3), (1.0,) * 4, np.zeros((4, 1), np.float16)
    )


def verdicts(
    found: Candidate, shelf: dict[str, Prior] = SHELF, settings: CurationSettings = SETTINGS
) -> dict[str, Verdict]:
    return {verdict.structure: verdict for verdict in curate(found, GRID, NAMES, shelf, settings).verdicts}


def test_structures_that_lie_where_they_should_are_accepted() -> None:
    ruled = verdicts(candidate())
    assert {verdict.ruling for verdict in ruled.values()} == {Ruling.ACCEPT}
    assert ruled["liver"].features["relations_checked"] == 2
    assert ruled["liver"].features["relations_violated"] == 0


def test_a_structure_on_the_wrong_side_is_rejected_with_the_place_in_words() -> None:
    ruled = verdicts(candidate(liver=(21, 24)))
    assert ruled["liver"].ruling is Ruling.REJECT
    assert ruled["liver"].reasons == (
        "liver lies left of spleen, expected right-of",
        "liver lies left of spine, expected right-of",
    )


def test_what_lies_right_misses_only_its_relations_to_what_lies_wrong() -> None:
    ruled = verdicts(candidate(liver=(21, 24)), settings=CurationSettings(max_violated=0.75))
    assert ruled["spleen"].features["relations_violated"] == 0.5
    assert (ruled["spleen"].ruling, ruled["spine"].ruling) == (Ruling.ACCEPT, Ruling.ACCEPT)
    assert ruled["liver"].ruling is Ruling.REJECT


def test_a_relation_counts_as_much_as_it_is_believed() -> None:
    doubted = replace(
        SHELF["liver"], relations=(Relation("right-of", "spleen", 0.8, 0.75), Relation("right-of", "spine"))
    )
    ruled = verdicts(candidate(spleen=(0, 2)), SHELF | {"liver": doubted})
    assert ruled["liver"].features["relations_violated"] == pytest.approx(0.6 / 1.6)
    assert ruled["liver"].ruling is Ruling.ACCEPT
    assert ruled["spleen"].ruling is Ruling.REJECT


@pytest.mark.parametrize(
    ("confidence", "checked", "ruling"),
    [(0.34, 0, Ruling.ACCEPT), (0.6, 1, Ruling.ACCEPT), (0.8, 1, Ruling.REJECT)],
)
def test_a_single_relation_that_is_hardly_believed_rejects_nothing(
    confidence: float, checked: int, ruling: Ruling
) -> None:
    only = {"liver": Prior("liver", (10, 500), relations=(Relation("left-of", "spleen", confidence),))}
    verdict = verdicts(candidate(), only)["liver"]
    assert verdict.ruling is ruling
    assert verdict.features.get("relations_checked", 0) == checked


def test_two_relations_that_half_of_the_answers_make_reject_together() -> None:
    several = (Relation("left-of", "spleen", 0.5), Relation("left-of", "spine", 0.5))
    assert verdicts(candidate(), {"liver": Prior("liver", (10, 500), relations=several)})["liver"].ruling is (
        Ruling.REJECT
    )


def test_a_struck_relation_is_not_measured() -> None:
    struck = replace(SHELF["liver"], struck={"right-of spleen": "seen in 0 of 3 annotated cases"})
    assert "spleen" not in {other for _, other in relations(SHELF | {"liver": struck}, NAMES)["liver"]}


def test_both_structures_know_of_a_relation_and_unknown_ones_are_left_out() -> None:
    shelf = {
        "liver": replace(
            SHELF["liver"], relations=(Relation("touching", "stomach"), Relation("contains", "spine"))
        )
    }
    assert relations(shelf, NAMES) == {
        "liver": {("contains", "spine"): 1.0},
        "spine": {("inside", "liver"): 1.0},
    }


def test_the_slack_forgives_what_is_hardly_the_wrong_way_round() -> None:
    near = candidate(spleen=(9, 11))  # twenty millimeters right of the spine
    strict, kind = CurationSettings(relation_slack_mm=15), CurationSettings(relation_slack_mm=25)
    assert verdicts(near, settings=strict)["spleen"].ruling is Ruling.REJECT
    assert verdicts(near, settings=kind)["spleen"].ruling is Ruling.ACCEPT


def test_a_rejected_neighbor_is_measured_by_the_specialists_mask() -> None:
    found = candidate()
    mean = np.full((4, 4, 4), 230, np.uint8)
    # The generalist saw the spine far on the wrong side; the specialist has it where it is.
    wrong = Region((1, 8, 0), mean, np.zeros_like(mean))
    found = replace(found, regions=(*found.regions[:3], wrong))
    ruled = verdicts(found)
    assert ruled["spine"].ruling is Ruling.REJECT
    assert ruled["liver"].features["relations_violated"] == 0
    trusting = placed(found, GRID, NAMES, SHELF, set(), SETTINGS)
    assert trusting["liver"].violated == 0.5


def test_a_structure_nobody_saw_is_no_neighbor() -> None:
    found = candidate()
    found.specialist_DHW[found.specialist_DHW == 2] = 0
    nothing = Region((0, 0, 0), *[np.zeros((0, 0, 0), np.uint8)] * 2)
    found = replace(found, regions=(*found.regions[:2], nothing, found.regions[3]))
    assert verdicts(found)["liver"].features["relations_checked"] == 1


def test_every_verdict_says_what_it_would_be_without_and_with_priors() -> None:
    wrong = candidate(liver=(21, 24))
    on, off = verdicts(wrong)["liver"], verdicts(wrong, settings=CurationSettings(priors=False))["liver"]
    assert (on.ruling, off.ruling) == (Ruling.REJECT, Ruling.ACCEPT)
    for verdict in (on, off):
        assert (verdict.without_priors, verdict.with_priors) == (Ruling.ACCEPT, Ruling.REJECT)
        assert verdict.features["relations_violated"] == 1


def painted(found: Candidate, settings: CurationSettings) -> NDArray[np.uint8]:
    return curate(found, GRID, NAMES, SHELF, settings).mask_DHW


def test_without_priors_what_lies_wrong_is_painted() -> None:
    wrong = candidate(liver=(21, 24))
    assert not (painted(wrong, SETTINGS) == 1).any()
    assert (painted(wrong, CurationSettings(priors=False)) == 1).any()


# --- what a mask may show instead -------------------------------------------------------------

TWINS = SHELF | {
    "liver": replace(SHELF["liver"], confused_with=("spleen",)),
    # Said of one of them is said of both.
    "spleen": replace(SHELF["spleen"], volume_ml=(10, 100)),
}


def instead(found: Candidate, shelf: dict[str, Prior], name: str = "liver") -> list[str]:
    return [reason for reason in verdicts(found, shelf)[name].reasons if "instead" in reason]


def test_a_mask_that_lies_where_another_should_may_be_that_one() -> None:
    wrong = candidate(liver=(21, 24))
    assert instead(wrong, TWINS) == ["liver may be spleen instead: its size and place fit"]
    assert instead(candidate(spleen=(0, 2)), TWINS, "spleen") == [
        "spleen may be liver instead: its size and place fit"
    ]


def test_it_is_only_said_and_decides_nothing() -> None:
    wrong = candidate(liver=(21, 24))
    plain, told = verdicts(wrong), verdicts(wrong, TWINS)
    assert told["liver"].reasons[:-1] == plain["liver"].reasons
    assert replace(told["liver"], reasons=()) == replace(plain["liver"], reasons=())
    assert {told[name].ruling for name in NAMES} == {plain[name].ruling for name in NAMES}


@pytest.mark.parametrize(
    "known",
    [
        {"spleen": replace(TWINS["spleen"], volume_ml=(10, 20))},
        {"spleen": replace(TWINS["spleen"], relations=())},
        {"spleen": replace(TWINS["spleen"], relations=(Relation("right-of", "spine"),))},
        {"spleen": replace(TWINS["spleen"], struck={"volume_ml": "seen in 0 of 3 annotated cases"})},
        {"liver": replace(TWINS["liver"], confused_with=())},
        {"liver": replace(TWINS["liver"], confidence={"confused_with": 0.3})},
        {"liver": replace(TWINS["liver"], confused_with=("spine", "stomach"))},
    ],
    ids=["size", "place unknown", "place", "struck", "nobody says so", "hardly believed", "others"],
)
def test_what_does_not_fit_or_is_not_taken_for_it_is_not_named(known: dict[str, Prior]) -> None:
    assert verdicts(candidate(liver=(21, 24)), TWINS | known)["liver"].ruling is Ruling.REJECT
    assert instead(candidate(liver=(21, 24)), TWINS | known) == []


def test_a_mask_of_the_wrong_size_may_be_what_is_that_large() -> None:
    large = {
        "liver": Prior("liver", (500, 900), confused_with=("spleen",)),
        "spleen": Prior("spleen", (50, 100)),
    }
    assert instead(candidate(), large) == ["liver may be spleen instead: its size fits"]


def test_what_fits_its_own_is_not_called_anything_else() -> None:
    assert {ruled.reasons for ruled in verdicts(candidate(), TWINS).values()} == {()}


# --- size, count, and what is noted about the case ------------------------------------------

SEEN = {"generalist_ml": 900.0, "components": 3.0}
SPLEEN = Prior("spleen", (80, 300), (1, 1))


def said(
    prior: Prior | None, place: Placed = NOWHERE, expected: Expectation | None = None, **seen: float
) -> list[str]:
    return objections("spleen", SEEN | seen, prior, SETTINGS, place, expected)


def test_size_and_count_speak_against_a_mask() -> None:
    assert said(SPLEEN) == [
        "spleen is 900.0 ml, expected 80 to 300 ml",
        "spleen is in 3 pieces, expected at most 1",
    ]
    assert said(replace(SPLEEN, components=(2, 4)), components=1.0)[1:] == [
        "spleen is in 1 pieces, expected at least 2"
    ]


def test_a_claim_that_is_struck_or_hardly_believed_is_silent() -> None:
    assert said(replace(SPLEEN, struck={"volume_ml": "", "components": ""})) == []
    assert said(replace(SPLEEN, confidence={"volume_ml": 0.4, "components": 0.4})) == []
    assert said(replace(SPLEEN, confidence={"volume_ml": 0.8}, weights={"volume_ml": 0.5}))[0].endswith(
        "pieces, expected at most 1"
    )
    assert len(said(replace(SPLEEN, confidence={"volume_ml": 0.5, "components": 0.6}))) == 2


def test_what_the_notes_call_absent_is_not_believed_when_it_is_found() -> None:
    assert said(None, expected=Expectation.ABSENT) == [
        "spleen was found, 900.0 ml, but the case's notes say it is absent"
    ]
    assert said(None, expected=Expectation.ABSENT, generalist_ml=0.0) == [
        "the specialist found spleen, but the case's notes say it is absent"
    ]
    assert said(None, expected=Expectation.DOUBTFUL) == []
    assert said(None, expected=Expectation.EXPECTED) == []


@pytest.mark.parametrize(
    ("expected", "ruling"),
    [(Expectation.ABSENT, Ruling.ABSENT), (Expectation.EXPECTED, Ruling.REJECT), (None, Ruling.ABSENT)],
)
def test_what_was_not_found_is_absent_unless_the_notes_expect_it(
    expected: Expectation | None, ruling: Ruling
) -> None:
    found = candidate()
    found.specialist_DHW[found.specialist_DHW == 2] = 0
    shelf = SHELF | {"spleen": replace(SHELF["spleen"], may_be_absent=True)}
    told = {"spleen": expected} if expected else None
    verdict = curate(found, GRID, NAMES, shelf, SETTINGS, told).verdicts[1]
    assert verdict.ruling is ruling
    assert verdict.weight == 0


def test_what_is_noted_is_recorded_and_concerns_its_own_structure_alone() -> None:
    label = curate(
        candidate(),
        GRID,
        NAMES,
        SHELF,
        SETTINGS,
        {"spleen": Expectation.ABSENT, "liver": Expectation.DOUBTFUL},
    )
    rulings = [verdict.ruling for verdict in label.verdicts]
    assert rulings == [Ruling.ACCEPT, Ruling.REJECT, Ruling.ACCEPT]
    assert [v.features.get("notes_expect") for v in label.verdicts] == [0.5, 0.0, None]
    assert label.undecided == (2,)
