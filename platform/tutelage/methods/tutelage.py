"""Our own: gated pseudo-labels of rounds, mixed with labels, completed by a mean teacher, then let go.

What is taken over: rounds and gates (knowledge mining), the weight of each voxel by how little answers
differ (SemiSAM+), pasting both ways (BCP), undecided structures (this platform), text
in the network (TAK, LLM-SegNet), a last phase in which pseudo-labels do not count and the mean
teacher labels alone (ConformalSAM). What none of them has: the teacher speaks only where the
pseudo-label does not, and the generalist's embedding grids, which labeling computes anyway,
teach a decoder level. Every part can be switched off, and then costs nothing.
"""

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
        inside_DHW = None
        if self._options.mixing:
            inside_DHW = cuboid(labeled.image.shape[2:], self._options.ratio).to(labeled.image.device)
        known = filling.told(labeled)
        taught = self._completed(unlabeled, networks, step)
        image, everything = _mixed((labeled.image, known), (unlabeled.image, taught), inside_DHW)
        seen = cast(Specialist, networks[SPECIALIST]).see(image)
        terms = filling.loss(seen.logits, everything)
        if PROJECTION in networks:
            terms["distillation"] = self._distilled(
                seen.levels, networks[PROJECTION], labeled, unlabeled, inside_DHW
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
        inside_DHW: Tensor | None,
    ) -> Tensor:
        level = levels[min(self._options.level, len(levels) - 1)]
        pair = [_features(patches, self._width or 0, unlabeled.features) for patches in (labeled, unlabeled)]
        if inside_DHW is None:
            features = torch.cat(pair)
        else:
            features = torch.cat(
                [distillation.pasted(*one, inside_DHW) for one in _both_ways(pair[0], pair[1])]
            )
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


def _mixed(
    labeled: tuple[Tensor, Told], unlabeled: tuple[Tensor, Told], inside_DHW: Tensor | None
) -> tuple[Tensor, Told]:
    """Images, and what is known about them: labeled around unlabeled, then the reverse; or as they are."""
    (image, known), (other_image, taught) = labeled, unlabeled
    if inside_DHW is None:
        return torch.cat([image, other_image]), _joined([known, taught])
    images = [torch.where(inside_DHW, inner, outer) for outer, inner in _both_ways(image, other_image)]
    both = [filling.pasted(outer, inner, inside_DHW) for outer, inner in _told_both_ways(known, taught)]
    return torch.cat(images), _joined(both)


def _joined(parts: list[Told]) -> Told:
    return Told(
        torch.cat([part.label for part in parts]),
        torch.cat([part.weight for part in parts]),
        torch.cat([part.open for part in parts]),
        torch.cat([part.undecided for part in parts]),
    )


def _both_ways(labeled: Tensor, unlabeled: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Outer and inner patches of both directions; the fewer are repeated, in each direction from another."""
    around, within, again = _places(len(labeled), len(unlabeled))
    return [(labeled[around], unlabeled[within]), (unlabeled[again], labeled[around])]


def _told_both_ways(known: Told, taught: Told) -> list[tuple[Told, Told]]:
    around, within, again = _places(len(known.label), len(taught.label))
    return [(known.rows(around), taught.rows(within)), (taught.rows(again), known.rows(around))]


def _places(labeled: int, unlabeled: int) -> tuple[list[int], list[int], list[int]]:
    most = max(labeled, unlabeled)
    return (
        [place % labeled for place in range(most)],
        [place % unlabeled for place in range(most)],
        [(place + 1) % unlabeled for place in range(most)],
    )
