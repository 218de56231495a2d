"""Everything one campaign can be told: the rooms' settings, composed."""

from collections.abc import Iterator

from pydantic import Field

from tutelage.archive.settings import ArchiveSettings
from tutelage.cluster.settings import ClusterSettings
from tutelage.curation.settings import CurationSettings
from tutelage.evaluation.settings import EvaluationSettings, PromotionSettings
from tutelage.generalists.settings import GeneralistSettings
from tutelage.methods.settings import TrainSettings
from tutelage.priors.settings import PriorsSettings
from tutelage.prompts.settings import PromptSettings
from tutelage.settings import Settings
from tutelage.specialist.settings import SpecialistSettings
from tutelage.tracking.settings import TrackingSettings


class RunSettings(Settings):
    """One YAML file."""

    name: str = Field(default="campaign", min_length=1)
    """What MLflow and the report call it."""

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
    tracking: TrackingSettings = TrackingSettings()

    def problems(self) -> Iterator[tuple[str, str]]:
        """Complain about what the rooms find wrong, and about names of structures nobody knows."""
        from tutelage.casework import asking

        for room in type(self).model_fields:
            value = getattr(self, room)
            if isinstance(value, Settings):
                yield from ((f"{room}.{path}", complaint) for path, complaint in value.problems())
        yield from asking.problems(self.prompts, self.generalist)
        yield from self._unknown_structures()
        workers = self.cluster.train_workers
        if self.cluster.backend == "ray" and self.train.batch % workers:
            yield (
                "train.batch",
                f"found {self.train.batch}, which {workers} workers cannot share; "
                f"take a multiple of cluster.train_workers",
            )

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
