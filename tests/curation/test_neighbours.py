"""Votes of cases that look alike: who is near, what is painted, and what is not touched."""

from dataclasses import replace

import numpy as np
import pytest

from tutelage.curation.neighbours import Vote, likeness, nearest, voted, wanting
from tutelage.curation.settings import NeighbourSettings
from tutelage.records import PseudoLabel, Ruling, Verdict

SETTINGS = NeighbourSettings(enabled=True, count=3, least=2, weight=0.3)


def label(*rulings: Ruling, found: float = 10.0) -> PseudoLabel:
    """Structure 1 is painted in a corner, the others nowhere."""
    mask_DHW = np.zeros((4, 8, 8), np.uint8)
    mask_DHW[:, :2, :2] = 1
    verdicts = tuple(
        Verdict(f"s{number}", ruling, 0.0, {"specialist_ml": found}, ("as it was",))
        for number, ruling in enumerate(rulings, start=1)
    )
    undecided = tuple(range(2, len(rulings) + 1))
    return PseudoLabel(
        "a", mask_DHW, np.full((4, 8, 8), 255, np.uint8), undecided, verdicts, np.eye(3, 4, dtype=np.float16)
    )


def vote(case: str, rows: slice, alike: float = 0.9, shape: tuple[int, int, int] = (4, 8, 8)) -> Vote:
    mask_DHW = np.zeros(shape, np.uint8)
    mask_DHW[:, rows] = 2
    return Vote.of(case, alike, mask_DHW, 2)


def test_likeness_is_that_of_structures_that_both_have() -> None:
    one, other = np.zeros((3, 2)), np.zeros((3, 2))
    one[1], other[1] = (1, 0), (3, 0)
    one[2] = (0, 5)
    assert likeness(one, other) == pytest.approx(1.0)
    other[2] = (4, 0)
    assert likeness(one, other) == pytest.approx(0.5)
    assert likeness(one, np.zeros((3, 2))) == 0.0
    assert likeness(one, np.ones((3, 5))) == 0.0, "of another generalist"


def test_the_nearest_come_first_and_nobody_who_is_unlike() -> None:
    of = np.array([[1.0, 0.0]])
    among = {"far": np.array([[0.1, 1.0]]), "near": np.array([[2.0, 0.1]]), "never": np.array([[-1.0, 0.0]])}
    assert [case for case, _ in nearest(of, among, 3)] == ["near", "far"]
    assert [case for case, _ in nearest(of, among, 1)] == ["near"]


def test_what_was_rejected_wants_a_vote_and_what_nobody_could_ask_about_does_not() -> None:
    assert wanting(label(Ruling.ACCEPT, Ruling.REJECT, Ruling.PARTIAL, Ruling.ABSENT)) == [2]
    assert wanting(label(Ruling.ACCEPT, Ruling.REJECT, found=0.0)) == []


@pytest.mark.parametrize(("expected", "wanted"), [(0.0, []), (1.0, [2])])
def test_what_notes_call_absent_gets_no_vote(expected: float, wanted: list[int]) -> None:
    told = label(Ruling.ACCEPT, Ruling.REJECT)
    noted = replace(told.verdicts[1], features={"specialist_ml": 10.0, "notes_expect": expected})
    assert wanting(replace(told, verdicts=(told.verdicts[0], noted))) == wanted


def test_most_votes_paint_what_is_free_and_it_is_half_believed() -> None:
    before = label(Ruling.ACCEPT, Ruling.REJECT)
    votes = [vote("x", slice(0, 4)), vote("y", slice(0, 4)), vote("z", slice(2, 8))]
    after = voted(before, {2: votes}, SETTINGS)
    assert (after.mask_DHW[:, :2, :2] == 1).all(), "what was accepted stays"
    expected = np.zeros((4, 8, 8), bool)
    expected[:, :4] = True
    expected[:, :2, :2] = False
    np.testing.assert_array_equal(after.mask_DHW == 2, expected)
    assert set(after.weight_DHW[expected].tolist()) == {round(255 * 0.3)}
    assert (after.weight_DHW[~expected] == 255).all()
    assert after.undecided == (2,), "elsewhere background does not deny it"
    one, two = after.verdicts
    assert one == before.verdicts[0]
    assert (two.ruling, two.weight, two.features["neighbours"]) == (Ruling.PARTIAL, 0.3, 3.0)
    assert two.reasons[0] == "as it was"
    assert "3 accepted cases that look alike (0.90) voted instead: x, y, z" in two.reasons[1]


def test_votes_count_by_likeness() -> None:
    votes = [vote("x", slice(0, 4), 0.1), vote("y", slice(0, 4), 0.1), vote("z", slice(4, 8), 0.9)]
    after = voted(label(Ruling.ACCEPT, Ruling.REJECT), {2: votes}, SETTINGS)
    assert (after.mask_DHW[:, 4:] == 2).all()
    assert not (after.mask_DHW[:, :4] == 2).any()


@pytest.mark.parametrize("votes", [[], [vote("x", slice(0, 8))]], ids=["none", "too few"])
def test_without_enough_voters_nothing_changes(votes: list[Vote]) -> None:
    before = label(Ruling.ACCEPT, Ruling.REJECT)
    after = voted(before, {2: votes}, SETTINGS)
    assert after.verdicts == before.verdicts
    np.testing.assert_array_equal(after.mask_DHW, before.mask_DHW)


def test_voters_that_do_not_agree_anywhere_leave_it_rejected() -> None:
    votes = [vote("x", slice(0, 2)), vote("y", slice(3, 5)), vote("z", slice(6, 8))]
    after = voted(label(Ruling.ACCEPT, Ruling.REJECT), {2: votes}, SETTINGS)
    assert after.verdicts[1].ruling is Ruling.REJECT


def test_masks_on_other_grids_are_stretched_over_the_same_extent() -> None:
    votes = [vote("x", slice(4, 8), shape=(2, 16, 4)), vote("y", slice(6, 12), shape=(9, 24, 11))]
    after = voted(label(Ruling.REJECT, Ruling.REJECT), {2: votes}, SETTINGS)
    expected = np.zeros((4, 8, 8), bool)
    expected[:, 2:4] = True
    np.testing.assert_array_equal(after.mask_DHW == 2, expected)


def test_two_structures_that_want_the_same_voxels_give_them_to_the_clearer_vote() -> None:
    three = np.zeros((4, 8, 8), np.uint8)
    three[:, 2:6] = 3
    clear = [Vote.of(case, 0.9, three, 3) for case in "xyz"]
    unclear = [vote("x", slice(2, 8)), vote("y", slice(2, 8)), vote("z", slice(0, 1))]
    after = voted(label(Ruling.ACCEPT, Ruling.REJECT, Ruling.REJECT), {2: unclear, 3: clear}, SETTINGS)
    assert (after.mask_DHW[:, 2:6] == 3).all()
    assert (after.mask_DHW[:, 6:] == 2).all()
