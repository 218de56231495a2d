"""Ray Data as its users here want it: without words of its own, and rows at the moment when they are done.

It does not know what rows are about.
"""

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import DataContext, Dataset


def hush(context: "DataContext") -> None:
    """Let nothing be told of executions but what goes wrong: progress is told by those who know the cases."""
    from ray.util.debug import log_once

    context.enable_progress_bars = False
    context.print_on_execution_start = False
    log_once("ray_data_progress_manager_disabled")  # or Ray would say that it shows no bars
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its import said otherwise


def as_they_come(rows: "Dataset") -> Iterator[dict[str, Any]]:
    """Yield rows, each as soon as its block is there.

    `iter_rows` holds a block back until the next one is done, to fetch ahead. Where a row is a case, that is
    minutes in which finished work is in nobody's books, and lost with the process that waits for it.
    """
    block: pa.Table
    for block in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from block.to_pylist()
