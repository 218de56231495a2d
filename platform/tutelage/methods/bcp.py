"""BCP: patches are mixed both ways between annotated and unlabeled ones, and so are their labels.

Bai et al., CVPR 2023, as read in code. A cuboid of two thirds of each side is cut out at random;
in one direction the cuboid is from an unlabeled patch and the rest from an annotated one, in the
other the reverse. Unlabeled voxels are labeled by a mean teacher, of whose answer the largest piece
of each structure is kept, and count half. Before that, for a share of the steps, annotated
patches are mixed with each other.

Reconstructed: an annotated patch that is alone in a step has no other to be mixed with, and is mixed
with its own mirror image along the last axis, labels and weights with it.

What is ours: the code makes two halves of each stream and uses each in one direction; here
both streams are gone around, so that a batch of one annotated and one unlabeled patch will
do, and the student sees as many mixed patches in a step as others see unmixed ones. Pairs are made
by place in the whole batch, so that several processes mix what one would, where each has equally
many of a kind and an even number in all. The code
starts the second phase from the best weights of the first, chosen on the test set; here it goes on
from its last. Pieces that touch only at an edge or a corner are separate here, and one piece
there. A patch of one slice is mixed in the plane. Pseudo-labels in the batch are not looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.measures import largest_components
from tutelage.methods import chance, supervised, teachers
from tutelage.methods.base import SPECIALIST, Batch, Resources
from tutelage.methods.settings import TrainSettings
from tutelage.methods.teachers import TEACHER
from tutelage.methods.together import Ring
from tutelage.specialist.network import build
from tutelage.specialist.plan import Plan


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Patches that fill one side of the cut, and how far their labels count."""

    image: Tensor
    label: Tensor
    weight: Tensor
    undecided: Tensor
    taught: bool
    """Labeled by the teacher, not by a person."""

    def rows(self, places: range) -> "Source":
        """Choose patches by places, counted around."""
        rows = [place % len(self.image) for place in places]
        return Source(
            image=self.image[rows],
            label=self.label[rows],
            weight=self.weight[rows],
            undecided=self.undecided[rows],
            taught=self.taught,
        )

    def following(self, ring: Ring) -> "Source":
        """Choose for each patch the next one in the whole batch."""
        image, label, weight, undecided = ring.following(self.image, self.label, self.weight, self.undecided)
        return replace(self, image=image, label=label, weight=weight, undecided=undecided)

    def mirrored(self) -> "Source":
        """Turn everything around along the last axis."""
        return replace(
            self, image=self.image.flip(-1), label=self.label.flip(-1), weight=self.weight.flip(-1)
        )


class Bcp:
    """Terms: `cross_entropy` and `dice` of annotated voxels, and with `mixed_` before it of the others.

    Each is half the sum over directions and sides of the cut, as published.
    """

    def __init__(self, plan: Plan, settings: TrainSettings, resources: Resources) -> None:
        self.plan = plan
        self._options = settings.bcp
        self._alone = round(settings.bcp.alone * settings.steps)

    def networks(self) -> nn.ModuleDict:
        """Return the specialist and its running mean, which starts as a copy."""
        return teachers.with_teacher(build(self.plan))

    def losses(self, batch: Batch, networks: nn.ModuleDict, step: int) -> dict[str, Tensor]:
        """Return the terms; while annotated patches are mixed with each other there are two."""
        labeled, unlabeled = teachers.both(batch, "bcp")
        student = networks[SPECIALIST]
        inside_DHW = cuboid(labeled.image.shape[2:], self._options.ratio, batch.seed)
        inside_DHW = inside_DHW.to(labeled.image.device)
        known = Source(labeled.image, labeled.label, labeled.weight, labeled.undecided, taught=False)
        if step < self._alone:
            ring = Ring.of(labeled.image)
            others = known.mirrored() if ring.lonely else known.following(ring)
            return _terms(student, [(known, others)], inside_DHW, self._options.unlabeled)
        guessed = self._guessed(networks[TEACHER], unlabeled.image)
        pairs = (len(labeled) + len(unlabeled) + 1) // 2
        first, second = range(pairs), range(pairs, 2 * pairs)
        # In the second direction a patch meets another one, if there is one.
        ring = Ring.of(unlabeled.image)
        others = guessed if pairs % len(unlabeled) else guessed.following(ring)
        one_way = (known.rows(first), guessed.rows(first))
        and_back = (others.rows(second), known.rows(second))
        return _terms(student, [one_way, and_back], inside_DHW, self._options.unlabeled)

    def after_step(self, networks: nn.ModuleDict, step: int) -> None:
        """Let the teacher be the student while it does not teach, then follow."""
        decay = 0.0 if step < self._alone else self._options.decay
        teachers.follow(networks[TEACHER], networks[SPECIALIST], decay)

    def counts(self) -> dict[str, float]:
        """Nothing is counted."""
        return {}

    def _guessed(self, teacher: nn.Module, image: Tensor) -> Source:
        label = teachers.opinion(teacher, image).argmax(1)
        if self._options.largest:
            label = largest_pieces(label)
        return Source(
            image=image,
            label=label,
            weight=torch.ones(label.shape, device=image.device),
            undecided=torch.zeros(len(image), self.plan.classes, dtype=torch.bool, device=image.device),
            taught=True,
        )


def cuboid(shape: Sequence[int], ratio: float, seed: int) -> Tensor:
    """Return where (D, H, W) a cuboid lies at random, of `ratio` of each side, at least one voxel."""
    inside = torch.zeros(tuple(shape), dtype=torch.bool)
    sides = [max(1, int(n * ratio)) for n in shape]
    drawn = chance.generator(seed, "cuboid")
    starts = [
        int(torch.randint(n - side + 1, (), generator=drawn)) for n, side in zip(shape, sides, strict=True)
    ]
    inside[tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))] = True
    return inside


def largest_pieces(label_BDHW: Tensor) -> Tensor:
    """Keep the largest connected piece of each structure in each patch; the rest becomes background."""
    kept = np.zeros(label_BDHW.shape, np.int64)
    for labels, clean in zip(label_BDHW.cpu().numpy(), kept, strict=True):
        for value in np.unique(labels[labels > 0]):
            clean[largest_components(labels == value)] = value
    return torch.from_numpy(kept).to(label_BDHW.device)


def _terms(
    student: nn.Module, pairs: list[tuple[Source, Source]], inside_DHW: Tensor, unlabeled: float
) -> dict[str, Tensor]:
    """Mix each pair, the first outside the cuboid and the second inside, and ask for both labels."""
    images = [torch.where(inside_DHW, inner.image, outer.image) for outer, inner in pairs]
    answers = student(torch.cat(images)).split([len(image) for image in images])
    terms: dict[str, Tensor] = {}
    for logits, pair in zip(answers, pairs, strict=True):
        for source, there in zip(pair, (~inside_DHW, inside_DHW), strict=True):
            found = supervised.loss(logits, source.label, source.weight * there, source.undecided)
            for name, term in found.items():
                key, counted = (f"mixed_{name}", unlabeled * term) if source.taught else (name, term)
                terms[key] = terms.get(key, 0) + counted / 2
    return terms
