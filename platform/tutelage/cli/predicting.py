"""`tutelage predict`: the command, its help, and what it does: scans in, masks out, here or by a server."""

import os
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tutelage.cli.arguments import AsJson, DryRun, Tracking
from tutelage.errors import (
    FAILED,
    PARTIAL,
    ForbiddenError,
    SettingsError,
    TutelageError,
    UnreachableError,
)

if TYPE_CHECKING:
    from tutelage.casework.predicting import Order, Prediction
    from tutelage.cli.telling import Teller
    from tutelage.client import Client, Progress
    from tutelage.rounds.progress import Advance

_TOKEN = "TUTELAGE_TOKEN"


def predict(
    scan: Annotated[
        Path | None, typer.Argument(help="A scan; its mask comes beside it.", show_default=False)
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--input", "-i", help="A scan, or a folder of scans.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder; for one scan also a .nii.gz.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Folder of a specialist, a workspace, or models:/name@champion. "
            "Default: the newest champion under ./runs. With --url a name that the server knows.",
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help=f"Let the server at this address do it; its token is read from {_TOKEN}."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="File with the token, in place of the environment.")
    ] = None,
    tracking: Tracking = None,
    max_voxels: Annotated[int, typer.Option(min=1, help="Refuse larger volumes.")] = 2**29,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Segment a scan or a folder of scans with a specialist. Needs no cluster.

    Example: tutelage predict scan.nii.gz --url http://127.0.0.1:8000
    Example: tutelage predict -i scans/ -o masks/ -m runs/quickstart
    """
    from tutelage.casework import predicting
    from tutelage.cli.telling import Teller

    teller = Teller(as_json)
    told = _named(scan, source, out)
    if url is None:
        if token_file is not None:
            raise SettingsError("--token-file is for a server; name it with --url, or leave the file out")
        raise typer.Exit(_here(predicting.orders(*told), model, tracking, max_voxels, dry_run, teller))
    listed = predicting.orders(*told, archives=True)
    raise typer.Exit(_there(listed, url, _token(token_file), model or "", dry_run, teller))


def _named(scan: Path | None, source: Path | None, out: Path | None) -> tuple[Path, Path]:
    """Return what is segmented, and where masks go: that of a scan that is named alone lies beside it.

    Raises:
        SettingsError: nothing is named, or two things, or a folder without a place for its masks.
    """
    from tutelage.casework.predicting import beside

    named = [place for place in (scan, source) if place is not None]
    if len(named) != 1:
        raise SettingsError(
            "name a scan, as `tutelage predict scan.nii.gz`, or scans with --input and --output"
        )
    (given,) = named
    if out is None and given.is_dir():
        raise SettingsError(f"{given} is a folder; say with --output where its masks go")
    return given, out or beside(given)


# --- here -------------------------------------------------------------------------------------


def _here(
    listed: "list[Order]",
    model: str | None,
    tracking_uri: str | None,
    max_voxels: int,
    dry_run: bool,
    teller: "Teller",
) -> int:
    """Segment files with a specialist that is loaded once."""
    from tutelage.casework import predicting
    from tutelage.rounds.champion import specialist
    from tutelage.rounds.progress import Reporter

    with specialist(model, tracking_uri) as found:
        teller.say(f"specialist {found.address}")
        if dry_run:
            return _dry(listed, {"specialist": found.address}, teller)
        from tutelage.specialist.predictor import Predictor

        predictor = Predictor(found.folder)
    done: list[Prediction] = []
    with Reporter().task(f"segment {len(listed)} scans", len(listed)) as advance:
        for prediction in predicting.predict(predictor, listed, max_voxels):
            done.append(prediction)
            advance(len(done), Path(prediction.image).name)
    return _told(done, {"specialist": found.address, "digest": predictor.digest}, teller)


# --- by a server ------------------------------------------------------------------------------


def _there(
    listed: "list[Order]", url: str, token: str | None, model: str, dry_run: bool, teller: "Teller"
) -> int:
    """Send files to a server, one after another."""
    from tutelage.client import Client
    from tutelage.rounds.progress import Reporter

    done: list[Prediction] = []
    with Client(url, token) as client:
        teller.say(f"server {client.url}")
        if dry_run:
            return _dry(listed, {"server": client.url}, teller)
        with Reporter().task(f"segment {len(listed)} scans", len(listed)) as advance:
            for order in listed:
                done.append(_asked(client, model, order, partial(_noted, advance, len(done), order)))
                advance(len(done), order.image.name)
    return _told(done, {"server": client.url}, teller)


def _asked(client: "Client", model: str, order: "Order", progress: "Progress") -> "Prediction":
    """Have one scan segmented; one that fails becomes a row with the reason.

    Raises:
        ServerError: there is no server, or it does not let us in: no other scan would fare better.
    """
    from tutelage.casework.predicting import Prediction, answered

    try:
        answer = client.segment(order.image, order.mask, model=model, progress=progress)
        return answered(order, list(answer.volumes_ml), answer.specialist)
    except (ForbiddenError, UnreachableError):
        raise
    except (TutelageError, OSError) as error:
        return Prediction(str(order.image), None, str(error), ())


def _noted(advance: "Advance", done: int, order: "Order", stage: str, part: int, total: int) -> None:
    """Show how far one scan is; nothing is told between the last byte sent and the first received."""
    share = f" {100 * part // total} %" if total else ""
    working = stage == "sending" and part == total
    advance(done, f"{order.image.name}: {'segmenting' if working else stage + share}")


def _token(file: Path | None) -> str | None:
    """Read the token where no other user sees it; a command line is seen by all."""
    if file is None:
        return os.environ.get(_TOKEN, "").strip() or None
    try:
        token = file.expanduser().read_text().strip()
    except OSError as error:
        raise SettingsError(f"{file} cannot be read ({error.strerror}); name a file with a token") from None
    if not token or len(token.split()) > 1:
        raise SettingsError(f"{file} holds {len(token.split())} words, expected one token; correct it")
    return token


# --- both -------------------------------------------------------------------------------------


def _dry(listed: "list[Order]", who: dict[str, str], teller: "Teller") -> int:
    for order in listed:
        teller.say(f"would segment {order.image} to {order.mask}")
    teller.say("nothing was started")
    teller.result(who | {"masks": [str(order.mask) for order in listed]})
    return 0


def _told(done: "list[Prediction]", who: dict[str, str], teller: "Teller") -> int:
    failed = [prediction for prediction in done if prediction.mask is None]
    for prediction in done:
        teller.say(prediction.mask or f"failed: {prediction.image}: {prediction.reason}")
    teller.say(f"{len(done) - len(failed)} masks written, {len(failed)} scans failed")
    teller.result(who | {"predictions": [asdict(prediction) for prediction in done]})
    if not failed:
        return 0
    return FAILED if len(failed) == len(done) else PARTIAL
