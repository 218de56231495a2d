"""Cases as columns: they behave like a sequence of cases, and like sets of ids."""

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.archive.cases import COLUMNS, Cases, case_of, digest, row_of
from tutelage.geometry import Grid
from tutelage.records import Case, Role


def case(number: int, label: str | None = None) -> Case:
    grid = Grid.from_spacing((3, 4, 5 + number), (3.0, 1.0, 1.0 + number))
    return Case(
        case=f"c{number:03d}",
        patient=f"p{number}",
        role=Role.GOLD if label else Role.UNLABELED,
        image=f"/images/c{number}.nii",
        label=label,
        hidden=None,
        modality="CT" if number % 2 else "MR",
        grid=grid,
        channels=1,
        stamp=f"{number}-17",
    )


ONES = [case(0), case(1, "/labels/c1.nii"), case(2), case(3), case(4)]


@pytest.fixture
def cases() -> Cases:
    return Cases.of(ONES)


def test_a_case_survives_being_a_row() -> None:
    for one in ONES:
        assert case_of(row_of(one)) == one
        assert case_of(row_of(one) | {"of": "whatever"}) == one


def test_a_row_of_numpy_values_is_a_case_too() -> None:
    row = row_of(ONES[1])
    odd = row | {"shape": np.array(row["shape"]), "affine": np.array(row["affine"]), "channels": np.int64(1)}
    again = case_of(odd)
    assert again == ONES[1]
    assert (type(again.channels), type(again.grid.shape[0])) == (int, int)


def test_they_are_a_sequence(cases: Cases) -> None:
    assert len(cases) == 5
    assert list(cases) == ONES
    assert [cases[i] for i in (0, 4, -1, -5)] == [ONES[i] for i in (0, 4, -1, -5)]
    for cut in (slice(1, 3), slice(None, None, 2), slice(3, 1), slice(-2, None), slice(9, 2, -1)):
        assert list(cases[cut]) == ONES[cut]
    for far in (5, -6):
        with pytest.raises(IndexError, match="there are 5 cases"):
            cases[far]
    assert not Cases.of([])
    assert [*cases, ONES[0]] == [*ONES, ONES[0]]


def test_they_are_equal_by_what_they_hold(cases: Cases) -> None:
    again = Cases(pa.concat_tables([cases.table.slice(0, 2), cases.table.slice(2)]))
    assert again == cases
    assert cases != cases[1:]
    assert cases != ONES
    assert cases.table.column_names == list(COLUMNS)


@pytest.mark.parametrize("kind", ["set", "array", "chunked", "large strings", "dictionary"])
def test_cases_are_kept_or_left_out_by_id(cases: Cases, kind: str) -> None:
    names = pa.array(["c001", "c003", "nobody"])
    ids = {
        "set": set(names.to_pylist()),
        "array": names,
        "chunked": pa.chunked_array([names.slice(0, 1), names.slice(1)]),
        "large strings": names.cast(pa.large_string()),
        "dictionary": names.dictionary_encode(),
    }[kind]
    assert cases.only(ids).ids().to_pylist() == ["c001", "c003"]
    assert cases.without(ids).ids().to_pylist() == ["c000", "c002", "c004"]


def test_nothing_left_out_is_everything(cases: Cases) -> None:
    nothing: list[Any] = [(), set(), pa.array([], pa.string()), pa.array([], pa.null())]
    for none in nothing:
        assert cases.without(none) == cases
        assert len(cases.only(none)) == 0


def test_a_case_is_found_by_its_id(cases: Cases) -> None:
    assert cases.find("c003") == 3
    assert cases.find("c009") is None


def test_a_slice_pickles_as_what_it_holds() -> None:
    many = Cases.of([case(i) for i in range(500)])
    few = many[100:103]
    assert pickle.loads(pickle.dumps(few)) == few
    assert len(pickle.dumps(few)) < len(pickle.dumps(many)) / 10


def test_cases_are_counted_by_columns(cases: Cases) -> None:
    assert cases.counts("role") == {("gold",): 1, ("unlabeled",): 4}
    assert cases.counts("modality", "role") == {
        ("CT", "gold"): 1,
        ("CT", "unlabeled"): 1,
        ("MR", "unlabeled"): 3,
    }


def test_identity_is_of_files_and_not_of_how_the_table_is_cut(cases: Cases) -> None:
    same = Cases(pa.concat_tables([cases.table.slice(0, 2), cases.table.slice(2, 2), cases.table.slice(4)]))
    assert same.identity() == cases.identity()
    other = Cases(cases.table.set_column(3, "image", pa.array([f"/elsewhere/{i}" for i in range(5)])))
    assert len({cases.identity(), other.identity(), cases[:4].identity(), cases[1:].identity()}) == 4


def test_identity_is_of_labels_as_they_were_scanned_and_of_no_hidden_one() -> None:
    shown = replace(case(0), role=Role.GOLD, label="/labels/0", label_stamp="9-1")
    hidden = replace(case(1), role=Role.UNLABELED, label=None, hidden="/labels/1", label_stamp="9-1")
    before = Cases.of([shown, hidden])
    assert before.label_stamps().to_pylist() == ["9-1", None]
    assert Cases.of([shown, replace(hidden, label_stamp="9-2")]).identity() == before.identity()
    assert Cases.of([replace(shown, label_stamp="9-2"), hidden]).identity() != before.identity()


TEXT = st.none() | st.text(st.sampled_from("aé"), max_size=2)


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(
    st.lists(st.tuples(TEXT, TEXT), max_size=4),
    st.lists(st.tuples(TEXT, TEXT), max_size=4),
    st.integers(0, 4),
)
def test_digests_are_equal_exactly_where_columns_are(
    left: list[tuple[str | None, str | None]], right: list[tuple[str | None, str | None]], cut: int
) -> None:
    def table(rows: list[tuple[str | None, str | None]]) -> pa.Table:
        text = pa.schema([("a", pa.string()), ("b", pa.string())])
        return pa.table({"a": [a for a, _ in rows], "b": [b for _, b in rows]}, text)

    one, other = table(left), table(right)
    pieces = pa.concat_tables([one.slice(0, cut), one.slice(cut)])
    assert digest(pieces, ["a", "b"]) == digest(one, ["a", "b"])
    assert (digest(one, ["a", "b"]) == digest(other, ["a", "b"])) == (left == right)
