"""Our own: gated pseudo-labels of rounds, mixed with labels, completed by a mean teacher, then let go.

What is taken over: rounds, gates, and that a round may go on from the one before (knowledge
mining), the weight of each voxel by how little answers differ (SemiSAM+), pasting both ways (BCP),
undecided structures (this platform), text in the network (TAK, LLM-SegNet), a last phase in which
pseudo-labels do not count and the mean teacher labels alone (ConformalSAM). What none of them has:
the teacher speaks only where the pseudo-label does not, and the generalist's embedding grids, which
labeling computes anyway, teach a decoder level. Every part can be switched off, and then costs
nothing. Patches are paired by their place in the whole batch, so that several processes mix what
one would, where each has equally many of a kind.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from tutelage.errors import TrainingError
from tutelage.methods import distillation, filling, teachers
from tutelage.methods.base import SPECIALIST, Batch, Patches, Resources
from tutelage.methods.bcp import cuboid
from tutelage.methods.distillation import PROJECTION
from tutelage.methods.filling import Told
from tutelage.methods.schedules import rise
from tutelage.methods.settings import TrainSettings
from tutelage.methods.teachers import TEACHER
from tutelage.methods.together import Ring
from tutelage.specialist.base import Specialist
from tutelage.specialist.network import build
from tutelage.specialist.plan import Plan, TextPlan
from tutelage.specialist.text import tell


class Tutelage:
    """Terms: `cross_entropy` and `dice` of all patches, and `distillation` if there are features."""

    def __init__(self, plan: Plan, settings: TrainSettings, resources: Resources) -> None:
        self._options, self._steps = settings.tutelage, settings.steps
        self._texts = resources.texts_KTF if self._options.text else None
        self._width = resources.feature_width if self._options.distillation else None
        self._alone_from = settings.steps - round(self._options.self_reliance * settings.steps)
        self.plan = _with_text(plan, self._options.text, self._texts) if self._options.text else plan

    def networks(self) -> nn.ModuleDict:
        """Return the specialist, its running mean if that labels, and with features a layer to meet them."""
        student = build(self.plan)
        if self._texts is not None:
            tell(student, self._texts)
        networks = (
            teachers.with_teacher(student) if self._options.fill else nn.ModuleDict({SPECIALIST: student})
        )
        if self._width is not None:
            channels = student.level_channels
            level = min(self._options.level, len(channels) - 1)
            networks[PROJECTION] = distillation.projection(channels[level], self._width)
        return networks

    def losses(self, batch: Batch, networks: nn.ModuleDict, step: int) -> dict[str, Tensor]:
        """Return the terms; the specialist sees the patches mixed, the teacher as they are."""
        labeled, unlabeled = teachers.both(batch, "tutelage")
        mixing = None
        if self._options.mixing:
            inside_DHW = cuboid(labeled.image.shape[2:], self._options.ratio, batch.seed)
            mixing = _Mixing(inside_DHW.to(labeled.image.device), Ring.of(unlabeled.image))
        known = filling.told(labeled)
        taught = self._completed(unlabeled, networks, step)
        image, everything = _mixed((labeled.image, known), (unlabeled.image, taught), mixing)
        seen = cast(Specialist, networks[SPECIALIST]).see(image)
        terms = filling.loss(seen.logits, everything)
        if PROJECTION in networks:
            terms["distillation"] = self._distilled(
                seen.levels, networks[PROJECTION], labeled, unlabeled, mixing
            )
        return terms

    def after_step(self, networks: nn.ModuleDict, step: int) -> None:
        """Let the teacher follow, if there is one."""
        if TEACHER in networks:
            decay = teachers.early_decay(step, self._options.decay)
            teachers.follow(networks[TEACHER], networks[SPECIALIST], decay)

    def counts(self) -> dict[str, float]:
        """Nothing is counted."""
        return {}

    def _completed(self, unlabeled: Patches, networks: nn.ModuleDict, step: int) -> Told:
        options = self._options
        believed = step < self._alone_from
        known = filling.told(unlabeled, by_voxel=options.voxel_weights, believed=believed)
        if TEACHER not in networks:
            return known
        p_BKDHW = teachers.opinion(networks[TEACHER], unlabeled.image)
        share = options.fill * rise(step, self._steps, options.rise)
        return filling.filled(known, p_BKDHW, share=share, sure=options.sure)

    def _distilled(
        self,
        levels: tuple[Tensor, ...],
        projection: nn.Module,
        labeled: Patches,
        unlabeled: Patches,
        mixing: "_Mixing | None",
    ) -> Tensor:
        level = levels[min(self._options.level, len(levels) - 1)]
        pair = [_features(patches, self._width or 0, unlabeled.features) for patches in (labeled, unlabeled)]
        if mixing is not None:
            ways = mixing.both_ways(pair[:1], pair[1:])
            pair = [distillation.pasted(outer, inner, mixing.inside_DHW) for (outer,), (inner,) in ways]
        features = torch.cat(pair)
        return self._options.distillation * distillation.distance(level, projection, features)


def _with_text(plan: Plan, kind: str, texts_KTF: Tensor | None) -> Plan:
    if texts_KTF is None:
        raise TrainingError(
            f"train.tutelage.text is {kind}, but there are no vectors of texts; encode them first, "
            "or set it to null"
        )
    _, topics, width = texts_KTF.shape
    text = TextPlan.model_validate({"kind": kind, "topics": topics, "width": width})
    return plan.model_copy(update={"text": text})


def _features(patches: Patches, width: int, like: Tensor | None) -> Tensor:
    """Features of patches, zero where there are none."""
    if patches.features is not None:
        return patches.features
    cells = (1, 1, 1) if like is None else tuple(like.shape[2:])
    return torch.zeros((len(patches), width, *cells), device=patches.image.device)


@dataclass(frozen=True, slots=True, eq=False)
class _Mixing:
    """Labeled patches around unlabeled ones, and the reverse."""

    inside_DHW: Tensor
    """Where the inner ones are seen."""
    ring: Ring
    """Of the unlabeled patches."""

    def both_ways(
        self, labeled: Sequence[Tensor], unlabeled: Sequence[Tensor]
    ) -> list[tuple[list[Tensor], list[Tensor]]]:
        """Outer and inner patches of both directions; the fewer are repeated, each time from another."""
        most = max(len(labeled[0]), len(unlabeled[0]))
        around = [place % len(labeled[0]) for place in range(most)]
        within = [place % len(unlabeled[0]) for place in range(most)]
        known, others, again = (
            [part[chosen] for part in parts]
            for parts, chosen in (
                (labeled, around),
                (unlabeled, within),
                (self.ring.following(*unlabeled), within),
            )
        )
        return [(known, others), (again, known)]


def _mixed(
    labeled: tuple[Tensor, Told], unlabeled: tuple[Tensor, Told], mixing: _Mixing | None
) -> tuple[Tensor, Told]:
    """Images, and what is known about them: labeled around unlabeled, then the reverse; or as they are."""
    (image, known), (other_image, taught) = labeled, unlabeled
    if mixing is None:
        return torch.cat([image, other_image]), _joined([known, taught])
    images, both = [], []
    pairs = mixing.both_ways([image, *known.parts], [other_image, *taught.parts])
    for (outer, *around), (inner, *within) in pairs:
        images.append(torch.where(mixing.inside_DHW, inner, outer))
        both.append(filling.pasted(Told(*around), Told(*within), mixing.inside_DHW))
    return torch.cat(images), _joined(both)


def _joined(parts: list[Told]) -> Told:
    return Told(*(torch.cat(same) for same in zip(*(part.parts for part in parts), strict=True)))
