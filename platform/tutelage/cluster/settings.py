"""What the cluster room can be told. Imports no Ray."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator

from tutelage.priors.settings import Resources
from tutelage.settings import Settings

_CASES_PER_ACTOR = 4


class ClusterSettings(Settings):
    """Where the work runs and how it is spread."""

    backend: Literal["local", "ray"] = "local"
    """`local` is a plain loop in this process, `ray` spreads cases and training over Ray."""

    address: str = "local"
    """Ray's address: `local` starts one here, `auto` joins the one this machine belongs to."""

    actors: int = Field(default=2, ge=1)
    """Workers that label, curate or score cases at the same time."""

    cpus_per_actor: float = Field(default=1.0, gt=0)
    """CPU cores, and so threads, of each of them."""

    gpus_per_actor: float = Field(default=0.0, ge=0)
    """GPUs of each worker that uses one; may be a fraction."""

    resources_per_actor: Resources = Field(default_factory=dict)
    """Custom resources of each worker that uses a GPU where there is one: {encoder: 1} keeps them to nodes
    that were given `encoder`, as small GPUs, and leaves others to training."""

    train_workers: int | tuple[int, int] = 2
    """Processes that train one specialist together; the batch is divided among them. [least, most] takes as
    many as the nodes could hold, and begins again from the last checkpoint when nodes come or go. Ray does
    not look at what else runs on them: with askers, choose what is left."""

    cpus_per_train_worker: float = Field(default=1.0, gt=0)
    """CPU cores, and so threads, of each of those."""

    gpus_per_train_worker: float = Field(default=0.0, ge=0)
    """GPUs of each of those."""

    resources_per_train_worker: Resources = Field(default_factory=dict)
    """Custom resources of each of those: {training: 1} keeps them to nodes that were given `training`."""

    shard: bool = False
    """Weights, gradients and optimizer state are divided among the training processes by FSDP2, for
    specialists that do not fit one device; false gives each process all of them. Checkpoints are the same."""

    train_retries: int = Field(default=2, ge=0)
    """How often training goes on from its last checkpoint after a worker was lost or failed. Not tried again
    is what would only repeat itself, as a loss that is no number; not counted, a node that is taken away."""

    resize_every_s: float = Field(default=60.0, gt=0)
    """Seconds between two looks at how many workers nodes could hold, where their number may change."""

    patience_s: int = Field(default=4 * 3600, ge=1)
    """Seconds that training workers wait for one of them, which may look at validation cases meanwhile."""

    askers: int = Field(default=0, ge=0)
    """Processes with the generalist that a method asks while it trains; 0 loads it in training workers."""

    cpus_per_asker: float = Field(default=1.0, gt=0)
    """CPU cores, and so threads, of each of them."""

    gpus_per_asker: float = Field(default=0.0, ge=0)
    """GPUs of each of them; may be a fraction."""

    resources_per_asker: Resources = Field(default_factory=dict)
    """Custom resources of each of them."""

    readers: int = Field(default=0, ge=0)
    """Tasks of Ray Data, on a CPU core each, that decode cases for one training worker; 0 leaves that to
    threads of the worker. Volumes come through the object store."""

    object_store_mb: int = Field(default=300, ge=100)
    """Shared memory of a Ray that is started here; results are small, volumes that `readers` decode not."""

    @field_validator("train_workers", mode="before")
    @classmethod
    def _workers(cls, value: object) -> object:
        several = value if isinstance(value, list | tuple) else (value, value)
        if any(isinstance(count, bool) or not isinstance(count, int) for count in several):
            raise ValueError("expected a whole number, or [least, most]")
        if len(several) != 2 or not 1 <= several[0] <= several[1]:
            raise ValueError("expected 1 or more, or [least, most] with 1 <= least <= most")
        return value

    @property
    def worker_counts(self) -> range:
        """How many processes may train together at a time; one where all work is done here."""
        if self.backend == "local":
            return range(1, 2)
        least, most = (self.train_workers,) * 2 if isinstance(self.train_workers, int) else self.train_workers
        return range(least, most + 1)

    def actors_for(self, cases: int) -> int:
        """No more workers than have a few cases each: loading models takes longer than a case."""
        return max(1, min(self.actors, cases // _CASES_PER_ACTOR))

    def problems(self) -> Iterator[tuple[str, str]]:
        """Complain about shares of GPUs that Ray cannot give, and about nobody to divide among."""
        for name in ("gpus_per_actor", "gpus_per_asker", "gpus_per_train_worker"):
            gpus = getattr(self, name)
            if gpus > 1 and gpus % 1:
                yield name, f"found {gpus}; take a share below 1, or a whole number"
        if self.shard and self.worker_counts[-1] == 1:
            yield (
                "shard",
                "found true, but one process trains alone and has to hold everything; set train_workers to 2 "
                "or more with backend ray, or shard to false",
            )
        gpus = self.gpus_per_train_worker
        if 0 < gpus < 1 and self.worker_counts[-1] > 1:
            yield (
                "gpus_per_train_worker",
                f"found {gpus}, but processes that learn together cannot share a GPU; take 1, or "
                "train_workers 1",
            )


class ServingSettings(Settings):
    """How specialists are served: how many copies, and what a stranger may ask of them."""

    replicas: int | tuple[int, int] = 1
    """Copies; [least, most] follows the number of requests that wait."""

    ongoing: int = Field(default=8, ge=1)
    """Requests that one copy works on at a time; their windows share one network."""

    queued: int = Field(default=32, ge=1)
    """Requests that may wait for a copy before the next are told 503: each can hold a whole volume."""

    target_ongoing: float = Field(default=2.0, gt=0)
    """Requests at a time for each copy above which, where their number may change, one more is started."""

    cpus: float = Field(default=1.0, gt=0)
    """CPU cores, and so threads, of each copy."""

    gpus: float = Field(default=0.0, ge=0)
    """GPUs of each copy; may be a fraction."""

    loaded: int = Field(default=3, ge=1)
    """Models that one copy holds at a time; the one not asked for longest makes room."""

    champion: Literal["workspace", "registry"] = "workspace"
    """Who says which specialist is the campaign's champion: its workspace, which knows what was promoted and
    rolled back, or the alias `champion` in MLflow's registry, which a person can set on any version."""

    follow_s: float = Field(default=10.0, gt=0)
    """Seconds between two looks at who is champion."""

    timeout_s: float = Field(default=600.0, gt=0)
    """Seconds after which a request is told 504 and its work ends."""

    drain_s: float = Field(default=120.0, gt=0)
    """Seconds that a copy which is taken down has for what it has begun."""

    jobs: int = Field(default=16, ge=1)
    """Jobs that may wait or run on one copy before the next are told 503."""

    keep_s: float = Field(default=3600.0, gt=0)
    """Seconds that the result of a job can be fetched."""

    max_mb: float = Field(default=512.0, gt=0)
    """Megabytes (10^6 bytes) of the largest upload."""

    max_unpacked_mb: float = Field(default=4096.0, gt=0)
    """Megabytes that an upload may be when it is unpacked."""

    max_ratio: float = Field(default=200.0, gt=1)
    """How many times its size an upload may be when it is unpacked, beyond its first megabyte."""

    max_entries: int = Field(default=5000, ge=1)
    """Files in an uploaded zip."""

    max_voxels: int = Field(default=2**29, ge=1)
    """Voxels of the largest volume."""

    tokens: str | None = None
    """File of hashed tokens, as `tutelage tokens` writes it; without one only `open` serves."""

    open: bool = False
    """Whether everybody who reaches the server may ask it. Only on loopback."""

    roots: tuple[str, ...] = ()
    """Folders whose files requests may name instead of sending them; none allows none."""

    @property
    def replica_range(self) -> tuple[int, int]:
        """Least and most copies."""
        return (self.replicas, self.replicas) if isinstance(self.replicas, int) else self.replicas

    def problems(self) -> Iterator[tuple[str, str]]:
        """Complain about a range of copies that holds none."""
        least, most = self.replica_range
        if not 1 <= least <= most:
            yield (
                "replicas",
                f"found {self.replicas}, expected 1 or more, or [least, most] with 1 <= least <= most",
            )
