"""What is learned from in one step: patches of annotated cases, and of others beside them.

The batch of a step is a pure function of the seed and the step, and is dealt to the
workers, so that two workers with one patch each see what one worker sees with two, and a
run that goes on from a checkpoint sees what it would have seen. How many patches come from
annotated cases is the same in every step. It knows no method and no files.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.errors import TrainingError
from tutelage.methods import augment
from tutelage.methods.base import Batch, Patches, View
from tutelage.methods.needs import NEEDS
from tutelage.methods.settings import TrainSettings
from tutelage.specialist.plan import Plan


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


class Batches:
    """The batches of one worker."""

    def __init__(
        self,
        samples: Sequence[Sample],
        plan: Plan,
        settings: TrainSettings,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.plan = plan
        self.settings = settings
        self.seed = seed
        self.rank = rank
        for sample in samples:
            _check(sample, plan.classes)
        self._gold = [sample for sample in samples if sample.gold]
        self._others = [sample for sample in samples if not sample.gold]
        if not self._gold:
            raise TrainingError("there is no annotated case to learn from; give at least one gold case")
        self._labeled, self._unlabeled = self._dealt(rank, world)
        self._voxels = {id(sample): _foreground(sample) for sample in samples}
        # Found once: a volume may lie in a file, of which a patch should read no more than its own part.
        self._darkest = {id(sample): float(sample.image_CDHW.min()) for sample in samples}
        square = plan.patch[1] == plan.patch[2] and plan.spacing[1] == plan.spacing[2]
        self._turns = 1 if square else 2
        d, h, w = (max(1, p // m) for p, m in zip(plan.patch, plan.multiple, strict=True))
        self._cells = (d, h, w)
        widths = {s.features_DCHW.shape[1] for s in samples if s.features_DCHW is not None}
        if len(widths) > 1:
            raise TrainingError(
                f"features of cases have {sorted(widths)} channels, expected the same number in all; "
                "label them again with one generalist"
            )
        self._width = widths.pop() if widths else 0

    def at(self, step: int, device: torch.device | str = "cpu") -> Batch:
        """Return this worker's share of one step's batch."""
        return self.draw(step).on(torch.device(device))

    def ahead(self, start: int, stop: int, pinned: bool = False) -> Iterator["Drawn"]:
        """Yield the draws of steps in order, each made while the one before it is learned from."""
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            coming = pool.submit(self.draw, start, pinned)
            for step in range(start, stop):
                drawn = coming.result()
                if step + 1 < stop:
                    coming = pool.submit(self.draw, step + 1, pinned)
                yield drawn

    def draw(self, step: int, pinned: bool = False) -> "Drawn":
        """Cut this worker's patches of one step, in main memory and with intensities as they were."""
        labeled = [self._patch(self._gold, step, place) for place in self._labeled]
        unlabeled = [self._patch(self._others, step, place) for place in self._unlabeled]
        return Drawn(
            self._stacked(labeled, pinned), self._stacked(unlabeled, pinned) if self._others else None
        )

    def _dealt(self, rank: int, world: int) -> tuple[list[int], list[int]]:
        """Places in the batch that are this worker's: like cards, so that each gets of both kinds."""
        batch = self.settings.batch
        if batch % world:
            raise TrainingError(
                f"a batch of {batch} cannot be divided over {world} workers; "
                "set train.batch to a multiple of cluster.train_workers"
            )
        gold = self.settings.gold_patches if self._others else batch
        if NEEDS[self.settings.method].mixes and not world <= gold <= batch - world:
            raise TrainingError(
                f"{self.settings.method} mixes annotated and unlabeled patches in each of {world} workers, "
                f"found {len(self._others)} unlabeled cases and a batch of {gold} annotated and "
                f"{batch - gold} unlabeled patches; set train.batch to {2 * world} or more, and "
                "train.gold_share to 0.5"
            )
        mine = range(rank, batch, world)
        return [place for place in mine if place < gold], [place for place in mine if place >= gold]

    def _patch(self, pool: Sequence[Sample], step: int, place: int) -> "_Patch":
        rng = np.random.default_rng([self.seed, step, place])
        sample = pool[int(rng.integers(len(pool)))]
        voxels = self._voxels[id(sample)]
        view = augment.view(sample.shape, self.plan.patch, voxels, self.settings.augment, self._turns, rng)
        return _Patch(sample, view, augment.look(self.settings.augment, rng))

    def _stacked(self, patches: Sequence["_Patch"], pinned: bool) -> "_Stream":
        """Cut patches into arrays that hold all of them."""
        count, patch, channels = len(patches), self.plan.patch, self.plan.channels_in
        image = torch.empty((count, channels, *patch), pin_memory=pinned)
        label = torch.empty((count, *patch), dtype=torch.uint8, pin_memory=pinned)
        weight = torch.empty((count, *patch), pin_memory=pinned)
        undecided = torch.zeros((count, self.plan.classes), dtype=torch.bool)
        features = torch.zeros((count, self._width, *self._cells)) if self._width else None
        for place, one in enumerate(patches):
            sample, view = one.sample, one.view
            image[place] = _tensor(view.of(sample.image_CDHW, self._darkest[id(sample)]))
            label[place], weight[place] = _told(sample, view)
            undecided[place, list(sample.undecided)] = True
            if features is not None and sample.features_DCHW is not None:
                features[place] = _tensor(_features(sample.features_DCHW, view, self._cells))
        return _Stream(patches, image, label, weight, undecided, features)


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """One worker's share of a batch in main memory."""

    labeled: "_Stream"
    unlabeled: "_Stream | None"

    def on(self, device: torch.device) -> Batch:
        """Bring it to where it is learned from, and change its intensities there."""
        return Batch(self.labeled.on(device), None if self.unlabeled is None else self.unlabeled.on(device))


@dataclass(frozen=True, slots=True, eq=False)
class _Patch:
    sample: Sample
    view: View
    look: augment.Look


@dataclass(frozen=True, slots=True, eq=False)
class _Stream:
    patches: Sequence[_Patch]
    image: Tensor
    label: Tensor
    weight: Tensor
    undecided: Tensor
    features: Tensor | None

    def on(self, device: torch.device) -> Patches:
        def there(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        image = there(self.image)
        shown = [augment.looked(one, p.look) for one, p in zip(image, self.patches, strict=True)]
        if self.features is None:
            featured = torch.zeros(len(self.patches), dtype=torch.bool)
        else:
            featured = self.features.flatten(1).any(1)
        return Patches(
            image=torch.stack(shown) if shown else image,
            label=there(self.label).long(),
            weight=there(self.weight),
            undecided=there(self.undecided),
            features=None if self.features is None else there(self.features),
            featured=there(featured),
            cases=tuple(p.sample.case for p in self.patches),
            views=tuple(p.view for p in self.patches),
        )


def _check(sample: Sample, classes: int) -> None:
    """Values out of range would end far from here, in an index or, on a GPU, in an assertion."""
    highest = 0 if sample.label_DHW is None else int(sample.label_DHW.max())
    if min(sample.undecided, default=1) < 1 or max(highest, *sample.undecided, 0) >= classes:
        raise TrainingError(
            f"{sample.case} has labels up to {highest} and undecided structures "
            f"{list(sample.undecided)}, expected structures 1 to {classes - 1}; label it again"
        )
    if sample.gold and sample.label_DHW is None:
        raise TrainingError(f"{sample.case} is annotated but has no label; scan the archive again")


def _foreground(sample: Sample) -> tuple[NDArray[np.int64], ...]:
    if sample.label_DHW is None:
        return ()
    return augment.foreground(sample.label_DHW, sample.weight_DHW)


def _told(sample: Sample, view: View) -> tuple[Tensor, Tensor]:
    """Label and weight of a patch; beyond the volume is background, as sure as what is known within."""
    if sample.label_DHW is None:
        return torch.zeros(view.patch, dtype=torch.uint8), torch.zeros(view.patch)
    label = _tensor(view.of(sample.label_DHW))
    if sample.weight_DHW is None:
        return label, torch.ones(view.patch)
    return label, _tensor(view.of(sample.weight_DHW, 1.0))


def _features(
    features_DCHW: NDArray[np.float16], view: View, cells: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Return (F, d, h, w): the volume's features at the middles of a patch's cells.

    The nearest slice, since those that nobody looked at are zero; linear within a slice.
    """
    volume = (features_DCHW.shape[0], *features_DCHW.shape[2:])
    d, h, w = (
        np.clip((start + (np.arange(n) + 0.5) * p / n) / whole * there - 0.5, 0, there - 1)
        for start, n, p, whole, there in zip(view.start, cells, view.patch, view.shape, volume, strict=True)
    )
    slices_FDHW = features_DCHW[np.rint(d).astype(int)].astype(np.float32).swapaxes(0, 1)
    between_FDhW = _between(slices_FDHW, h, 2)
    return np.asarray(view.turned(_between(between_FDhW, w, 3)), np.float32)


def _between(array: NDArray[np.float32], places: NDArray[np.float64], axis: int) -> NDArray[np.float32]:
    """Interpolate linearly along one axis."""
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, array.shape[axis] - 1)
    share = (places - low).astype(np.float32).reshape([-1 if n == axis else 1 for n in range(array.ndim)])
    found: NDArray[np.float32] = array.take(low, axis) * (1 - share) + array.take(high, axis) * share
    return found


def _tensor(array: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(array)
