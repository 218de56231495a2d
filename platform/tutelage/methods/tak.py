"""TAK: text makes the last layers, patches are cut into cubes, rare classes count as frequent ones do.

Gu et al., arXiv 2501.13470; its formulas here are read in the released code (TAK-Semi), which
stands on MagicNet (cubes) and GALoss (imbalance). In one step, the student sees whole patches, patches
whose cubes were exchanged among all images of the batch (annotated or not), and single cubes; features
of the latter two are put back in place before the head sums up an image and answers. Annotated patches
are learned three ways by GADice and once by GACE; where a cube is from is told from its bottleneck; a mean
teacher labels the unlabeled patches, for classes it finds often rather by its look at single cubes;
voxels are drawn to the text of their class.

Ours: sizes follow the network instead of 96 voxels and 32 (`cubes`); the three levels are of the decoder
from its bottleneck on, the code's are of the encoder; schedules are shares of all steps, the code's are
epochs of 160; how often a class is found is a running mean, the code counts anew every 20 steps; the
teacher looks at cubes of the same noisy patch with its own encoder, where the code lends it the student's;
the exponent of that frequency, which the code forgot to define, is 1. Features are projected for the contrast
after they are put back, not before. Labels and weights of unlabeled patches are not looked at. Several
processes exchange cubes each among its own images; all else is of the whole batch.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.methods import chance, teachers, together
from tutelage.methods.base import SPECIALIST, Batch, Patches, Resources
from tutelage.methods.contrast import draw, gate, info_nce
from tutelage.methods.cubes import Cubes, coarser, small
from tutelage.methods.imbalance import ga_ce, ga_dice
from tutelage.methods.schedules import rise
from tutelage.methods.settings import TrainSettings
from tutelage.methods.teachers import TEACHER
from tutelage.specialist.base import Specialist
from tutelage.specialist.network import build
from tutelage.specialist.plan import Plan
from tutelage.specialist.text import Steady, TextHead, tell, with_text

LOCATOR = "locator"
"""Name of what tells where a cube is from."""

ALIGNER = "aligner"
"""Name of what brings voxels and text into one space."""

FREQUENCY = "frequency"
"""Name of what remembers how often each class is found."""

_SEEDS = 2**62
"""Seeds of one look at a patch are below this."""


class Aligner(nn.Module):
    """Projections of features and vectors, level by level; the head's own reading serves the coarsest."""

    def __init__(self, level_channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.features = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(channels, channels, 1),
                nn.InstanceNorm3d(channels),
                nn.ReLU(),
                nn.Conv3d(channels, channels, 1),
            )
            for channels in level_channels
        )
        self.texts = nn.ModuleList(
            nn.Sequential(Steady(width, channels), nn.ReLU()) for channels in level_channels[1:]
        )

    def forward(self, levels: Sequence[Tensor], head: TextHead) -> list[tuple[Tensor, Tensor]]:
        """Return features (B, C, d, h, w) and vectors (K, T, C) of each level."""
        texts = [head.read_texts(), *(read(head.texts()) for read in self.texts)]
        return [(project(x), text) for project, x, text in zip(self.features, levels, texts, strict=True)]


class Frequency(nn.Module):
    """Running mean of the share of voxels that each class has in what the teacher says."""

    _MEMORY = 0.95
    """About twenty steps, after which the code starts over."""

    shares_K: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("shares_K", torch.zeros(classes))

    def count(self, label: Tensor) -> None:
        """Remember one more batch."""
        found = torch.bincount(label.flatten(), minlength=len(self.shares_K)).to(self.shares_K.dtype)
        found, voxels = together.total(found, found.new_tensor(float(label.numel())))
        self.shares_K.lerp_(found / voxels, 1 - self._MEMORY)

    def forward(self, label: Tensor) -> Tensor:
        """Return by voxel how frequent its class is against the most frequent one."""
        return (self.shares_K / self.shares_K.max().clamp(min=1e-10))[label]


class Tak:
    """Terms: `cross_entropy` and `dice` of annotated patches, `location`, `consistency`, `contrast`."""

    def __init__(self, plan: Plan, settings: TrainSettings, resources: Resources) -> None:
        self.plan = with_text(plan, "head", resources.texts_KTF)
        self._steps = settings.steps
        self._options = settings.tak
        self._texts_KTF = resources.texts_KTF
        self._cubes = Cubes.of(plan.patch, plan.multiple, settings.tak.cubes)

    def networks(self) -> nn.ModuleDict:
        """Return the specialist, its running mean, and what helps to train it and is not kept."""
        student = build(self.plan)
        assert self._texts_KTF is not None
        tell(student, self._texts_KTF)
        networks = teachers.with_teacher(student)
        cells = [min(2, c // m) for c, m in zip(self._cubes.size, self.plan.multiple, strict=True)]
        networks[LOCATOR] = locator(student.level_channels[0] * math.prod(cells), len(self._cubes))
        levels = student.level_channels[: len(self._options.drawn)]
        networks[ALIGNER] = Aligner(levels, self._texts_KTF.shape[2])
        networks[FREQUENCY] = Frequency(self.plan.classes)
        return networks

    def losses(self, batch: Batch, networks: nn.ModuleDict, step: int) -> dict[str, Tensor]:
        """Return the terms, of three looks at the whole batch: as it is, mixed, and cube by cube."""
        labeled, unlabeled = teachers.both(batch, "tak")
        student = cast(Specialist, networks[SPECIALIST])
        head, cubes, told = cast(TextHead, student.head), self._cubes, len(labeled)
        image = torch.cat([labeled.image, unlabeled.image])
        source = cubes.draw([*labeled.seeds, *unlabeled.seeds])

        whole = student.see(image)
        crossed = tuple(cubes.unmix(level, source) for level in student.levels(cubes.mix(image, source)))
        single = student.levels(cubes.cut(image))
        joined = tuple(cubes.join(level) for level in single)
        by_cross = _p(head(crossed))
        by_cube = _p(head(tuple(level[:told] for level in joined)))
        seen, blended = self._said(networks, unlabeled, step)

        dice = ga_dice(_p(whole.logits[:told]), labeled.label) + ga_dice(by_cross[:told], labeled.label)
        hard = ga_ce(
            whole.logits[:told].float(), labeled.label, self._options.hardest, self._options.evenness
        )
        agreement = ga_dice(by_cross[told:], blended.argmax(1))
        views = [torch.cat(level) for level in zip(whole.levels, crossed, joined, strict=True)]
        return {
            "cross_entropy": hard / 4,
            "dice": (dice + ga_dice(by_cube, labeled.label)) / 4,
            "location": self._options.location * self._located(networks[LOCATOR], single[0]),
            "consistency": self._options.consistency * self._risen(step, self._options.rise) * agreement,
            "contrast": self._options.contrast * self._near(networks, views, batch, seen, blended, step),
        }

    def after_step(self, networks: nn.ModuleDict, step: int) -> None:
        """Let the teacher follow."""
        decay = teachers.early_decay(step, self._options.decay)
        teachers.follow(networks[TEACHER], networks[SPECIALIST], decay)

    def counts(self) -> dict[str, float]:
        """Nothing is counted."""
        return {}

    def _risen(self, step: int, share: float) -> float:
        return rise(step, self._steps, share)

    @torch.no_grad()
    def _said(self, networks: nn.ModuleDict, patches: Patches, step: int) -> tuple[Tensor, Tensor]:
        """Logits of what the teacher sees in whole patches, and blended with what it sees in cubes."""
        teacher, frequency = networks[TEACHER], cast(Frequency, networks[FREQUENCY])
        teacher.train()
        noisy = teachers.noisy(patches, self._options.noise)
        seen: Tensor = teacher(noisy).float()
        blended = seen
        if step >= self._options.blend_from:
            in_cubes = self._cubes.join(teacher(self._cubes.cut(noisy)).float())
            blended = torch.lerp(seen, in_cubes, frequency(seen.argmax(1))[:, None])
        frequency.count(blended.argmax(1))
        return seen, blended

    def _located(self, where: nn.Module, bottleneck_NCdhw: Tensor) -> Tensor:
        answer = where(small(bottleneck_NCdhw)).float()
        place = torch.arange(len(self._cubes), device=answer.device)
        place = place.repeat(len(answer) // len(place))
        return together.mean(F.cross_entropy(answer, place, reduction="none"))

    def _near(
        self,
        networks: nn.ModuleDict,
        levels: Sequence[Tensor],
        batch: Batch,
        seen: Tensor,
        blended: Tensor,
        step: int,
    ) -> Tensor:
        """Sum over levels of how far voxels of three looks at all images are from the text of their class."""
        aligner = cast(Aligner, networks[ALIGNER])
        if step < self._options.contrast_from * self._steps:
            # Several processes expect a gradient of every weight at every step, if only of zero.
            return sum((weight.sum() * 0 for weight in aligner.parameters()), seen.new_zeros(()))
        most = math.log(2) * (0.75 + 0.25 * self._risen(step, self._options.gate_rise))
        whole, cubes = (gate(said.argmax(1), _entropy(said), most) for said in (seen, blended))
        labeled, unlabeled = teachers.both(batch, "tak")
        label = torch.cat([labeled.label, whole, labeled.label, whole, labeled.label, cubes])
        own = (*labeled.seeds, *unlabeled.seeds)
        seeds = [chance.number(seed, f"look {look}", _SEEDS) for look in range(3) for seed in own]
        head = cast(TextHead, cast(Specialist, networks[SPECIALIST]).head)
        total = seen.new_zeros(())
        of_levels = aligner(levels[: len(aligner.features)], head)
        for (features, texts_KTC), most_drawn in zip(of_levels, self._options.drawn, strict=False):
            shown = coarser(label, features).flatten(1)
            chosen = draw(shown, most_drawn, seeds, f"{shown.shape[1]} voxels")
            image, voxel = chosen // shown.shape[1], chosen % shown.shape[1]
            voxels_NC = together.rows(features.flatten(2)[image, :, voxel].float()).all
            theirs = together.rows(shown.flatten()[chosen]).all
            classes = torch.arange(len(texts_KTC), device=shown.device).repeat_interleave(texts_KTC.shape[1])
            everything = torch.cat([voxels_NC, texts_KTC.float().flatten(0, 1)])
            total = total + info_nce(everything, torch.cat([theirs, classes]), self._options.temperature)
        return total


def locator(features: int, places: int) -> nn.Module:
    """Return what tells the place of a cube; published with 2048 features, which it doubles."""
    return nn.Sequential(
        nn.Linear(features, 2 * features, bias=False),
        nn.BatchNorm1d(2 * features),
        nn.LeakyReLU(0.2),
        nn.Linear(2 * features, places),
    )


def _p(logits: Tensor) -> Tensor:
    return logits.float().softmax(1)


def _entropy(logits_BKDHW: Tensor) -> Tensor:
    p = _p(logits_BKDHW)
    return -(p * (p + 1e-6).log()).sum(1)
