"""What is measured while serving, in Prometheus' form. Labels are few and known, never ids or files' names.

Copies on a node add up through files where PROMETHEUS_MULTIPROC_DIR names a folder: any of them
then answers for all. The variable must be set before prometheus_client is imported.
"""

import contextlib
import os
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from serve.logs import Notes

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

MEDIA_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Queue(Protocol):
    """How full it is."""

    working: int
    waiting: int


class Meters:
    """The measurements of one copy."""

    def __init__(self) -> None:
        self.folder = os.environ.get(_FOLDER, "")
        self.registry = CollectorRegistry()
        where: dict[str, Any] = {"registry": None if self.folder else self.registry, "namespace": "tutelage"}
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, ...], float] = {}
        self._models: dict[str, tuple[str | None, str | None]] = {}
        """When each model was loaded, and when one was refused, at the last look."""
        self.requests = Counter("requests", "Requests answered.", ("method", "route", "status"), **where)
        self.refusals = Counter("refusals", "Requests answered with a problem.", ("kind",), **where)
        self.latency = Histogram(
            "request_duration_seconds",
            "From the first byte to the last.",
            ("route",),
            buckets=_SECONDS,
            **where,
        )
        self.stages = Histogram(
            "stage_duration_seconds", "Of one scan, by stage.", ("stage",), buckets=_SECONDS, **where
        )
        self.received = Counter("received_bytes", "Bytes of bodies received.", **where)
        self.sent = Counter("sent_bytes", "Bytes of bodies sent.", **where)
        live: dict[str, Any] = {"multiprocess_mode": "livesum", **where}
        self.working = Gauge("scans_in_flight", "Scans that are worked on.", **live)
        self.waiting = Gauge("scans_waiting", "Scans that wait for their turn.", **live)
        self.jobs = Gauge("jobs", "Jobs that wait or run.", ("state",), **live)
        self.jobs_over = Counter("jobs_finished", "Jobs that ended, by how.", ("state",), **where)
        self.windows = Counter("windows", "Windows that were looked at.", ("model",), **where)
        self.batches = Counter("batches", "Batches of windows.", ("model",), **where)
        self.swaps = Counter("model_swaps", "Specialists that came in.", ("model",), **where)
        self.bad_models = Counter("model_refusals", "Specialists not let in.", ("model",), **where)

    def observe(self, notes: Notes) -> None:
        """Count one request that is over."""
        self.requests.labels(notes.method, notes.route, str(notes.status)).inc()
        self.latency.labels(notes.route).observe(notes.total_s)
        self.received.inc(notes.bytes_in)
        self.sent.inc(notes.bytes_out)
        if notes.problem:
            self.refusals.labels(notes.problem).inc()
        self.observe_stages(notes.seconds)

    def observe_stages(self, seconds: Mapping[str, float]) -> None:
        """Count how long the stages of one scan took."""
        for stage, value in seconds.items():
            self.stages.labels(stage).observe(value)

    def follow(self, queue: Queue, jobs: Mapping[str, int]) -> None:
        """Note how full the queue is, and how many jobs there are by state."""
        self.working.set(queue.working)
        self.waiting.set(queue.waiting)
        for state, count in jobs.items():
            self.jobs.labels(state).set(count)

    def follow_models(self, described: Iterable[Mapping[str, Any]]) -> None:
        """Count specialists that took another's place, and those that were refused, since the last look."""
        with self._lock:
            for one in described:
                since, refused = one["since"], (one["refused"] or {}).get("when")
                before = self._models.get(one["name"], (since, None))
                if before[0] not in (None, since):
                    self.swaps.labels(one["name"]).inc()
                if refused not in (None, before[1]):
                    self.bad_models.labels(one["name"]).inc()
                self._models[one["name"]] = (since, refused)

    def advanced(self, counter: Counter, model: str, owner: str, count: float) -> None:
        """Raise a counter to what its owner, which begins with nothing, counts by itself."""
        with self._lock:
            key = (counter._name, model, owner)
            more = count - self._seen.get(key, 0.0)
            self._seen[key] = count
        if more > 0:
            counter.labels(model).inc(more)

    def text(self) -> bytes:
        """Return everything as Prometheus reads it."""
        if not self.folder:
            return generate_latest(self.registry)
        _bury(Path(self.folder))
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=self.folder)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _bury(folder: Path) -> None:
    """Take out of the sums what killed copies had in flight."""
    for file in folder.glob("gauge_live*.db"):
        found = re.search(r"_(\d+)\.db$", file.name)
        if found and not Path(f"/proc/{found[1]}").exists():
            with contextlib.suppress(FileNotFoundError):
                mark_process_dead(int(found[1]), str(folder))  # type: ignore[no-untyped-call]
