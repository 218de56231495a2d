"""What going on with a training needs, as values that can be stored without pickling classes.

There is no state of random generators and no place in the data: both follow anew from
seed, step and rank. It does not know where checkpoints lie.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.methods.sharding import whole

State = dict[str, Tensor]
"""Weights by name."""


@dataclass(frozen=True, slots=True)
class Best:
    """The specialist that did best on validation cases so far."""

    step: int
    """Steps that it had learned."""
    score: float
    weights: State


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that going on needs; its tensors lie in main memory and belong to it alone."""

    step: int
    """Steps that are done."""
    networks: State
    mean: State | None
    optimizer: dict[str, Any]
    best: Best | None
    validated: tuple[tuple[int, float], ...]
    """Steps and scores."""
    counts: dict[str, float]
    seconds: float
    """That all steps so far took."""

    def to_dict(self) -> dict[str, Any]:
        """Return what can be stored without pickling classes; tensors are not copied."""
        values = {name: getattr(self, name) for name in Checkpoint.__slots__}
        best = self.best
        return values | {"best": best and {name: getattr(best, name) for name in Best.__slots__}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Checkpoint":
        """Return the checkpoint of stored values."""
        best = values["best"]
        return cls(**{**values, "best": best and Best(**best)})


def copied(state: Mapping[str, Tensor], device: torch.device | str = "cpu") -> State:
    """Return weights that nothing changes but their owner."""
    return {name: tensor.detach().to(device, copy=True) for name, tensor in state.items()}


def copied_deep(values: Any) -> Any:
    """Return state with every tensor in it copied to main memory, whole; see `sharding`."""
    if isinstance(values, Tensor):
        return whole(values.detach()).to("cpu", copy=True)
    if isinstance(values, dict):
        return {key: copied_deep(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(copied_deep(value) for value in values)
    return values
