"""Cases decoded for a training worker by Ray Data, on cores of the cluster that do not train.

Each worker has streams of its own: the cases that its places of the batch draw next, in that
order, one task each, and volumes come back through the object store, which bounds how far
tasks run ahead. The usual way, one dataset that `streaming_split` deals out, is not taken:
which worker gets which row is not determined there, so a batch would no longer follow from seed
and step; the rest that does not divide is dropped; and at the end of each pass every worker
waits for the slowest. It decides how a volume travels, and when there is no core for it. It
does not know what is drawn.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.casework.gathering import Decoder, Item, Reader, Unreadable
from tutelage.cluster.data import hush
from tutelage.cluster.settings import ClusterSettings
from tutelage.methods.shelves import Ready, Sample

_log = logging.getLogger(__name__)

_ARRAYS = ("image_CDHW", "label_DHW", "weight_DHW", "features_DCHW")

Row = dict[str, Any]


def reader(settings: ClusterSettings, world: int) -> Reader | None:
    """Return how one of `world` training workers has cases decoded; None is in its own threads.

    Tasks for which there is never a core would be waited for without end.
    """
    import ray

    if not settings.readers:
        return None
    there = ray.cluster_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
    asking = 0.0 if settings.gpus_per_asker else settings.askers * settings.cpus_per_asker
    held = world * settings.cpus_per_train_worker + asking
    if there - held < 1:
        _log.warning(
            "the cluster has %g CPUs, of which training holds %g, expected 1 more for cluster.readers; cases "
            "are decoded by threads of the training workers: add cores, or set cluster.readers to 0",
            there,
            held,
        )
        return None
    return _Reader(settings.readers)


class _Reader:
    """See casework.gathering.Reader."""

    def __init__(self, tasks: int) -> None:
        self._tasks = tasks

    def __call__(self, decoder: Decoder, items: Sequence[Item]) -> Iterator[Ready | Unreadable]:
        import ray.data

        def decoded(row: Row) -> Row:
            return packed(decoder(items[row["number"]]))

        count = len(items)
        numbers = ray.data.from_items([{"number": n} for n in range(count)], override_num_blocks=count)
        context = numbers.context  # this dataset's own
        hush(context)
        context.execution_options.preserve_order = True
        tasks = ray.data.TaskPoolStrategy(size=min(self._tasks, count))
        rows = numbers.map(decoded, num_cpus=1, compute=tasks)
        for row in rows.iter_rows():
            yield unpacked(row)


# --- how a volume travels -------------------------------------------------------------------


def packed(found: Ready | Unreadable) -> Row:
    """Lay all arrays of a case one behind the other: one flat tensor has the same type in every row."""
    if isinstance(found, Unreadable):
        return {"about": json.dumps([found.case, found.reason]), "bytes": np.zeros(1, np.uint8)}
    sample = found.sample
    arrays = [*(getattr(sample, name) for name in _ARRAYS), *found.voxels]
    told = {
        "case": sample.case,
        "undecided": sample.undecided,
        "gold": sample.gold,
        "darkest": found.darkest,
        "arrays": [None if array is None else (array.dtype.str, array.shape) for array in arrays],
    }
    flat = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays if array is not None]
    return {"about": json.dumps(told), "bytes": np.concatenate(flat)}


def unpacked(row: Row) -> Ready | Unreadable:
    """Return what was packed, in memory of this process: the object store needs its own back."""
    told = json.loads(row["about"])
    if isinstance(told, list):
        return Unreadable(*told)
    image, label, weight, features, *voxels = _arrays(row["bytes"], told["arrays"])
    sample = Sample(told["case"], image, label, weight, tuple(told["undecided"]), told["gold"], features)
    return Ready(sample, tuple(voxels), told["darkest"])


def _arrays(flat: NDArray[np.uint8], told: Sequence[tuple[str, Sequence[int]] | None]) -> Iterator[Any]:
    start = 0
    for one in told:
        if one is None:
            yield None
            continue
        dtype, shape = np.dtype(one[0]), tuple(one[1])
        stop = start + dtype.itemsize * int(np.prod(shape))
        yield np.frombuffer(flat[start:stop].tobytes(), dtype).reshape(shape)
        start = stop
