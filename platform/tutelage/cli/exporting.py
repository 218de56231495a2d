"""`tutelage export`: the command, its help, and what it does: a specialist in a form that others run."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tutelage.cli.arguments import AsJson, DryRun, Tracking
from tutelage.errors import SettingsError

if TYPE_CHECKING:
    from tutelage.rounds.champion import Found
    from tutelage.storage import Place

SUFFIXES = {"bundle": "", "torchscript": ".ts", "onnx": ".onnx"}
"""Of what is written, by format; a bundle is a folder."""

_YAML = (".yaml", ".yml")


def export(
    model: Annotated[
        str,
        typer.Argument(
            help="YAML file of a campaign, folder of a specialist, a workspace, or models:/name@champion.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--output", "-o", help="File; for a bundle a new folder.")],
    format_: Annotated[
        str, typer.Option("--format", "-f", help="bundle (MONAI), torchscript or onnx.", metavar="FORMAT")
    ] = "bundle",
    tracking: Tracking = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Write a specialist in a form that runs without tutelage.

    Example: tutelage export configs/quickstart.yaml --format bundle -o liver-bundle
    """
    from tutelage.cli.telling import Teller
    from tutelage.storage import Place

    _refuse_mistakes(format_, out)
    teller = Teller(as_json)
    with _meant(model, tracking) as found:
        teller.say(f"specialist {found.address}")
        result = {"format": format_, "out": str(out)}
        if dry_run:
            teller.say(f"would write {out}; nothing was started")
        else:
            result |= _write(format_, found.folder, Place.of(out))
            teller.say(f"{out} written")
    teller.result(result | {"specialist": found.address})


def _refuse_mistakes(format_: str, out: Path) -> None:
    if format_ not in SUFFIXES:
        raise SettingsError(f"--format is {format_!r}, expected one of {', '.join(SUFFIXES)}")
    suffix = SUFFIXES[format_]
    if suffix and out.suffix != suffix:
        raise SettingsError(f"{out} is to be {format_}, expected a name that ends in {suffix}; rename it")


def _meant(model: str, tracking_uri: str | None) -> "AbstractContextManager[Found]":
    """A campaign's configuration means its champion."""
    from tutelage.cli.campaigns import settings_of
    from tutelage.rounds.champion import specialist

    campaign = model.endswith(_YAML)
    return specialist(settings_of(Path(model), None).workspace if campaign else model, tracking_uri)


def _write(format_: str, folder: "Place", out: "Place") -> dict[str, str]:
    from tutelage.specialist.bundle import bundle
    from tutelage.specialist.export import onnx, torchscript

    return {"bundle": bundle, "torchscript": torchscript, "onnx": onnx}[format_](folder, out)
