"""What tracking can be told: which MLflow, and what things are called there."""

from pydantic import Field

from tutelage.settings import Settings


class TrackingSettings(Settings):
    """Where campaigns are recorded and specialists registered."""

    enabled: bool = True
    """Whether anything is recorded at all."""

    uri: str | None = None
    """An MLflow server (http://host:5000) or database; None keeps a database in the workspace."""

    experiment: str = Field(default="tutelage", min_length=1, max_length=500)
    """The MLflow experiment that campaigns appear in."""

    model: str = Field(default="specialist", pattern=r"^[\w .-]+$", max_length=250)
    """What specialists are registered as."""

    system_metrics: bool = True
    """Whether it is told, every ten seconds, what training takes of its machine: processor, memory, disk,
    network and GPUs."""

    patience_s: float = Field(default=5.0, ge=0)
    """How long a training that is over waits for MLflow to take its last steps; the rest is sent later."""
