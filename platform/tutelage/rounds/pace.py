"""How fast cases are worked on, and when that will be over. Knows nothing of what the work is."""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from tutelage.records import Outcome


class Pace:
    """Counts rows as they come from so many workers."""

    def __init__(self, expected: int, workers: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self.expected = expected
        self._workers = workers
        self.done = 0
        self.failed = 0
        self._embedded = 0
        self._hits = 0
        self._clock = clock
        self._started = clock()
        self._warm = self._last = self._started

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one row."""
        self._last = self._clock()
        self.done += 1
        if self.done == self._workers:
            self._warm = self._last
        self.failed += row["outcome"] == Outcome.FAILED.value
        self._embedded += row.get("slices_embedded") or 0
        self._hits += row.get("cache_hits") or 0

    @property
    def per_hour(self) -> float:
        """Cases an hour so far."""
        return self.done / max(self._clock() - self._started, 1e-9) * 3600

    @property
    def steady_per_hour(self) -> float:
        """The same from when all workers had their first to the last row: starting and loading left out."""
        since = self.done - self._workers
        return since / max(self._last - self._warm, 1e-9) * 3600 if since > 0 else self.per_hour

    def note(self) -> str:
        """Speed, embeddings found in the cache, failures and time left, where there is something to say."""
        said = [f"{self.per_hour:.0f} an hour"]
        if slices := self._embedded + self._hits:
            said.append(f"{self._hits / slices:.0%} of slices in the cache")
        if self.failed:
            said.append(f"{self.failed} failed")
        left = timedelta(seconds=round((self.expected - self.done) / self.per_hour * 3600))
        return ", ".join([*said, f"{left} left"])
