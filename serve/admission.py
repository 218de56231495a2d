"""Who may come in and whose turn it is: so many are worked on, so many wait, the next are told to come back.

It decides on numbers alone and knows neither HTTP nor what the work is. Light questions (who is there,
how is it going) never pass here, so they are answered however long the queue is.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Self

from tutelage.cluster.settings import ServingSettings
from tutelage.errors import BusyError

_LEAST_S, _MOST_S = 1, 60
"""Bounds of how long anybody is told to stay away."""

_MEMORY = 0.2
"""Share that the last turn has in the mean length of turns."""


class Turns:
    """The queue of one copy. Belongs to one event loop."""

    def __init__(self, ongoing: int, queued: int, patience_s: float) -> None:
        self.ongoing, self.queued, self.patience_s = ongoing, queued, patience_s
        self.inside = 0
        """Those that came in and are not done."""
        self.working = 0
        """Those whose turn it is."""
        self.waiting = 0
        """Those that wait for their turn."""
        self._free = asyncio.Semaphore(ongoing)
        self._mean_s = 0.0

    @classmethod
    def of(cls, settings: ServingSettings) -> Self:
        """Return the queue that settings ask for."""
        return cls(settings.ongoing, settings.queued, settings.timeout_s)

    @contextmanager
    def door(self) -> Iterator[None]:
        """Be inside, from before the upload is received until its answer is made.

        Raises:
            BusyError: as many are inside as may work and wait.
        """
        if self.inside >= self.ongoing + self.queued:
            raise self._busy(f"{self.inside} requests are worked on or wait already")
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until one of the places is free, and have it.

        Raises:
            BusyError: none was free for too long.
        """
        self.waiting += 1
        try:
            async with asyncio.timeout(self.patience_s):
                await self._free.acquire()
        except TimeoutError:
            raise self._busy(f"no place was free for {self.patience_s:g} seconds") from None
        finally:
            self.waiting -= 1
        self.working += 1
        began = time.monotonic()
        try:
            yield
        finally:
            self.working -= 1
            self._free.release()
            self._mean_s += _MEMORY * (time.monotonic() - began - self._mean_s)

    def _busy(self, found: str) -> BusyError:
        """About when half of those before will be done."""
        wait_s = self._mean_s * max(self.waiting, 1) / self.ongoing / 2
        error = BusyError(f"{found}, expected a free place; ask again later, or have more copies serve")
        error.retry_after_s = float(min(max(math.ceil(wait_s), _LEAST_S), _MOST_S))
        return error
