"""The commands of `tutelage`, their arguments and their help. What they do is in the files beside this one.

Exit codes: 0 done, 1 failed, 2 unusable input (nothing was started), 3 finished, but some
cases failed and are on record, 143 ended by SIGTERM; training has then saved a checkpoint first.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from tutelage import __version__
from tutelage.cli.arguments import AsJson, Config, DryRun, Overrides
from tutelage.cli.benching import benches
from tutelage.cli.exporting import export
from tutelage.cli.ledger import accounts, rollback
from tutelage.cli.predicting import predict
from tutelage.cli.reviewing import reviews
from tutelage.cli.serving import serve
from tutelage.cli.shelving import shelf
from tutelage.cli.submitting import jobs, submit
from tutelage.cli.tokens import keys

app = typer.Typer(
    help="Generalist models teach a specialist: pseudo-label scans, check, train, repeat, serve.",
    epilog="Exit codes: 0 done, 1 failed, 2 unusable input, 3 finished with failed cases, 143 told to end.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Round = Annotated[
    str,
    typer.Option("--round", "-r", help="0, 1, ..., or labels-only (-1) for the stage before.", metavar="N"),
]
RetryErrors = Annotated[bool, typer.Option("--retry-errors", help="Try cases again that failed before.")]
Rounds = Annotated[int | None, typer.Option("--rounds", min=0, help="Rounds, whatever the file says.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tutelage {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens inside.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    from tutelage.cli.telling import set_up_logging

    set_up_logging(verbose)


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Argument(help="YAML of a campaign, with --address.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    address: Annotated[
        str | None, typer.Option("--address", "-a", help="Ray: `auto` on a node, or HOST:6379 of its head.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that a node has to answer.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Say what is installed, which devices and weights are at hand, and what will not work.

    With --address on every node of a cluster: versions, clocks, GPUs, disks, and whether the storage,
    weights and MLflow of a campaign can be reached from there.

    Example: tutelage doctor --address auto configs/quickstart.yaml
    """
    from tutelage.cli import examining
    from tutelage.cli.telling import Teller

    if address is not None:
        told = examining.doctor_of_cluster(address, config, overrides or [], timeout, Teller(as_json))
    elif config is not None:
        raise examining.only_on_a_cluster(config)
    else:
        told = examining.doctor(Teller(as_json))
    raise typer.Exit(told)


@app.command()
def catalog(
    config: Config, overrides: Overrides = None, as_json: AsJson = False, dry_run: DryRun = False
) -> None:
    """Scan the archive: which cases there are, what each is for, and what cannot be used.

    Example: tutelage catalog configs/quickstart.yaml
    """
    from tutelage.cli import campaigns
    from tutelage.cli.telling import Teller

    settings, teller = campaigns.settings_of(config, overrides), Teller(as_json)
    if dry_run:
        raise typer.Exit(campaigns.planned(settings, teller, ["catalog"], config))
    raise typer.Exit(campaigns.catalog(settings, teller))


@app.command()
def plan(
    config: Config, overrides: Overrides = None, as_json: AsJson = False, dry_run: DryRun = False
) -> None:
    """Write the plan of the specialists (spacing, patch, depth) into the workspace, to be edited.

    A plan that is there already is checked and shown; training follows it as long as it is there.

    Example: tutelage plan configs/quickstart.yaml
    """
    from tutelage.cli import campaigns
    from tutelage.cli.planning import plan
    from tutelage.cli.telling import Teller

    settings, teller = campaigns.settings_of(config, overrides), Teller(as_json)
    if dry_run:
        raise typer.Exit(campaigns.planned(settings, teller, ["catalog", "plan"], config))
    raise typer.Exit(plan(settings, teller))


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    rounds: Rounds = None,
    retry_errors: RetryErrors = False,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Do all rounds, show the results and say where they are. Run again, it goes on where it was.

    Example: tutelage run configs/quickstart.yaml train.steps=200 --rounds 1
    """
    from tutelage.cli import campaigns
    from tutelage.cli.telling import Teller
    from tutelage.rounds.run import plan

    told = [*(overrides or []), *([] if rounds is None else [f"rounds={rounds}"])]
    settings, teller = campaigns.settings_of(config, told), Teller(as_json)
    if dry_run:
        raise typer.Exit(campaigns.planned(settings, teller, plan(settings), config))
    raise typer.Exit(campaigns.run(settings, teller, config, retry_errors))


def _step(
    name: str,
    config: Path,
    round_: str,
    overrides: list[str] | None,
    as_json: bool,
    dry_run: bool,
    retry_errors: bool = False,
) -> None:
    from tutelage.cli import campaigns
    from tutelage.cli.telling import Teller

    settings, teller = campaigns.settings_of(config, overrides), Teller(as_json)
    if dry_run:
        campaigns.stage_number(round_, name, settings.rounds)
        raise typer.Exit(campaigns.planned(settings, teller, [f"{round_} {name}"], config))
    raise typer.Exit(campaigns.step(settings, teller, name, round_, retry_errors))


@app.command()
def label(
    config: Config,
    round_: Round,
    overrides: Overrides = None,
    retry_errors: RetryErrors = False,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Make a round's pseudo-labels: the specialist before it prompts the generalist on every unlabeled
    case, and curation decides which answers to believe.

    Run again, it goes on where it was and takes in what is new in the archive.

    Example: tutelage label configs/quickstart.yaml --round 0
    """
    from tutelage.cli import campaigns
    from tutelage.cli.telling import Teller

    if dry_run:
        _step("label", config, round_, overrides, as_json, dry_run)
    settings = campaigns.settings_of(config, overrides)
    raise typer.Exit(campaigns.label(settings, Teller(as_json), round_, retry_errors))


@app.command()
def calibrate(
    config: Config,
    round_: Round,
    overrides: Overrides = None,
    retry_errors: RetryErrors = False,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Learn from labeled cases, asked about as if they had no label, how good a round's answers are.

    Example: tutelage calibrate configs/quickstart.yaml --round 0 curation.calibration.enabled=true
    """
    _step("calibrate", config, round_, overrides, as_json, dry_run, retry_errors)


@app.command()
def curate(
    config: Config,
    round_: Round,
    overrides: Overrides = None,
    retry_errors: RetryErrors = False,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Decide anew which of a round's answers to believe; asks no generalist.

    Example: tutelage curate configs/quickstart.yaml --round 0 curation.min_agreement=0.8
    """
    _step("curate", config, round_, overrides, as_json, dry_run, retry_errors)


@app.command()
def train(
    config: Config,
    round_: Round = "labels-only",
    overrides: Overrides = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Train a stage's specialist: without --round the one that learns from labels alone.

    Stopped in any way and run again, it goes on from its last checkpoint.

    Example: tutelage train configs/quickstart.yaml --round labels-only
    """
    _step("train", config, round_, overrides, as_json, dry_run)


@app.command()
def evaluate(
    config: Config,
    round_: Annotated[
        str | None,
        typer.Option("--round", "-r", help="Only this stage's: 0, 1, ..., or labels-only (-1).", metavar="N"),
    ] = None,
    overrides: Overrides = None,
    split: Annotated[Literal["validation", "test"], typer.Option(help="Test never decides.")] = "validation",
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Score specialists on the validation split, which decides, or on the test split, which nothing else
    looks at: one stage's with --round, else those of all finished stages, and the report tells it.

    Example: tutelage evaluate configs/quickstart.yaml --split test
    """
    from tutelage.cli import campaigns
    from tutelage.cli.telling import Teller

    name = "evaluate" if split == "validation" else "test"
    if round_ is not None:
        _step(name, config, round_, overrides, as_json, dry_run)
    settings, teller = campaigns.settings_of(config, overrides), Teller(as_json)
    if dry_run:
        raise typer.Exit(campaigns.planned(settings, teller, [f"{name} of every stage", "report"], config))
    raise typer.Exit(campaigns.evaluate(settings, teller, config, split))


@app.command()
def promote(
    config: Config,
    round_: Round,
    overrides: Overrides = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Decide on validation scores whether a stage's specialist becomes the champion.

    Example: tutelage promote configs/quickstart.yaml --round 0
    """
    _step("promote", config, round_, overrides, as_json, dry_run)


@app.command()
def report(
    config: Config, overrides: Overrides = None, as_json: AsJson = False, dry_run: DryRun = False
) -> None:
    """Write one HTML page about the campaign, as far as it is.

    Example: tutelage report configs/quickstart.yaml
    """
    from tutelage.cli import campaigns
    from tutelage.cli.telling import Teller

    settings, teller = campaigns.settings_of(config, overrides), Teller(as_json)
    if dry_run:
        raise typer.Exit(campaigns.planned(settings, teller, ["report"], config))
    raise typer.Exit(campaigns.report(settings, teller, config))


@app.command()
def priors(
    config: Config,
    overrides: Overrides = None,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Folder of a language model, or a .gguf file.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", help="Address of a server that speaks OpenAI's protocol.")
    ] = None,
    served: Annotated[
        str | None, typer.Option("--served", help="Which of the server's models; default: its only one.")
    ] = None,
    recorded: Annotated[
        Path | None, typer.Option("--recorded", help="YAML shelf that answers in a model's place.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="Answers to each question; overrides the file.")
    ] = None,
    structures: Annotated[
        list[str] | None, typer.Option("--structure", help="Ask about this one; may be repeated.")
    ] = None,
    cases: Annotated[
        bool, typer.Option("--cases", help="Ask what metadata says of single cases, of nothing else.")
    ] = False,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Ask a language model what is known about the archive's structures, and write it down for review.

    Run again, it asks only what was not answered yet; what a person changed in the shelf stays.

    Example: tutelage priors configs/quickstart.yaml --model models/SmolLM2-135M-Instruct.gguf
    """
    from tutelage.cli import campaigns
    from tutelage.cli.priors import case_priors, priors
    from tutelage.cli.telling import Teller
    from tutelage.rounds.asking_priors import Who

    told = [*(overrides or []), *([] if samples is None else [f"priors.asking.samples={samples}"])]
    settings, teller = campaigns.settings_of(config, told), Teller(as_json)
    if dry_run:
        raise typer.Exit(campaigns.planned(settings, teller, ["priors"], config))
    who = Who(model, endpoint, served, recorded)
    if cases:
        raise typer.Exit(case_priors(settings, who, teller))
    raise typer.Exit(priors(settings, who, structures or [], teller))


@app.command()
def table(
    workspaces: Annotated[list[str], typer.Argument(help="Finished workspaces.", show_default=False)],
    markdown: Annotated[bool, typer.Option("--markdown", help="As GitHub's markdown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Join the test scores of several campaigns: mean and standard deviation, stage by stage.

    Example: tutelage table runs/phantom-0 runs/phantom-1 runs/phantom-2
    """
    from tutelage.cli.comparing import table
    from tutelage.cli.telling import Teller

    raise typer.Exit(table(workspaces, Teller(as_json), markdown))


app.add_typer(benches, name="bench")
app.add_typer(shelf, name="weights")
app.add_typer(accounts, name="ledger")
app.add_typer(reviews, name="review")
app.add_typer(jobs, name="jobs")
app.add_typer(keys, name="tokens")
app.command()(rollback)
app.command()(predict)
app.command()(serve)
app.command()(export)
app.command()(submit)
