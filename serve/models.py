"""The models that are served: which specialist each name means now, loaded, tested and exchanged.

A model is loaded when it is first asked for and stays until others need its room. A thread looks
whether sources mean another specialist than before. A new one is loaded beside the old one and has to
pass its self-test; then it takes the old one's place in one step, and what is in flight ends with the
one it began with. One that cannot be loaded or fails is refused: the old one stays, everybody can read
of which kind the reason is, and the log says all of it, which may name folders. Going back is the same:
whoever points a champion or an alias back is followed. A source that cannot be read for a while changes
nothing.

It knows no HTTP and no Ray, nor what a source is.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from serve import sources as where
from serve.segmenter import Segmenter
from serve.sources import Meant, Source
from tutelage.casework import selftest
from tutelage.cluster.settings import ServingSettings
from tutelage.errors import SettingsError, TrainingError, TutelageError
from tutelage.specialist import artifact
from tutelage.specialist.predictor import Predictor

_NOBODY: Mapping[str, str] = MappingProxyType({})

_PATIENCE_S = 10.0
"""For the thread that follows, when it is told to end; it may be in the middle of a download."""

_log = logging.getLogger(__name__)


_UNLOADABLE = "it cannot be loaded"
_OTHER = "it is another specialist than its source says"
_FAILING = "it fails its self-test"
_ADVICE = "the log of the server says more; put another version in its place, or write its files again"
"""What is told of a specialist that is refused, and of which kind that is."""


class UnfitError(TrainingError):
    """A specialist can be loaded, and must not be served."""

    def __init__(self, detail: str, told: str) -> None:
        super().__init__(detail)
        self.told = told


class UnknownModelError(TutelageError, LookupError):
    """No model of that name is served."""


class Models:
    """Every model of one process, for any number of threads."""

    def __init__(
        self,
        sources: Mapping[str, str],
        settings: ServingSettings,
        tracking_uri: str | None = None,
        homes: Mapping[str, str] = _NOBODY,
    ) -> None:
        """Load and test the first model, which is the default; others wait until they are asked for.

        `homes` name the workspaces of models that come from elsewhere: their stored case tests them,
        and what they know of anatomy is held against masks.

        Raises:
            SettingsError: no model is named.
            TrainingError: the default model must not be served.
            WorkspaceError: there is no specialist where it should be.
            TrackingError: the registry does not answer, or does not know it.
        """
        if not sources:
            raise SettingsError("no model is named, expected a name and where its specialist is")
        self.settings = settings
        self.default = next(iter(sources))
        self._models = {
            name: _Model(name, where.source_of(address, tracking_uri, homes.get(name)))
            for name, address in sources.items()
        }
        self._loaded: OrderedDict[str, Segmenter] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self.get()

    def get(self, name: str = "") -> Segmenter:
        """Return a loaded model, the default one if none is named; call it in a thread, as it may load.

        Raises:
            UnknownModelError: no model of that name is served.
            TrainingError: it must not be served, and there is none from before.
        """
        model = self._named(name)
        if (found := self._at_hand(model)) is not None:
            return found
        with model.loading:
            if (found := self._at_hand(model)) is not None:  # somebody else has loaded it meanwhile
                return found
            made = model.again()
            self._put(model, made)
            return made

    def refresh(self) -> None:
        """Look once whether any source means another specialist now, and follow it."""
        for model in self._models.values():
            with model.loading:
                made = model.changed()
                if made is not None:
                    with self._lock:
                        room = model.name in self._loaded or len(self._loaded) < self.settings.loaded
                    if room:
                        self._put(model, made)

    def follow(self) -> None:
        """Have a thread look now and every `follow_s` seconds, until `close`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._following, name="following", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Follow nobody any more. What is loaded goes on answering those who hold it."""
        self._closed.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_PATIENCE_S)

    @property
    def ready(self) -> bool:
        """Whether the default model answers."""
        return self._models[self.default].accepted is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, the default first."""
        return tuple(self._models)

    def describe(self) -> list[dict[str, Any]]:
        """Tell of every model what is served, how good it was, and what was refused; reads nothing."""
        with self._lock:
            loaded = set(self._loaded)
        return [
            {"name": name, "default": name == self.default, **model.described(), "loaded": name in loaded}
            for name, model in self._models.items()
        ]

    def loaded(self) -> dict[str, Segmenter]:
        """Return what is loaded now, by name, the one not asked for longest first."""
        with self._lock:
            return dict(self._loaded)

    def _named(self, name: str) -> "_Model":
        try:
            return self._models[name or self.default]
        except KeyError:
            raise UnknownModelError(
                f"no model is called {name!r}, expected one of {', '.join(self._models)}; "
                "GET /v1/models tells of them"
            ) from None

    def _at_hand(self, model: "_Model") -> Segmenter | None:
        with self._lock:
            if model.name in self._loaded:
                self._loaded.move_to_end(model.name)
            return self._loaded.get(model.name)

    def _put(self, model: "_Model", made: Segmenter) -> None:
        """Have a model answer from now on; what it replaces, or must make room, ends with its callers."""
        with self._lock:
            self._loaded[model.name] = made
            self._loaded.move_to_end(model.name)
            while len(self._loaded) > self.settings.loaded:
                self._loaded.popitem(last=False)

    def _following(self) -> None:
        while not self._closed.is_set():
            self.refresh()
            self._closed.wait(self.settings.follow_s)


class _Model:
    """One name: its source, what of it is served, and what is not."""

    def __init__(self, name: str, source: Source) -> None:
        self.name, self.source = name, source
        self.loading = threading.Lock()
        """Held while this model is loaded or its source is looked at, by one thread at a time."""
        self.accepted: Meant | None = None
        """What passed its test last."""
        self._seen: Meant | None = None
        """What the source meant when it was last looked at."""
        self._told: dict[str, Any] = {"version": None, "round": None, "specialist": None, "structures": []}
        self._refused: dict[str, Any] | None = None
        """As it is told to who asks."""
        self._reason = ""
        """Of the last refusal, whole, for whoever runs the server."""
        self._unread_for: str | None = None
        """Why the source cannot be read, whole, likewise."""
        self._unreadable: str | None = None
        self._since: str | None = None

    def again(self) -> Segmenter:
        """Load what was accepted last, or what the source means now if nothing ever was."""
        if self.accepted is not None:
            try:
                return self._made(self.accepted)
            except (TutelageError, OSError) as error:
                # A registry keeps old versions, a folder that was written anew does not.
                _log.warning("%s is no more what was served: %s", self.name, error)
        meant = self.source.now()
        made = None if self._refused is not None and meant == self._seen else self._tried(meant)
        self._seen = meant
        if made is None:
            raise TrainingError(f"model {self.name} is not served: {self._reason}")
        return made

    def changed(self) -> Segmenter | None:
        """Return a tested specialist if the source means another one than before; None if nothing is new."""
        try:
            meant = self.source.now()
            self._readable()
            if meant == self._seen:
                return None
            if self.accepted is not None and _same(meant, self.accepted):
                self._seen = self.accepted = meant
                self._refused = None
                return None
            made = self._tried(meant)
        except Exception as error:  # whatever a source that is gone raises: it is asked again next time
            self._unread(error)
            return None
        self._seen = meant
        return made

    def described(self) -> dict[str, Any]:
        """Tell of it without looking anywhere."""
        return {
            **self._told,
            "since": self._since,
            "refused": self._refused,
            "source_unreadable": self._unreadable,
        }

    def _tried(self, meant: Meant) -> Segmenter | None:
        """The specialist that is meant, accepted, or None and why it is refused."""
        try:
            made = self._made(meant)
        except TrainingError as error:
            self._refuse(meant, error)
            return None
        self.accepted, self._refused, self._since = meant, None, _now()
        self._told = {key: value for key, value in made.describe().items() if key != "name"}
        _log.info("model %s is specialist %s, version %s", self.name, made.digest, made.version)
        return made

    def _made(self, meant: Meant) -> Segmenter:
        """Load and test what is meant.

        Raises:
            TrainingError: it cannot be loaded, is another one than its source says, or fails its test.
        """
        began = time.monotonic()
        home = self.source.home
        with self.source.fetched(meant) as folder:
            plan_digest = artifact.describe(folder)["plan_sha256"]
            predictor = Predictor(folder)
        if meant.digest and predictor.digest != meant.digest:
            raise UnfitError(
                f"specialist {predictor.digest} was found where {meant.digest} was meant ({meant.address}); "
                "it is looked at again when its files change",
                _OTHER,
            )
        tested = selftest.tested(predictor, where.stored_case(home))
        if tested.refused is not None:
            raise UnfitError(f"specialist {predictor.digest} fails its self-test: {tested.refused}", _FAILING)
        return Segmenter(
            predictor,
            self.name,
            meant.version,
            where.known(home),
            {
                "round": meant.stage,
                "plan": plan_digest,
                "scorecard": dict(meant.scores),
                "selftest": {"stored_case": tested.stored_case, "dice": tested.dice, "least": tested.least},
                "load_seconds": round(time.monotonic() - began, 2),
            },
        )

    def _refuse(self, meant: Meant, error: TrainingError) -> None:
        if self._refused is None or self._reason != str(error):
            _log.error("model %s: version %s is refused: %s", self.name, meant.version, error)
        self._reason = str(error)
        kind = error.told if isinstance(error, UnfitError) else _UNLOADABLE
        told = {"digest": meant.digest or None, "version": meant.version, "reason": f"{kind}; {_ADVICE}"}
        self._refused = {**told, "when": _now()}

    def _readable(self) -> None:
        if self._unread_for is not None:
            _log.warning("model %s: its source can be read again", self.name)
            self._unread_for = self._unreadable = None

    def _unread(self, error: Exception) -> None:
        told = str(error) if isinstance(error, TutelageError) else f"{type(error).__name__}: {error}"
        if self._unread_for != told:
            _log.warning("model %s: its source cannot be read, what is loaded stays: %s", self.name, told)
        self._unread_for = told
        self._unreadable = (
            f"its source cannot be read ({type(error).__name__}), what is loaded stays; the log of the "
            "server says more"
        )


def _same(one: Meant, other: Meant) -> bool:
    """Whether two are the same specialist, wherever it lies now."""
    if one.digest or other.digest:
        return one.digest == other.digest
    return one.address == other.address


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
