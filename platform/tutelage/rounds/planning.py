"""Which plan a campaign's specialists follow: the one a person has edited, or one that is derived.

It decides what a plan is derived from and where the file lies. What a plan says is the
specialist's business.
"""

from collections.abc import Iterator, Sequence

from tutelage.archive.catalog import Catalog
from tutelage.errors import ArchiveError, SettingsError
from tutelage.records import Case, Role
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.workspace import Workspace
from tutelage.specialist.plan import Plan, make_plan, read_plan
from tutelage.storage import Place

_ENOUGH = 10_000
"""Unlabeled cases that a specialist is planned for; more of them would not move a median."""


def file_of(workspace: Workspace) -> Place:
    """Return where a plan lies that a person may edit."""
    return workspace.root / "plan.yaml"


def edited(workspace: Workspace, catalog: Catalog) -> Plan | None:
    """Return the plan in the workspace, or None if there is no file.

    Raises:
        SettingsError: the file is no plan, or not one for this archive.
    """
    place = file_of(workspace)
    plan = read_plan(place)
    if plan is not None and plan.structures != tuple(catalog.structures):
        raise SettingsError(
            f"{place} is a plan for the structures {', '.join(plan.structures)}, the archive has "
            f"{', '.join(catalog.structures)}; correct them, or delete the file to have it derived again"
        )
    return plan


def derived(settings: RunSettings, catalog: Catalog) -> Plan:
    """Return the plan that follows from the archive and the settings."""
    gold, unlabeled = catalog.of(Role.GOLD), catalog.of(Role.UNLABELED)
    everyone = [*gold, *unlabeled[:: max(1, len(unlabeled) // _ENOUGH)]]
    grids = [case.grid for case in everyone]
    return make_plan(grids, catalog.structures, _channels(gold), settings.specialist)


def differences(plan: Plan, other: Plan) -> Iterator[str]:
    """Name what two plans tell differently."""
    mine, theirs = plan.model_dump(mode="json"), other.model_dump(mode="json")
    return (f"{key} {mine[key]} instead of {theirs[key]}" for key in mine if mine[key] != theirs[key])


def _channels(gold: Sequence[Case]) -> int:
    """Channels that every annotated image has; a case with others fails with a reason when it is read."""
    counts = {case.channels for case in gold}
    if len(counts) != 1:
        raise ArchiveError(
            f"annotated images have {sorted(counts)} channels, expected the same number in all; "
            "convert them, or keep them in archives of their own"
        )
    return counts.pop()
