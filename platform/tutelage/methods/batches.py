"""What is learned from in one step: patches of annotated cases, and of others beside them.

The batch of a step is a pure function of the seed and the step, and is dealt to the
workers, so that two workers with one patch each see what one worker sees with two, and a
run that goes on from a checkpoint sees what it would have seen. How many patches come from
annotated cases is the same in every step. Since draws are known in advance, shelves are told
which cases come next. It knows no method and no files, nor how a case gets onto its shelf.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.errors import TrainingError
from tutelage.methods import augment, turning
from tutelage.methods.base import Batch, Patches, View
from tutelage.methods.needs import NEEDS
from tutelage.methods.settings import TrainSettings
from tutelage.methods.shelves import Ready, Shelf, Shelves, held
from tutelage.methods.shelves import Sample as Sample
from tutelage.methods.turns import Turns
from tutelage.specialist.plan import Plan

_TOLD_STEPS = 32
"""Shelves are told of so many steps at once, when the first of the so many before begins."""

_GOLD, _OTHERS = 0, 1
"""The streams, as orders of their cases tell them apart."""


class Batches:
    """The batches of one worker. Samples that are all at hand need no shelves."""

    def __init__(
        self,
        cases: Shelves | Sequence[Sample],
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
        shelves = cases if isinstance(cases, Shelves) else held(cases, plan.classes)
        self._gold, self._others = shelves.gold, shelves.others
        if not len(self._gold):
            raise TrainingError("there is no annotated case to learn from; give at least one gold case")
        self._first = settings.gold_patches if len(self._others) else settings.batch
        self._labeled, self._unlabeled = self._dealt(rank, world)
        self._gold_turns = self._turns_of(len(self._gold), self._first, _GOLD)
        self._other_turns = self._turns_of(len(self._others), settings.batch - self._first, _OTHERS)
        self._passed = 0
        square = plan.patch[1] == plan.patch[2] and plan.spacing[1] == plan.spacing[2]
        self._turns = 1 if square else 2
        d, h, w = (max(1, p // m) for p, m in zip(plan.patch, plan.multiple, strict=True))
        self._cells = (d, h, w)
        self._width = shelves.width

    def at(self, step: int, device: torch.device | str = "cpu") -> Batch:
        """Return this worker's share of one step's batch."""
        return self.draw(step).on(torch.device(device))

    def ahead(self, start: int, stop: int, pinned: bool = False) -> Iterator["Drawn"]:
        """Yield the draws of steps in order, each made while the one before it is learned from."""
        self._tell(range(start, min(start + _TOLD_STEPS, stop)))

        def draw(step: int) -> Drawn:
            if not (step - start) % _TOLD_STEPS:
                self._tell(range(min(step + _TOLD_STEPS, stop), min(step + 2 * _TOLD_STEPS, stop)))
            return self.draw(step, pinned)

        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            _keep_to_itself(pool)
            coming = pool.submit(draw, start)
            for step in range(start, stop):
                drawn = coming.result()
                if step + 1 < stop:
                    coming = pool.submit(draw, step + 1)
                self._passed += drawn.passed
                yield drawn

    def draw(self, step: int, pinned: bool = False) -> "Drawn":
        """Cut this worker's patches of one step, in main memory and with intensities as they were."""
        labeled = [self._patch(self._gold, step, place) for place in self._labeled]
        unlabeled = [self._patch(self._others, step, place) for place in self._unlabeled]
        return Drawn(
            self._stacked(labeled, pinned),
            self._stacked(unlabeled, pinned) if len(self._others) else None,
            self._seed(step),
            sum(patch.passed for patch in (*labeled, *unlabeled)),
        )

    def counts(self) -> dict[str, float]:
        """Count patches of what `ahead` gave out that are of another case, since theirs cannot be read."""
        return {"skipped": float(self._passed)} if self._passed else {}

    def _seed(self, step: int) -> int:
        """Of what is drawn once a step: from the place behind the last patch."""
        rng = np.random.default_rng([self.seed, step, self.settings.batch])
        return int(rng.integers(augment.SEEDS))

    def _dealt(self, rank: int, world: int) -> tuple[list[int], list[int]]:
        """Places in the batch that are this worker's: like cards, so that each gets of both kinds."""
        batch, shares = self.settings.batch, world * self.settings.accumulate
        if batch % shares:
            raise TrainingError(
                f"a batch of {batch} cannot be divided over {_so_many(world, self.settings)}; "
                "set train.batch to a multiple of cluster.train_workers times train.accumulate"
            )
        gold = self._first
        if NEEDS[self.settings.method].mixes and not shares <= gold <= batch - shares:
            raise TrainingError(
                f"{self.settings.method} mixes annotated and unlabeled patches in each of "
                f"{_so_many(world, self.settings)}, "
                f"found {len(self._others)} unlabeled cases and a batch of {gold} annotated and "
                f"{batch - gold} unlabeled patches; set train.batch to {2 * shares} or more, and "
                "train.gold_share to 0.5"
            )
        mine = range(rank, batch, world)
        return [place for place in mine if place < gold], [place for place in mine if place >= gold]

    def _turns_of(self, count: int, places: int, stream: int) -> Turns:
        return Turns(count, places, self.settings.window, self.settings.reuse, self.seed, stream)

    def _draw(self, step: int, place: int) -> tuple[Iterator[int], np.random.Generator]:
        """Return the case of a patch and those that may stand in for it, and chance for what follows."""
        rng = np.random.default_rng([self.seed, step, place])
        gold = place < self._first
        turns, first = (self._gold_turns, 0) if gold else (self._other_turns, self._first)
        return turns.at(step, place - first, int(rng.integers(turns.choices))), rng

    def _tell(self, steps: range) -> None:
        """Let shelves know what comes."""
        for shelf, places in ((self._gold, self._labeled), (self._others, self._unlabeled)):
            shelf.soon([next(self._draw(step, place)[0]) for step in steps for place in places])

    def _patch(self, shelf: Shelf, step: int, place: int) -> "_Patch":
        indices, rng = self._draw(step, place)
        for passed, index in enumerate(indices):
            found = shelf.at(index)
            if found is not None:
                view = augment.view(
                    found.sample.shape, self.plan.patch, found.voxels, self.settings.augment, self._turns, rng
                )
                look = augment.look(self.settings.augment, rng)
                seed = int(rng.integers(augment.SEEDS))
                tilt = turning.drawn(self.settings.augment, self.plan, seed)
                return _Patch(found, replace(view, tilt=tilt), look, seed, int(passed > 0))
        raise TrainingError(
            f"none of the cases that a patch of step {step} could be cut from can be read any more; "
            "restore their files, or scan and label the archive again"
        )

    def _stacked(self, patches: Sequence["_Patch"], pinned: bool) -> "_Stream":
        """Cut patches into arrays that hold all of them."""
        count, patch, channels = len(patches), self.plan.patch, self.plan.channels_in
        image = torch.empty((count, channels, *patch), pin_memory=pinned)
        label = torch.empty((count, *patch), dtype=torch.uint8, pin_memory=pinned)
        weight = torch.empty((count, *patch), pin_memory=pinned)
        undecided = torch.zeros((count, self.plan.classes), dtype=torch.bool)
        features = torch.zeros((count, self._width, *self._cells)) if self._width else None
        boxes: dict[int, _Box] = {}
        for place, one in enumerate(patches):
            sample, view = one.ready.sample, one.view
            if view.tilt is None:
                image[place] = _tensor(view.of(sample.image_CDHW, one.ready.darkest))
                label[place], weight[place] = _told(sample, view)
            else:
                boxes[place] = _box(one.ready, view, pinned)
            undecided[place, list(sample.undecided)] = True
            if features is not None and sample.features_DCHW is not None:
                features[place] = _tensor(_features(sample.features_DCHW, view, self._cells))
        return _Stream(patches, image, label, weight, undecided, features, boxes)


def _keep_to_itself(pool: ThreadPoolExecutor) -> None:
    """Let the thread of a pool compute alone, and this one with as many threads as before.

    A second team of threads would wait for its next patch by turning in circles, a fifth of a step's time
    on two cores. How many there are is told to the thread that asks, and noted for those that come later.
    """

    def alone() -> None:
        torch.get_num_threads()  # takes what was noted, so that this is not done at the first patch
        torch.set_num_threads(1)

    threads = torch.get_num_threads()
    pool.submit(alone).result()
    torch.set_num_threads(threads)


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """One worker's share of a batch in main memory."""

    labeled: "_Stream"
    unlabeled: "_Stream | None"
    seed: int
    passed: int
    """Patches of another case than the one whose turn it was."""

    def on(self, device: torch.device) -> Batch:
        """Bring it to where it is learned from, and change its intensities there."""
        unlabeled = None if self.unlabeled is None else self.unlabeled.on(device)
        return Batch(self.labeled.on(device), unlabeled, self.seed)


@dataclass(frozen=True, slots=True, eq=False)
class _Patch:
    ready: Ready
    view: View
    look: augment.Look
    seed: int
    """Of what a method draws for this patch."""
    passed: int
    """1 if another case stands in for one that cannot be read any more."""


@dataclass(frozen=True, slots=True, eq=False)
class _Box:
    """What a tilted patch is made of, once it is where it is learned from."""

    image: Tensor
    label: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Stream:
    patches: Sequence[_Patch]
    image: Tensor
    label: Tensor
    weight: Tensor
    undecided: Tensor
    features: Tensor | None
    boxes: Mapping[int, _Box]
    """Of the patches that are tilted, by place; in the arrays there is nothing yet of these."""

    def on(self, device: torch.device) -> Patches:
        def there(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        image, label, weight = there(self.image), there(self.label), there(self.weight)
        for place, box in self.boxes.items():
            view = self.patches[place].view
            image[place] = view.shown(there(box.image), smooth=True)
            label[place] = view.shown(there(box.label), smooth=False)
            weight[place] = view.shown(there(box.weight), smooth=False)
        shown = [augment.looked(one, p.look) for one, p in zip(image, self.patches, strict=True)]
        if self.features is None:
            featured = torch.zeros(len(self.patches), dtype=torch.bool)
        else:
            featured = self.features.flatten(1).any(1)
        return Patches(
            image=torch.stack(shown) if shown else image,
            label=label.long(),
            weight=weight,
            undecided=there(self.undecided),
            features=None if self.features is None else there(self.features),
            featured=there(featured),
            cases=tuple(p.ready.sample.case for p in self.patches),
            views=tuple(p.view for p in self.patches),
            seeds=tuple(p.seed for p in self.patches),
        )


def _so_many(world: int, settings: TrainSettings) -> str:
    parts = f", in {settings.accumulate} parts each" if settings.accumulate > 1 else ""
    return f"{world} workers{parts}"


def _told(sample: Sample, view: View) -> tuple[Tensor | float, Tensor | float]:
    """Label and weight of a patch, or one number where all voxels have the same.

    Beyond the volume is background, as sure as what is known within.
    """
    if sample.label_DHW is None:
        return 0, 0.0
    label = _tensor(view.of(sample.label_DHW))
    return label, 1.0 if sample.weight_DHW is None else _tensor(view.of(sample.weight_DHW, 1.0))


def _box(ready: Ready, view: View, pinned: bool) -> _Box:
    """Cut what a tilted patch is made of; what it shows beyond the volume does not count."""
    sample = ready.sample
    label, weight = sample.label_DHW, sample.weight_DHW
    if weight is None:
        weight = np.broadcast_to(np.float32(label is not None), view.shape)
    if label is None:
        label = np.broadcast_to(np.uint8(0), view.shape)
    filled = ((sample.image_CDHW, ready.darkest), (label, 0), (weight, 0))
    boxes = (_tensor(view.box(array, fill)) for array, fill in filled)
    return _Box(*(box.pin_memory() if pinned else box for box in boxes))


def _features(
    features_DCHW: NDArray[np.float16], view: View, cells: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Return (F, d, h, w): the volume's features at the middles of a patch's cells.

    The nearest slice, since those that nobody looked at are zero; linear within a slice.
    """
    if view.tilt is not None:
        places = turning.cells(view.tilt, view.patch, cells)
        start, whole = (np.asarray(one)[:, None, None, None] for one in (view.start, view.shape))
        found = turning.looked_up(features_DCHW, (places + start + 0.5) / whole)
        return np.asarray(view.turned(found), np.float32)
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
