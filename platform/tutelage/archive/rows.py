"""The catalog as Parquet: one row a case, one row a file set aside.

Decides files and nothing else. cases.parquet is written last and carries the names of
structures; what it vouches for is complete. Rows lie in groups, so that a reader can take a
few at a time.
"""

import json
from collections.abc import Sequence
from typing import Any

from tutelage.archive.cases import schema
from tutelage.errors import WorkspaceError
from tutelage.records import Quarantined, Role
from tutelage.storage import Place

_STRUCTURES = b"structures"
_GROUP = 65_536
"""Rows that are read or skipped together."""


def write_rows(
    folder: Place, cases: Any, quarantined: Sequence[Quarantined], structures: Sequence[str]
) -> None:
    """Replace a folder's catalog with a table of cases."""
    import pyarrow as pa

    bad = {"address": [one.address for one in quarantined], "reason": [one.reason for one in quarantined]}
    text = pa.schema([("address", pa.string()), ("reason", pa.string())])
    write_parquet(folder / "quarantine.parquet", pa.table(bad, text))
    named = schema().with_metadata({_STRUCTURES: json.dumps(list(structures))})
    write_parquet(folder / "cases.parquet", cases.cast(named).replace_schema_metadata(named.metadata))


def read_rows(folder: Place) -> tuple[Any, tuple[Quarantined, ...], tuple[str, ...]]:
    """Return a folder's catalog: a table of cases, what was set aside, and names of structures.

    Raises:
        WorkspaceError: there is none, or it is damaged.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    stored, bad = _read(folder / "cases.parquet"), _read(folder / "quarantine.parquet")
    try:
        structures = tuple(json.loads(stored.schema.metadata[_STRUCTURES]))
        cases = stored.select(schema().names).cast(schema())
        if not pc.all(pc.is_in(cases["role"], value_set=pa.array(list(Role)))).as_py():
            raise ValueError("a role that is unknown")
        quarantined = tuple(Quarantined(**values) for values in bad.to_pylist())
    except (KeyError, TypeError, ValueError) as error:
        raise WorkspaceError(
            f"{folder} holds no catalog of this version ({error!r}), expected its columns; scan again"
        ) from None
    return cases, quarantined, structures


def write_parquet(place: Place, table: Any) -> None:
    """Write a table as one file, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=_GROUP, compression="zstd", write_page_checksum=True)
    place.write_bytes(sink.getvalue().to_pybytes())


def read_parquet(place: Place) -> Any:
    """Return the table in a file.

    Raises:
        FileNotFoundError: there is none.
        pyarrow.ArrowException: it is damaged.
    """
    import pyarrow.parquet as pq

    with place.open() as stream:
        return pq.read_table(stream, page_checksum_verification=True)


def _read(place: Place) -> Any:
    import pyarrow as pa

    try:
        return read_parquet(place)
    except FileNotFoundError:
        raise WorkspaceError(f"{place} does not exist, expected a catalog; run `tutelage catalog`") from None
    except (pa.ArrowException, OSError) as error:
        raise WorkspaceError(f"{place} is damaged ({error}), expected a catalog; scan again") from None
