"""The catalog as Parquet: one row a case, one row a file set aside.

Decides columns and nothing else. cases.parquet is written last and carries the names of
structures; what it vouches for is complete.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.errors import WorkspaceError
from tutelage.geometry import Grid
from tutelage.records import Case, Quarantined, Role
from tutelage.storage import Place

_STRUCTURES = b"structures"


@dataclass(frozen=True, slots=True)
class Row:
    """A case, and what only the next scan wants to know."""

    case: Case
    label_stamp: str
    """Stamp of the label or hidden label; empty without one."""


def write_rows(
    folder: Place, rows: Sequence[Row], quarantined: Sequence[Quarantined], structures: Sequence[str]
) -> None:
    """Replace a folder's catalog."""
    import pyarrow as pa

    text = pa.string()
    schema = pa.schema(
        [(name, text) for name in ("case", "patient", "role", "image", "label", "hidden", "modality")]
        + [("shape", pa.list_(pa.int64(), 3)), ("affine", pa.list_(pa.float64(), 12))]
        + [("channels", pa.int64()), ("stamp", text), ("label_stamp", text)],
        metadata={_STRUCTURES: json.dumps(list(structures))},
    )
    bad = pa.schema([("address", text), ("reason", text)])
    listed = [{"address": one.address, "reason": one.reason} for one in quarantined]
    _write(folder / "quarantine.parquet", pa.Table.from_pylist(listed, bad))
    _write(folder / "cases.parquet", pa.Table.from_pylist([_values(row) for row in rows], schema))


def read_rows(folder: Place) -> tuple[list[Row], list[Quarantined], tuple[str, ...]]:
    """Return a folder's catalog.

    Raises:
        WorkspaceError: there is none, or it is damaged.
    """
    cases, bad = _read(folder / "cases.parquet"), _read(folder / "quarantine.parquet")
    try:
        structures = tuple(json.loads(cases.schema.metadata[_STRUCTURES]))
        rows = [_row(values) for values in cases.to_pylist()]
        quarantined = [Quarantined(**values) for values in bad.to_pylist()]
    except (KeyError, TypeError, ValueError) as error:
        raise WorkspaceError(
            f"{folder} holds no catalog of this version ({error!r}), expected its columns; scan again"
        ) from None
    return rows, quarantined, structures


def _values(row: Row) -> dict[str, Any]:
    case = row.case
    return {
        "case": case.case,
        "patient": case.patient,
        "role": case.role.value,
        "image": case.image,
        "label": case.label,
        "hidden": case.hidden,
        "modality": case.modality,
        "shape": list(case.grid.shape),
        "affine": [value for line in case.grid.affine for value in line],
        "channels": case.channels,
        "stamp": case.stamp,
        "label_stamp": row.label_stamp,
    }


def _row(values: dict[str, Any]) -> Row:
    label_stamp = values.pop("label_stamp")
    d, h, w = values.pop("shape")
    numbers = values.pop("affine")
    affine = tuple(tuple(numbers[start : start + 4]) for start in (0, 4, 8))
    case = Case(grid=Grid((d, h, w), affine), **(values | {"role": Role(values["role"])}))
    return Row(case, label_stamp)


def _write(place: Place, table: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    place.write_bytes(sink.getvalue().to_pybytes())


def _read(place: Place) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(pa.BufferReader(place.read_bytes()))
    except FileNotFoundError:
        raise WorkspaceError(f"{place} does not exist, expected a catalog; run `tutelage catalog`") from None
    except pa.ArrowException as error:
        raise WorkspaceError(f"{place} is damaged ({error}), expected a catalog; scan again") from None
