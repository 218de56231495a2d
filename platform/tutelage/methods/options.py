"""What each method can be told beyond what all share: one class a method, numbers as published.

It is pure, so that settings are checked before torch is loaded. It does not know what a
method does with them.
"""

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from tutelage.settings import Settings


class MeanTeacherOptions(Settings):
    """A running mean of the specialist teaches it to be steady. Also UA-MT's base."""

    decay: float = Field(default=0.99, ge=0, lt=1)
    """Of the running mean, at most."""

    noise: float = Field(default=0.1, ge=0)
    """Deviation of the noise on the teacher's image, clipped at twice that."""

    consistency: float = Field(default=0.2, ge=0)
    """Weight of the consistency term once it has risen; published as 0.1 beside half the supervised terms."""

    rise: float = Field(default=0.4, ge=0, le=1)
    """Share of all steps over which it rises as exp(-5 (1 - t)^2)."""


class UaMtOptions(MeanTeacherOptions):
    """A mean teacher that is listened to where it is sure."""

    passes: int = Field(default=8, ge=1)
    """Noisy looks of the teacher from whose mean its doubt is taken."""

    surest: float = Field(default=0.75, ge=0, le=1)
    """Threshold of doubt at first, as a share of the entropy of knowing nothing; rises to 1 in the end."""


class CpsOptions(Settings):
    """Two networks that teach each other."""

    consistency: float = Field(default=0.2, ge=0)
    """Weight of each other's labels once it has risen; published as 0.1 beside half the supervised terms."""

    rise: float = Field(default=0.4, ge=0, le=1)
    """Share of all steps over which it rises as exp(-5 (1 - t)^2)."""

    dice: bool = False
    """Whether Dice is taken of each other's labels beside cross entropy; published without."""


class BcpOptions(Settings):
    """Patches mixed both ways between annotated and unlabeled ones."""

    decay: float = Field(default=0.99, ge=0, lt=1)
    """Of the teacher's running mean."""

    ratio: float = Field(default=2 / 3, gt=0, lt=1)
    """Of the pasted cuboid's sides to the patch's."""

    unlabeled: float = Field(default=0.5, ge=0)
    """Weight of unlabeled voxels against annotated ones."""

    largest: bool = True
    """Whether only the largest piece of each structure is kept of what the teacher says."""

    alone: float = Field(default=0.25, ge=0, lt=1)
    """Share of steps at first that mix annotated patches alone: published as 2/17 in 3D, 1/4 in 2D."""


class LlmSegNetOptions(Settings):
    """Two networks that know the task's text and teach each other, one of them on mixed patches."""

    consistency: float = Field(default=0.1, ge=0)
    """Weight of each other's answers once it has risen."""

    rise: float = Field(default=0.4, ge=0, le=1)
    """Share of all steps over which it rises as exp(-5 (1 - t)^2)."""

    sure: float = Field(default=0.8, ge=0, le=1)
    """Probability from which the other's answer is a label; below, it is a distribution to be near to."""

    unsure: float = Field(default=1.0, ge=0)
    """Weight of voxels of the second kind, by squared distance, against the first, by log likelihood."""

    cut: tuple[float, float] = (0.1, 0.5)
    """Range of the share of a patch that is cut out and exchanged."""


class TakOptions(Settings):
    """Text makes the last layers, patches are cut into cubes, rare classes count as much as frequent ones."""

    decay: float = Field(default=0.99, ge=0, lt=1)
    """Of the teacher's running mean, at most."""

    noise: float = Field(default=0.1, ge=0)
    """Deviation of the noise on the teacher's image, clipped at twice that."""

    consistency: float = Field(default=0.1, ge=0)
    """Weight of the teacher's answers once it has risen."""

    rise: float = Field(default=1.0, ge=0, le=1)
    """Share of all steps over which it rises as exp(-5 (1 - t)^2)."""

    location: float = Field(default=0.1, ge=0)
    """Weight of telling where a cube is from."""

    cubes: int = Field(default=3, ge=2)
    """Cubes along an axis, at most."""

    blend_from: int = Field(default=100, ge=0)
    """Step from which the teacher's look at single cubes counts beside its look at the whole."""

    contrast: float = Field(default=0.1, ge=0)
    """Weight of the nearness of voxels to the text of their class."""

    contrast_from: float = Field(default=0.125, ge=0, le=1)
    """Share of all steps before it counts."""

    temperature: float = Field(default=0.07, gt=0)
    """Of that nearness."""

    drawn: tuple[int, int, int] = (10, 20, 40)
    """Voxels drawn for it by class and image at the three coarsest levels, the coarsest first."""

    gate_rise: float = Field(default=0.625, ge=0, le=1)
    """Share of all steps over which the largest entropy of an unlabeled voxel that is drawn rises to ln 2."""

    hardest: float = Field(default=0.1, gt=0, le=1)
    """Share of voxels whose cross entropy counts."""

    evenness: float = Field(default=0.5, ge=0, le=1)
    """How cross entropy is shared among classes: 0 makes all classes alike, 1 all voxels."""


class SemiSamPlusOptions(Settings):
    """A generalist that is asked while another method trains: as `prompts` says, of which two variants or
    more tell how far an answer is to be trusted."""

    base: Literal["supervised", "mean_teacher", "ua_mt", "cps", "bcp"] = "mean_teacher"
    """The method it stands on, with its own options; supervised looks at annotated patches alone."""

    weight: float = Field(default=0.2, ge=0)
    """Of its answers at first; published as 0.1 beside half the supervised terms. With 0 nobody is asked."""

    fade: float = Field(default=1.0, ge=0, le=1)
    """Share of all steps, the last, over which it fades to e^-5 of that."""

    ask_every: int = Field(default=5, ge=1)
    """Steps between two asks; published as 1."""

    reuse: int = Field(default=0, ge=0)
    """Steps for which an answer teaches again when its case comes back; all are forgotten every
    `train.checkpoint_every` steps. Above 0, a training that was asked to end between two of these steps goes
    on without what it had been told since the first, and so to other weights than one that never stopped."""


class TutelageOptions(Settings):
    """Pseudo-labels of rounds, mixed patches, and what else helps; each part can be switched off."""

    mixing: bool = True
    """Whether patches are mixed both ways between annotated and unlabeled ones."""

    ratio: float = Field(default=2 / 3, gt=0, lt=1)
    """Of the pasted cuboid's sides to the patch's."""

    voxel_weights: bool = True
    """Whether pseudo-labels count by voxel as curation says; else all that is believed counts in full."""

    decay: float = Field(default=0.99, ge=0, lt=1)
    """Of the running mean that labels what is undecided."""

    fill: float = Field(default=0.5, ge=0)
    """Weight of voxels that the running mean labels, once it has risen; with 0 there is no running mean."""

    sure: float = Field(default=0.8, ge=0, lt=1)
    """Probability above which the running mean labels a voxel."""

    rise: float = Field(default=0.4, ge=0, le=1)
    """Share of all steps over which `fill` rises as exp(-5 (1 - t)^2)."""

    self_reliance: float = Field(default=0.2, ge=0, lt=1)
    """Share of all steps, the last, in which pseudo-labels do not count and the running mean labels alone;
    0 where `fill` is 0."""

    text: Literal["bottleneck", "head"] | None = None
    """Where vectors of texts enter the network; null for nowhere."""

    distillation: float = Field(default=0.0, ge=0)
    """Weight of the distance to the generalist's embeddings; 0 needs none."""

    level: int = Field(default=1, ge=0)
    """Decoder level that is compared with them; 0 is the coarsest."""

    continues: bool = False
    """Whether each round starts from the specialist of the stage before, at `train.fine_tuning` of the rate,
    instead of fresh weights. Labels alone teach no text: what reads it starts afresh in the first."""

    @model_serializer(mode="wrap")
    def _known(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is younger than campaigns that learned as its default does: they still hold."""
        told: dict[str, Any] = dump(self)
        return {key: told[key] for key in told if told[key] or key != "continues"}
