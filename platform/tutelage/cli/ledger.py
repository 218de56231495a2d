"""`tutelage ledger` and `tutelage rollback`: commands and their help. What they do is in `recounting`."""

from typing import Annotated

import typer

from tutelage.cli.arguments import AsJson, Config, DryRun, Overrides

AsCsv = Annotated[bool, typer.Option("--csv", help="Rows as CSV on stdout, all words on stderr.")]
Structure = Annotated[str | None, typer.Option("--structure", "-s", help="Of this structure only.")]

accounts = typer.Typer(
    help="Why labels were believed, what changed between rounds, and which model saw which label.",
    epilog="Example: tutelage ledger show configs/quickstart.yaml --verdict accept",
    no_args_is_help=True,
)


@accounts.command("show")
def ledger_show(
    config: Config,
    overrides: Overrides = None,
    case: Annotated[str | None, typer.Option("--case", "-c", help="Of this case only.")] = None,
    structure: Structure = None,
    round_: Annotated[str | None, typer.Option("--round", "-r", help="0, r01, ...", metavar="N")] = None,
    verdict: Annotated[
        str | None, typer.Option("--verdict", help="accept, partial, reject, absent, failed or corrected.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Rows of the table; 0 shows all.")] = 40,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Show what was believed of whom and why. JSON and CSV have every row and every column.

    Example: tutelage ledger show configs/quickstart.yaml --round 0 --verdict reject --csv
    """
    from tutelage.cli import campaigns, recounting

    settings = campaigns.settings_of(config, overrides)
    wanted = recounting.wanted(case, structure, round_, verdict)
    raise typer.Exit(recounting.show(settings, wanted, limit, recounting.how(as_json, as_csv)))


@accounts.command("diff")
def ledger_diff(
    config: Config,
    before: Annotated[str, typer.Argument(help="Earlier round, as r00.", show_default=False)],
    after: Annotated[str, typer.Argument(help="Later round, as r01.", show_default=False)],
    overrides: Overrides = None,
    structure: Structure = None,
    limit: Annotated[int, typer.Option(min=0, help="Changes of each kind; 0 tells all.")] = 10,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Tell what changed from one round to another: counts first, then cases.

    Example: tutelage ledger diff configs/quickstart.yaml r00 r01
    """
    from tutelage.cli import campaigns, recounting

    settings = campaigns.settings_of(config, overrides)
    rounds = recounting.round_number(before), recounting.round_number(after)
    raise typer.Exit(recounting.diff(settings, *rounds, structure, limit, recounting.how(as_json, as_csv)))


@accounts.command("trace")
def ledger_trace(
    config: Config,
    case: Annotated[str, typer.Argument(help="Name of the case.", show_default=False)],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Tell the story of one case: who was asked, what was believed and why, who learned from it.

    Example: tutelage ledger trace configs/quickstart.yaml patient_007
    """
    from tutelage.cli import campaigns, recounting
    from tutelage.cli.telling import Teller

    settings = campaigns.settings_of(config, overrides)
    raise typer.Exit(recounting.trace(settings, case, Teller(as_json)))


def rollback(
    config: Config,
    round_: Annotated[str | None, typer.Argument(metavar="[ROUND]", help="Round to go back to.")] = None,
    overrides: Overrides = None,
    undo: Annotated[
        str | None, typer.Option("--undo", metavar="NNN", help="Bring back what was set aside as this.")
    ] = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Go back to a round: later ones are set aside, nothing is deleted, the champion is what it was then.

    Example: tutelage rollback configs/quickstart.yaml r00
    """
    from tutelage.cli import campaigns, recounting
    from tutelage.cli.telling import Teller

    told = list(overrides or [])
    if round_ is not None and "=" in round_:  # with --undo no round is named, and a setting is taken for it
        told, round_ = [round_, *told], None
    settings = campaigns.settings_of(config, told)
    raise typer.Exit(recounting.rollback(settings, config, round_, undo, dry_run, Teller(as_json)))
