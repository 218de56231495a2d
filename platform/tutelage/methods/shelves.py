"""Cases ready to be learned from, and where they stand until a patch is cut from them.

A shelf tells how many cases it has and hands out one by its number, which may have to be decoded
first; so it is told what comes next. It decides what is found once for all patches of a case, and
what no case may be. It does not know which case is drawn when, and no files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TrainingError
from tutelage.methods import augment


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One case as the network sees it, at the plan's spacing."""

    case: str
    image_CDHW: NDArray[np.float32]
    label_DHW: NDArray[np.uint8] | None
    """None where nothing is believed."""
    weight_DHW: NDArray[np.float32] | None
    """Shares in [0, 1]; None counts every voxel of the label."""
    undecided: tuple[int, ...]
    """See PseudoLabel."""
    gold: bool
    features_DCHW: NDArray[np.float16] | None = None
    """The generalist's features, a coarse grid over the whole volume; zero where it did not look."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (D, H, W)."""
        d, h, w = self.image_CDHW.shape[1:]
        return d, h, w

    @property
    def width(self) -> int:
        """Channels of its features; 0 without."""
        return 0 if self.features_DCHW is None else self.features_DCHW.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """A sample and what is found once: it may lie in a file, of which a patch reads its own part alone."""

    sample: Sample
    voxels: tuple[NDArray[np.int64], ...]
    """See augment.foreground."""
    darkest: float
    """Least intensity: that of what lies beyond the volume."""


class Shelf(Protocol):
    """Cases of one stream by their numbers; what stands behind a number never changes."""

    @property
    def width(self) -> int:
        """Channels of the features that its cases have, if they have any; 0 if none has."""
        ...

    def __len__(self) -> int: ...

    def at(self, index: int) -> Ready | None:
        """Return a case, when it is there; None if it cannot be read any more and may be passed over.

        Raises:
            TrainingError: it cannot be read, or not learned from.
        """
        ...

    def soon(self, indices: Sequence[int]) -> None:
        """Tell which cases patches are cut from next, patch by patch, after those told before."""
        ...


class Held:
    """A shelf whose cases are all at hand."""

    def __init__(self, samples: Sequence[Sample], classes: int, width: int) -> None:
        for sample in samples:
            check(sample, classes, width)
        self.width = width
        self._cases = [ready(sample) for sample in samples]

    def __len__(self) -> int:
        return len(self._cases)

    def at(self, index: int) -> Ready:
        """See Shelf."""
        return self._cases[index]

    def soon(self, indices: Sequence[int]) -> None:
        """See Shelf: nothing has to be done."""


@dataclass(frozen=True, slots=True)
class Shelves:
    """The two streams of a batch."""

    gold: Shelf
    """Annotated cases."""
    others: Shelf
    """With a pseudo-label or none."""

    @property
    def width(self) -> int:
        """Channels of features; 0 if no case has any."""
        return max(self.gold.width, self.others.width)


def held(samples: Sequence[Sample], classes: int) -> Shelves:
    """Put samples that are all at hand on shelves."""
    widths = {sample.width for sample in samples} - {0}
    if len(widths) > 1:
        raise TrainingError(
            f"features of cases have {sorted(widths)} channels, expected the same number in all; "
            "label them again with one generalist"
        )
    width = max(widths, default=0)
    gold, others = ([one for one in samples if one.gold is kind] for kind in (True, False))
    return Shelves(Held(gold, classes, width), Held(others, classes, width))


def ready(sample: Sample) -> Ready:
    """Find what is found once."""
    voxels = () if sample.label_DHW is None else augment.foreground(sample.label_DHW, sample.weight_DHW)
    return Ready(sample, voxels, float(sample.image_CDHW.min()))


def check(sample: Sample, classes: int, width: int) -> None:
    """Refuse what would end far from here: in an index, in a shape or, on a GPU, in an assertion."""
    highest = 0 if sample.label_DHW is None else int(sample.label_DHW.max())
    if min(sample.undecided, default=1) < 1 or max(highest, *sample.undecided, 0) >= classes:
        raise TrainingError(
            f"{sample.case} has labels up to {highest} and undecided structures "
            f"{list(sample.undecided)}, expected structures 1 to {classes - 1}; label it again"
        )
    if sample.gold and sample.label_DHW is None:
        raise TrainingError(f"{sample.case} is annotated but has no label; scan the archive again")
    if sample.width not in (0, width):
        raise TrainingError(
            f"features of {sample.case} have {sample.width} channels, expected {width} as in the others; "
            "label them again with one generalist"
        )
