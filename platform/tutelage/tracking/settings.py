"""What tracking can be told: which MLflow, and what things are called there.

It decides that what nobody names is named after the campaign: campaigns that share a server share neither
an experiment nor a champion. A campaign whose name MLflow would refuse, or that no models:/ address could
hold, is told so; nothing is replaced, as two names could become one.
"""

import re

from pydantic import Field

from tutelage.settings import Settings

LONGEST = 250
"""Characters in the name of a model."""

_MODEL = r"^\w[\w .-]*$"


class TrackingSettings(Settings):
    """Where campaigns are recorded and specialists registered."""

    enabled: bool = True
    """Whether anything is recorded at all."""

    uri: str | None = None
    """An MLflow server (http://host:5000) or database; None keeps a database in the workspace."""

    experiment: str | None = Field(default=None, min_length=1, max_length=500)
    """The MLflow experiment that the campaign appears in; None is the campaign's name."""

    model: str | None = Field(default=None, pattern=_MODEL, max_length=LONGEST)
    """What specialists are registered as, and served as from the registry; None is the campaign's name.
    Letters, digits, spaces, dots, dashes and underscores: MLflow refuses slashes and colons."""

    system_metrics: bool = True
    """Whether it is told, every ten seconds, what training takes of its machine: processor, memory, disk,
    network and GPUs."""

    patience_s: float = Field(default=5.0, ge=0)
    """How long a training that is over waits for MLflow to take its last steps; the rest is sent later."""

    def experiment_of(self, campaign: str) -> str:
        """Return the experiment that a campaign of this name appears in."""
        return campaign if self.experiment is None else self.experiment

    def model_of(self, campaign: str) -> str:
        """Return what the specialists of a campaign of this name are registered as."""
        return campaign if self.model is None else self.model

    def refused(self, campaign: str) -> str | None:
        """Return why a campaign's name cannot be that of a model; None where it can, or need not."""
        if not self.enabled or re.fullmatch(_MODEL, self.model_of(campaign)):
            return None
        return (
            f"found {campaign!r}, after which specialists are registered in MLflow; expected letters, "
            "digits, spaces, dots, dashes and underscores; set tracking.model, or take another name"
        )
