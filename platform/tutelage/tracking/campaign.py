"""The record of one campaign: a parent run, below it one run a stage, and below that one a finished step.

A campaign is known by its settings and its workspace, so running it again goes on in the
same runs, and what was logged is not logged twice. It decides what a record looks like,
not what is worth recording; scores, decisions and folders come from the caller.
"""

import contextlib
import json
import math
import re
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tutelage.records import Scorecard
from tutelage.settings import fingerprint
from tutelage.storage import Place
from tutelage.tracking.packing import Packing, packed
from tutelage.tracking.registry import Registry, Version
from tutelage.tracking.settings import TrackingSettings
from tutelage.tracking.store import asking, connect, shown, yaml_fit_to_record

SPECIALIST = "specialist"
"""Artifact folder of a stage's specialist."""

BATCH = 1000
"""Metrics in one request; MLflow takes no more."""

_PARAMETERS = 100
"""Parameters in one request; MLflow takes no more."""

_LONGEST = 6000
"""Characters that MLflow keeps of a parameter."""

_MEASURES = ("dice", "dice_low", "dice_high", "hd95_mm", "nsd", "cases")


_OPENING = threading.RLock()
"""A thread that still waits for its answer may be making the very run that the next one misses."""

Point = tuple[str, float, int, int]
"""Name, value, step and when, in milliseconds since 1970."""


_BELOW = "mlflow.parentRunId"


@dataclass(frozen=True)
class Done:
    """A finished step of a stage."""

    name: str
    fingerprint: str
    """Of what it was told and worked with."""
    settings: Mapping[str, Any]
    facts: Mapping[str, str]
    """Digests and decisions."""
    numbers: Mapping[str, float]
    seconds: float
    ended_ms: int
    """Since 1970."""


class Tracker:
    """An open record. As a context manager it says in the end how the campaign went."""

    def __init__(
        self,
        settings: TrackingSettings,
        workspace: Place,
        name: str,
        parameters: Mapping[str, Any],
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        """Find or make the run of the campaign of this name.

        `parameters` are its settings, nested as they are in YAML; `identity` those of them that make it
        another campaign if they change, all unless told.
        """
        self.campaign = fingerprint(dict(parameters if identity is None else identity), str(workspace))
        with _OPENING:
            self.store = connect(settings, workspace)
            self.registry = Registry(self.store, settings.model_of(name))
            with self._asking("open the campaign's run"):
                self._experiment = self._find_experiment(settings.experiment_of(name))
                self.run = self._open(name, {"campaign": self.campaign, "workspace": str(workspace)})
                self._log_parameters(self.run, flattened(parameters))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        self.end(self.run, ended)

    def stage(self, name: str, training: str = "") -> str:
        """Return the run of one stage below the campaign's, made when first asked for.

        `training` tells one training from another: a stage that was trained anew, because scans were
        added, gets another run, and the one before says so. MLflow cannot take points back.
        """
        tags = {"stage": name, _BELOW: self.run}
        with _OPENING, self._asking(f"open the run of {name}"):
            return self._about(name, tags, "training", training)

    def step(self, stage: str, done: Done) -> None:
        """Log a finished step below its stage's run, with the time it took, unless it is there."""
        tags = {"step": done.name, _BELOW: stage}
        with _OPENING, self._asking(f"log the step {done.name}"):
            known = self._find(tags)
            told = known.data.tags.get("fingerprint") if known else None
            if known and (told, known.info.status) == (done.fingerprint, "FINISHED"):
                return
            started_ms = done.ended_ms - round(1000 * done.seconds)
            run = self._about(done.name, tags, "fingerprint", done.fingerprint, started_ms)
            self._log_parameters(run, flattened(done.settings))
            numbers = {"seconds": done.seconds, **done.numbers}
            self.points(run, [(name, value, 0, done.ended_ms) for name, value in numbers.items()])
            self.tags(run, done.facts)
            self.store.client.set_terminated(run, "FINISHED", done.ended_ms)

    def scorecard(self, run: str, card: Scorecard, step: int = 0) -> None:
        """Log a card's summaries as `test/mean/dice` and so on, once for the same card."""
        values = {
            f"{card.role.value}/{_named(summary.structure)}/{measure}": float(getattr(summary, measure))
            for summary in card.summaries
            for measure in _MEASURES
        }
        self.metrics(run, f"scorecard.{card.role.value}", {key: [(step, v)] for key, v in values.items()})

    def metrics(self, run: str, what: str, curves: Mapping[str, Iterable[tuple[int, float]]]) -> None:
        """Log curves of (step, value) by name, unless exactly these were logged as `what` before."""
        points = [
            (name, int(step), float(value))
            for name, curve in curves.items()
            for step, value in curve
            if math.isfinite(value)
        ]
        tag, digest = f"logged.{what}", fingerprint(points)
        client = self.store.client
        with self._asking(f"log {what}"):
            logged = client.get_run(run)
            if logged.data.tags.get(tag) == digest:
                return
            # A fixed time: a metric logged again after a kill is then the same row, not a second one.
            when = int(logged.info.start_time)
            for start in range(0, len(points), BATCH):
                some = points[start : start + BATCH]
                self.points(run, ((name, value, step, when) for name, step, value in some))
            client.set_tag(run, tag, digest)

    def newest(self, run: str, name: str) -> int:
        """Return the last step of which the run has this metric, -1 if it has none."""
        with self._asking(f"tell how far {name} is"):
            known = self.store.client.get_metric_history(run, _named(name))
        return max((int(point.step) for point in known), default=-1)

    def points(self, run: str, points: Iterable[Point]) -> None:
        """Log points, at most `BATCH`, in one request: all or none. The same again are the same rows."""
        metric = _entities().Metric
        told = [
            metric(_named(name), value, when, step)
            for name, value, step, when in points
            if math.isfinite(value)
        ]
        with self._asking("log metrics"):
            if told:
                self.store.client.log_batch(run, metrics=told, synchronous=True)

    def dataset(self, run: str, name: str, digest: str, place: Place, what_for: str, cases: int) -> None:
        """Note what a run worked with; the same again is the same input."""
        entities = _entities()
        dataset = entities.Dataset(
            name=name,
            digest=digest,
            source_type="local" if place.local else place.uri.partition(":")[0],
            source=json.dumps({"uri": str(place)}),
            profile=json.dumps({"cases": cases}),
        )
        context = entities.InputTag(key="mlflow.data.context", value=what_for)
        with self._asking(f"note the dataset {name}"):
            self.store.client.log_inputs(run, [entities.DatasetInput(dataset=dataset, tags=[context])])

    def file(self, run: str, place: Place, folder: str | None = None) -> None:
        """Keep a copy of one file, settings without their password; a later copy replaces it."""
        with self._asking(f"keep {place.name}"), _nearby([place]) as local:
            if place.name.endswith(".yaml"):
                copy = local / place.name
                copy.write_text(yaml_fit_to_record(copy.read_text("utf-8")), "utf-8")
            self.store.client.log_artifact(run, str(local / place.name), folder)

    def tags(self, run: str, tags: Mapping[str, str]) -> None:
        """Note facts about a run."""
        with self._asking("set tags"):
            for key, value in tags.items():
                self.store.client.set_tag(run, key, value)

    def register(
        self, run: str, folder: Place, digest: str, tags: Mapping[str, str], packing: Packing | None = None
    ) -> Version:
        """Register a specialist's folder; the same weights keep the version they have.

        Packed, it is a model that MLflow loads anywhere; else only its files are kept.
        """
        if known := self.registry.find(digest):
            return known
        with self._asking(f"keep {folder}"), contextlib.ExitStack() as stack:
            local = stack.enter_context(_nearby(folder.files()))
            kept = stack.enter_context(packed(local, packing)) if packing else local
            self.store.client.log_artifacts(run, str(kept), SPECIALIST)
        return self.registry.register(run, SPECIALIST, digest, tags)

    def end(self, run: str, status: str = "FINISHED") -> None:
        """Say how a run went: FINISHED, FAILED or KILLED."""
        with self._asking("end a run"):
            self.store.client.set_terminated(run, status)

    def _find_experiment(self, name: str) -> str:
        client = self.store.client
        found = client.get_experiment_by_name(name)
        if found is None:
            return str(client.create_experiment(name, artifact_location=self.store.artifacts))
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _about(
        self, name: str, tags: Mapping[str, str], tag: str, digest: str, started_ms: int | None = None
    ) -> str:
        """Return the run with these tags that is about `digest`; one about another says so, and stays."""
        client = self.store.client
        run = self._open(name, tags, started_ms)
        before = client.get_run(run).data.tags.get(tag, digest)
        if digest and before != digest:
            client.set_tag(run, _key(tags), f"{name} of {tag} {before}")
            client.update_run(run, status="FINISHED", name=f"{name}, done anew since")
            run = self._open(name, tags, started_ms)
        client.set_tag(run, tag, digest)
        return run

    def _open(self, name: str, tags: Mapping[str, str], started_ms: int | None = None) -> str:
        """Return the run that has these tags, running again, or a new one."""
        client = self.store.client
        known = self._find(tags)
        if known is None:
            new = client.create_run(self._experiment, started_ms, tags=dict(tags), run_name=name)
            return str(new.info.run_id)
        run = str(known.info.run_id)
        client.update_run(run, status="RUNNING", name=name)
        return run

    def _find(self, tags: Mapping[str, str]) -> Any | None:
        """Return the first run that is called so, below the run that it should be below."""
        key, parent = _key(tags), tags.get(_BELOW)
        wanted = f"tags.{key} = '{tags[key]}'" + (f" and tags.`{_BELOW}` = '{parent}'" if parent else "")
        found = self.store.client.search_runs(
            [self._experiment], wanted, max_results=1, order_by=["start_time ASC"]
        )
        return found[0] if found else None

    def _log_parameters(self, run: str, flat: Mapping[str, str]) -> None:
        known = self.store.client.get_run(run).data.params
        param = _entities().Param
        new = [param(key, value[:_LONGEST]) for key, value in flat.items() if key not in known]
        for start in range(0, len(new), _PARAMETERS):
            self.store.client.log_batch(run, params=new[start : start + _PARAMETERS], synchronous=True)

    def _asking(self, what: str) -> contextlib.AbstractContextManager[None]:
        return asking(f"MLflow at {shown(self.store.uri)} could not {what}")


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Turn nested settings into `archive.split.seed: "0"`; lists become JSON."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{_named(str(key))}.")
        else:
            flat[f"{prefix}{_named(str(key))}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _key(tags: Mapping[str, str]) -> str:
    """Return the tag by which a run is found."""
    return next(key for key in ("campaign", "stage", "step") if key in tags)


def _named(text: str) -> str:
    """MLflow takes letters, digits and a few signs in names; slashes make folders."""
    return "/".join(re.sub(r"[^\w .:-]", "_", part) or "_" for part in text.split("/"))


def _entities() -> Any:
    from mlflow import entities

    return entities


@contextlib.contextmanager
def _nearby(places: Iterable[Place]) -> Iterator[Path]:
    """Copy files into a temporary folder: MLflow uploads local files only."""
    with tempfile.TemporaryDirectory() as folder:
        for place in places:
            (Path(folder) / place.name).write_bytes(place.read_bytes())
        yield Path(folder)
