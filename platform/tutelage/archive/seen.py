"""What headers said, kept from scan to scan so that no file is opened again that has not changed.

Also what a scan had read when it was killed: shards are written as it goes, and become one
file when it is done. Kept of every usable image, whatever its role. Damaged, it is forgotten;
all it costs is time.
"""

import contextlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.archive.cases import schema
from tutelage.archive.rows import read_parquet, write_parquet
from tutelage.storage import Place

LOOK = ("shape", "affine", "channels", "stamp", "label_stamp")
"""What is known after a look at a file."""


def look_schema() -> Any:
    """Return names and types of what is known after a look."""
    import pyarrow as pa

    of_a_case = schema()
    return pa.schema([of_a_case.field(name) for name in LOOK])


class Seen:
    """The looks of earlier scans of one archive, by the addresses of image and label."""

    def __init__(self, folder: Place) -> None:
        self._whole = folder / "headers.parquet"
        self._shards = folder / "headers"
        self._count = len(self._shards.files(".parquet"))
        self.table = self._read()

    def _read(self) -> Any:
        import pyarrow as pa

        tables = [_schema().empty_table()]
        for place in (self._whole, *self._shards.files(".parquet")):
            with contextlib.suppress(OSError, KeyError, pa.ArrowException):
                tables.append(read_parquet(place).select(_schema().names).cast(_schema()))
        # In one piece, because rows are picked from it again and again.
        return pa.concat_tables(tables).combine_chunks()

    def rows(self, images: Any) -> NDArray[np.int64]:
        """Return which row speaks of each image, -1 where none does."""
        import pyarrow.compute as pc

        # The few are looked up among the many: a table of all addresses would take time and memory.
        where = pc.index_in(self.table["image"], value_set=images)
        known = np.flatnonzero(pc.is_valid(where).to_numpy())
        rows = np.full(len(images), -1, np.int64)
        rows[pc.drop_null(where).to_numpy()] = known
        return rows

    def keep(self, looks: Any) -> None:
        """Make looks durable that were just taken: columns image, label and those of a look."""
        write_parquet(self._shards / f"{self._count:06d}.parquet", looks)
        self._count += 1

    def finish(self, looks: Any) -> None:
        """Have exactly these looks from now on."""
        if self._count or len(looks) != len(self.table):
            write_parquet(self._whole, looks)
            self._shards.remove()


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema([("image", pa.string()), ("label", pa.string()), *look_schema()])
