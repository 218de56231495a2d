"""What the methods room can be told."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from tutelage.methods import options
from tutelage.methods.needs import NEEDS, MethodName
from tutelage.settings import Settings

Share = Annotated[float, Field(ge=0, le=1)]


class AugmentSettings(Settings):
    """How a patch is chosen and changed before it is learned from."""

    foreground_share: Share = 0.33
    """Of patches of a labeled case that are sure to hold a voxel of a structure, all as likely."""

    flips: tuple[bool, bool, bool] = (False, False, False)
    """Axes (D, H, W) along which patches are mirrored at random. Off: a mirrored body has its liver left."""

    quarter_turns: bool = False
    """Whether patches are turned by multiples of 90 degrees in the plane of the last two axes."""

    rotation_degrees: float = Field(default=0.0, ge=0, le=180)
    """Largest turn by any other angle, in millimeters, of three of ten patches: about any direction where the
    plan's voxels are nearly cubes (sides of at most 1 to 1.5), else in the plane of its two finest axes. What
    it brings in from beyond the volume is as dark as padding, and its label does not count."""

    scaling: float = Field(default=0.0, ge=0, lt=1)
    """Up to this share larger, or as much smaller in proportion: of the same three of ten patches."""

    brightness: float = Field(default=0.2, ge=0)
    """Largest shift, in deviations of the image."""

    contrast: float = Field(default=0.25, ge=0, lt=1)
    """Up to this share more contrast, or as much less in proportion."""

    noise: float = Field(default=0.1, ge=0)
    """Deviation of noise on three of ten patches."""

    gamma: tuple[float, float] = (0.7, 1.5)
    """Range of exponents by which three of ten patches are bent."""

    @model_serializer(mode="wrap")
    def _known(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is younger than campaigns that learned as its default does: they still hold."""
        told: dict[str, Any] = dump(self)
        return {key: told[key] for key in told if told[key] or key not in ("rotation_degrees", "scaling")}


class TrainSettings(Settings):
    """How a specialist learns."""

    method: MethodName = "supervised"
    """Which one; `supervised` takes labels and pseudo-labels alike, the latter by their weights."""

    steps: int = Field(default=800, ge=1)
    """Batches it learns from."""

    batch: int = Field(default=2, ge=1)
    """Patches in a batch, over all workers; a multiple of their number."""

    accumulate: int = Field(default=1, ge=1)
    """Parts in which each worker learns from its share of a batch, one after another, for less memory; their
    losses are averaged, as over so many times the workers. The batch is a multiple of both together."""

    gold_share: float = Field(default=0.5, gt=0, le=1)
    """Share of patches from annotated cases, rounded to whole patches, once there are others."""

    learning_rate: float = Field(default=4e-3, gt=0)
    """Highest rate of AdamW, reached after the warm-up."""

    fine_tuning: float = Field(default=0.25, gt=0, le=1)
    """Share of that rate where a method goes on from the specialist of the stage before."""

    weight_decay: float = Field(default=1e-4, ge=0)
    """Of AdamW."""

    warmup: int = Field(default=30, ge=0)
    """Steps until the learning rate is reached; from then on it falls as (1 - s / steps) ** 0.9."""

    clip: float = Field(default=5.0, gt=0)
    """Largest norm of the gradient."""

    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the running mean of the weights that is kept in the end; 0 keeps the last weights."""

    checkpoint_every: int = Field(default=100, ge=1)
    """Steps between two checkpoints."""

    keep: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept: where one is damaged, the one before it is gone on from."""

    hang_s: float = Field(default=1800.0, ge=0)
    """Seconds without the end of a step, or of a look at a validation case, after which a process notes where
    it stands and ends; 0 waits forever."""

    max_gb: float = Field(default=8.0, ge=0)
    """Gigabytes of volumes that each worker keeps in memory; the others lie in nameless files of its node,
    where TMPDIR says, and patches are read from there. Nothing that is learned depends on it. A few more of
    each stream are in memory that were decoded ahead of need."""

    disk_gb: float = Field(default=64.0, ge=0)
    """Gigabytes of those files, for each worker; beyond that, the volumes decoded longest ago are given up,
    and decoded again when they are drawn. Nothing that is learned depends on it."""

    window: int = Field(default=256, ge=1)
    """Cases of a stream, annotated ones or others, among which patches are drawn at a time. Where there are
    no more, each patch is of any case; else they take turns, and this many should fit max_gb and disk_gb."""

    reuse: int = Field(default=8, ge=1)
    """Patches that are cut from a case in its turn, on average: at least one, and then others have theirs."""

    missing: Literal["refuse", "skip"] = "refuse"
    """What happens to a case whose image or label cannot be read any more: `refuse` ends the training and
    names the file, `skip` draws another case and counts the patches."""

    validate_every: int = Field(default=0, ge=0)
    """Steps between two looks at the validation cases; 0 never looks. The first worker looks, and keeps
    them in memory beside max_gb; the others wait."""

    select: Literal["last", "best"] = "last"
    """Which weights the specialist gets: the last, or those with the best mean Dice on validation cases."""

    augment: AugmentSettings = AugmentSettings()
    mean_teacher: options.MeanTeacherOptions = options.MeanTeacherOptions()
    ua_mt: options.UaMtOptions = options.UaMtOptions()
    cps: options.CpsOptions = options.CpsOptions()
    bcp: options.BcpOptions = options.BcpOptions()
    llm_segnet: options.LlmSegNetOptions = options.LlmSegNetOptions()
    tak: options.TakOptions = options.TakOptions()
    semisam_plus: options.SemiSamPlusOptions = options.SemiSamPlusOptions()
    tutelage: options.TutelageOptions = options.TutelageOptions()

    def problems(self) -> Iterator[tuple[str, str]]:
        """Complain about a choice between weights that nobody looks at."""
        if self.select == "best" and not self.validate_every:
            yield "select", "found best, but validation cases are never looked at; set validate_every"
        gold = self.gold_patches
        if self.method == "knowledge_mining" and not self.batch / 2 <= gold < self.batch:
            # Reconstructed, as the method is: what is mined must not outweigh what people labeled.
            yield (
                "gold_share",
                f"found {self.gold_share}, which makes {gold} of the {self.batch} patches of a batch "
                "annotated and the others mined; knowledge_mining expects half of them or more annotated, "
                "but not all; take 0.5, and an even train.batch",
            )
        if self.method == "tutelage" and self.tutelage.self_reliance and not self.tutelage.fill:
            yield (
                "tutelage.self_reliance",
                f"found {self.tutelage.self_reliance}, expected 0 with tutelage.fill 0: in these steps "
                "nobody would say anything about unlabeled patches; set it to 0, or fill above 0",
            )

    @property
    def gold_patches(self) -> int:
        """Patches of annotated cases in a batch that has others too."""
        return max(1, round(self.batch * self.gold_share))

    def effective(self) -> dict[str, Any]:
        """Return what training depends on: what all methods share, and what the chosen one reads."""
        read = {self.method, *NEEDS[self.method].options}
        everything = self.model_dump(mode="json")
        # These change nothing that is learned, as long as all files are there.
        for name in ("max_gb", "disk_gb", "missing", "keep", "hang_s"):
            del everything[name]
        # Younger than campaigns that learned as these defaults do.
        for name in ("accumulate", "window", "reuse"):
            if everything[name] == type(self).model_fields[name].default:
                del everything[name]
        return {name: value for name, value in everything.items() if name not in NEEDS or name in read}
