"""A campaign that is open: its settings, workspace and catalog, and somebody to do the work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from tutelage.archive.catalog import Catalog, load, scan
from tutelage.labels.rows import Row
from tutelage.rounds.corrected import Corrections
from tutelage.rounds.progress import Reporter
from tutelage.rounds.rollback import put_together
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.workspace import Workspace, stage_name
from tutelage.settings import fingerprint
from tutelage.storage import Place
from tutelage.tracking.store import silence

if TYPE_CHECKING:
    import pyarrow as pa

    from tutelage.casework.base import Limit, Worker
    from tutelage.casework.training import TrainJob
    from tutelage.methods.training import Pace, StepReport


_SCANNED = "settings.txt"
"""Beside the catalog: a digest of the settings that it was scanned with."""

_NAMED = 20
"""Files in quarantine that are named one by one."""


class Runner(Protocol):
    """Does the work of a round, here or on a cluster. Both give the same labels."""

    outlives_workers: bool
    """Whether a case that takes down the process that works on it leaves this one alive."""

    def each(self, build: "type[Worker]", job: object, items: "pa.Table", limit: "Limit") -> Iterator[Row]:
        """Yield the row of every item as it finishes, in any order.

        Items are rows of the catalog with a column `of`, which their answers repeat.
        """
        ...

    def train(
        self,
        job: "TrainJob",
        on_step: "Callable[[StepReport], None]",
        on_pace: "Callable[[Pace], None] | None" = None,
    ) -> str:
        """Train a specialist into the job's folder and return its digest.

        `on_step` gets every step of the first process, `on_pace` how long each took the others. Both
        are called here, one at a time; steps that a retry repeats are told again.
        """
        ...

    def close(self) -> None:
        """Give back what was held."""
        ...


@dataclass(frozen=True)
class Campaign:
    """What every step needs."""

    settings: RunSettings
    workspace: Workspace
    catalog: Catalog
    runner: Runner
    reporter: Reporter
    retry_errors: bool = False
    """Whether cases that failed before are tried again."""
    corrections: Corrections | None = None
    """Labels that people have corrected; None where nobody looked."""

    def at(self, number: int) -> "Campaign":
        """Return the campaign as a stage knows it: with the labels that were corrected before it."""
        if self.corrections is None or not self.corrections.within(number):
            return self
        return replace(self, catalog=self.corrections.applied(self.catalog, number))


@contextmanager
def opened(settings: RunSettings, reporter: Reporter, retry_errors: bool = False) -> Iterator[Campaign]:
    """Lock the workspace, write the resolved settings, scan the archive, and close it all again."""
    workspace = Workspace(Place.of(settings.workspace))
    with workspace.locked():
        if (reason := silence(settings.tracking, workspace.root)) is not None:
            record_waits(reporter, reason)
        workspace.settings.write_text(settings.to_yaml())
        put_together(workspace)
        reporter.say(f"workspace {workspace.root}")
        catalog = _known(settings, workspace, reporter) or cataloged(settings, workspace, reporter)
        corrections = _corrected(settings, workspace, catalog, reporter)
        settings = with_rounds(settings, corrections)
        runner = _runner(settings)
        try:
            yield Campaign(settings, workspace, catalog, runner, reporter, retry_errors, corrections)
        finally:
            runner.close()


def with_rounds(settings: RunSettings, corrections: Corrections) -> RunSettings:
    """Have as many rounds as it takes to learn from every correction: one that comes last adds a round."""
    last = corrections.last_stage
    if last is None or last < settings.rounds:
        return settings
    return settings.model_copy(update={"rounds": last + 1})


def _corrected(
    settings: RunSettings, workspace: Workspace, catalog: Catalog, reporter: Reporter
) -> Corrections:
    """Read the labels that people have corrected, and say which of them count from when on."""
    corrections, refused = Corrections.of(workspace.root).usable(catalog, settings.archive.max_voxels)
    for correction in corrections.latest().values():
        told = f"{correction.case} was corrected by {correction.by}, annotated from"
        reporter.say(f"  {told} {stage_name(correction.since)} on")
    for why in refused:
        reporter.say(f"  not used: {why}")
    return corrections


def record_waits(reporter: Reporter, reason: str) -> None:
    """Say that the record in MLflow is not complete, once in a run. Nothing waits for MLflow."""
    reporter.warn(
        "record",
        f"{reason}; the record stays in the workspace, and the next `tutelage run` or `tutelage report` "
        "sends what is missing",
    )


def cataloged(settings: RunSettings, workspace: Workspace, reporter: Reporter) -> Catalog:
    """Scan the archive and say what is in it."""
    catalog = scan(settings.archive, workspace.catalog, workspace.archive)
    (workspace.catalog / _SCANNED).write_text(_scanned(settings))
    _told(catalog, reporter)
    return catalog


def _known(settings: RunSettings, workspace: Workspace, reporter: Reporter) -> Catalog | None:
    """Return the catalog of the last scan, if the settings ask for no new one and it was made with them."""
    place = workspace.catalog / _SCANNED
    if settings.archive.rescan or not place.exists() or place.read_text() != _scanned(settings):
        return None
    catalog = load(workspace.catalog)
    _told(catalog, reporter)
    return catalog


def _scanned(settings: RunSettings) -> str:
    return fingerprint(settings.archive.model_dump(mode="json", exclude={"rescan"}))


def _told(catalog: Catalog, reporter: Reporter) -> None:
    told = ", ".join(f"{n} {role}" for (role,), n in catalog.cases.counts("role").items())
    reporter.say(f"catalog   {len(catalog.cases)} cases: {told}; {len(catalog.structures)} structures")
    for bad in catalog.quarantined[:_NAMED]:
        reporter.say(f"  in quarantine: {bad.address}: {bad.reason}")
    if len(catalog.quarantined) > _NAMED:
        more, where = len(catalog.quarantined) - _NAMED, "catalog/quarantine.parquet and the report"
        reporter.say(f"  ... and {more} more in quarantine, with reasons in {where}")


def _runner(settings: RunSettings) -> Runner:
    if settings.cluster.backend == "ray":
        from tutelage.cluster.runner import RayRunner

        return RayRunner(settings.cluster)
    from tutelage.rounds.local import LocalRunner

    return LocalRunner()
