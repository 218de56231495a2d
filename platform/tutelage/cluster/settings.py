"""What the cluster room can be told. Imports no Ray."""

from typing import Literal

from pydantic import Field

from tutelage.settings import Settings


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

    train_workers: int = Field(default=2, ge=1)
    """Processes that train one specialist together; the batch is divided among them."""

    gpus_per_train_worker: float = Field(default=0.0, ge=0)
    """GPUs of each of those."""

    train_retries: int = Field(default=2, ge=0)
    """How often training goes on from its last checkpoint after a worker was lost."""

    object_store_mb: int = Field(default=300, ge=100)
    """Shared memory of a Ray that is started here; results are small."""
