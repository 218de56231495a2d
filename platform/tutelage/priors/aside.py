"""Texts put aside: more of them than memory should hold, by key, on disk for as long as they are needed.

It decides where they lie: in a file without a name that goes away with the process. It does
not know what they say.
"""

import sqlite3
from collections.abc import Iterator


class Aside:
    """Texts by key. Memory holds a few megabytes of them, however many there are."""

    def __init__(self) -> None:
        # An empty name is SQLite's for a file that is deleted when it is closed.
        self._base = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._base.execute("PRAGMA journal_mode = OFF")
        self._base.execute("CREATE TABLE texts (key TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID")

    def __len__(self) -> int:
        return int(self._base.execute("SELECT count(*) FROM texts").fetchone()[0])

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def __setitem__(self, key: str, text: str) -> None:
        self._base.execute("INSERT OR REPLACE INTO texts VALUES (?, ?)", (key, text))

    def get(self, key: str) -> str | None:
        """Return a text, or None."""
        found = self._base.execute("SELECT text FROM texts WHERE key = ?", (key,)).fetchone()
        return None if found is None else str(found[0])

    def items(self) -> Iterator[tuple[str, str]]:
        """Yield keys in their order, each with its text."""
        yield from self._base.execute("SELECT key, text FROM texts ORDER BY key")
