"""The ledger, written and read: every case, structure and round, in order and in little memory."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tutelage.errors import SettingsError, WorkspaceError
from tutelage.labels.rows import Rows, flat, read_table
from tutelage.rounds import ledger, recounting
from tutelage.rounds.corrected import Correction
from tutelage.rounds.recounting import Change, Wanted
from tutelage.rounds.workspace import Workspace
from tutelage.storage import Place

pytestmark = pytest.mark.files

STRUCTURES = ("liver", "spleen")


def answered(case: str, specialist: str = "s0", **more: Any) -> dict[str, Any]:
    """A row of labeling."""
    told = {"image": f"i-{case}", "specialist": specialist, "generalist": "g", "candidate": f"c-{case}"}
    prompted = [{"kinds": {"boxes": 3, "points": 0, "masks": 0}, "digest": "d1"}] * 2
    return {"case": case, "outcome": "done", "reason": "", "prompts": 6, "prompted": prompted} | told | more


def ruled(case: str, liver: str, spleen: str, mask: str = "m", agreement: float = 0.8) -> dict[str, Any]:
    """A row of curation."""
    features = {"agreement": agreement, "specialist_ml": 9.0, "generalist_ml": 8.0, "distance": 0.7}
    verdicts = [
        {
            "ruling": ruling,
            "weight": float(ruling == "accept"),
            "features": features,
            "reasons": [] if ruling == "accept" else ["too small"],
        }
        for ruling in (liver, spleen)
    ]
    told = {"label": f"l-{case}-{mask}", "masks": [f"{mask}1", f"{mask}2"], "verdicts": verdicts}
    return {"case": case, "outcome": "done", "reason": ""} | told


def table(folder: Path, rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as a step would have them."""
    kept = Rows(Place.of(folder))
    with kept:
        for row in rows:
            kept.add(row)
    return kept.table()


def correction(case: str, since: int = 1, by: str = "Ada") -> Correction:
    return Correction(
        case, by, "2026-01-02 03:04:05", since, "r00", "i", "1-2", "x.nii.gz", "dd", ("n1", None)
    )


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Two rounds: b is accepted, c rejected and d's label changed in the second; e is new in it."""
    told = Workspace(Place.of(tmp_path / "ws"))
    first = [ruled(c, "accept" if c != "b" else "reject", "reject", "m") for c in "abcd"]
    second = [
        *(ruled("a", "accept", "reject"), ruled("b", "accept", "reject", agreement=0.9)),
        *(
            ruled("c", "reject", "partial"),
            ruled("d", "accept", "reject", "n"),
            ruled("e", "accept", "accept"),
        ),
    ]
    for number, rows in enumerate((first, second)):
        labeled = table(tmp_path / f"l{number}", [answered(r["case"], f"s{number}") for r in rows])
        curated = table(tmp_path / f"c{number}", rows)
        place = told.stage(number) / "ledger.parquet"
        ledger.write(place, f"r0{number}", labeled, curated, STRUCTURES, {"priors": "p", "code": "1+abc"})
    ledger.join([told.stage(n) / "ledger.parquet" for n in (0, 1)], told.ledger)
    return told


def keys(rows: Iterator[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(row["round"], row["case"], row["structure"]) for row in rows]


def test_a_row_holds_every_digest_and_gate_and_why(workspace: Workspace) -> None:
    (row,) = recounting.rows(workspace, Wanted("c", "spleen", 1))
    digests = {
        name: row[name] for name in ("image", "specialist", "generalist", "candidate", "label", "mask")
    }
    assert digests == {
        "image": "i-c",
        "specialist": "s1",
        "generalist": "g",
        "candidate": "c-c",
        "label": "l-c-m",
        "mask": "m2",
    }
    assert (row["priors"], row["code"], row["corrected_by"]) == ("p", "1+abc", None)
    assert (row["ruling"], row["weight"], row["reasons"]) == ("partial", 0.0, ["too small"])
    assert (row["prompts"], row["prompt_digest"]) == (6, "d1")
    assert row["prompt_kinds"] == {"boxes": 3, "points": 0, "masks": 0}
    assert row["agreement"] == 0.8


def test_a_gate_that_has_no_column_is_not_lost(workspace: Workspace) -> None:
    row = next(recounting.rows(workspace, Wanted(case="a")))
    assert row["other_gates"] == {"distance": 0.7}


def test_rounds_are_joined_in_order(workspace: Workspace) -> None:
    joined = keys(read_table(workspace.ledger))
    assert joined == sorted(joined)
    assert len(set(joined)) == len(joined) == 2 * (4 + 5)
    assert joined == keys(recounting.rows(workspace, Wanted()))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(case="a"), 4),
        (Wanted(structure="liver", round=0), 4),
        (Wanted(verdict="accept"), 3 + 5),
        (Wanted(case="e", round=0), 0),
        (Wanted("b", "liver", 1, "accept"), 1),
    ],
)
def test_rows_are_found_by_what_is_asked(workspace: Workspace, wanted: Wanted, expected: int) -> None:
    assert len(list(recounting.rows(workspace, wanted))) == expected


def test_what_is_not_there_is_told_with_what_is(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="no r07, it has r00, r01"):
        recounting.rows(workspace, Wanted(round=7))
    with pytest.raises(SettingsError, match="expected one of accept, partial"):
        recounting.rows(workspace, Wanted(verdict="good"))
    with pytest.raises(WorkspaceError, match="no ledger yet"):
        recounting.rows(Workspace(Place.of(tmp_path / "empty")), Wanted())


# --- what changed -------------------------------------------------------------------------


def changes(workspace: Workspace) -> dict[tuple[str, str], Change]:
    found = recounting.compared(workspace, 0, 1)
    return {(change.case, change.structure): change for change in found}


def test_every_kind_of_change_is_told_from_the_others(workspace: Workspace) -> None:
    told = {key: change.kind for key, change in changes(workspace).items()}
    assert told == {
        ("a", "liver"): "same",
        ("a", "spleen"): "same",
        ("b", "liver"): "newly accepted",
        ("b", "spleen"): "same",
        ("c", "liver"): "newly rejected",
        ("c", "spleen"): "newly partial",
        ("d", "liver"): "label changed",
        ("d", "spleen"): "same",  # nothing is believed of it in either round
        ("e", "liver"): "appeared",
        ("e", "spleen"): "appeared",
    }


def test_backward_what_appeared_is_gone(workspace: Workspace) -> None:
    back = {change.kind for change in recounting.compared(workspace, 1, 0) if change.case == "e"}
    assert back == {"gone"}


def test_a_difference_counts_all_and_keeps_few(workspace: Workspace) -> None:
    found = recounting.difference(workspace, 0, 1, most=1)
    assert found.counts["same"] == 4
    assert found.counts["appeared"] == 2
    assert found.by_structure["liver"] == {
        "same": 1, "newly accepted": 1, "newly rejected": 1, "label changed": 1, "appeared": 1
    }  # fmt: skip
    assert found.agreement["liver"] == pytest.approx((0.8, 0.825))
    assert [change.kind for change in found.changes][:3] == [
        "newly accepted",
        "newly rejected",
        "label changed",
    ]
    assert len([change for change in found.changes if change.kind == "appeared"]) == 1
    assert len(recounting.difference(workspace, 0, 1, most=0).changes) == 6


# --- corrected by people ------------------------------------------------------------------


def test_a_case_that_is_annotated_since_has_rows_among_the_others(
    workspace: Workspace, tmp_path: Path
) -> None:
    rows = [ruled("a", "accept", "reject"), ruled("c", "accept", "reject")]
    place = tmp_path / "with.parquet"
    counts = ledger.write(
        Place.of(place),
        "r02",
        table(tmp_path / "l", [answered(row["case"]) for row in rows]),
        table(tmp_path / "c", rows),
        STRUCTURES,
        {"code": "1"},
        {"b": correction("b"), "c": correction("c", since=9, by="Bob")},
        ["b"],
    )
    told = list(read_table(Place.of(place)))
    assert [row["case"] for row in told] == ["a", "a", "b", "b", "c", "c"]
    assert counts == {"accept": 2, "reject": 2}
    assert [row["corrected_by"] for row in told] == [None, None, "Ada", "Ada", "Bob", "Bob"]
    assert told[2]["label"] == "dd"
    assert [row["mask"] for row in told[2:4]] == ["n1", None]
    assert "corrected by Ada on 2026-01-02" in told[2]["reasons"][0]


def test_earlier_rounds_say_who_corrected_a_case_since(workspace: Workspace) -> None:
    place = workspace.stage(0) / "ledger.parquet"
    before = list(read_table(place))
    ledger.mark(place, {"b": correction("b")})
    after = list(read_table(place))
    assert {row["case"] for row in after if row["corrected_by"] == "Ada"} == {"b"}
    assert [row | {"corrected_by": None} for row in after] == before


def test_a_ledger_of_an_earlier_version_can_still_be_joined_and_read(workspace: Workspace) -> None:
    import pyarrow.parquet as pq

    place = workspace.stage(0) / "ledger.parquet"
    old = pq.read_table(place.uri).drop_columns(["mask", "code", "dice_low", "corrected_by"])
    pq.write_table(old, place.uri)
    ledger.join([workspace.stage(n) / "ledger.parquet" for n in (0, 1)], workspace.ledger)
    assert len(list(read_table(workspace.ledger))) == 18
    assert next(recounting.rows(workspace, Wanted(round=0)))["code"] is None


# --- size ---------------------------------------------------------------------------------


def grown(folder: Path, rows: int) -> Workspace:
    """A workspace with a round of so many rows."""
    made = Workspace(Place.of(folder))

    def told() -> Iterator[dict[str, Any]]:
        for n in range(rows // 2):
            for structure in STRUCTURES:
                text = {"round": "r00", "case": f"case-{n:07d}", "structure": structure, "image": f"{n:016x}"}
                yield text | {"ruling": "accept" if n % 2 else "reject", "weight": 1.0, "reasons": [f"{n}"]}

    ledger._stream(made.stage(0) / "ledger.parquet", ledger._tables(told()))
    return made


def test_reading_holds_a_few_groups_of_rows_and_never_all(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    workspace = grown(tmp_path, 160_000)
    file = pq.ParquetFile((workspace.stage(0) / "ledger.parquet").uri)
    group = file.read_row_group(0).nbytes
    assert file.num_row_groups > 9
    found = recounting.rows(workspace, Wanted(verdict="accept"))
    before, count, peak = pa.total_allocated_bytes(), 0, 0
    for count, _ in enumerate(found, start=1):
        if count % 500 == 0:
            peak = max(peak, pa.total_allocated_bytes() - before)
    assert count == 80_000
    assert 0 < peak < 5 * group  # how many are read ahead is a matter of threads


def test_writing_holds_a_few_groups_of_rows_whatever_a_round_comes_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "_GROUP_ROWS", 256)
    monkeypatch.setattr(ledger, "_CASES_AT_ONCE", 128)

    def given(row: dict[str, Any], cases: int) -> pa.Table:
        names = pa.array([f"case-{n:07d}" for n in range(cases)])
        return pa.table({"case": names} | {k: [v] * cases for k, v in flat(row).items() if k != "case"})

    def peak_bytes(cases: int) -> int:
        place = Place.of(tmp_path / f"{cases}.parquet")
        both = given(answered("x"), cases), given(ruled("x", "accept", "reject"), cases)
        tracemalloc.start()
        try:
            assert ledger.write(place, "r00", *both, STRUCTURES, {})["accept"] == cases
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak_bytes(300)  # what is imported now is not counted below
    assert peak_bytes(3000) < 1.3 * peak_bytes(600)


def test_one_case_is_found_without_reading_the_others(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    workspace = grown(tmp_path, 100_000)
    file = pq.ParquetFile((workspace.stage(0) / "ledger.parquet").uri)
    column = file.schema_arrow.names.index("case")
    spans = [file.metadata.row_group(g).column(column).statistics for g in range(file.num_row_groups)]
    holding = [span for span in spans if span.min <= "case-0020000" <= span.max]
    assert len(holding) == 1 < len(spans)
    assert len(list(recounting.rows(workspace, Wanted(case="case-0020000")))) == 2
