"""The server on Ray Serve: how many copies, on what, and how many requests may wait.

    tutelage serve configs/quickstart.yaml --open     # this machine

or, on a cluster whose nodes see the specialists, by a file of Serve's own (`serve run FILE`, or a
RayService's serveConfigV2):

    applications:
    - import_path: serve.app:app
      args: {models: {liver: "models:/liver@champion"}, settings: {tokens: /secrets/tokens}}

Without arguments the environment says the same: TUTELAGE_MODELS (name=address, by commas) and
TUTELAGE_TOKENS (a file), or TUTELAGE_OPEN=1 for who asks on the server's own machine, by a loopback
name, and nobody else: whatever stands before a server, it needs tokens. Where Serve listens is not
known here.
"""

import os
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tutelage.cluster.settings import ServingSettings
from tutelage.errors import SettingsError

_ID = b"x-request-id"

_SPARE = 32
"""Light requests (who is there, how is it going) that one copy answers beside those that work or wait."""

_RETRY_AFTER_S = 5.0
"""When to come back, where Serve's own queue is full, which is the wall behind each copy's."""

_HEALTH_S = 60.0
"""A copy that does not answer Serve for so long is replaced. Volumes are worked on in threads."""

_ATTEMPTS = 2
"""How often a copy is tried to be started: what fails is the specialist, and stays as it is."""


class Segmenting:
    """One copy: its models behind the routes."""

    def __init__(self, sources: dict[str, str], settings: dict[str, Any], homes: dict[str, str]) -> None:
        # What these import reads the environment and needs its folders.
        for name in ("TUTELAGE_SPOOL", "PROMETHEUS_MULTIPROC_DIR"):
            if folder := os.environ.get(name):
                Path(folder).mkdir(parents=True, exist_ok=True)
        import torch

        from serve.inward import keep_to_node
        from serve.models import Models
        from serve.uploads import sweep

        keep_to_node()
        self.settings = ServingSettings.model_validate(settings)
        torch.set_num_threads(max(1, int(self.settings.cpus)))
        sweep()
        # Where registered models are, MLFLOW_TRACKING_URI says.
        self.models = Models(sources, self.settings, homes=homes)
        self.models.follow()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        from serve.routes import application
        from serve.tokens import Tokens

        tokens = Tokens(self.settings.tokens) if self.settings.tokens else None
        page = Path(__file__).parent / "web" / "dist"
        return _told_once(application(self.models, self.settings, tokens, page))

    def __del__(self) -> None:
        if models := getattr(self, "models", None):
            models.close()


def _told_once(app: ASGIApp) -> ASGIApp:
    """Leave the request's id out of answers where Serve's proxy, which made or passed it, adds it again."""

    async def around(scope: Scope, receive: Receive, send: Send) -> None:
        given = dict(scope.get("headers", ())).get(_ID)

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [header for header in message["headers"] if tuple(header) != (_ID, given)]
                message = {**message, "headers": kept}
            await send(message)

        await app(scope, receive, sent)

    return around


DEPLOYMENT: serve.Deployment = serve.deployment(
    name="segmenting",
    graceful_shutdown_wait_loop_s=0.5,
    health_check_timeout_s=_HEALTH_S,
    max_constructor_retry_count=_ATTEMPTS,
    logging_config={"enable_access_log": False},  # addresses of requests may name a file, and so a patient
)(serve.ingress()(Segmenting))


def build(
    sources: dict[str, str],
    settings: dict[str, Any],
    actor: dict[str, Any] | None = None,
    homes: dict[str, str] | None = None,
) -> serve.Application:
    """Return the application for models by name.

    `actor` is what each copy occupies, `homes` the workspaces that know of models from a registry.

    Raises:
        SettingsError: no model is named, or it is not said who may ask.
    """
    if not sources:
        raise SettingsError("no model is named; pass the argument `models`, or set TUTELAGE_MODELS")
    told = ServingSettings.model_validate(settings)
    if not (told.tokens or told.open):
        raise SettingsError(
            "it is not said who may ask; pass `tokens` in `settings` or set TUTELAGE_TOKENS to the file of "
            "`tutelage tokens`, or `open` or TUTELAGE_OPEN=1 to answer on this machine alone"
        )
    deployment = DEPLOYMENT.options(
        **_copies(told),
        # Each copy has a queue of its own, which refuses with a problem document; Serve's is behind it.
        max_ongoing_requests=told.ongoing + told.queued + _SPARE,
        max_queued_requests=told.queued + _SPARE,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=_RETRY_AFTER_S),
        graceful_shutdown_timeout_s=told.drain_s,
        ray_actor_options=actor or {"num_cpus": told.cpus, "num_gpus": told.gpus},
    )
    return deployment.bind(sources, told.model_dump(), homes or {})


def app(arguments: dict[str, Any]) -> serve.Application:
    """Build from the arguments of Serve's own configuration file, or from the environment."""
    listed = filter(None, os.environ.get("TUTELAGE_MODELS", "").split(","))
    models = dict(one.partition("=")[::2] for one in listed)
    settings: dict[str, Any] = {}
    if tokens := os.environ.get("TUTELAGE_TOKENS"):
        settings["tokens"] = tokens
    elif os.environ.get("TUTELAGE_OPEN") == "1":
        settings["open"] = True
    return build(
        arguments.get("models") or models,
        settings | (arguments.get("settings") or {}),
        homes=arguments.get("homes"),
    )


def _copies(settings: ServingSettings) -> dict[str, Any]:
    least, most = settings.replica_range
    if least == most:
        return {"num_replicas": least}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=least,
            max_replicas=most,
            target_ongoing_requests=settings.target_ongoing,
        )
    }
