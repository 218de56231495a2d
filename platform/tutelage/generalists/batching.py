"""Working through many things a few at a time, and through fewer when a GPU runs out of memory.

It decides only how many go at once. What the work is, and what an item weighs, is its
caller's business.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from tutelage.errors import GeneralistError

T = TypeVar("T")
R = TypeVar("R")

_log = logging.getLogger(__name__)


class Batches:
    """Remembers the size that fitted, so that a worker runs out of memory once and not at every call."""

    def __init__(self, size: int, what: str = "slices") -> None:
        """Start with `size` at once; `what` names them in messages."""
        if size < 1:
            raise ValueError(f"found a batch of {size} {what}, expected 1 or more")
        self.size = size
        self.halvings = 0
        """How often memory ran out since the start."""
        self._what = what

    def over(self, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
        """Return what `work` makes of all items, in order.

        Raises:
            GeneralistError: if a single item does not fit into memory.
        """
        return in_batches(items, self.size, work, self._shrunk, self._what)

    def _shrunk(self, size: int) -> None:
        self.size = size
        self.halvings += 1


def in_batches(
    items: Sequence[T],
    size: int,
    work: Callable[[Sequence[T]], Sequence[R]],
    told: Callable[[int], None] | None = None,
    what: str = "items",
) -> list[R]:
    """Return what `work` makes of all items, `size` at a time, in order.

    Where memory runs out the batch is halved and the smaller size kept; what was finished
    is not repeated. `told` hears every new size.

    Raises:
        GeneralistError: if a single item does not fit into memory.
    """
    made: list[R] = []
    while len(made) < len(items):
        some = items[len(made) : len(made) + size]
        done = _fitted(work, some)
        if done is not None:
            if len(done) != len(some):
                raise ValueError(f"found {len(done)} results for {len(some)} {what}, expected one each")
            made += done
            continue
        if len(some) == 1:
            raise GeneralistError(
                f"a single one of {len(items)} {what} does not fit into the memory of the device, expected "
                "one at least to; choose a smaller model or precision: bf16, or run fewer workers on it"
            )
        size = len(some) // 2
        _log.warning("out of memory with %d %s at once; going on with %d", len(some), what, size)
        if told is not None:
            told(size)
    return made


def _fitted(work: Callable[[Sequence[T]], Sequence[R]], some: Sequence[T]) -> Sequence[R] | None:
    """What the work made, or None if memory ran out."""
    try:
        return work(some)
    except torch.OutOfMemoryError:
        pass
    # Only here, past the handler, is the traceback gone that keeps the tensors of the attempt alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
