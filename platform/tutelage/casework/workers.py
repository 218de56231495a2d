"""Processes that train one specialist together: what they tell each other beside gradients.

Each of these is said by all of them, at the same moment of the loop, or all would wait for one
another. Alone, a process hears itself. It does not know who started them.
"""

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, distributed

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Workers:
    """One of `world` processes, and its way to the others."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it is the one that reads and writes for all."""
        return self.rank == 0

    def everyone(self, own: T) -> list[T]:
        """Return what each process has, in their order."""
        if self.world == 1:
            return [own]
        told: list[T] = [own] * self.world
        distributed.all_gather_object(told, own)
        return told

    def first(self, own: T) -> T:
        """Return what the first process has; it has done by then what it did before."""
        return self.everyone(own)[0]

    def total(self, counts: dict[str, float]) -> dict[str, float]:
        """Add up what each process counted."""
        everyone = self.everyone(counts)
        names = sorted({name for one in everyone for name in one})
        return {name: sum(one.get(name, 0.0) for one in everyone) for name in names}

    def mean(self, numbers: Tensor) -> Tensor:
        """Return the means over processes of as many numbers in each."""
        if self.world == 1:
            return numbers
        summed = numbers.clone()
        distributed.all_reduce(summed)
        return summed / self.world
