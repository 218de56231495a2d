"""`tutelage serve`: the command, its help, and what it does: specialists behind HTTP, until Ctrl-C."""

import ipaddress
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tutelage.cli.arguments import AsJson, Config, DryRun, Overrides
from tutelage.errors import SettingsError

if TYPE_CHECKING:
    from tutelage.cli.telling import Teller
    from tutelage.cluster.settings import ServingSettings
    from tutelage.rounds.settings import RunSettings

_NAME = re.compile(r"[\w.-]+")
_REGISTERED = "models:/"


def serve(
    config: Config,
    overrides: Overrides = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="Serve another one too: the folder of a specialist, a workspace, or models:/name@champion. "
            "May be repeated.",
            metavar="NAME=ADDRESS",
        ),
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option("--tokens", help="File of hashed tokens, as `tutelage tokens` writes it.")
    ] = None,
    everybody: Annotated[
        bool, typer.Option("--open", help="Ask for no token; only for users of this machine.")
    ] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for the network.")] = "127.0.0.1",
    replicas: Annotated[int | None, typer.Option(min=1, help="Copies of the server that answer.")] = None,
    max_mb: Annotated[int | None, typer.Option(min=1, help="Refuse larger uploads, in MB.")] = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Serve the champion of a campaign over HTTP on this machine, until Ctrl-C.

    A new champion takes over by itself. Options are short for settings: serving.tokens, serving.open,
    serving.replicas, serving.max_mb. Each request is a line of JSON in Ray's folder of logs, in the
    worker-*.err of its copy; no line names a file or a patient.

    Example: tutelage serve configs/quickstart.yaml --open
    """
    from tutelage.cli import campaigns
    from tutelage.cli.telling import Teller

    told = {
        "tokens": tokens and tokens.expanduser().absolute(),
        "open": "true" if everybody else None,
        "replicas": replicas,
        "max_mb": max_mb,
    }
    options = [f"serving.{name}={value}" for name, value in told.items() if value is not None]
    settings = campaigns.settings_of(config, [*(overrides or []), *options])
    _check_doors(settings.serving, host)
    _serve(settings, _sources(settings, models or []), host, port, dry_run, Teller(as_json))


def _serve(
    settings: "RunSettings",
    sources: Mapping[str, str],
    host: str,
    port: int,
    dry_run: bool,
    teller: "Teller",
) -> None:
    from tutelage.cluster import serving
    from tutelage.rounds.champion import specialist
    from tutelage.specialist.artifact import load
    from tutelage.storage import Place

    serving.checkout()
    serving.check_port(host, port)
    uri, models = _tracking_uri(settings), {}
    for name, address in sources.items():
        with specialist(address, uri) as found:
            # Ray would try a damaged specialist several times and tell its cause last.
            load(found.folder)
        models[name] = found.address
        teller.say(f"model {name}: {found.address}")
    if dry_run:
        teller.say(f"would serve on http://{host}:{port}; nothing was started")
        teller.result({"models": models, "address": f"http://{host}:{port}"})
        return
    homes = {next(iter(sources)): str(Place.of(settings.workspace))}
    job = serving.ServeJob(sources, host, port, settings.serving, uri, homes)
    with serving.served(job, settings.cluster) as address, serving.stopping() as stopped:
        for line in _directions(address, settings.serving):
            teller.say(line)
        teller.result({"models": models, "address": address})
        stopped.wait()
        teller.say("stopping; what was begun is finished")


def _sources(settings: "RunSettings", models: list[str]) -> dict[str, str]:
    """Return addresses by name, the campaign's own first: it answers whoever names no model."""
    from tutelage.storage import Place

    champion = str(Place.of(settings.workspace))
    if settings.serving.champion == "registry":
        if not settings.tracking.enabled:
            raise SettingsError(
                "serving.champion is registry, but tracking.enabled is false; set one of them otherwise"
            )
        champion = f"{_REGISTERED}{settings.tracking.model_of(settings.name)}@champion"
    sources = {"-".join(_NAME.findall(settings.name)) or "champion": champion}
    for told in models:
        name, _, address = told.partition("=")
        if not _NAME.fullmatch(name) or not address:
            raise SettingsError(
                f"--model is {told!r}, expected NAME=ADDRESS, for example liver=runs/liver; names are of "
                "letters, digits, dots, dashes"
            )
        if name in sources:
            raise SettingsError(f"two models are called {name!r}; give one of them another name")
        sources[name] = address if address.startswith(_REGISTERED) else str(Place.of(address))
    return sources


def _tracking_uri(settings: "RunSettings") -> str | None:
    """Return the MLflow in which models:/ addresses are looked up: the campaign's, if it has one."""
    from tutelage.errors import TrackingError
    from tutelage.storage import Place
    from tutelage.tracking.store import store_uri

    if not settings.tracking.enabled:
        return None
    try:
        return store_uri(settings.tracking, Place.of(settings.workspace))
    except TrackingError:  # no models:/ address need be named
        return None


def _check_doors(settings: "ServingSettings", host: str) -> None:
    """Refuse to serve everybody unless that was asked for, and then only this machine's users."""
    if settings.tokens and settings.open:
        raise SettingsError("found both tokens and --open, expected one of them; leave out the other")
    if settings.tokens:
        return
    if not settings.open:
        raise SettingsError(
            "it is not said who may ask; make a file of tokens with `tutelage tokens` and name it with "
            "--tokens, or let everybody on this machine ask with --open"
        )
    if not _loopback(host):
        raise SettingsError(
            f"--open on {host} would let everybody in the network ask; name a file of tokens with --tokens, "
            "or listen on 127.0.0.1"
        )


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _directions(address: str, settings: "ServingSettings") -> list[str]:
    """Say where to go."""
    url = shlex.quote(f"{address}/v1/segment")
    token = ' -H "Authorization: Bearer $TUTELAGE_TOKEN"' if settings.tokens else ""
    return [
        f"serving on {address}, Ctrl-C stops it; all addresses: {address}/docs",
        f"page: {address}/",
        f"curl --fail-with-body{token} --data-binary @scan.nii.gz {url} -o mask.nii.gz",
    ]
