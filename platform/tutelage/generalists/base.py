"""What every generalist can be asked, and nothing about how it answers.

A slice is looked at once (`embed`, dear) and then asked about many times (`segment`,
cheap). Slices come windowed, float32 in [0, 1]: (H, W), or (3, H, W) in colors. Answers
come as logits in the slice's own pixels, one a prompt, in the order of the prompts.
"""

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import GeneralistError
from tutelage.records import Answer, Logits, Point, Prompt
from tutelage.storage import NUMPY_HEADERS

Slice = NDArray[np.float32]

_CHECKSUM_BYTES = 4


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a generalist can be prompted with."""

    boxes: bool = False
    points: bool = False
    masks: bool = False
    volumes: bool = False
    """Whether one prompt is answered through the volume instead of on its slice alone."""
    stretches: bool = False
    """Whether a slice fills its features along both sides; else its longest side does, and padding follows
    the other."""


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """What a generalist remembers of one slice."""

    features_CHW: NDArray[np.float16]
    """In the generalist's own cells, not in pixels."""

    shape: tuple[int, int]
    """Pixels of the slice along (H, W)."""

    def to_bytes(self) -> bytes:
        """Features and shape, both as .npy, then a checksum of them in four bytes."""
        buffer = io.BytesIO()
        np.save(buffer, self.features_CHW, allow_pickle=False)
        np.save(buffer, np.asarray(self.shape, np.int64), allow_pickle=False)
        body = buffer.getvalue()
        return body + zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "big")

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: if the bytes are cut short, damaged or something else.
        """
        body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if not body or zlib.crc32(body) != int.from_bytes(checksum, "big"):
            raise ValueError(f"{len(data)} bytes do not match their checksum")
        buffer = io.BytesIO(body)
        with NUMPY_HEADERS:
            features_CHW = np.load(buffer, allow_pickle=False)
            height, width = np.load(buffer, allow_pickle=False).tolist()
        return cls(features_CHW, (height, width))


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


@dataclass(frozen=True, slots=True)
class VolumePrompt:
    """Where to look for one structure in a volume."""

    structure: int
    """Label value."""

    middle: tuple[float, float, float]
    """Of what is looked at, along (D, H, W) in voxel edges."""

    clicks: tuple[Point, ...]
    """Along (D, H, W) in voxel edges; each corrects what was answered to those before."""

    variant: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class VolumeAnswer:
    """What a generalist says to one prompt about a volume."""

    prompt: VolumePrompt
    start: tuple[int, int, int]
    """First voxel along (D, H, W) of the box that was looked at; nothing is said about others."""

    logits_DHW: Logits
    """In the volume's own voxels; above 0 is inside."""

    predicted_iou: float
    features_C: NDArray[np.float16]
    """Mean over the mask; zero where there is none."""


class VolumeGeneralist(Generalist, Protocol):
    """A promptable model of volumes; asked about a slice, it refuses."""

    reach_mm: float
    """How far it looks from the middle of a prompt, along each axis."""

    channels: int
    """Of its features."""

    def segment_volume(
        self, volume_DHW: Slice, spacing_mm: Sequence[float], prompts: Sequence[VolumePrompt]
    ) -> list[VolumeAnswer]:
        """Answer prompts about one volume in [0, 1], in the frame of `geometry`."""
        ...


@runtime_checkable
class Batched(Protocol):
    """A generalist that works in batches as large as memory allows."""

    @property
    def halvings(self) -> int:
        """How often memory ran out since it was loaded, each time halving a batch."""
        ...


def refuse_unanswerable(name: str, capabilities: Capabilities, prompts: Sequence[Prompt]) -> None:
    """Raise GeneralistError at the first prompt that a generalist cannot take.

    A prompt is never answered in part: a click that is silently dropped looks like a bad model.
    """
    takes = [kind for kind in ("boxes", "points", "masks") if getattr(capabilities, kind)]
    for prompt in prompts:
        asks = {
            "boxes": prompt.box is not None and "a box",
            "points": prompt.points and f"{len(prompt.points)} points",
            "masks": prompt.logits_HW is not None and "a mask",
        }
        found = {kind: words for kind, words in asks.items() if words}
        if not found or not found.keys() <= set(takes):
            holds = " and ".join(map(str, found.values())) or "nothing"
            raise GeneralistError(
                f"the prompt for structure {prompt.structure} on slice {prompt.index} holds {holds}, "
                f"but {name} takes {' and '.join(takes)} only; draw one, or choose another generalist"
            )
