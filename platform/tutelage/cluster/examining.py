"""Asking every node of a Ray what it has and reaches: one small task on each, all at the same time.

It decides who is asked and how long a node has to answer. What a node looks at is known in `looking`, what
the answers mean is judged in `doctor`.
"""

import contextlib
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tutelage.cluster.looking import PROBE, Answer, Look, Wanted, answer, first_line, leaving_nothing
from tutelage.cluster.settings import ClusterSettings
from tutelage.storage import Place

_LOOKS_SHARE = 0.5
"""Of the time that a node has to answer; the rest is for starting a process there."""

_ROUNDING = 1e-6
"""Ten tenths are one."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the cluster."""

    id: str
    address: str
    head: bool
    resources: Mapping[str, float]
    """All that Ray may give away there."""
    answer: Answer | None
    silent: str = ""
    """Why there is no answer."""

    @property
    def custom(self) -> dict[str, float]:
        """Resources that the node was given beside those that all have."""
        own = ("CPU", "GPU", "memory", "object_store_memory")
        return {
            name: amount
            for name, amount in self.resources.items()
            if name not in own and not name.startswith(("node:", "accelerator_type:"))
        }


@dataclass(frozen=True, slots=True)
class Room:
    """How many workers of a kind the nodes could hold, whoever else uses them now."""

    what: str
    """The setting that says how many there are."""
    there: int
    least: int
    """Below this nothing starts."""
    each: Mapping[str, float]
    """What one of them asks for."""


def examined(wanted: Wanted | None, packages: Sequence[str], patience_s: float) -> list[Node]:
    """Ask every node that is alive. Needs a session."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Pinned

    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    here = ray.get_runtime_context().get_node_id()
    clock = _remote(num_cpus=0, scheduling_strategy=Pinned(here, soft=True))(_Clock).remote()
    # Without cores, so that a full node answers too, and in a process that ends with what may hang in it.
    task = _remote(num_cpus=0, max_retries=0, max_calls=1)(answer)
    asked = (wanted, tuple(packages), patience_s * _LOOKS_SHARE, clock)
    try:
        with contextlib.suppress(RayError):  # without it nodes tell no time, and everything else
            ray.get(clock.now.remote(), timeout=patience_s)
        waiting = [
            task.options(scheduling_strategy=Pinned(node["NodeID"], soft=False)).remote(*asked)
            for node in alive
        ]
        ready, late = ray.wait(waiting, num_returns=len(waiting), timeout=patience_s)
        for silent in late:
            ray.cancel(silent, force=True)
        answers = [_answered(each, each in ready, patience_s) for each in waiting]
    finally:
        ray.kill(clock)
    return [_node(node, *found) for node, found in zip(alive, answers, strict=True)]


@contextlib.contextmanager
def shared(wanted: Wanted) -> Iterator[tuple[Wanted, Look]]:
    """Write a file into the workspace for as long as nodes are asked, and tell whether that went well."""
    folder, token = Place.of(wanted.workspace), f"{PROBE}{uuid.uuid4().hex}"
    with leaving_nothing(folder.local):
        try:
            (folder / token).write_bytes(token.encode())
        except OSError as error:
            yield wanted, Look(False, first_line(error))
            return
        try:
            yield replace(wanted, token=token), Look(True, "written")
        finally:
            (folder / token).remove()


def rooms(nodes: Sequence[Node], settings: ClusterSettings) -> Iterator[Room]:
    """Hold what the work of a campaign asks for against what nodes have."""
    # A GPU actor is not counted against the cores.
    cores = 0 if settings.gpus_per_actor else settings.cpus_per_actor
    asking = 0 if settings.gpus_per_asker else settings.cpus_per_asker
    actor = {"CPU": cores, "GPU": settings.gpus_per_actor, **settings.resources_per_actor}
    asker = {"CPU": asking, "GPU": settings.gpus_per_asker, **settings.resources_per_asker}
    learner = {"CPU": settings.cpus_per_train_worker, "GPU": settings.gpus_per_train_worker}
    learner |= settings.resources_per_train_worker
    yield _room("actors", 1, actor, nodes)
    yield _room("train_workers", settings.worker_counts[0], learner, nodes)
    if settings.askers:
        yield _room("askers", settings.askers, asker, nodes)


def _room(what: str, least: int, asked: Mapping[str, float], nodes: Sequence[Node]) -> Room:
    each = {unit: share for unit, share in asked.items() if share}
    held = [min(node.resources.get(unit, 0) / share for unit, share in each.items()) for node in nodes]
    return Room(what, sum(int(times + _ROUNDING) for times in held), least, each)


def _answered(task: Any, ready: bool, patience_s: float) -> tuple[Answer | None, str]:
    import ray

    if not ready:
        return None, f"no answer within {patience_s:g} s"
    try:
        return ray.get(task), ""
    except Exception as error:  # whatever broke there, packages that cannot be imported among it
        return None, first_line(getattr(error, "cause", None) or error)


def _node(listed: Mapping[str, Any], found: Answer | None, silent: str) -> Node:
    resources = dict(listed["Resources"])
    return Node(
        id=listed["NodeID"],
        address=listed["NodeManagerAddress"],
        head="node:__internal_head__" in resources,
        resources=resources,
        answer=found,
        silent=silent,
    )


def _remote(**told: Any) -> Any:
    import ray

    return ray.remote(**told)


class _Clock:
    """Tells the time of the driver's machine."""

    def now(self) -> float:
        return time.time()
