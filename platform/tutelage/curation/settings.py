"""What curation can be told."""

from pydantic import Field

from tutelage.settings import Settings


class StructureSettings(Settings):
    """What differs for one structure; what is not given is as for all."""

    min_agreement: float | None = Field(default=None, ge=0, le=1)
    """See CurationSettings."""

    partial_agreement: float | None = Field(default=None, ge=0, le=1)
    """See CurationSettings."""

    max_variance: float | None = Field(default=None, ge=0, le=1)
    """See CurationSettings."""

    min_consensus: float | None = Field(default=None, ge=0, le=1)
    """See CurationSettings."""


class CurationSettings(Settings):
    """Which pseudo-labels a specialist may learn from."""

    min_agreement: float = Field(default=0.7, ge=0, le=1)
    """Accept a structure if the IoU of specialist and generalist reaches this."""

    min_agreement_later: float = Field(default=0.8, ge=0, le=1)
    """The same from the second round on: a specialist that has learned from the generalist agrees
    with it more easily, so agreement proves less. Below `min_agreement` it has no effect."""

    partial_agreement: float = Field(default=0.4, ge=0, le=1)
    """From this IoU on, believe the voxels on which both agree; below it, nothing."""

    partial_weight: float = Field(default=0.0, ge=0, le=1)
    """Training weight of voxels that are believed only because both agree."""

    max_variance: float = Field(default=0.35, ge=0, le=1)
    """Reject a mask whose mean variance over variants, axes and generalists exceeds this; with one of each
    it is 0."""

    min_consensus: float = Field(default=0.0, ge=0, le=1)
    """Reject a mask on which several generalists agree with a mean IoU below this. With one generalist it
    has no effect."""

    volume_slack: float = Field(default=0.1, ge=0)
    """How far outside the prior's volume range a mask may fall, as a fraction."""

    structures: dict[str, StructureSettings] = Field(default_factory=dict)
    """Exceptions by name of structure."""

    def in_round(self, number: int) -> "CurationSettings":
        """Return the settings that hold in one round, counted from 0."""
        if number == 0:
            return self
        later = max(self.min_agreement, self.min_agreement_later)
        return self.model_copy(update={"min_agreement": later})

    def of(self, structure: str) -> "CurationSettings":
        """Return the settings that hold for one structure."""
        exception = self.structures.get(structure)
        given = exception.model_dump(exclude_none=True) if exception else {}
        return self.model_copy(update=given | {"structures": {}})
