"""A campaign that is open: its settings, workspace and catalog, and somebody to do the work."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tutelage.archive.catalog import Catalog, scan
from tutelage.labels.rows import Row
from tutelage.records import Case
from tutelage.rounds.progress import Reporter
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.workspace import Workspace
from tutelage.storage import Place
from tutelage.tracking.store import reachable

if TYPE_CHECKING:
    from tutelage.casework.base import Worker
    from tutelage.casework.training import TrainJob
    from tutelage.methods.training import StepReport


class Runner(Protocol):
    """Does the work of a round, here or on a cluster. Both give the same labels."""

    def each(self, build: "type[Worker]", job: object, cases: Sequence[Case]) -> Iterator[Row]:
        """Yield the row of every case as it finishes, in any order."""
        ...

    def train(self, job: "TrainJob", on_step: "Callable[[StepReport], None]") -> str:
        """Train a specialist into the job's folder and return its digest."""
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


@contextmanager
def opened(settings: RunSettings, reporter: Reporter) -> Iterator[Campaign]:
    """Lock the workspace, write the resolved settings, scan the archive, and close it all again."""
    workspace = Workspace(Place.of(settings.workspace))
    with workspace.locked():
        reachable(settings.tracking, workspace.root)
        workspace.settings.write_text(settings.to_yaml())
        reporter.say(f"workspace {workspace.root}")
        catalog = cataloged(settings, workspace, reporter)
        runner = _runner(settings)
        try:
            yield Campaign(settings, workspace, catalog, runner, reporter)
        finally:
            runner.close()


def cataloged(settings: RunSettings, workspace: Workspace, reporter: Reporter) -> Catalog:
    """Scan the archive and say what is in it."""
    catalog = scan(settings.archive, workspace.catalog, workspace.archive)
    counts: dict[str, int] = {}
    for case in catalog.cases:
        counts[case.role.value] = counts.get(case.role.value, 0) + 1
    told = ", ".join(f"{n} {role}" for role, n in sorted(counts.items()))
    reporter.say(f"catalog   {len(catalog.cases)} cases: {told}; {len(catalog.structures)} structures")
    for bad in catalog.quarantined:
        reporter.say(f"  in quarantine: {bad.address}: {bad.reason}")
    return catalog


def _runner(settings: RunSettings) -> Runner:
    if settings.cluster.backend == "ray":
        from tutelage.cluster.runner import RayRunner

        return RayRunner(settings.cluster)
    from tutelage.rounds.local import LocalRunner

    return LocalRunner()
