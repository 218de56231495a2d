from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tutelage import priors
from tutelage.archive.synthetic import STRUCTURES, phantom
from tutelage.geometry import Grid
from tutelage.priors.claims import Body, Finding, at_most, body, findings, holds, weighed
from tutelage.priors.relations import INVERSE, KINDS
from tutelage.records import Prior, Relation

GRID = Grid.from_spacing((12, 20, 20), (5.0, 1.0, 1.0))
CONFIGS = Path(__file__).parents[2] / "configs" / "priors"


def block(d: tuple[int, int], h: tuple[int, int], w: tuple[int, int], grid: Grid = GRID) -> Body:
    mask_DHW = np.zeros(grid.shape, np.bool_)
    mask_DHW[slice(*d), slice(*h), slice(*w)] = True
    found = body(mask_DHW, grid)
    assert found is not None
    return found


# In the frame of `geometry` D runs to the head, H to the back, W to the patient's left.
HERE = block((4, 6), (8, 12), (8, 12))


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ("superior-to", block((0, 2), (8, 12), (8, 12))),
        ("inferior-to", block((8, 10), (8, 12), (8, 12))),
        ("anterior-to", block((4, 6), (14, 18), (8, 12))),
        ("posterior-to", block((4, 6), (2, 6), (8, 12))),
        ("right-of", block((4, 6), (8, 12), (14, 18))),
        ("left-of", block((4, 6), (8, 12), (2, 6))),
        ("inside", block((2, 8), (5, 15), (5, 15))),
        ("contains", block((5, 6), (9, 11), (9, 11))),
        ("touching", block((4, 6), (8, 12), (13, 16))),
    ],
)
def test_every_relation_holds_where_it_should_and_for_the_other_one_turned(kind: str, other: Body) -> None:
    assert holds(kind, HERE, other)
    assert holds(INVERSE[kind], other, HERE)
    if kind != "touching":
        assert not holds(INVERSE[kind], HERE, other)


def test_left_is_the_patients_left_however_the_file_is_turned() -> None:
    plain = np.zeros(GRID.shape, np.uint8)
    plain[4:6, 8:12, 2:6], plain[4:6, 8:12, 14:18] = 1, 2  # 2 lies toward +W, the patient's left
    flip = np.diag([1.0, 1.0, -1.0, 1.0])
    flip[2, 3] = GRID.shape[2] - 1
    mirrored = Grid.from_matrix(GRID.shape, GRID.matrix @ flip)
    for label_DHW, grid in ((plain, GRID), (plain[:, :, ::-1], mirrored)):
        one, two = (body(label_DHW == value, grid) for value in (1, 2))
        assert one is not None
        assert two is not None
        assert holds("left-of", two, one)
        assert not holds("left-of", one, two)


def test_an_order_of_centers_may_fail_by_the_slack() -> None:
    there = block((4, 6), (8, 12), (10, 14))  # two millimeters further left
    assert not holds("left-of", HERE, there)
    assert holds("left-of", HERE, there, slack_mm=2.5)
    assert not holds("left-of", HERE, there, slack_mm=1.5)


def test_what_lies_in_a_ring_is_inside_it_and_what_lies_beside_is_not() -> None:
    ring_DHW = np.zeros(GRID.shape, np.bool_)
    ring_DHW[3:7, 4:16, 4:16] = True
    ring_DHW[3:7, 7:13, 7:13] = False
    ring = body(ring_DHW, GRID)
    assert ring is not None
    assert holds("inside", block((4, 6), (8, 12), (8, 12)), ring)
    assert not holds("inside", block((4, 6), (8, 12), (15, 19)), ring)
    assert not holds("inside", block((8, 10), (8, 12), (8, 12)), ring)


@pytest.mark.parametrize("shape", ["slice", "line", "voxel"])
def test_flat_bodies_contain_themselves_and_nothing_beside(shape: str) -> None:
    size = {"slice": ((4, 5), (4, 9), (4, 9)), "line": ((4, 5), (4, 5), (4, 9)), "voxel": ((4, 5),) * 3}[
        shape
    ]
    assert holds("inside", block(*size), block(*size))
    assert not holds("inside", block((9, 10), (4, 9), (4, 9)), block(*size))


def test_touching_allows_one_voxel_between() -> None:
    assert holds("touching", HERE, block((4, 6), (8, 12), (13, 16)))
    assert not holds("touching", HERE, block((4, 6), (8, 12), (14, 17)))
    assert holds("touching", HERE, block((7, 9), (13, 16), (13, 16)))
    assert not holds("touching", HERE, block((0, 2), (8, 12), (8, 12)))


def test_a_body_is_the_same_from_a_box_of_the_mask() -> None:
    mask_DHW = np.zeros(GRID.shape, np.bool_)
    mask_DHW[2:5, 3:9, 4:11] = np.random.default_rng(0).random((3, 6, 7)) > 0.3
    whole, part = body(mask_DHW, GRID), body(mask_DHW[1:6, 2:10, 3:12], GRID, (1, 2, 3))
    assert whole is not None
    assert part is not None
    assert (whole.start, whole.volume_ml, whole.pieces) == (part.start, part.volume_ml, part.pieces)
    np.testing.assert_allclose(whole.center_mm, part.center_mm)
    slow_mm = np.mean([(GRID.matrix @ [*at, 1])[:3] for at in np.argwhere(mask_DHW)], axis=0)
    np.testing.assert_allclose(whole.center_mm, slow_mm)


def test_nothing_is_no_body() -> None:
    assert body(np.zeros((3, 3, 3), np.bool_), GRID) is None


# --- labels against claims ------------------------------------------------------------------


def label() -> NDArray[np.uint8]:
    """Structure 1 in two pieces of 0.08 ml each, structure 2 to its left; 3 is not there."""
    label_DHW = np.zeros(GRID.shape, np.uint8)
    label_DHW[4:5, 2:6, 2:6] = 1
    label_DHW[9:10, 2:6, 2:6] = 1
    label_DHW[4:8, 2:6, 12:18] = 2
    return label_DHW


def found(prior: Prior) -> dict[str, Finding]:
    told = findings(label(), GRID, ("one", "two", "three"), {prior.structure: prior})
    return {finding.claim: finding for finding in told}


def test_every_claim_is_measured() -> None:
    prior = Prior(
        "one", (0.1, 0.2), (1, 1), relations=(Relation("right-of", "two"), Relation("left-of", "two"))
    )
    told = found(prior)
    assert {claim: finding.held for claim, finding in told.items()} == {
        "may_be_absent": True,
        "volume_ml": True,
        "components": False,
        "right-of two": True,
        "left-of two": False,
    }
    assert told["volume_ml"].seen == "0.16 ml"
    assert told["components"].seen == "2 pieces"


def test_a_structure_that_is_not_there_speaks_only_about_that() -> None:
    prior = Prior("three", (1, 2), relations=(Relation("left-of", "one"),))
    assert {claim: finding.held for claim, finding in found(prior).items()} == {"may_be_absent": False}
    assert found(replace(prior, may_be_absent=True)) == {}


def test_a_relation_to_what_is_not_there_is_not_measured() -> None:
    assert "left-of three" not in found(Prior("one", (0, 1), relations=(Relation("left-of", "three"),)))


def seen(*held: bool, claim: str = "volume_ml") -> list[list[Finding]]:
    return [[Finding("one", claim, so, "9 ml" if claim == "volume_ml" else "not so")] for so in held]


def test_a_claim_that_most_cases_contradict_is_struck_with_the_evidence() -> None:
    prior = weighed({"one": Prior("one", (1, 2))}, seen(True, False, False, False))["one"]
    assert prior.struck == {"volume_ml": "seen in 1 of 4 annotated cases, elsewhere 9 ml"}
    assert prior.weights == {}


def test_a_claim_that_some_cases_contradict_weighs_less() -> None:
    prior = weighed({"one": Prior("one", (1, 2))}, seen(True, True, True, False))["one"]
    assert prior.struck == {}
    assert prior.weights == {"volume_ml": 0.75}
    assert prior.contradicted == {"volume_ml": "seen in 3 of 4 annotated cases, elsewhere 9 ml"}


def test_a_relation_carries_its_own_weight() -> None:
    before = Prior("one", (1, 2), relations=(Relation("left-of", "two", 0.8), Relation("touching", "two")))
    prior = weighed({"one": before}, seen(True, True, True, False, claim="left-of two"))["one"]
    assert prior.relations == (Relation("left-of", "two", 0.8, 0.75), Relation("touching", "two"))
    assert prior.contradicted == {"left-of two": "seen in 3 of 4 annotated cases"}


@pytest.mark.parametrize(("edited", "claim"), [("volume_ml", "volume_ml"), ("relations", "left-of two")])
def test_what_a_person_wrote_is_marked_but_neither_struck_nor_weighed_down(edited: str, claim: str) -> None:
    before = Prior("one", (1, 2), relations=(Relation("left-of", "two"),), edited=(edited,))
    prior = weighed({"one": before}, seen(False, False, claim=claim))["one"]
    assert (prior.struck, prior.weights, prior.relations) == ({}, {}, before.relations)
    assert prior.contradicted[claim].startswith("seen in 0 of 2 annotated cases")
    assert prior.contradicted[claim].endswith("a person wrote it")


def test_a_check_forgets_what_an_earlier_one_said() -> None:
    once = weighed({"one": Prior("one", (1, 2))}, seen(False, False))
    assert weighed(once, seen(True, True)) == {"one": Prior("one", (1, 2))}
    assert weighed(once, seen(False, False)) == once


def test_what_was_said_about_claims_that_no_case_shows_stays() -> None:
    before = Prior(
        "one",
        (1, 2),
        relations=(Relation("left-of", "two", weight=0.4),),
        weights={"components": 0.6},
        contradicted={"components": "seen in 3 of 5 annotated cases"},
    )
    assert weighed({"one": before}, seen(True, True))["one"] == before


def test_a_reviewed_claim_is_never_believed_more_than_the_review_left_it() -> None:
    before = Prior(
        "one",
        (1, 2),
        relations=(Relation("left-of", "two", weight=0.4),),
        weights={"volume_ml": 0.6},
        struck={"components": "a person struck it"},
    )
    shown = [[Finding("one", claim, True, "") for claim in ("volume_ml", "components", "left-of two")]]
    assert at_most({"one": before}, weighed({"one": before}, shown))["one"] == before
    lower = at_most({"one": before}, weighed({"one": before}, seen(True, False)))["one"]
    assert lower.weights == {"volume_ml": 0.5}


def test_without_annotated_cases_nothing_changes() -> None:
    shelf = {"one": Prior("one", (1, 2), relations=(Relation("left-of", "two"),))}
    assert weighed(shelf, []) == shelf


def test_relations_that_we_ship_hold_in_the_phantom() -> None:
    shelf = priors.read(CONFIGS / "torso.yaml")
    assert {related.kind for prior in shelf.values() for related in prior.relations} <= set(KINDS)
    told = []
    for index in range(3):
        made = phantom(0, index, (12.0, 4.0, 4.0), ["ct"])
        told += findings(
            made.label_DHW, Grid.from_spacing(made.label_DHW.shape, made.spacing), STRUCTURES, shelf
        )
    relations = [finding for finding in told if " " in finding.claim]
    assert len(relations) > 40
    assert [finding for finding in relations if not finding.held] == []
