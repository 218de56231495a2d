"""Everything one campaign can be told: the rooms' settings, composed."""

import math
from collections.abc import Iterator

from pydantic import Field

from tutelage.archive.settings import ArchiveSettings
from tutelage.cluster.settings import ClusterSettings, ServingSettings
from tutelage.curation.settings import CurationSettings
from tutelage.evaluation.settings import EvaluationSettings, PromotionSettings
from tutelage.generalists.settings import GeneralistSettings
from tutelage.methods.needs import NEEDS, needs_of, undivided
from tutelage.methods.settings import TrainSettings
from tutelage.priors.settings import PriorsSettings
from tutelage.prompts.settings import PromptSettings
from tutelage.settings import Settings
from tutelage.specialist.settings import SpecialistSettings
from tutelage.tracking.settings import LONGEST, TrackingSettings


class RunSettings(Settings):
    """One YAML file."""

    name: str = Field(default="campaign", min_length=1, max_length=LONGEST)
    """What MLflow and the report call it. Campaigns of one name that share a server share a champion."""

    workspace: str = Field(min_length=1)
    """Folder for everything it makes: local, or any filesystem pyarrow knows."""

    rounds: int = Field(default=2, ge=0)
    """How often to label, curate and train after the specialist that learns from labels alone."""

    seed: int = Field(default=0, ge=0)
    """Of prompts and training. The archive's split has its own."""

    max_attempts: int = Field(default=3, ge=1)
    """How often a case may take down the process that works on it before it is set aside as failed."""

    archive: ArchiveSettings
    priors: PriorsSettings = PriorsSettings()
    generalist: GeneralistSettings = GeneralistSettings()
    prompts: PromptSettings = PromptSettings()
    curation: CurationSettings = CurationSettings()
    specialist: SpecialistSettings = SpecialistSettings()
    train: TrainSettings = TrainSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    promotion: PromotionSettings = PromotionSettings()
    cluster: ClusterSettings = ClusterSettings()
    serving: ServingSettings = ServingSettings()
    tracking: TrackingSettings = TrackingSettings()

    def problems(self) -> Iterator[tuple[str, str]]:
        """Complain about what the rooms find wrong, and about names of structures nobody knows."""
        from tutelage.casework import asking

        for room in type(self).model_fields:
            value = getattr(self, room)
            if isinstance(value, Settings):
                yield from ((f"{room}.{path}", complaint) for path, complaint in value.problems())
        if (why := self.tracking.refused(self.name)) is not None:
            yield "name", why
        yield from asking.problems(self.prompts, self.generalist)
        yield from self._unknown_structures()
        yield from self._unteachable()

    def _unteachable(self) -> Iterator[tuple[str, str]]:
        """Complain about batches that workers cannot share, and about rounds that would repeat each other."""
        counts, most = self.cluster.worker_counts, self.cluster.worker_counts[-1]
        method, batch, gold = self.train.method, self.train.batch, self.train.gold_patches
        parts, shares = self.train.accumulate, most * self.train.accumulate
        said = f", in {parts} parts each (train.accumulate)," if parts > 1 else ""
        if uneven := [str(count) for count in counts if batch % (count * parts)]:
            yield (
                "train.batch",
                f"found {batch}, which {' or '.join(uneven)} workers{said} cannot share; "
                f"take a multiple of {math.lcm(*counts) * parts}, or change cluster.train_workers",
            )
        elif NEEDS[method].mixes and not shares <= gold <= batch - shares:
            yield (
                "train.batch",
                f"found {batch}, of which {gold} annotated, but {method} needs an annotated and an unlabeled "
                f"patch in each of {most} workers{said.removesuffix(',')}; take {2 * shares} or more, and "
                "train.gold_share 0.5",
            )
        if needs_of(self.train).features and not self.generalist.keep_grid:
            yield (
                "generalist.keep_grid",
                f"found false, but {method} learns from embedding grids; set it to true, or "
                "train.tutelage.distillation to 0",
            )
        if self.cluster.shard and (reason := undivided(self.train)):
            yield "cluster.shard", f"found true, but {reason}"
        if self.rounds > 1 and not (NEEDS[method].pseudo or NEEDS[method].continues):
            yield "rounds", f"found {self.rounds}, but a second round teaches {method} nothing new; take 1"

    def _unknown_structures(self) -> Iterator[tuple[str, str]]:
        from tutelage.archive import structures_of
        from tutelage.errors import TutelageError

        if not self.curation.structures or next(self.archive.problems(), None):
            return
        try:
            known = structures_of(self.archive)
        except TutelageError as error:
            yield "archive", str(error)
            return
        for name in self.curation.structures:
            if name not in known:
                yield (
                    f"curation.structures.{name}",
                    f"unknown structure; the archive has {', '.join(known)}",
                )
