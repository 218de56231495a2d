"""What every generalist can be asked, and nothing about how it answers.

A slice is looked at once (`embed`, dear) and then asked about many times (`segment`,
cheap). Slices come windowed: float32 in [0, 1]. Answers come as logits in the slice's own
pixels, one a prompt, in the order of the prompts.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import GeneralistError
from tutelage.records import Answer, Prompt

Slice = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a generalist can be prompted with."""

    boxes: bool = False
    points: bool = False
    masks: bool = False
    volumes: bool = False
    """Whether one prompt is answered through the volume instead of on its slice alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """What a generalist remembers of one slice."""

    features_CHW: NDArray[np.float16]
    """In the generalist's own cells, not in pixels."""

    shape: tuple[int, int]
    """Pixels of the slice along (H, W)."""

    def to_bytes(self) -> bytes:
        """Features and then the shape, both as .npy; a file cut anywhere cannot be read back."""
        buffer = io.BytesIO()
        np.save(buffer, self.features_CHW, allow_pickle=False)
        np.save(buffer, np.asarray(self.shape, np.int64), allow_pickle=False)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError, EOFError: if the bytes are anything else.
        """
        buffer = io.BytesIO(data)
        features = np.load(buffer, allow_pickle=False)
        shape = np.load(buffer, allow_pickle=False)
        if features.dtype != np.float16 or features.ndim != 3 or shape.shape != (2,):
            raise ValueError(
                f"found {features.dtype} {features.shape} and {shape.shape}, "
                "expected float16 (C, H, W) and (2,); delete the file"
            )
        return cls(features, (int(shape[0]), int(shape[1])))


class Generalist(Protocol):
    """A promptable model of slices."""

    capabilities: Capabilities
    weights: str
    """Sixteen hex digits of the sha256 of the weights; starts with `none-` where there are none."""

    preprocessing: str
    """Changes whenever the embedding of a slice would, weights aside; part of the cache's key."""

    def embed(self, slices_HW: Sequence[Slice]) -> list[Embedding]:
        """Look at slices; they may differ in shape."""
        ...

    def segment(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Answer]:
        """Answer prompts about one slice."""
        ...


def refuse_unanswerable(name: str, capabilities: Capabilities, prompts: Sequence[Prompt]) -> None:
    """Raise GeneralistError at the first prompt that a generalist cannot take.

    A prompt is never answered in part: a click that is silently dropped looks like a bad model.
    """
    for prompt in prompts:
        asks = (prompt.box is not None and "a box", prompt.points and f"{len(prompt.points)} points")
        found = " and ".join(a for a in asks if a) or "nothing"
        answerable = (capabilities.boxes or prompt.box is None) and (capabilities.points or not prompt.points)
        if found == "nothing" or not answerable:
            takes = [kind for kind in ("boxes", "points") if getattr(capabilities, kind)]
            raise GeneralistError(
                f"the prompt for structure {prompt.structure} on slice {prompt.index} holds {found}, "
                f"but {name} takes {' and '.join(takes)} only; draw one, or choose another generalist"
            )
