"""What a method is, and what it is given: batches, networks, vectors, a generalist to ask.

A method is a file of its own that names its networks and turns a batch into loss terms. The
loop (`training`) knows none by name, and a method knows no files, no Ray and no loop.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tutelage.methods import turning
from tutelage.methods.settings import TrainSettings
from tutelage.specialist.plan import Plan

SPECIALIST = "specialist"
"""Name of the network that is kept and served; a method may have others beside it."""


@dataclass(frozen=True, slots=True)
class View:
    """Where a patch lies in its volume, and how it was turned: enough to turn another array the same way.

    Shapes are at the plan's spacing. `of` and `back` work on the last three axes of an array. Where a patch
    is tilted, floats are shares of their neighbors' and everything else is the nearest voxel's.
    """

    shape: tuple[int, int, int]
    """Of the whole volume."""
    start: tuple[int, int, int]
    """First voxel of the patch; the patch may reach beyond the volume, where it is padded."""
    patch: tuple[int, int, int]
    flips: tuple[bool, bool, bool] = (False, False, False)
    quarter_turns: int = 0
    """In the plane of the last two axes, after the flips; odd only where both are equally long and spaced."""
    tilt: turning.Matrix | None = None
    """A small turn and change of size before all that. See `turning`."""

    def of(self, array: NDArray[np.generic], fill: float = 0) -> NDArray[np.generic]:
        """Cut, pad and turn a volume into the patch."""
        if self.tilt is None:
            return self.turned(self._reached(array, fill))
        box = self.box(array, fill)
        shown = self.shown(torch.from_numpy(box.astype(np.float32)), smooth=_smooth(array))
        return shown.numpy().astype(array.dtype)

    def box(self, array: NDArray[np.generic], fill: float = 0) -> NDArray[np.generic]:
        """Copy and pad what the patch is made of: itself, and more around it where it is tilted."""
        return self._reached(array, fill).copy()

    def _reached(self, array: NDArray[np.generic], fill: float) -> NDArray[np.generic]:
        """The same, still in the volume's own memory where nothing has to be padded."""
        more = turning.margins(self.tilt, self.patch)
        reach = [(a - m, a + p + m) for a, p, m in zip(self.start, self.patch, more, strict=True)]
        d, h, w = (slice(max(0, low), high) for low, high in reach)
        cut = array[..., d, h, w]
        before = [max(0, -low) for low, _ in reach]
        whole = [high - low for low, high in reach]
        around = [(b, n - b - c) for b, n, c in zip(before, whole, cut.shape[-3:], strict=True)]
        if not any(map(any, around)):
            return cut
        return np.pad(cut, [*[(0, 0)] * (array.ndim - 3), *around], constant_values=fill)

    def shown(self, box: Tensor, smooth: bool) -> Tensor:
        """Make the tilted patch of its box, where the box is."""
        assert self.tilt is not None
        tilted = turning.taken(box, self.tilt, self.patch, smooth)
        flipped = tilted.flip([axis - 3 for axis in range(3) if self.flips[axis]])
        return flipped.rot90(self.quarter_turns, (-2, -1))

    def turned(self, cut: NDArray[np.generic]) -> NDArray[np.generic]:
        """Turn what was already cut, at any resolution, into memory of its own."""
        flipped = np.flip(cut, [axis - 3 for axis in range(3) if self.flips[axis]])
        return np.rot90(flipped, self.quarter_turns, axes=(-2, -1)).copy()

    def back(self, patch: NDArray[np.generic], fill: float = 0) -> NDArray[np.generic]:
        """Turn a patch back and lay it into a volume of `fill`."""
        flipped = np.rot90(patch, -self.quarter_turns, axes=(-2, -1))
        straight = np.flip(flipped, [axis - 3 for axis in range(3) if self.flips[axis]])
        more = turning.margins(self.tilt, self.patch)
        if self.tilt is not None:
            box = [p + 2 * m for p, m in zip(self.patch, more, strict=True)]
            there = torch.from_numpy(straight.astype(np.float32))
            told = turning.returned(there, self.tilt, box, fill, smooth=_smooth(patch))
            straight = told.numpy().astype(patch.dtype)
        volume = np.full((*patch.shape[:-3], *self.shape), fill, patch.dtype)
        low = [a - m for a, m in zip(self.start, more, strict=True)]
        within = [
            (max(0, a), min(n, a + s)) for a, n, s in zip(low, self.shape, straight.shape[-3:], strict=True)
        ]
        d, h, w = (slice(*ends) for ends in within)
        i, j, k = (slice(first - a, stop - a) for (first, stop), a in zip(within, low, strict=True))
        volume[..., d, h, w] = straight[..., i, j, k]
        return volume


def _smooth(array: NDArray[np.generic]) -> bool:
    return np.issubdtype(array.dtype, np.floating)


@dataclass(frozen=True, slots=True, eq=False)
class Patches:
    """Patches of one stream, stacked along B, augmented."""

    image: Tensor
    """(B, C, D, H, W)."""
    label: Tensor
    """(B, D, H, W), int64: a person's label, a pseudo-label, or 0 everywhere."""
    weight: Tensor
    """(B, D, H, W), shares in [0, 1]: how far each voxel's label counts; 0 where nothing is known."""
    undecided: Tensor
    """(B, K), bool: structures of which 0 does not mean absence. See PseudoLabel."""
    features: Tensor | None
    """(B, F, d, h, w): the generalist's embedding over the patch, if the method needs it."""
    featured: Tensor
    """(B,), bool: whether `features` holds anything for a patch."""
    cases: tuple[str, ...]
    views: tuple[View, ...]
    seeds: tuple[int, ...]
    """Of what a method draws for each patch: from the seed, the step and its place in the whole batch, and so
    the same in however many processes."""

    def __len__(self) -> int:
        return len(self.cases)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What one process learns from in one step."""

    labeled: Patches
    """Of annotated cases."""
    unlabeled: Patches | None
    """Of cases with a pseudo-label or none; None where a method sees annotated cases alone."""
    seed: int
    """Of what a method draws once for all patches of a step, the same in every process."""


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What a generalist said about structures of one volume, on the plan's grid."""

    mean_KDHW: NDArray[np.float32]
    """Mean probability over prompts and generalists, structures in order, without the background; one half
    where nothing was said."""
    variance_KDHW: NDArray[np.float32]
    """Population variance of the same; one quarter, the most there can be, where nothing was said."""
    asked_K: NDArray[np.bool_]
    """Whether it was asked about a structure at all."""
    calls: int
    """Prompts that were decoded."""


class Asker(Protocol):
    """A generalist that can be asked while training goes on. Embeddings are kept between calls."""

    def ask(self, case: str, mask_DHW: NDArray[np.uint8], seed: int) -> Answers:
        """Prompt it from a specialist's mask of the whole volume, on the plan's grid.

        Its answer does not depend on the autocast under which it is asked.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Resources:
    """What a method may use beside networks and batches."""

    texts_KTF: Tensor | None = None
    """Vectors of classes (the background first) by topic, shape before position, if the method needs text."""
    asker: Asker | None = None
    feature_width: int | None = None
    """Channels of `Patches.features`, if there are any."""


class Method(Protocol):
    """How a specialist learns. Constructed as `method_class(name)(plan, settings, resources)`."""

    @property
    def plan(self) -> Plan:
        """Of the specialist that `networks` builds: the one it was made for, with text if that is added."""
        ...

    def networks(self) -> nn.ModuleDict:
        """Build its networks with fresh weights from torch's seed, the specialist by its name.

        What must not learn by gradients (a mean teacher) has `requires_grad` False.
        """
        ...

    def losses(self, batch: Batch, networks: nn.ModuleDict, step: int) -> dict[str, Tensor]:
        """Return named terms, already weighed, whose sum is minimized; called under autocast.

        Terms are those of the whole batch, also where several processes share it (see `together`), and
        what is random follows from the seeds in the batch. Only what a network itself leaves out comes
        from torch's generator, which is seeded for every step and process.
        """
        ...

    def after_step(self, networks: nn.ModuleDict, step: int) -> None:
        """Let what follows follow, for example a teacher its student."""
        ...

    def counts(self) -> dict[str, float]:
        """Return what is worth counting since the start, for example calls of a generalist."""
        ...


class MethodFactory(Protocol):
    """What stands in the registry: the class of a method."""

    def __call__(self, plan: Plan, settings: TrainSettings, resources: Resources) -> Method:
        """Make the method for a plan."""
        ...
