"""`tutelage submit` and `tutelage jobs`: commands, their help, and what they do.

It decides which settings make sense for a job that runs elsewhere. How jobs reach a cluster is known
in `cluster.submitting`.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tutelage.cli.arguments import AsJson, Config, DryRun
from tutelage.cli.telling import Teller
from tutelage.errors import FAILED, SettingsError

if TYPE_CHECKING:
    from tutelage.cluster.submitting import Cluster, Job, Order

Address = Annotated[
    str, typer.Option("--address", "-a", envvar="RAY_API_SERVER_ADDRESS", help="Dashboard of the cluster.")
]
Name = Annotated[str, typer.Argument(metavar="JOB", help="Name that submit told.", show_default=False)]
_LOCAL = "http://127.0.0.1:8265"

jobs = typer.Typer(
    help="Jobs that were submitted: list them, follow one, stop one.",
    epilog="Example: tutelage jobs list --address http://127.0.0.1:8265",
    no_args_is_help=True,
)


def submit(
    script: Annotated[
        str,
        typer.Argument(help="A file like jobs/run.py, or its name: run, label, train.", show_default=False),
    ],
    config: Config,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE | OPTION]...", help="What the command takes.", show_default=False),
    ] = None,
    address: Address = _LOCAL,
    wait: Annotated[bool, typer.Option(help="Follow the job until it ends, with its exit code.")] = True,
    cpus: Annotated[float, typer.Option(min=0, help="CPU cores that the script itself occupies.")] = 0.0,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Run a command as a job on a Ray cluster. Submitted again after it ended or died, it goes on.

    From any folder, and no node needs tutelage installed: the package, the campaign's YAML and the files
    that it names travel along. Options of the command stand after `--`.

    Example: tutelage submit run configs/quickstart.yaml -a http://head:8265 train.steps=400 -- --rounds 1
    """
    teller, order = Teller(as_json), order_of(script, config, arguments or [], cpus)
    if _is_here(order.workspace):
        teller.say(
            f"workspace {order.workspace} will lie in the home folder of the job's node, where neither other "
            "nodes nor commands here look; write it from / on, on a disk that all share, or as s3://"
        )
    if dry_run:
        teller.say(f"would submit to {address}: {order.entrypoint}")
        for inside, file in order.files.items():
            teller.say(f"  {file} travels along as {inside}")
        teller.say(f"workspace {order.workspace}; nothing was submitted")
        raise typer.Exit(0)
    from tutelage.cluster.submitting import Cluster

    cluster = Cluster(address)
    job = cluster.submit(order)
    teller.say(f"{job} submitted to {address}: {order.entrypoint}")
    if not wait:
        teller.say(f"tutelage jobs follow {job} --address {address}")
        teller.result({"job": job, "address": address, "entrypoint": order.entrypoint})
        raise typer.Exit(0)
    raise typer.Exit(_followed(cluster, job, teller))


@jobs.command("list")
def jobs_list(address: Address = _LOCAL, as_json: AsJson = False) -> None:
    """List the cluster's jobs, the last first.

    Example: tutelage jobs list --address http://127.0.0.1:8265
    """
    from tutelage.cluster.submitting import Cluster

    listed, teller = Cluster(address).jobs(), Teller(as_json)
    table = Table(box=None, pad_edge=False)
    for heading in ("job", "state", "minutes", "workspace", "command"):
        table.add_column(heading, overflow="fold")
    for one in listed:
        table.add_row(one.id, one.state.lower(), _minutes(one), one.workspace, one.entrypoint)
    teller.show(table)
    teller.result({"jobs": [asdict(one) for one in listed]})


@jobs.command("follow")
def jobs_follow(job: Name, address: Address = _LOCAL, as_json: AsJson = False) -> None:
    """Show what a job writes, from its beginning, until it ends; then its exit code is this one's.

    Example: tutelage jobs follow raysubmit_x7 --address http://127.0.0.1:8265
    """
    from tutelage.cluster.submitting import Cluster

    raise typer.Exit(_followed(Cluster(address), job, Teller(as_json)))


@jobs.command("stop")
def jobs_stop(job: Name, address: Address = _LOCAL, as_json: AsJson = False) -> None:
    """Ask a job to end. Training saves a checkpoint first; submitted again, it goes on from there. What
    has not ended after ten minutes is killed.

    Example: tutelage jobs stop raysubmit_x7 --address http://127.0.0.1:8265
    """
    from tutelage.cluster.submitting import Cluster

    cluster, teller = Cluster(address), Teller(as_json)
    found = cluster.find(job)
    if found.running:
        cluster.stop(job)
        teller.say(f"{job} was asked to end")
    else:
        teller.say(f"{job} has ended before: {found.state.lower()}")
    teller.result({"job": job, "was": found.state})


def order_of(script: str, config: Path, arguments: Sequence[str], cpus: float = 0.0) -> "Order":
    """Check what is to run elsewhere, as far as it can be checked here.

    Raises:
        SettingsError: there is no such script, or the settings name what only this machine has.
    """
    from tutelage.cluster.submitting import Order
    from tutelage.rounds.settings import RunSettings
    from tutelage.settings import load, written

    file = _script(script)
    settings = load(config, RunSettings, [word for word in arguments if _overrides(word)], elsewhere=True)
    root = settings.archive.root
    if settings.archive.importer != "synthetic" and root and _is_here(root):
        raise SettingsError(
            f"archive.root is {root}, expected an address that all nodes see, since a job runs in a folder "
            "of its own; write it from / on, or as s3://"
        )
    files, changed = _files(settings.priors.shelf, config)
    told = (*arguments, *changed)
    return Order(file, config, written(config), told, files, settings.workspace, cpus)


def _script(told: str) -> Path:
    from tutelage.cluster.submitting import scripts

    own, ours = Path(told), scripts() / f"{told}.py"
    if own.suffix == ".py" and own.is_file():
        return own
    if "/" not in told and ours.is_file():
        return ours
    known = ", ".join(sorted(path.stem for path in scripts().glob("*.py")))
    if own.suffix == ".py" and (scripts() / own.name).is_file() and own.parent.name == "jobs":
        return scripts() / own.name
    raise SettingsError(
        f"no script {told}; name a file, or one of {known or 'a checkout, which is not here'}"
    )


def _files(shelf: str | None, config: Path) -> tuple[dict[str, Path], list[str]]:
    """Small files that settings name, where they go, and overrides for those that cannot keep their place.

    A relative name is looked for where a person stands, then above the campaign's file: a checkout need not
    be the folder that a job is submitted from. One that begins at / and is not here may be on the nodes.
    """
    if shelf is None or "://" in shelf:
        return {}, []
    name = Path(shelf)
    places = [Path(), *config.absolute().parents]
    found = next((place / name for place in places if (place / name).is_file()), None)
    if found is None and name.is_absolute():
        return {}, []
    if found is None:
        raise SettingsError(
            f"priors.shelf is {shelf}, which is neither here nor above {config}; correct the path"
        )
    if not name.is_absolute() and ".." not in name.parts:
        return {shelf: found}, []
    inside = f"files/{name.name}"
    return {inside: found}, [f"priors.shelf={inside}"]


def _overrides(word: str) -> bool:
    return "=" in word and not word.startswith("-")


def _is_here(address: str) -> bool:
    """Whether an address means something only beside the folder that a person stands in."""
    return "://" not in address and not Path(address).is_absolute()


def _followed(cluster: "Cluster", job: str, teller: Teller) -> int:
    from tutelage.cluster.submitting import tell

    try:
        ended = cluster.follow(job, teller.say if teller.as_json else tell)
    except KeyboardInterrupt:
        teller.say(
            f"\n{job} goes on; `tutelage jobs follow {job}` shows it again, "
            f"`tutelage jobs stop {job}` ends it"
        )
        return FAILED
    teller.say(f"{job} {ended.state.lower()}" + (f": {ended.told}" if ended.state != "SUCCEEDED" else ""))
    teller.result(asdict(ended))
    if ended.state == "SUCCEEDED":
        return 0
    return ended.exit_code or FAILED


def _minutes(job: "Job") -> str:
    if not job.started:
        return "-"
    return f"{((job.ended or time.time()) - job.started) / 60:.1f}"
