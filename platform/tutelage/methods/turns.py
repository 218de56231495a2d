"""Which case a patch is cut from: any of a few, or of many those whose turn it is.

Few cases stay where they were decoded, so a patch is of any of them. Of more than a window
holds, cases come in an order that is permuted anew in every pass, and dealt like cards to the
places of a batch. Each place draws from a window on its own cases, which slides on by one every
`reuse` steps; before a case leaves, one patch is sure to be cut from it. So every case has its
turn in every pass, is decoded once for `reuse` patches, and by that worker alone whose place
it was dealt to, however many workers there are.

Everything follows from the seed, the step and the place. It knows no cases, only how many there
are, and not how much memory they take: workers with more of it would draw others.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_PASSES_KEPT = 4
"""Orders in memory: a window lies over two passes at most, in each of two streams."""

_BEYOND = 64
"""Cases whose turn comes next that may stand in too, where none in the window can be read."""


class Turns:
    """The turns of one stream of a batch, which draws `places` patches in every step."""

    def __init__(self, count: int, places: int, window: int, reuse: int, seed: int, stream: int) -> None:
        """`stream` tells streams apart that share a seed."""
        self._count, self._places, self._reuse = count, max(1, places), reuse
        self._seed, self._stream = seed, stream
        self._window = max(1, window // self._places) if count > window else None

    @property
    def choices(self) -> int:
        """From how many cases each patch is drawn."""
        return self._count if self._window is None else self._window

    def at(self, step: int, place: int, chance: int) -> Iterator[int]:
        """Yield the case of a patch, then those that stand in for it if it cannot be read.

        `place` counts from the stream's first; `chance` is below `choices`, each number as likely.
        """
        if self._window is None:
            yield from ((chance + after) % self._count for after in range(self._count))
            return
        turn, since = divmod(step, self._reuse)
        first = chance if since else 0  # the one that leaves
        window = [(first + after) % self._window for after in range(self._window)]
        for within in (*window, *range(self._window, self._window + _BEYOND)):
            yield self._dealt((turn + within) * self._places + place)

    def _dealt(self, card: int) -> int:
        """Return the case of a place in the order of all passes, one after another."""
        number, within = divmod(card, self._count)
        return int(_order(self._count, self._seed, self._stream, number)[within])


@lru_cache(_PASSES_KEPT)
def _order(count: int, seed: int, stream: int, number: int) -> NDArray[np.int64]:
    """Return the order of one pass; the same for all who ask."""
    return np.random.default_rng([seed, stream, number]).permutation(count)
