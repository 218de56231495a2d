"""How a generalist is asked in a campaign: the same of unlabeled cases and of labeled ones that are tried."""

from typing import TYPE_CHECKING, Any

from tutelage.rounds.campaign import Campaign
from tutelage.rounds.textual import Limits
from tutelage.rounds.training import BOOKKEEPING
from tutelage.storage import Place

if TYPE_CHECKING:
    from tutelage.casework.labeling import LabelJob


def settings_of(campaign: Campaign) -> dict[str, Any]:
    """Return the settings that answers depend on."""
    settings = campaign.settings
    return {
        "generalist": settings.generalist.model_dump(mode="json", exclude=BOOKKEEPING),
        "prompts": settings.prompts.model_dump(mode="json"),
        "seed": settings.seed,
    }


def inputs_of(limits: Limits) -> dict[str, str]:
    """Return digests of what is known of where not to ask."""
    return {"priors": limits.fingerprint} if limits.fingerprint else {}


def job(campaign: Campaign, specialist: Place, candidates: Place, limits: Limits) -> "LabelJob":
    """Return what a worker needs that has this specialist prompt."""
    from tutelage.casework.labeling import LabelJob

    settings = campaign.settings
    return LabelJob(
        generalist=settings.generalist,
        prompts=settings.prompts,
        specialist=str(specialist),
        candidates=str(candidates),
        embeddings=str(campaign.workspace.embeddings),
        structures=campaign.catalog.structures,
        max_voxels=settings.archive.max_voxels,
        seed=settings.seed,
        most=limits.most,
        expected=limits.cases,
    )
