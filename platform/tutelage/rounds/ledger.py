"""The ledger: one row a case, structure and round, saying what was believed and on what grounds.

It holds content only (digests, numbers, reasons), no times and no paths, so that two
campaigns that did the same with the same code have the same ledger. What a digest stands for
lies in the stage of the round: the candidate and the label under the case's name, the specialist
that prompted in the stage before. Prompts are drawn anew from the specialist's mask in
the candidate, by settings and seed alone; their digest tells whether they come out the same.

Rows are in order of round, then of case, and every group of rows is about one round: a
reader takes what it wants and leaves the rest unread. It is written a few cases at a time, so
that an archive of any size passes through. Reading it is `recounting`'s business.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tutelage.labels.rows import Row, flat, rows_of
from tutelage.storage import Place

if TYPE_CHECKING:
    import pyarrow as pa

    from tutelage.rounds.corrected import Correction

CORRECTED = "corrected"
"""In place of a ruling: a person has corrected the case's label, and it is annotated from this round on."""

GATES = (
    *("agreement", "consensus", "variance", "entropy", "predicted_iou", "predicted_dice", "dice_low"),
    *("generalist_ml", "specialist_ml", "components", "outside_prior"),
    *("relations_checked", "relations_violated", "notes_expect"),
)
"""Numbers that a verdict rests on, each with a column; what else it rests on is in `other_gates`."""

_TEXTS = (
    *("round", "case", "structure", "ruling", "reasons", "corrected_by"),
    *("image", "specialist", "generalist", "candidate", "label", "mask"),
    *("priors", "curation", "calibration", "settings", "code"),
    *("without_priors", "with_priors", "prompt_kinds", "prompt_digest", "other_gates"),
)
_NUMBERS = ("weight", *GATES)

_GROUP_ROWS = 16384
_CASES_AT_ONCE = 1024


def schema() -> "pa.Schema":
    """Return the ledger's columns."""
    import pyarrow as pa

    return pa.schema(
        [(name, pa.string()) for name in _TEXTS]
        + [(name, pa.float64()) for name in _NUMBERS]
        + [("prompts", pa.int64())]
    )


def write(
    place: Place,
    round_name: str,
    labeled: "pa.Table",
    curated: "pa.Table",
    structures: Sequence[str],
    fingerprints: Mapping[str, str | None],
    corrections: "Mapping[str, Correction] | None" = None,
    annotated: Sequence[str] = (),
) -> dict[str, int]:
    """Join what labeling and curation said about each case, write it, and count rulings.

    Both tables are in order of case, as rows are read.
    `corrections` say by case who corrected its label, ever; cases that are `annotated` for it in this
    round, in order, have rows that say so, though nobody was asked about them.
    """
    held = corrections or {}
    rulings: Counter[str] = Counter()
    ruled = (
        row | {"corrected_by": held[row["case"]].by if row["case"] in held else None}
        for case in _joined(labeled, curated)
        for index, structure in enumerate(structures)
        for row in [_row(round_name, case, structure, index, fingerprints)]
    )
    by_hand = (
        _by_hand(round_name, held[case], structure, index, fingerprints)
        for case in annotated
        for index, structure in enumerate(structures)
    )

    def counted() -> Iterator[Row]:
        for row in heapq.merge(ruled, by_hand, key=lambda row: str(row["case"])):
            if row["ruling"] != CORRECTED:  # nobody ruled on those
                rulings[row["ruling"]] += 1
            yield row

    _stream(place, _tables(counted()))
    return dict(sorted(rulings.items()))


def join(parts: Sequence[Place], whole: Place) -> None:
    """Put the rounds' ledgers into one."""
    _stream(whole, (table for part in parts for table in _groups(part)))


def mark(place: Place, corrections: "Mapping[str, Correction]") -> None:
    """Say in a round's ledger who has corrected which case since."""
    import pyarrow as pa
    import pyarrow.compute as pc

    cases = pa.array(list(corrections), pa.string())
    names = pa.array([correction.by for correction in corrections.values()], pa.string())

    def marked() -> Iterator[pa.Table]:
        for table in _groups(place):
            by = names.take(pc.index_in(table["case"], value_set=cases).combine_chunks())
            by = pc.coalesce(by, table["corrected_by"])
            yield table.set_column(table.column_names.index("corrected_by"), "corrected_by", by)

    _stream(place, marked())


# --- files --------------------------------------------------------------------------------


def _groups(place: Place) -> Iterator["pa.Table"]:
    """Yield a ledger's groups of rows; what an earlier version did not write is empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with place.open() as stream:
        file = pq.ParquetFile(stream)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            there = set(table.column_names)
            columns = [table[f.name] if f.name in there else pa.nulls(len(table), f.type) for f in schema()]
            yield pa.table(columns, schema())


def _tables(rows: Iterable[Row]) -> Iterator["pa.Table"]:
    """Put rows into tables of a group each."""
    import pyarrow as pa

    waiting: list[Row] = []
    for row in rows:
        waiting.append(flat(row))
        if len(waiting) >= _GROUP_ROWS:
            yield pa.Table.from_pylist(waiting, schema())
            waiting = []
    yield pa.Table.from_pylist(waiting, schema())


def _stream(place: Place, tables: Iterator["pa.Table"]) -> None:
    """Write tables one after the other as one file, whole or not at all."""
    import pyarrow.parquet as pq

    with place.writing() as stream, pq.ParquetWriter(stream, schema(), compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)


# --- rows ---------------------------------------------------------------------------------


def _joined(labeled: "pa.Table", curated: "pa.Table") -> Iterator[Row]:
    """Yield what labeling said of each case, and what curation said in columns of its own; both in order."""
    import pyarrow.compute as pc

    columns = [name for name in ("label", "masks", "verdicts", "reason") if name in curated.column_names]
    told = curated.select(columns).rename_columns([f"curated {name}" for name in columns])
    where = pc.index_in(labeled["case"], value_set=curated["case"])
    for start in range(0, len(labeled), _CASES_AT_ONCE):
        rows = where.slice(start, _CASES_AT_ONCE)
        first, last = (pc.fill_null(end(rows), 0).as_py() for end in (pc.min, pc.max))
        # Taken from what lies together: taking from all of it would copy all of it.
        verdicts = told.slice(first, last - first + 1).take(pc.subtract(rows, first))
        answers = labeled.slice(start, _CASES_AT_ONCE)
        for answer, verdict in zip(rows_of(answers), rows_of(verdicts), strict=True):
            yield answer | verdict


def _row(
    round_name: str, case: Row, structure: str, index: int, fingerprints: Mapping[str, str | None]
) -> dict[str, Any]:
    verdict = (case.get("curated verdicts") or {index: {}})[index]
    features = verdict.get("features", {})
    failed = case["reason"] or case.get("curated reason")
    reasons = list(verdict.get("reasons", [])) or ([failed] if failed else [])
    prompted = (case.get("prompted") or {index: {}})[index]
    return {
        "round": round_name,
        "case": case["case"],
        "structure": structure,
        "ruling": verdict.get("ruling", "failed"),
        "weight": verdict.get("weight", 0.0),
        "reasons": reasons,
        "without_priors": verdict.get("without_priors"),
        "with_priors": verdict.get("with_priors"),
        **{name: features.get(name) for name in GATES},
        "other_gates": {name: value for name, value in features.items() if name not in GATES} or None,
        "prompts": case.get("prompts"),
        "prompt_kinds": prompted.get("kinds"),
        "prompt_digest": prompted.get("digest"),
        **{name: case.get(name) for name in ("image", "specialist", "generalist", "candidate")},
        "label": case.get("curated label"),
        "mask": (case.get("curated masks") or {index: None})[index],
        **fingerprints,
    }


def _by_hand(
    round_name: str,
    correction: "Correction",
    structure: str,
    index: int,
    fingerprints: Mapping[str, str | None],
) -> dict[str, Any]:
    """The row of a case that a person has annotated."""
    return {
        "round": round_name,
        "case": correction.case,
        "structure": structure,
        "ruling": CORRECTED,
        "weight": 1.0,
        "reasons": [f"corrected by {correction.by} on {correction.when[:10]}, annotated since"],
        "corrected_by": correction.by,
        "image": correction.image,
        "label": correction.digest,
        "mask": correction.masks[index],
        **fingerprints,
    }
