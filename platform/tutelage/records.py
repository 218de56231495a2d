"""The nouns that flow between rooms: small, frozen, picklable.

They hold what was found or decided, never how. Voxels are numpy arrays whose axes are in
their names (K structures, C channels, D H W as in `geometry`); large ones stay in files
and travel as an address and a digest.
"""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from tutelage.geometry import Box, Grid

Logits = NDArray[np.float32]
Probability = NDArray[np.float32]


class Role(StrEnum):
    """What a case is for. A patient has one role only."""

    GOLD = "gold"
    """Has a label made by people, and the specialist learns from it."""

    UNLABELED = "unlabeled"
    """The generalists label it; the specialist learns from what survives curation."""

    VALIDATION = "validation"
    """Has a label; decides which specialist is promoted."""

    TEST = "test"
    """Has a label; only reported, never decided on."""


@dataclass(frozen=True, slots=True)
class Case:
    """One image of one patient, as the catalog knows it."""

    case: str
    """Unique in the catalog."""

    patient: str
    role: Role
    image: str
    """Address of the image."""

    label: str | None
    """Address of the label; None for an unlabeled case."""

    hidden: str | None
    """Address of a label that an unlabeled case happens to have: only `evaluation` may open it."""

    modality: str
    grid: Grid
    channels: int
    stamp: str
    label_stamp: str = ""
    """Tell whether image and label, hidden or not, are still what was scanned; empty without a label."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Something in an archive that cannot be used, and why."""

    address: str
    reason: str


@dataclass(frozen=True, slots=True)
class Relation:
    """Where a structure lies as seen from another one: "`structure` is `kind` `other`"."""

    kind: str
    """left-of, right-of, superior-to, inferior-to, anterior-to, posterior-to, inside, contains or touching;
    left and right are the patient's own."""

    other: str
    """Name of the other structure."""

    confidence: float = 1.0
    """Share of the answers that said so."""

    weight: float = 1.0
    """How much it counts where priors are used; labeled cases that disagree lower it."""


@dataclass(frozen=True, slots=True)
class Prior:
    """What is known about a structure before any image is seen."""

    structure: str
    volume_ml: tuple[float, float]
    """Smallest and largest volume to expect."""

    components: tuple[int, int] = (1, 1)
    """Fewest and most separate pieces to expect."""

    may_be_absent: bool = False
    """Whether a healthy or operated patient can lack it."""

    text: dict[str, str] = field(default_factory=dict)
    """Sentences by topic: shape, position, appearance."""

    source: str = "unknown"
    """Who said so: a person, or a model with its prompt and date."""

    relations: tuple[Relation, ...] = ()
    """Where it lies as seen from other structures."""

    confused_with: tuple[str, ...] = ()
    """What is easily taken for it."""

    confidence: dict[str, float] = field(default_factory=dict)
    """Share of a model's answers that agree, by claim (volume_ml, components, ...); a person's have none."""

    struck: dict[str, str] = field(default_factory=dict)
    """What the labeled cases say against a claim, by claim; such a claim is not used."""

    edited: tuple[str, ...] = ()
    """Claims that a person has changed since a model made them."""

    weights: dict[str, float] = field(default_factory=dict)
    """How much a claim counts of which only some labeled cases disagree; a relation has its own."""

    contradicted: dict[str, str] = field(default_factory=dict)
    """What labeled cases say against a claim that is still used, by claim."""


@dataclass(frozen=True, slots=True)
class Point:
    """A click on a slice, in voxel edges like a Box."""

    at: tuple[float, ...]
    positive: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """Where to look for one structure on one slice.

    A slice has the two other axes in their order: along D it is (H, W), along H (D, W), along
    W (D, H). Boxes and points are in its own pixels, which need not be square.
    """

    structure: int
    """Label value."""

    index: int
    """Which slice along `axis`."""

    box: Box | None = None
    points: tuple[Point, ...] = ()
    variant: int = 0
    """Prompts of the same place that differ on purpose are numbered."""

    axis: int = 0
    """0 for D, 1 for H, 2 for W."""

    logits_HW: Logits | None = field(default=None, compare=False, repr=False)
    """What is believed of the whole slice so far, above 0 inside; in any resolution, mostly a low one."""

    propagate: bool = False
    """Whether the answer asks on by itself on the slices beside it that hold no prompt for the structure."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a generalist says to one prompt."""

    prompt: Prompt
    logits_HW: Logits
    """In the slice's own pixels; above 0 is inside."""

    predicted_iou: float
    """The generalist's own opinion of its mask."""


@dataclass(frozen=True, slots=True)
class Region:
    """What generalists say about one structure, in the box that holds all of it; elsewhere they say nothing.

    Shares are kept in 255ths, which no rule can feel.
    """

    start: tuple[int, int, int]
    """First voxel of the box along (D, H, W)."""

    mean_DHW: NDArray[np.uint8]
    """Mean probability over opinions: the variants of every axis of every generalist that was asked there."""

    variance_DHW: NDArray[np.uint8]
    """Population variance over the same opinions times four."""

    @property
    def where(self) -> tuple[slice, ...]:
        """The box, as an index into the volume."""
        return tuple(slice(a, a + n) for a, n in zip(self.start, self.mean_DHW.shape, strict=True))


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a specialist and generalists say about one case, before anybody believes it."""

    case: str
    specialist_DHW: NDArray[np.uint8]
    """Label values, stray pieces removed: what the generalists were asked about."""

    regions: tuple[Region, ...]
    """By label value; the background's is empty, and so is what nobody was asked about."""

    predicted_iou: tuple[float, ...]
    """Mean opinion of the generalists about their own masks, by label value; index 0 unused."""

    consensus: tuple[float, ...]
    """Mean IoU over pairs of generalists, by label value; 1 where only one was there to agree with itself."""

    pooled_KC: NDArray[np.float16]
    """Mean of the first generalist's features inside its masks; zero where it found nothing, and without
    channels if it looked at no slice."""

    grid_DCHW: NDArray[np.float16] | None = None
    """The same features of whole slices along D, averaged over few cells; zero where it did not look. None
    where nobody wanted it."""


class Ruling(StrEnum):
    """What curation decided about one structure of one case."""

    ACCEPT = "accept"
    """The generalist's mask is believed."""

    PARTIAL = "partial"
    """Only voxels on which specialist and generalist agree are believed."""

    REJECT = "reject"
    """Nothing about this structure is believed here."""

    ABSENT = "absent"
    """Neither found it, and the prior allows that."""


NOTED = ("modality", "body_part", "protocol", "study_description", "series_description", "report")
"""What may be known of a case's metadata outside its archive; everything else is dropped."""


@dataclass(frozen=True, slots=True)
class Note:
    """What a case's metadata says, without anything that tells who the patient is."""

    case: str
    fields: dict[str, str]
    """Some of `NOTED`."""


class Expectation(StrEnum):
    """What a case's own notes say about a structure."""

    EXPECTED = "expected"
    """Nothing speaks against its being there."""

    ABSENT = "absent"
    """It was taken out, never was there, or lies outside the image."""

    DOUBTFUL = "doubtful"
    """It is there in part, changed, or the notes contradict themselves."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A ruling, the training weight it gives, the numbers it rests on, and why."""

    structure: str
    ruling: Ruling
    weight: float
    features: dict[str, float] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    without_priors: Ruling | None = None
    """What it would be if nothing were known about anatomy; None where nobody asked."""
    with_priors: Ruling | None = None
    """What it would be, or is, if what is known of anatomy speaks too."""


@dataclass(frozen=True, slots=True)
class PseudoLabel:
    """What training may consume of one unlabeled case."""

    case: str
    mask_DHW: NDArray[np.uint8]
    """Label values; 0 is background."""

    weight_DHW: NDArray[np.uint8]
    """How much each voxel counts, 0 to 255; 0 is ignored."""

    undecided: tuple[int, ...]
    """Label values of structures that may lie where the mask says background: nothing is
    known about them here, so background means "background or one of these"."""

    verdicts: tuple[Verdict, ...]

    pooled_KC: NDArray[np.float16]
    """See Candidate; of all structures, believed or not."""

    grid_DCHW: NDArray[np.float16] | None = None
    """See Candidate."""


class Outcome(StrEnum):
    """How the work on one case ended."""

    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Score:
    """How one structure of one case was segmented."""

    case: str
    structure: str
    dice: float
    jaccard: float
    hd95_mm: float
    asd_mm: float
    nsd: float
    hd95_voxels: float
    asd_voxels: float
    absent: bool
    """Neither prediction nor reference holds it; left out of means."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean of one structure (or of all structures) over cases."""

    structure: str
    cases: int
    dice: float
    dice_low: float
    """Lower end of the 95 % bootstrap interval over cases."""
    dice_high: float
    hd95_mm: float
    nsd: float


@dataclass(frozen=True, slots=True)
class Scorecard:
    """How a specialist did on one split."""

    specialist: str
    """Digest of its weights."""

    role: Role
    scores: tuple[Score, ...]
    summaries: tuple[Summary, ...]
    """One a structure, in order, then the mean over structures named `mean`."""


class Decision(StrEnum):
    """Whether a challenger takes the champion's place."""

    PROMOTE = "promote"
    HOLD = "hold"


class Ground(StrEnum):
    """What a reason for or against a challenger is about: whether there are scores at all, mean Dice, how
    often its gain comes out when cases are drawn again, Dice of one structure, HD95 as a factor of the
    champion's, how well Dice of its labels was predicted."""

    EVIDENCE = "evidence"
    GAIN = "gain"
    CERTAINTY = "certainty"
    STRUCTURE = "structure"
    HD95 = "hd95"
    CALIBRATION = "calibration"


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that was asked of a challenger, of one structure or all: what was found, and what allowed."""

    kind: Ground
    passed: bool
    """False speaks against promotion, alone and whatever else speaks for it."""
    told: str
    structure: str | None = None
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Promotion:
    """A decision about a challenger, with its arithmetic."""

    decision: Decision
    challenger: str
    champion: str | None
    reasons: tuple[Reason, ...]
