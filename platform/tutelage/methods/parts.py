"""A worker's share of a batch in equal parts that are learned from one after another.

Patches are dealt like cards, as they are to workers, so that each part holds of both kinds
and two parts in one process are what two workers would have. It knows no method.
"""

import dataclasses
from typing import Any

from torch import Tensor

from tutelage.errors import TrainingError
from tutelage.methods.base import Batch, Patches


def parted(batch: Batch, count: int) -> list[Batch]:
    """Return the batch in `count` parts of as many patches each.

    Raises:
        TrainingError: the patches cannot be divided by that.
    """
    if count == 1:
        return [batch]
    labeled = len(batch.labeled)
    everything = labeled + (len(batch.unlabeled) if batch.unlabeled else 0)
    if everything % count:
        raise TrainingError(
            f"{everything} patches cannot be learned from in {count} equal parts; set train.batch to a "
            "multiple of train.accumulate times the workers"
        )
    return [
        dataclasses.replace(
            batch,
            labeled=_dealt(batch.labeled, part, count),
            unlabeled=batch.unlabeled and _dealt(batch.unlabeled, (part - labeled) % count, count),
        )
        for part in range(count)
    ]


def _dealt(patches: Patches, first: int, every: int) -> Patches:
    return dataclasses.replace(
        patches,
        **{
            field.name: _of(getattr(patches, field.name), first, every)
            for field in dataclasses.fields(patches)
        },
    )


def _of(values: Any, first: int, every: int) -> Any:
    if values is None:
        return None
    dealt = values[first::every]
    return dealt.contiguous() if isinstance(dealt, Tensor) else dealt
