"""Case after case on Ray Data: an actor pool, each actor one worker with its models loaded once.

Rows come back as they finish, in any order. Voxels never travel through Ray: workers
write them to the workspace themselves.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from tutelage.casework.base import Worker
from tutelage.cluster.settings import ClusterSettings
from tutelage.geometry import Grid
from tutelage.labels.rows import Row
from tutelage.records import Case, Role

_BLOCKS = 4096
"""Most blocks to cut the cases into; with one case a block rows arrive one by one."""

_CASES_PER_ACTOR = 4


class _Actor:
    """What Ray Data constructs: a worker that speaks JSON."""

    def __init__(self, build: Callable[[Any], Worker], job: object) -> None:
        self.worker = build(job)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        return {"row": json.dumps(self.worker(_case(item["case"])))}


def each(build: type[Worker], job: object, cases: Sequence[Case], settings: ClusterSettings) -> Iterator[Row]:
    """Yield the row of every case. Needs a session."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    gpus = settings.gpus_per_actor if build.needs.gpu else 0.0
    items = [{"case": _text(case)} for case in cases]
    answers = ray.data.from_items(items, override_num_blocks=min(len(items), _BLOCKS)).map(
        _Actor,  # type: ignore[arg-type] # a class of callables, which Ray's annotations forget
        fn_constructor_kwargs={"build": build, "job": job},
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=_actors(len(items), settings)),
        num_cpus=settings.cpus_per_actor,
        num_gpus=gpus or None,
    )
    for answer in answers.iter_rows():
        yield json.loads(answer["row"])


def _actors(cases: int, settings: ClusterSettings) -> int:
    """No more workers than have a few cases each: loading models takes longer than a case."""
    return max(1, min(settings.actors, cases // _CASES_PER_ACTOR))


def _text(case: Case) -> str:
    return json.dumps(asdict(case))


def _case(text: str) -> Case:
    values = json.loads(text)
    grid = values.pop("grid")
    affine = tuple(tuple(row) for row in grid["affine"])
    return Case(**values | {"role": Role(values["role"]), "grid": Grid(tuple(grid["shape"]), affine)})
