"""`tutelage review`: the few cases worth a person's time, out and back in. Commands and what they do."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tutelage.cli.arguments import AsJson, Config, Overrides

if TYPE_CHECKING:
    from tutelage.rounds.reviewing import Queue
    from tutelage.rounds.settings import RunSettings
    from tutelage.rounds.workspace import Workspace

Count = Annotated[int, typer.Option("--count", "-n", min=1, help="How many cases.")]
Round = Annotated[
    str | None, typer.Option("--round", "-r", help="Whose answers; default: the last.", metavar="N")
]

reviews = typer.Typer(
    help="Cases whose correction would help most: rank them, hand them out, take corrected masks in.",
    epilog="Example: tutelage review export configs/quickstart.yaml --count 5 --out to-correct",
    no_args_is_help=True,
)


@reviews.command("list")
def review_list(
    config: Config,
    overrides: Overrides = None,
    count: Count = 5,
    round_: Round = None,
    as_json: AsJson = False,
) -> None:
    """Rank the cases whose correction would help most, and say why. Writes nothing.

    Example: tutelage review list configs/quickstart.yaml --count 5
    """
    from rich.table import Table
    from rich.text import Text

    from tutelage.cli import campaigns
    from tutelage.cli.telling import Teller

    _, _, ranked = _ranked(campaigns.settings_of(config, overrides), count, round_)
    teller = Teller(as_json)
    table = Table("case", box=None, pad_edge=False)
    table.add_column("gain", justify="right")
    table.add_column("why", overflow="fold")
    table.add_column("like", overflow="fold")
    for chosen in ranked.cases:
        like = "" if chosen.resembles is None else f"{chosen.resembles} ({chosen.likeness:.2f})"
        why = Text("; ".join(chosen.gain.reasons))
        table.add_row(Text(chosen.gain.case), f"{chosen.gain.total:.2f}", why, Text(like))
    teller.show(table)
    teller.say(f"{len(ranked.cases)} cases of {ranked.round}; hand them out: tutelage review export {config}")
    teller.result(
        {"round": ranked.round, "cases": [asdict(c) | {"total": c.gain.total} for c in ranked.cases]}
    )


@reviews.command("export")
def review_export(
    config: Config,
    overrides: Overrides = None,
    count: Count = 5,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder; default: review/ in the workspace.")
    ] = None,
    round_: Round = None,
    as_json: AsJson = False,
) -> None:
    """Write images, proposed masks and a color table for MONAI Label and 3D Slicer into a folder.

    Example: tutelage review export configs/quickstart.yaml --count 5 --out to-correct
    """
    from tutelage.cli import campaigns
    from tutelage.cli.telling import Teller
    from tutelage.errors import FAILED, PARTIAL
    from tutelage.rounds import reviewing
    from tutelage.storage import Place

    settings, workspace, ranked = _ranked(campaigns.settings_of(config, overrides), count, round_)
    folder = workspace.root / "review" if out is None else Place.of(out)
    done = reviewing.export(settings, workspace, ranked, folder)
    teller = Teller(as_json)
    for case, why in done.left_out:
        teller.say(f"left out: {case}: {why}")
    teller.say(f"{len(done.cases)} cases of {done.round} in {folder}: {', '.join(done.cases)}")
    teller.say("correct labels/original/*, save in labels/final/ under the same name, then")
    where = "" if out is None else f" --from {out}"
    teller.say(f"  tutelage review import {config}{where} --by NAME")
    teller.result(asdict(done))
    raise typer.Exit((PARTIAL if done.cases else FAILED) if done.left_out else 0)


@reviews.command("import")
def review_import(
    config: Config,
    overrides: Overrides = None,
    folder: Annotated[
        Path | None,
        typer.Option("--from", "-i", help="Folder of an export; default: review/ in the workspace."),
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", help="Who corrected them; default: corrected_by in review.json.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take corrected masks in: their cases are annotated from the next round on, which learns from them.

    Example: tutelage review import configs/quickstart.yaml --from to-correct --by "Ada Lovelace"
    """
    from tutelage.cli import campaigns
    from tutelage.cli.recounting import workspace_of
    from tutelage.cli.telling import Teller
    from tutelage.errors import PARTIAL, UNUSABLE
    from tutelage.rounds import taking
    from tutelage.storage import Place

    settings, teller = campaigns.settings_of(config, overrides), Teller(as_json)
    workspace = workspace_of(settings)
    place = workspace.root / "review" if folder is None else Place.of(folder)
    done = taking.take_in(settings, workspace, place, by)
    for one in done.taken:
        told = f"changed {', '.join(one.changed)}" if one.changed else "confirmed as it was proposed"
        teller.say(f"taken in  {one.case}: {told}")
    for names, told in ((done.known, "taken in before"), (done.waiting, "not corrected yet")):
        if names:
            teller.say(f"{told}: {', '.join(names)}")
    for case, why in done.refused:
        teller.say(f"refused   {case}: {why}")
    if done.taken:
        teller.say(f"annotated by {done.by} from {done.since} on; `tutelage run {config}` learns from them")
    teller.result(asdict(done))
    failed = PARTIAL if done.taken or done.known else UNUSABLE
    raise typer.Exit(failed if done.refused else 0)


def _ranked(
    settings: "RunSettings", count: int, round_: str | None
) -> "tuple[RunSettings, Workspace, Queue]":
    from tutelage.cli.recounting import round_number, workspace_of
    from tutelage.rounds.reviewing import queue

    workspace = workspace_of(settings)
    number = None if round_ is None else round_number(round_)
    return settings, workspace, queue(workspace, count, number)
