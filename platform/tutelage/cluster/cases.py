"""Case after case on Ray Data: an actor pool, each actor one worker with its models loaded once.

Rows of the catalog travel to the actors and rows about them come back as they finish, in
any order; voxels never travel through Ray, workers write them to the workspace themselves.
A block is one case, so an actor that dies loses one case and no finished one. Ray restarts
the actor and sends the case again; the worker's guard counts and gives up (see
`casework.base`). What is wrong before any case, as with damaged weights, is raised here as it
would have been without Ray. Ray's own checkpoints are not used: the rows that the campaign keeps
already say what is done, and they say it to the plain loop as well.
"""

import json
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tutelage import errors
from tutelage.casework.base import Guard, Limit, Worker, answered
from tutelage.cluster.data import as_they_come, hush
from tutelage.cluster.settings import ClusterSettings
from tutelage.labels.rows import Row

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

_CHUNK_ROWS = 1000
"""Rows that enter Ray together, before they are cut into blocks of one."""

_PATIENCE_S = 6 * 3600
"""Ray gives up when no case finishes for this long; a large volume on a CPU takes hours."""


_LOG = logging.getLogger(__name__)


class _Actor:
    """What Ray Data constructs: a worker that speaks JSON.

    Of what a constructor raises Ray keeps a trace as text: an error that is meant for people is told later.
    """

    def __init__(self, build: Callable[[Any], Worker], job: object, limit: Limit) -> None:
        self.refusal: errors.TutelageError | None = None
        try:
            self.work = Guard(build(job), limit)
        except errors.TutelageError as error:
            self.refusal = error

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        if self.refusal is not None:
            return {"row": "", "kind": type(self.refusal).__name__, "told": str(self.refusal)}
        return {"row": json.dumps(answered(self.work, item)), "kind": "", "told": ""}


def each(
    build: type[Worker], job: object, items: "pa.Table", limit: Limit, settings: ClusterSettings
) -> Iterator[Row]:
    """Yield the row of every item. Needs a session.

    Raises:
        TutelageError: a worker cannot be made; as it would have been here.
        ClusterError: Ray gave up.
    """
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import RayError

    try:
        for answer in as_they_come(_answers(build, job, items, limit, settings)):
            if answer["kind"]:
                raise getattr(errors, answer["kind"])(answer["told"])
            yield json.loads(answer["row"])
    except (RayError, ExecutionTimeoutError) as error:
        raise errors.ClusterError(
            f"Ray gave up on {build.__name__}: {_last_line(error)}; finished cases are kept, and the same "
            "command goes on from there; `ray status` tells what the cluster has"
        ) from error


def _answers(
    build: type[Worker], job: object, items: "pa.Table", limit: Limit, settings: ClusterSettings
) -> "Dataset":
    import ray.data
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    context = ray.data.DataContext.get_current()
    hush(context)
    context.execution_no_progress_timeout_s = _PATIENCE_S
    gpus = settings.gpus_per_actor if build.needs.gpu else 0.0
    if gpus and ray.cluster_resources().get("GPU", 0.0) < gpus:  # type: ignore[no-untyped-call]
        _LOG.error(
            "no node of this cluster has a GPU now, and %s waits for one; set cluster.gpus_per_actor to 0 "
            "to go without",
            build.__name__,
        )
    actors = settings.actors_for(items.num_rows)
    chunks = [items.slice(start, _CHUNK_ROWS) for start in range(0, items.num_rows, _CHUNK_ROWS)]
    rows = ray.data.from_arrow(chunks)
    rows.context.target_max_block_size = 1  # bytes: every case is a block
    return (
        # Cutting takes no core: it would wait forever for one that actors hold, where a node was lost.
        rows.map_batches(
            _one_by_one, batch_size=None, batch_format="pyarrow", num_cpus=0, compute=TaskPoolStrategy(1)
        ).map(
            _Actor,  # type: ignore[arg-type] # a class of callables, which Ray's annotations forget
            fn_constructor_kwargs={"build": build, "job": job, "limit": limit},
            # All of them at once. Ray Data gives up idle ones where a node was lost.
            compute=ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
            # A GPU actor is not counted against the cores, or a machine with few cores would idle its GPUs.
            num_cpus=0 if gpus else settings.cpus_per_actor,
            num_gpus=gpus or None,
            resources=(settings.resources_per_actor or None) if build.needs.gpu else None,
        )
    )


def _last_line(error: Exception) -> str:
    """What a traceback as text ends with."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def _one_by_one(cases: "pa.Table") -> Iterator["pa.Table"]:
    for number in range(cases.num_rows):
        yield cases.slice(number, 1)
