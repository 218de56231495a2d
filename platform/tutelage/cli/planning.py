"""What `tutelage plan` does."""

from tutelage.cli.telling import Teller
from tutelage.rounds.settings import RunSettings
from tutelage.storage import Place


def plan(settings: RunSettings, teller: Teller) -> int:
    """Write the plan of a campaign's specialists for a person to edit, or tell what the edited one says."""
    from tutelage.rounds import planning
    from tutelage.rounds.campaign import cataloged
    from tutelage.rounds.progress import Reporter
    from tutelage.rounds.workspace import Workspace
    from tutelage.specialist.plan import write_plan

    workspace = Workspace(Place.of(settings.workspace))
    file = planning.file_of(workspace)
    with workspace.locked():
        catalog = cataloged(settings, workspace, Reporter())
        derived = planning.derived(settings, catalog)
        edited = planning.edited(workspace, catalog)
        if edited is None:
            write_plan(file, derived)
    told = edited or derived
    teller.say(told.to_yaml().rstrip())
    changes = [] if edited is None else list(planning.differences(edited, derived))
    for change in changes:
        teller.say(f"edited: {change}")
    what = "written, training will follow it" if edited is None else "was there, training follows it"
    teller.say(f"plan {file} {what}")
    teller.result({"file": str(file), "plan": told.model_dump(mode="json"), "edited": changes})
    return 0
