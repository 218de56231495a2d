"""Roles by patient: nobody straddles, and the draw is the same every time."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.archive import splits
from tutelage.archive.importers import Found
from tutelage.archive.settings import SplitSettings
from tutelage.errors import ArchiveError
from tutelage.records import Role

SMALL = SplitSettings(gold=2, validation=1, test=2)


def case(name: str, patient: str | None = None, labeled: bool = True, modality: str = "CT") -> Found:
    return Found(name, patient or name, f"/{name}.nii", f"/{name}_label.nii" if labeled else None, modality)


def many(count: int, modality: str = "CT", labeled: bool = True) -> list[Found]:
    return [case(f"{modality}{i:02d}", modality=modality, labeled=labeled) for i in range(count)]


def columns(found: Sequence[Found]) -> pa.Table:
    """Return what splits work on: columns in order of case."""
    ordered = sorted(found, key=lambda one: one.case)
    names = ("case", "patient", "label", "modality", "role")
    told = {name: [getattr(one, name) for one in ordered] for name in names}
    return pa.table(told, pa.schema([(name, pa.string()) for name in names]))


def by_case(table: pa.Table, roles: pa.Array) -> dict[str, Role]:
    pairs = zip(table["case"].to_pylist(), roles.to_pylist(), strict=True)
    return {name: Role(role) for name, role in pairs if role is not None}


def drawn(found: Sequence[Found], how: SplitSettings) -> dict[str, Role]:
    table = columns(found)
    return by_case(table, splits.drawn(table, how))


def checked(found: Sequence[Found], told: Mapping[str, Role]) -> dict[str, Role]:
    table = columns(found)
    table = table.set_column(4, "role", splits.roles_told(told, table["case"]))
    return by_case(table, splits.checked(table, splits.Told("splits.json", Role.UNLABELED in told.values())))


def drawn_plainly(found: Sequence[Found], how: SplitSettings) -> dict[str, Role]:
    """The draw as one would write it down, patient by patient."""
    patients: dict[str, list[Found]] = defaultdict(list)
    for one in sorted(found, key=lambda one: one.case):
        patients[one.patient].append(one)
    groups: dict[str, list[str]] = defaultdict(list)
    for patient in sorted(patients):
        groups[patients[patient][0].modality].append(patient)
    rng = np.random.default_rng(how.seed)
    shuffled = [[groups[m][i] for i in rng.permutation(len(groups[m]))] for m in sorted(groups)]
    longest = max(map(len, shuffled))
    order = [group[i] for i in range(longest) for group in shuffled if i < len(group)]
    labeled = iter([p for p in order if all(one.label for one in patients[p])])
    roles = {}
    for role, count in ((Role.TEST, how.test), (Role.VALIDATION, how.validation), (Role.GOLD, how.gold)):
        for patient in [next(labeled) for _ in range(count)]:
            roles.update({one.case: role for one in patients[patient]})
    rest = [one.case for p in order for one in patients[p] if one.case not in roles]
    return roles | dict.fromkeys(rest[: how.unlabeled], Role.UNLABELED)


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
    st.integers(0, 40) | st.none(),
)
def test_a_patient_never_straddles_and_the_draw_is_the_plain_one(
    visits: list[tuple[int, bool, str]], seed: int, unlabeled: int | None
) -> None:
    cases = [case(f"c{i}", f"p{p}", labeled, m) for i, (p, labeled, m) in enumerate(visits)]
    small = SplitSettings(seed=seed, gold=1, validation=1, test=1)
    try:
        roles = drawn(cases, small)
    except ArchiveError:
        return
    capped = small.model_copy(update={"unlabeled": unlabeled})
    assert drawn(cases, capped) == drawn_plainly(cases, capped)
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
