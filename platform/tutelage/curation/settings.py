"""What curation can be told."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, PositiveFloat

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


class CalibrationSettings(Settings):
    """Whether labeled cases decide what is believed, and how sure that has to be."""

    enabled: bool = False
    """Before each round's curation, ask about labeled cases as if they had no label, by specialists that
    did not see them, and learn how good answers are. Takes `folds` trainings a round."""

    alpha: float = Field(default=0.1, gt=0, lt=1)
    """An answer's bound may be missed this often. It takes 1 / alpha - 1 labeled patients with the
    structure: 9 for 0.1, 4 for 0.2. With fewer there is no bound, and the other rules decide as ever."""

    min_dice: float = Field(default=0.75, ge=0, le=1)
    """Accept an answer if its Dice is at least this, by the bound."""

    partial_dice: float = Field(default=0.6, ge=0, le=1)
    """Half believe other answers if their predicted Dice reaches this."""

    folds: int = Field(default=4, ge=0)
    """Groups of labeled patients that are left out of a training in turn; 0, or more than there are
    patients, leaves out one at a time."""

    steps_share: float = Field(default=0.5, gt=0, le=1)
    """Length of those trainings, as a share of `train.steps`. Specialists that learned less prompt
    worse, which makes bounds lower, not higher."""

    voxels: bool = False
    """Whether voxels of which labeled cases cannot tell the class do not count: those whose conformal set is
    not the one class that is painted there."""

    voxel_alpha: float = Field(default=0.2, gt=0, lt=1)
    """A set may lack the true class this often. What the best threshold misses on labeled cases must leave
    room below it: a set's level asks for more patients than a bound's."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Complain about half belief that begins above whole belief."""
        if self.partial_dice > self.min_dice:
            yield (
                "partial_dice",
                f"found {self.partial_dice}, expected at most min_dice, which is {self.min_dice}; lower it",
            )


class NeighbourSettings(Settings):
    """Whether cases that look alike vote on structures whose own answer was rejected."""

    enabled: bool = False
    """Half believe what accepted answers about the cases most alike, stretched to this one, agree on. For
    scans that show about the same part of a body."""

    count: int = Field(default=5, ge=1)
    """Cases that vote."""

    least: int = Field(default=3, ge=1)
    """With fewer accepted answers there is no vote."""

    among: int = Field(default=200, ge=1)
    """Accepted cases of each structure that are looked at, always the same; an archive has more."""

    weight: float = Field(default=0.3, gt=0, le=0.5)
    """Training weight of voxels that are believed only for a vote."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Complain about a vote that never takes place."""
        most = min(self.count, self.among)
        if self.enabled and self.least > most:
            yield "least", f"found {self.least}, expected at most {most}, the cases that vote; lower it"


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

    priors: bool = True
    """Whether what is known of anatomy may speak against a mask. Without it every verdict still says what it
    would be, so that both can be compared in one run."""

    volume_slack: float = Field(default=0.1, ge=0)
    """How far outside the prior's volume range a mask may fall, as a fraction."""

    min_claim: float = Field(default=0.5, ge=0, le=1)
    """A claim about volume, pieces or place speaks only if it is believed this much: the share of a model's
    answers that made it, times the share of annotated cases that do not contradict it."""

    max_violated: float = Field(default=0.5, gt=0, le=1)
    """Reject a mask if this share of its relations to other structures, or more, does not hold."""

    min_violated: float = Field(default=0.75, ge=0)
    """And only if those that do not hold are believed this much together, by the measure of `min_claim`:
    one relation that most answers make, or two that half of them do. A single doubtful one rejects
    nothing."""

    relation_slack_mm: float = Field(default=3.0, ge=0)
    """How far an order of two structures' centers may be the wrong way round and still hold."""

    min_predicted_iou: float = Field(default=0.0, ge=0, le=1)
    """Half believe, as below `min_agreement`, a mask of which the generalist itself thinks less than this."""

    volume_ratio: tuple[PositiveFloat, PositiveFloat] | None = None
    """Half believe a mask whose volume is outside this range of shares of the specialist's, like (0.5, 2)."""

    partial_rest: Literal["undecided", "ignored"] = "undecided"
    """What becomes of a half believed structure elsewhere. undecided: background does not deny it. ignored:
    where both see none it is denied, and voxels on which they differ do not count."""

    weight_by_agreement: bool = False
    """Whether an accepted mask counts as much as the IoU of specialist and generalist, and background as
    much as the least of those; else both count in full."""

    weight_by_variance: bool = False
    """Whether voxels count less the more answers about an accepted structure differ there; wants variants."""

    calibration: CalibrationSettings = CalibrationSettings()
    """Where it gives a bound, it takes the place of agreement, variance, consensus and the gates: they are
    what Dice is predicted from. What is known of anatomy still speaks against a mask."""

    neighbours: NeighbourSettings = NeighbourSettings()
    """What becomes of rejected structures."""

    structures: dict[str, StructureSettings] = Field(default_factory=dict)
    """Exceptions by name of structure."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Complain about what calibration and the vote find wrong."""
        for name, part in (("calibration", self.calibration), ("neighbours", self.neighbours)):
            yield from ((f"{name}.{path}", complaint) for path, complaint in part.problems())

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
