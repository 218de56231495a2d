"""Many small looks at files at a time: waiting for a disk or an object store is most of it.

Decides how much is under way, so that memory does not grow with what there is to do.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

READERS = 8
_SLICES_PER_READER = 4
"""Slices of items that wait or are under way, for each reader."""

T = TypeVar("T")
R = TypeVar("R")


def each_in_turn(work: Callable[[T], R], items: Iterable[T], at_once: int = 1) -> Iterator[R]:
    """Yield what `work` says of each item, in their order; items are taken only as readers get to them.

    A reader takes so many `at_once`: handing over one by one would take longer than a short look.
    """

    def several(some: list[T]) -> list[R]:
        return [work(item) for item in some]

    left = iter(items)
    waiting: deque[Future[list[R]]] = deque()
    with ThreadPoolExecutor(READERS) as pool:
        while some := list(islice(left, at_once)):
            waiting.append(pool.submit(several, some))
            if len(waiting) > READERS * _SLICES_PER_READER:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
