"""Roles by patient: nobody straddles, and the draw is the same every time."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.archive.importers import Found
from tutelage.archive.settings import SplitSettings
from tutelage.archive.splits import checked, drawn
from tutelage.errors import ArchiveError
from tutelage.records import Role

SMALL = SplitSettings(gold=2, validation=1, test=2)


def case(name: str, patient: str | None = None, labeled: bool = True, modality: str = "CT") -> Found:
    return Found(name, patient or name, f"/{name}.nii", f"/{name}_label.nii" if labeled else None, modality)


def many(count: int, modality: str = "CT", labeled: bool = True) -> list[Found]:
    return [case(f"{modality}{i:02d}", modality=modality, labeled=labeled) for i in range(count)]


def test_as_many_patients_do_what_as_asked() -> None:
    roles = drawn(many(9), SMALL)
    assert Counter(roles.values()) == {Role.GOLD: 2, Role.VALIDATION: 1, Role.TEST: 2, Role.UNLABELED: 4}


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_files() -> None:
    cases = many(30)
    assert drawn(cases, SMALL) == drawn(cases[::-1], SMALL)
    assert drawn(cases, SMALL) != drawn(cases, SMALL.model_copy(update={"seed": 1}))


def test_more_gold_leaves_validation_and_test_as_they_were() -> None:
    cases = many(30)
    few, more = drawn(cases, SMALL), drawn(cases, SMALL.model_copy(update={"gold": 8}))
    for role in (Role.VALIDATION, Role.TEST):
        assert {c for c in few if few[c] is role} == {c for c in more if more[c] is role}
    assert {c for c in few if few[c] is Role.GOLD} < {c for c in more if more[c] is Role.GOLD}


def test_modalities_take_turns() -> None:
    cases = [*many(40, "CT"), *many(6, "MR")]
    roles = drawn(cases, SplitSettings(gold=4, validation=4, test=4))
    for role in (Role.GOLD, Role.VALIDATION, Role.TEST):
        assert Counter(c[:2] for c, r in roles.items() if r is role) == {"CT": 2, "MR": 2}


def test_cases_without_a_label_are_unlabeled() -> None:
    cases = [*many(5), *many(3, "MR", labeled=False)]
    roles = drawn(cases, SMALL)
    assert {c for c, r in roles.items() if r is Role.UNLABELED} == {"MR00", "MR01", "MR02"}


def test_unlabeled_cases_can_be_capped() -> None:
    assert Counter(drawn(many(20), SMALL.model_copy(update={"unlabeled": 3})).values())[Role.UNLABELED] == 3
    assert Role.UNLABELED not in drawn(many(20), SMALL.model_copy(update={"unlabeled": 0})).values()


def test_too_few_labels_are_refused_with_the_numbers() -> None:
    with pytest.raises(
        ArchiveError, match=r"4 patients have labels, expected 5 \(2 test, 1 validation, 2 gold\)"
    ):
        drawn([*many(4), *many(3, "MR", labeled=False)], SMALL)


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.booleans(), st.sampled_from(["CT", "MR"])), min_size=1, max_size=40
    ),
    st.integers(0, 5),
)
def test_a_patient_never_straddles(visits: list[tuple[int, bool, str]], seed: int) -> None:
    cases = [case(f"c{i}", f"p{p}", labeled, m) for i, (p, labeled, m) in enumerate(visits)]
    try:
        roles = drawn(cases, SplitSettings(seed=seed, gold=1, validation=1, test=1))
    except ArchiveError:
        return
    held: dict[str, set[Role]] = {}
    for one in cases:
        held.setdefault(one.patient, set()).add(roles[one.case])
        assert one.label or roles[one.case] is Role.UNLABELED
    assert all(len(of_patient) == 1 for of_patient in held.values())
    assert Counter(next(iter(r)) for r in held.values())[Role.TEST] == 1


# --- told by splits.json ------------------------------------------------------------------


def test_told_roles_are_taken_and_the_rest_is_unlabeled() -> None:
    told = {"CT00": Role.GOLD, "CT01": Role.VALIDATION, "CT02": Role.TEST}
    assert checked(many(4), told) == {**told, "CT03": Role.UNLABELED}


def test_where_unlabeled_cases_are_told_the_rest_is_left_out() -> None:
    told = {"CT00": Role.GOLD, "CT01": Role.UNLABELED}
    assert checked(many(4), told) == told


def test_a_labeled_split_needs_labels() -> None:
    with pytest.raises(ArchiveError, match="gives CT00, CT01 a labeled split"):
        checked(many(3, labeled=False), {"CT00": Role.GOLD, "CT01": Role.TEST})


def test_a_patient_in_two_splits_is_refused_by_name() -> None:
    cases = [case("a1", "anna"), case("a2", "anna"), case("b", "bert")]
    with pytest.raises(ArchiveError, match="1 patients are in two splits: anna in gold and test"):
        checked(cases, {"a1": Role.GOLD, "a2": Role.TEST, "b": Role.TEST})


def test_an_unlisted_visit_of_a_test_patient_is_refused_too() -> None:
    cases = [case("a1", "anna"), case("a2", "anna")]
    with pytest.raises(ArchiveError, match="anna in test and unlabeled"):
        checked(cases, {"a1": Role.TEST})
