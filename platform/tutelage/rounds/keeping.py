"""Keeping a validation case beside a new champion, on which whoever serves it tests it first."""

from collections.abc import Sequence

from tutelage.errors import TutelageError
from tutelage.records import Role, Scorecard
from tutelage.rounds.campaign import Campaign


def keep(campaign: Campaign, cards: Sequence[Scorecard]) -> None:
    """Store the case with the Dice of the new champion and of the one before, in this order.

    Nothing rests on it but the self-test: a case that cannot be stored is said and holds up no run.
    """
    from tutelage.casework import selftest

    folder = campaign.workspace.root / selftest.FOLDER
    try:
        selftest.keep(
            folder, campaign.catalog.of(Role.VALIDATION), cards, campaign.settings.archive.max_voxels
        )
    except (TutelageError, OSError) as error:
        campaign.reporter.say(f"no case is stored for the self-test of serving: {error}")
