"""`tutelage bench`: one command a bench, with the options of each. What they measure is in the room bench."""

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

JsonFile = Annotated[Path | None, typer.Option("--json", help="File to write the rows to.")]


class _Benches(TyperGroup):
    """Commands for benches that need options of their own, and a plain one for every other bench."""

    def list_commands(self, ctx: Any) -> list[str]:
        from tutelage.bench import BENCHES

        return sorted({*BENCHES, *self.commands})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        from tutelage.bench import BENCHES

        if cmd_name in self.commands:
            return self.commands[cmd_name]
        return _plain(cmd_name) if cmd_name in BENCHES else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        from tutelage.errors import SettingsError

        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            known = ", ".join(self.list_commands(ctx))
            raise SettingsError(f"no bench named {args[0]!r}; there is {known}")
        return super().resolve_command(ctx, args)


benches = typer.Typer(
    cls=_Benches,
    help="Measure a part side by side with its peer in one run. Exits 0 whether or not goals are met.",
    epilog="Example: tutelage bench label --json label.json",
    no_args_is_help=True,
)


@benches.command("label")
def label(
    json_file: JsonFile = None,
    local: Annotated[
        bool,
        typer.Option("--local", help="Changes nothing: a command line may have it on machines without Ray."),
    ] = False,
) -> None:
    """Time a labeled case against the loop that everybody writes first. No Ray is started either way.

    Example: tutelage bench label --local --json label.json
    """
    _measure("label", json_file)


@benches.command("calibration")
def calibration(
    archive: Annotated[
        str, typer.Option(help="phantom, hippocampus, another set, or a campaign's YAML.")
    ] = "phantom",
    labeled: Annotated[int, typer.Option(min=1, help="Labeled cases, which calibrate.")] = 9,
    out: Annotated[Path, typer.Option(help="Folder of the campaign.")] = Path("runs/calibration"),
    json_file: JsonFile = None,
) -> None:
    """Measure how often bounds on Dice hold where labels were hidden. Run again, it goes on where it was.

    Example: tutelage bench calibration --archive hippocampus --json calibration.json
    """
    _measure("calibration", json_file, archive=archive, out=out, labeled=labeled)


@benches.command("methods")
def methods(
    archive: Annotated[
        str,
        typer.Option(help="hippocampus, la, kvasir_seg, phantom, or a campaign's YAML; several by commas."),
    ] = "phantom",
    labeled: Annotated[
        int | None, typer.Option(min=1, help="Annotated cases. Default: what is usual for the set.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many: 0, 1 and so on.")] = 3,
    budget: Annotated[str, typer.Option(help="small for two CPU cores, full for a GPU.")] = "small",
    methods_: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help="By commas; tak@VARIANT is an ablation, 'tak@key.key=value;key=value' any other. "
            "Default: all of them.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of rows, table and plot.")] = Path("runs/methods"),
    jobs: Annotated[
        int, typer.Option(min=0, help="Rows at the same time, a thread each; 0 runs them in this process.")
    ] = 1,
    json_file: JsonFile = None,
) -> None:
    """Compare methods on the same data, steps and evaluation. Run again, it does what is not done yet.

    Example: tutelage bench methods --archive hippocampus --labeled 9 --methods supervised,bcp,ceiling
    """
    from tutelage.cli.examining import bench_methods
    from tutelage.cli.telling import Teller

    code = bench_methods(
        archive, labeled, seeds, budget, methods_, out, jobs, json_file, Teller(as_json=False)
    )
    raise typer.Exit(code)


@benches.command("train")
def train(
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="Also measure training on Ray with so many workers of one thread each, by commas.",
        ),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Time our training loop against the one that everybody writes first, and Ray against our loop.

    Example: tutelage bench train --workers 1,2 --json train.json
    """
    if workers is None:
        _measure("train", json_file)
    from tutelage.bench.workers import counts

    _measure("train", json_file, workers=counts(workers))


@benches.command("serve")
def serve(
    soak_minutes: Annotated[
        float, typer.Option("--soak-minutes", min=0.1, help="How long to press harder than it can serve.")
    ] = 10.0,
    json_file: JsonFile = None,
) -> None:
    """Time a server of specialists against the predictor called directly, and press it hard.

    Example: tutelage bench serve --soak-minutes 10 --json serve.json
    """
    _measure("serve", json_file, soak_minutes=soak_minutes)


@benches.command("scale")
def scale(
    parts: Annotated[
        str | None,
        typer.Option(
            help="Which, by commas: memory, million, actors, nodes, overhead, tiny, simulate. Default: all."
        ),
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Predict labeling rounds; short for --parts simulate.")
    ] = False,
    volumes: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Sizes of the rounds to predict, by commas.")
    ] = "10000,100000,1000000",
    actors: Annotated[int, typer.Option(min=1, help="Actors of those rounds.")] = 8,
    gpu_profile: Annotated[
        str | None,
        typer.Option(help="Embed at a rate published for a GPU: a100-sam-vit-b or a100-sam-vit-h."),
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Of what one actor occupies: a core, or a GPU with its cores.")
    ] = None,
    costs: Annotated[
        Path | None, typer.Option(help="Measured costs: read if the file is there, else written to it.")
    ] = None,
    tiny: Annotated[int, typer.Option(min=10, help="Volumes of part tiny.")] = 10_000,
    speed_volumes: Annotated[
        int, typer.Option(min=4, help="Volumes of parts actors and overhead, and for each node of nodes.")
    ] = 24,
    measured: Annotated[int, typer.Option(min=4, help="Volumes that costs are measured on.")] = 12,
    repeats: Annotated[int, typer.Option(min=1, help="Of parts actors and nodes.")] = 2,
    json_file: JsonFile = None,
) -> None:
    """Label on one machine, on nodes and in large archives; predict rounds that are larger.

    Example: tutelage bench scale --simulate --actors 64 --price-per-hour 0.05 --costs costs.json
    """
    from tutelage.bench.scale import Sizes, chosen, profile_of, whole_numbers
    from tutelage.cli.telling import Teller

    sizes = Sizes(
        tiny=tiny,
        speed=speed_volumes,
        measured=measured,
        repeats=repeats,
        simulated=whole_numbers(volumes),
        actors=actors,
        profile=profile_of(gpu_profile),
        price_per_hour=price_per_hour,
        costs=costs,
    )
    told = "simulate" if simulate else parts
    chosen_parts = None if told is None else chosen(told)
    _measure("scale", json_file, parts=chosen_parts, sizes=sizes, show=Teller(as_json=False).show)


def _plain(name: str) -> Any:
    """Make the command of a bench that takes nothing but a file for its rows."""
    app = typer.Typer(add_completion=False)

    @app.command(name, help=f"{_purpose(name)}\n\nExample: tutelage bench {name} --json {name}.json")
    def plain(json_file: JsonFile = None) -> None:
        _measure(name, json_file)

    return typer.main.get_command(app)


def _purpose(name: str) -> str:
    """Return the first paragraph of what a bench says about itself, without loading what it measures."""
    from tutelage.bench import BENCHES

    found = find_spec(BENCHES[name])
    if found is None or found.origin is None:
        return f"Measure {name}."
    told = ast.get_docstring(ast.parse(Path(found.origin).read_text())) or f"Measure {name}."
    return " ".join(told.split("\n\n")[0].split())


def _measure(name: str, json_file: Path | None, **options: object) -> NoReturn:
    from tutelage.cli.examining import bench
    from tutelage.cli.telling import Teller

    raise typer.Exit(bench(name, json_file, Teller(False), **options))
