"""The ledger: one row a case, structure and round, saying what was believed and on what grounds.

It holds content only (digests, numbers, reasons), no times and no paths, so that two
campaigns that did the same have the same ledger. It is written as it is read, a few cases
at a time: an archive of any size passes through.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tutelage.labels.rows import Row, flat, rows_of
from tutelage.storage import Place

if TYPE_CHECKING:
    import pyarrow as pa

_TEXTS = ("round", "case", "structure", "ruling", "reasons", "image", "specialist", "generalist")
_MORE_TEXTS = ("candidate", "label", "priors", "curation", "without_priors", "with_priors")
_NUMBERS = ("weight", "agreement", "consensus", "generalist_ml", "specialist_ml", "components")
_MORE_NUMBERS = ("variance", "predicted_iou", "relations_checked", "relations_violated", "notes_expect")

_GROUP_ROWS = 16384


def schema() -> "pa.Schema":
    """Return the ledger's columns."""
    import pyarrow as pa

    return pa.schema(
        [(name, pa.string()) for name in (*_TEXTS, *_MORE_TEXTS)]
        + [(name, pa.float64()) for name in (*_NUMBERS, *_MORE_NUMBERS)]
        + [("prompts", pa.int64())]
    )


def write(
    place: Place,
    round_name: str,
    labeled: "pa.Table",
    curated: "pa.Table",
    structures: Sequence[str],
    fingerprints: Mapping[str, str],
) -> dict[str, int]:
    """Join what labeling and curation said about each case, write it, and count rulings."""
    import pyarrow as pa

    columns = [name for name in ("label", "verdicts", "reason") if name in curated.column_names]
    told = curated.select(["case", *columns]).rename_columns(["case", *(f"curated {c}" for c in columns)])
    joined = labeled.join(told, "case", join_type="left outer").sort_by("case")
    rulings: Counter[str] = Counter()

    def tables() -> Iterator[pa.Table]:
        waiting: list[Row] = []
        for case in rows_of(joined):
            for index, structure in enumerate(structures):
                row = _row(round_name, case, structure, index, fingerprints)
                rulings[row["ruling"]] += 1
                waiting.append(flat(row))
            if len(waiting) >= _GROUP_ROWS:
                yield pa.Table.from_pylist(waiting, schema())
                waiting = []
        yield pa.Table.from_pylist(waiting, schema())

    _stream(place, tables())
    return dict(sorted(rulings.items()))


def join(parts: Sequence[Place], whole: Place) -> None:
    """Put the rounds' ledgers into one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def tables() -> Iterator[pa.Table]:
        for part in parts:
            file = pq.ParquetFile(pa.BufferReader(part.read_bytes()))
            for group in range(file.num_row_groups):
                yield file.read_row_group(group)

    _stream(whole, tables())


def _stream(place: Place, tables: Iterator["pa.Table"]) -> None:
    """Write tables one after the other as one file, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema(), compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
    place.write_bytes(sink.getvalue())


def _row(
    round_name: str, case: Row, structure: str, index: int, fingerprints: Mapping[str, str]
) -> dict[str, Any]:
    verdict = (case.get("curated verdicts") or {index: {}})[index]
    features = verdict.get("features", {})
    reasons = list(verdict.get("reasons", [])) or [case["reason"] or case.get("curated reason") or ""]
    return {
        "round": round_name,
        "case": case["case"],
        "structure": structure,
        "ruling": verdict.get("ruling", "failed"),
        "weight": verdict.get("weight", 0.0),
        "reasons": reasons,
        "without_priors": verdict.get("without_priors"),
        "with_priors": verdict.get("with_priors"),
        **{name: features.get(name) for name in (*_NUMBERS[1:], *_MORE_NUMBERS)},
        "prompts": case.get("prompts"),
        **{name: case.get(name) for name in ("image", "specialist", "generalist", "candidate")},
        "label": case.get("curated label"),
        **fingerprints,
    }
