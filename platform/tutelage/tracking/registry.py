"""The registry of specialists: versions found by the digest of their weights, the important ones by alias.

A version is a folder of plain files among a run's artifacts; MLflow's model flavors that
pickle are not used. It decides nothing about who is champion.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tutelage.errors import TrackingError
from tutelage.storage import Place
from tutelage.tracking.packing import content
from tutelage.tracking.settings import TrackingSettings
from tutelage.tracking.store import Store, asking, connect, shown

CHAMPION = "champion"
"""The alias that serving follows."""

CHALLENGER = "challenger"
"""The alias of what was trained last."""

_DIGEST = "digest"
_SCHEME = "models:/"


@dataclass(frozen=True, slots=True)
class Version:
    """One registered specialist."""

    model: str
    version: str
    digest: str
    """Of its weights; empty if somebody else registered it."""
    source: str
    """Address of its folder of artifacts."""
    tags: dict[str, str]

    @property
    def uri(self) -> str:
        """Address that stays true: models:/name/version."""
        return f"{_SCHEME}{self.model}/{self.version}"


class Registry:
    """Versions of one registered model. Needs no campaign: serving opens it alone."""

    def __init__(self, store: Store, model: str) -> None:
        self.store = store
        self.model = model

    @classmethod
    def of(cls, settings: TrackingSettings, workspace: Place, campaign: str = "") -> "Registry":
        """Open a campaign's registry; models:/ addresses, which name their model, need no campaign."""
        return cls(connect(settings, workspace), settings.model_of(campaign))

    def find(self, digest: str) -> Version | None:
        """Return the newest version with these weights."""
        name, wanted = _quoted(self.model), _quoted(digest)
        with self._asking(f"find a version with digest {digest}"):
            found = self.store.client.search_model_versions(f"name={name} and tags.{_DIGEST}={wanted}")
        return max(map(_version, found), key=lambda v: int(v.version), default=None)

    def register(self, run: str, artifact: str, digest: str, tags: Mapping[str, str]) -> Version:
        """Make a version of a run's folder of artifacts, or return the one these weights have."""
        if known := self.find(digest):
            return known
        client = self.store.client
        with self._asking(f"register {digest}"):
            if self._registered() is None:
                client.create_registered_model(self.model)
            source = f"{client.get_run(run).info.artifact_uri.rstrip('/')}/{artifact}"
            made = client.create_model_version(
                self.model, source=source, run_id=run, tags={**tags, _DIGEST: digest}
            )
        return _version(made)

    def promote(self, version: str) -> None:
        """Point the champion's alias at a version."""
        self._name(CHAMPION, version)

    def challenge(self, version: str) -> None:
        """Point the alias of the newest specialist at a version."""
        self._name(CHALLENGER, version)

    def describe(self, version: str, tags: Mapping[str, str]) -> None:
        """Note facts about a version; what was noted under the same name goes."""
        with self._asking(f"describe version {version}"):
            for key, value in tags.items():
                self.store.client.set_model_version_tag(self.model, version, key, value)

    def champion(self) -> Version | None:
        """Return the champion, or None before there is one."""
        with self._asking("find the champion"):
            registered = self._registered()
            if registered is None or CHAMPION not in registered.aliases:
                return None
            return self._get(self.model, str(registered.aliases[CHAMPION]))

    def resolve(self, uri: str) -> Version:
        """Return the version that models:/name@alias or models:/name/3 means now."""
        name, number, alias = _parsed(uri)
        with self._asking(f"look up {uri}"):
            if alias is None:
                return self._get(name, number or "")
            registered = self._registered(name)
            if registered is None:
                raise TrackingError(f"{uri}: no model is registered as {name!r} at {shown(self.store.uri)}")
            if alias not in registered.aliases:
                known = ", ".join(sorted(registered.aliases)) or "none yet"
                raise TrackingError(f"{uri}: no version has the alias {alias!r}; aliases: {known}")
            return self._get(name, str(registered.aliases[alias]))

    def download(self, uri: str, into: Path) -> Path:
        """Copy a version's files to a local folder; return the specialist's own, however it was packed."""
        version = self.resolve(uri)
        with self._asking(f"download {uri}"):
            fetched = self.store.fetch(version.source, into)
            if not any(fetched.iterdir()):
                raise TrackingError(f"{uri}: {shown(version.source)} is empty; register the specialist again")
        return content(fetched)

    def _name(self, alias: str, version: str) -> None:
        with self._asking(f"make version {version} the {alias}"):
            self.store.client.set_registered_model_alias(self.model, alias, version)

    def _registered(self, name: str | None = None) -> Any:
        try:
            return self.store.client.get_registered_model(name or self.model)
        except Exception as error:
            if _absent(error):
                return None
            raise

    def _get(self, name: str, number: str) -> Version:
        try:
            return _version(self.store.client.get_model_version(name, number))
        except Exception as error:
            if _absent(error):
                raise TrackingError(
                    f"{_SCHEME}{name}/{number}: no such version at {shown(self.store.uri)}; "
                    f"look with `mlflow ui`, or ask for {_SCHEME}{name}@{CHAMPION}"
                ) from None
            raise

    def _asking(self, what: str) -> Any:
        return asking(f"MLflow at {shown(self.store.uri)} could not {what}")


def _version(found: Any) -> Version:
    tags = {str(key): str(value) for key, value in found.tags.items()}
    return Version(found.name, str(found.version), tags.get(_DIGEST, ""), str(found.source), tags)


def _absent(error: Exception) -> bool:
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"


def _quoted(text: str) -> str:
    if "'" in text:
        raise TrackingError(f"{text!r} holds a quote, which MLflow cannot search for; use another name")
    return f"'{text}'"


def _parsed(uri: str) -> tuple[str, str | None, str | None]:
    """Name, version and alias of a models:/ address; one of the last two is None."""
    rest = unquote(uri.removeprefix(_SCHEME))
    name, at, alias = rest.rpartition("@")
    if not at:
        name, _, number = rest.rpartition("/")
        if name and number.isdigit():
            return name, number, None
    elif name and alias:
        return name, None, alias
    raise TrackingError(f"{uri!r} names no model version, expected models:/name@alias or models:/name/3")
