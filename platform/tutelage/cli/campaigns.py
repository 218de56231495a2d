"""What the commands about one campaign do: run, its single steps, report, catalog.

Each takes checked settings and a teller and returns an exit code.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.cli.telling import Teller
from tutelage.errors import PARTIAL, SettingsError
from tutelage.rounds.settings import RunSettings
from tutelage.settings import load
from tutelage.storage import Place

if TYPE_CHECKING:
    from tutelage.archive.catalog import Catalog
    from tutelage.rounds.results import Finished


_TOLD = (
    *("workspace", "champion", "specialist", "stopped", "report", "tracking"),
    *("failed", "quarantined", "steps_done"),
)
"""What a program hears of a finished run, besides its scores."""


def settings_of(config: Path, overrides: Sequence[str] | None) -> RunSettings:
    """Read and check a campaign's settings."""
    return load(config, RunSettings, overrides or ())


def run(settings: RunSettings, teller: Teller, config: Path, retry_errors: bool) -> int:
    """Do everything that is not done yet and show the results."""
    from tutelage.rounds import run as rounds
    from tutelage.rounds.progress import Reporter

    return _told(rounds.run(settings, Reporter(), retry_errors), teller, config)


def report(settings: RunSettings, teller: Teller, config: Path) -> int:
    """Write the page about what there is."""
    from tutelage.rounds import run as rounds
    from tutelage.rounds.progress import Reporter

    return _told(rounds.report(settings, Reporter()), teller, config)


def evaluate(settings: RunSettings, teller: Teller, config: Path, split: str) -> int:
    """Score the specialists of all stages on a split and show the results."""
    from tutelage.records import Role
    from tutelage.rounds import run as rounds
    from tutelage.rounds.progress import Reporter

    return _told(rounds.evaluate(settings, Reporter(), Role(split)), teller, config)


def label(settings: RunSettings, teller: Teller, stage: str, retry_errors: bool) -> int:
    """Make a round's pseudo-labels: label, curate, and measure where hidden labels allow it."""
    from tutelage.evaluation.table import curation_table, priors_table
    from tutelage.rounds import run as rounds
    from tutelage.rounds.progress import Reporter

    number = stage_number(stage, "label", settings.rounds)
    labeled = rounds.label(settings, Reporter(), number, retry_errors)
    teller.show(curation_table(labeled.rulings))
    if changed := priors_table(labeled.rulings):
        teller.show(changed)
    seconds = f"{labeled.volumes} volumes in {labeled.seconds:.0f} s, {labeled.per_hour:.0f} an hour"
    teller.say(f"{seconds}; {labeled.hit_share:.0%} of {labeled.slices} slices came from the cache")
    if labeled.not_kept:
        teller.say(f"{labeled.not_kept} slices were not kept: the cache is full, slow or cannot be written")
    if labeled.halvings:
        teller.say(f"memory ran out {labeled.halvings} times; batches were halved and the work went on")
    if labeled.failed or labeled.quarantined:
        teller.say(f"{labeled.failed} cases failed and {labeled.quarantined} files are in quarantine")
    teller.say(f"pseudo-labels {labeled.labels}")
    teller.say(f"ledger        {labeled.ledger}")
    teller.result(asdict(labeled) | {"exit_code": labeled.exit_code})
    return labeled.exit_code


def step(settings: RunSettings, teller: Teller, name: str, stage: str, retry_errors: bool = False) -> int:
    """Do one step of one stage."""
    from tutelage.rounds import run as rounds
    from tutelage.rounds.progress import Reporter
    from tutelage.rounds.workspace import stage_name

    number = stage_number(stage, name, settings.rounds)
    manifest = rounds.step(settings, Reporter(), name, number, retry_errors)
    folder = Place.of(settings.workspace) / "rounds" / stage_name(number)
    told = ", ".join(f"{key} {_short(value)}" for key, value in manifest["outputs"].items())
    teller.say(f"{stage_name(number)} {name}: {told}")
    teller.say(f"in {folder}")
    teller.result({"stage": stage_name(number), "folder": str(folder)} | dict(manifest))
    return PARTIAL if manifest["outputs"].get("failed") else 0


def catalog(settings: RunSettings, teller: Teller) -> int:
    """Scan the archive."""
    from tutelage.rounds.campaign import cataloged
    from tutelage.rounds.progress import Reporter
    from tutelage.rounds.workspace import Workspace

    workspace = Workspace(Place.of(settings.workspace))
    with workspace.locked():
        found = cataloged(settings, workspace, Reporter())
    counts = _counts(found)
    _show_counts(counts, teller)
    teller.say(f"catalog {workspace.catalog}")
    teller.result(
        {
            "catalog": str(workspace.catalog),
            "structures": list(found.structures),
            "cases": counts,
            "quarantined": [{"address": q.address, "reason": q.reason} for q in found.quarantined],
        }
    )
    return PARTIAL if found.quarantined else 0


def planned(settings: RunSettings, teller: Teller, steps: Sequence[str], config: Path) -> int:
    """Check what can be checked without starting anything, and say what would be done."""
    from tutelage.rounds.workspace import Workspace

    Workspace(Place.of(settings.workspace)).check()
    _check_weights(settings)
    teller.say(f"{config} is usable; settings {settings.fingerprint()}")
    teller.say(f"workspace {Place.of(settings.workspace)}")
    teller.say(f"would do, unless done before: {', '.join(steps)}")
    teller.say("nothing was started")
    teller.result(
        {
            "settings": settings.fingerprint(),
            "workspace": str(Place.of(settings.workspace)),
            "steps": list(steps),
        }
    )
    return 0


def stage_number(stage: str, step: str, rounds: int) -> int:
    """Return the number of a stage that a person names; -1 is labels-only.

    Raises:
        SettingsError: there is no such stage, or it has no such step.
    """
    from tutelage.rounds.run import OF_LABELS_ONLY
    from tutelage.rounds.workspace import LABELS_ONLY

    text = stage.removeprefix("r") if stage[1:].isdecimal() else stage
    number = LABELS_ONLY if text == "labels-only" else int(text) if _whole(text) else None
    if number is None or not LABELS_ONLY <= number < rounds:
        raise SettingsError(
            f"--round is {stage}, expected labels-only (or -1) or a number below rounds, which is {rounds}; "
            "correct it, or set more rounds"
        )
    if number == LABELS_ONLY and step not in OF_LABELS_ONLY:
        raise SettingsError(
            f"labels-only has no step {step!r}, as no specialist could prompt yet; "
            f"it has {', '.join(OF_LABELS_ONLY)}"
        )
    return number


def _told(finished: "Finished", teller: Teller, config: Path) -> int:
    """Show what a run came to."""
    from tutelage.evaluation.scorecard import to_dict
    from tutelage.evaluation.table import rich_table

    if finished.steps_done == 0:
        teller.say("nothing to do: every step was done before with these settings")
    for split, cards in (("validation", finished.validation), ("test", finished.test)):
        if cards and (split == "test" or len(finished.test) < len(finished.validation)):
            teller.say()
            teller.show(rich_table(cards, f"on the {split} split"))
    teller.say()
    for what, where in _where(finished, config):
        teller.say(f"{what:<12} {where}")
    if finished.failed or finished.quarantined:
        teller.say(
            f"{finished.failed} cases failed and {finished.quarantined} files are in quarantine; "
            "the reasons are above and in the report"
        )
    teller.result(
        {key: getattr(finished, key) for key in _TOLD}
        | {
            split: {name: to_dict(card) for name, card in cards}
            for split, cards in (("validation", finished.validation), ("test", finished.test))
        }
        | {"exit_code": finished.exit_code}
    )
    return finished.exit_code


def _where(finished: "Finished", config: Path) -> list[tuple[str, str]]:
    lines = [("report", finished.report)]
    if len(finished.test) < len(finished.validation):
        lines.append(("test it", f"{_command()} evaluate {config} --split test"))
    if finished.tracking:
        lines.append(("MLflow", finished.tracking))
    if finished.specialist:
        lines += [
            ("champion", f"{finished.champion}, in {finished.specialist}"),
            ("use it", f"{_command()} predict -m {finished.workspace} -i SCANS -o MASKS"),
            ("serve it", f"{_command()} serve {config} --open"),
        ]
    return lines


def _command() -> str:
    """Return what to type for `tutelage` here: its path, unless the shell finds it by itself."""
    script = Path(sys.executable).with_name("tutelage")
    if shutil.which("tutelage") or not script.exists():
        return "tutelage"
    here = Path.cwd()
    return str(script.relative_to(here) if script.is_relative_to(here) else script)


def _counts(found: "Catalog") -> dict[str, dict[str, int]]:
    """Cases by modality and role."""
    counts: dict[str, dict[str, int]] = {}
    for (modality, role), count in found.cases.counts("modality", "role").items():
        counts.setdefault(modality or "unknown", {})[role] = count
    return counts


def _show_counts(counts: dict[str, dict[str, int]], teller: Teller) -> None:
    from rich.table import Table
    from rich.text import Text

    from tutelage.records import Role

    table = Table("modality")
    for role in Role:
        table.add_column(role.value, justify="right")
    for modality, roles in sorted(counts.items()):
        table.add_row(Text(modality), *(str(roles.get(role.value, 0)) for role in Role))
    teller.show(table)


def _check_weights(settings: RunSettings) -> None:
    if settings.generalist.name != "threshold":
        from tutelage.generalists.weights import find

        told = settings.generalist
        find(told.weights, told.name, told.weights_sha256)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(str(v) for v in value) if isinstance(value, list | tuple) else str(value)


def _whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
