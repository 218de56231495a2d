"""Rows of a Ray dataset at the moment at which they are done; it does not know what they are about."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset


def as_they_come(rows: "Dataset") -> Iterator[dict[str, Any]]:
    """Yield rows, each as soon as its block is there.

    `iter_rows` holds a block back until the next one is done, to fetch ahead. Where a row is a case, that is
    minutes in which finished work is in nobody's books, and lost with the process that waits for it.
    """
    block: pa.Table
    for block in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from block.to_pylist()
