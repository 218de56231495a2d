import pytest

from tutelage.priors.relations import INVERSE, KINDS, Stated, circles, complaints, stated
from tutelage.records import Relation


@pytest.mark.parametrize("kind", KINDS)
def test_a_relation_turned_twice_is_itself(kind: str) -> None:
    claim = Stated("liver", kind, "spleen")
    assert INVERSE[INVERSE[kind]] == kind
    assert claim.turned.turned == claim


def test_relations_of_many_structures_become_statements() -> None:
    relations = {"liver": (Relation("right-of", "spleen"),), "spleen": (Relation("touching", "stomach"),)}
    assert stated(relations) == [
        Stated("liver", "right-of", "spleen"),
        Stated("spleen", "touching", "stomach"),
    ]


def test_two_structures_cannot_each_lie_left_of_the_other() -> None:
    one, other = Stated("liver", "left-of", "spleen"), Stated("spleen", "left-of", "liver")
    assert [set(circle) for circle in circles([one, other])] == [{one, other}]


def test_a_structure_cannot_lie_on_both_sides_of_another() -> None:
    both = [Stated("liver", "left-of", "spine"), Stated("liver", "right-of", "spine")]
    assert [set(circle) for circle in circles(both)] == [set(both)]


def test_a_structure_cannot_lie_inside_itself() -> None:
    assert circles([Stated("liver", "inside", "liver")]) == [(Stated("liver", "inside", "liver"),)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "touching"])
def test_an_order_cannot_run_in_a_circle_of_three(kind: str) -> None:
    three = [Stated("a", kind, "b"), Stated("b", kind, "c"), Stated("c", kind, "a")]
    assert {frozenset(circle) for circle in circles(three)} == {frozenset(three)}


def test_a_circle_is_seen_through_inverses() -> None:
    three = [Stated("a", "inside", "b"), Stated("c", "contains", "b"), Stated("c", "inside", "a")]
    assert {frozenset(circle) for circle in circles(three)} == {frozenset(three)}


def test_the_same_said_from_both_sides_is_no_contradiction() -> None:
    assert circles([Stated("liver", "right-of", "spleen"), Stated("spleen", "left-of", "liver")]) == []


def test_touching_says_nothing_about_order() -> None:
    assert (
        circles([Stated("a", "touching", "b"), Stated("b", "touching", "a"), Stated("a", "left-of", "b")])
        == []
    )


def test_a_statement_beside_a_circle_is_not_blamed() -> None:
    circle = [Stated("a", "left-of", "b"), Stated("b", "left-of", "a")]
    blamed = dict(complaints([*circle, Stated("a", "left-of", "c"), Stated("c", "superior-to", "b")]))
    assert set(blamed) == set(circle)
    assert '"a left-of b" and "b left-of a" cannot all be true' in blamed.values()
