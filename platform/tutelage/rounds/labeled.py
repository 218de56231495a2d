"""What labeling one round came to, in the numbers that a person asks for."""

from dataclasses import dataclass

from tutelage.errors import PARTIAL
from tutelage.evaluation.believing import Curation, curation_of
from tutelage.rounds import counting
from tutelage.rounds.campaign import Campaign
from tutelage.rounds.steps import Manifest
from tutelage.rounds.workspace import read_manifest, stage_name


@dataclass(frozen=True)
class Labeled:
    """Pseudo-labels of one round."""

    stage: str
    labels: str
    """Folder of pseudo-labels."""
    ledger: str
    rulings: tuple[Curation, ...]
    """By structure, then over all of them."""
    volumes: int
    """Cases that were labeled, now or before."""
    failed: int
    """Cases that could not be labeled or curated."""
    quarantined: int
    """Files of the archive that could not be used."""
    slices: int
    """Slices that a generalist was asked about."""
    cache_hits: int
    """How many of them it had seen before."""
    not_kept: int
    """Slices that the cache did not keep: it is full, cannot be written, or would be slower."""
    halvings: int
    """How often memory ran out and a batch was halved."""
    seconds: float
    """What the last attempt took."""
    per_hour: float

    @property
    def hit_share(self) -> float:
        """Share of slices that were not embedded anew."""
        return self.cache_hits / self.slices if self.slices else 0.0

    @property
    def exit_code(self) -> int:
        """Exit code of the command that labeled."""
        return PARTIAL if self.failed or self.quarantined else 0


def told(campaign: Campaign, number: int, labeled: Manifest) -> Labeled:
    """Gather what there is to say about a round that was labeled and curated."""
    stage = campaign.workspace.stage(number)
    curated = read_manifest(stage, "curate") or {"outputs": {}}
    outputs, seconds = labeled["outputs"], labeled["seconds"]
    tallies, _ = counting.counted(campaign, number)
    return Labeled(
        stage=stage_name(number),
        labels=str(stage / "labels"),
        ledger=str(campaign.workspace.ledger),
        rulings=curation_of(tallies),
        volumes=outputs["done"],
        failed=outputs["failed"] + curated["outputs"].get("failed", 0),
        quarantined=len(campaign.catalog.quarantined),
        slices=outputs["slices_embedded"] + outputs["cache_hits"],
        cache_hits=outputs["cache_hits"],
        not_kept=outputs["not_kept"],
        halvings=outputs["halvings"],
        seconds=seconds,
        per_hour=outputs["volumes_per_hour"],
    )
