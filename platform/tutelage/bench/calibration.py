"""Whether bounds on Dice and sets of voxels hold: the share that does on hidden labels, against 1 - alpha.

A small campaign labels one round of a set with calibration on, then hidden labels are opened for
scoring. `held` is how the campaign's own bounds did on all its unlabeled cases: one draw of labeled
cases. `resampled` draws which of those cases calibrate 200 times, as many as are labeled, so it
measures the arithmetic without the luck of one draw; `voxels` does that with the sets of classes that a
voxel may belong to. What was done before is not done again.

    python -m tutelage.bench.calibration --archive hippocampus --out runs/calibration
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tutelage.bench import base
from tutelage.bench.base import Bench, Measured
from tutelage.bench.plans import plan, spec
from tutelage.bench.rows import CAMPAIGN
from tutelage.bench.sets import find
from tutelage.bench.tables import BASELINE
from tutelage.curation import coverage
from tutelage.curation.calibration import needed
from tutelage.curation.coverage import Coverage, VoxelCoverage
from tutelage.errors import SettingsError
from tutelage.records import Role
from tutelage.rounds import covering, steps
from tutelage.rounds.campaign import Campaign, opened
from tutelage.rounds.progress import Reporter
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.training import train
from tutelage.rounds.workspace import LABELS_ONLY
from tutelage.settings import load

PEER = "1 - alpha"

_LABELED = 9
"""The fewest with a bound at 90 %."""

_TOLERANCE = 0.03
"""By which measured coverage may fall short."""

_ALPHAS = (0.1, 0.2)

_OVERRIDES = (
    *("rounds=1", "tracking.enabled=false", "archive.rescan=false"),
    *(
        "curation.calibration.enabled=true",
        "curation.calibration.folds=3",
        "curation.calibration.voxels=true",
    ),
)


def run(archive: str = "phantom", out: Path = Path("runs/calibration"), labeled: int = _LABELED) -> Bench:
    """Label one round of a set and measure its bounds.

    Raises:
        SettingsError, ArchiveError: the set or its data are not there; nothing was started.
    """
    settings = settings_of(archive, out, labeled)
    with opened(settings, Reporter()) as campaign:
        _check(campaign, labeled)
        train(campaign, LABELS_ONLY)
        for name in steps.making_labels(settings):
            steps.STEPS[name](campaign, 0)
        steps.truth(campaign, 0)
        return Bench("calibration", tuple(rows(campaign, find(archive).name, labeled)))


def _check(campaign: Campaign, labeled: int) -> None:
    """Refuse what would leave nobody to judge, before hours of work.

    Raises:
        SettingsError: hidden labels are too few.
    """
    judged = len({case.patient for case in campaign.catalog.of(Role.UNLABELED)})
    if judged <= labeled:
        raise SettingsError(
            f"--labeled is {labeled} and {judged} patients have hidden labels, of whom as many calibrate in "
            "each draw and the others are judged; take fewer, or a larger archive"
        )


def settings_of(archive: str, out: Path, labeled: int) -> RunSettings:
    """Return the campaign of a set: that of its supervised row, with calibration."""
    level = f"curation.calibration.alpha={_levels(labeled)[0]}"
    row, *_ = plan(find(archive), labeled, (0,), "small", (spec(BASELINE),), out)
    return load(Path(row.folder) / CAMPAIGN, RunSettings, (*_OVERRIDES, level))


def _levels(labeled: int) -> list[float]:
    found = [alpha for alpha in _ALPHAS if needed(alpha) <= labeled]
    if not found:
        raise SettingsError(f"--labeled is {labeled}, expected {needed(_ALPHAS[-1])} or more; raise it")
    return found


def rows(campaign: Campaign, name: str, labeled: int) -> list[Measured]:
    """Compare coverage with what was asked for."""
    own, trials = covering.held(campaign, 0), covering.trials(campaign, 0)
    found = [] if own is None else [_row(f"{name}.held", own)]
    counts, levels = covering.voxel_counts(campaign, 0), _levels(labeled)
    found += [
        _row(f"{name}.resampled_{alpha:g}", coverage.resampled(trials, alpha, labeled)) for alpha in levels
    ]
    return found + [
        _voxels(f"{name}.voxels_{alpha:g}", coverage.resampled_voxels(counts, alpha, labeled), campaign)
        for alpha in levels
    ]


def _row(name: str, told: Coverage) -> Measured:
    by_structure = ", ".join(f"{name} {share:.3f}" for name, share in told.by_structure.items())
    drawn = f"{told.resamplings} draws of {told.patients}" if told.resamplings > 1 else f"{told.patients}"
    return _measured(
        name,
        told,
        f"share that reaches its bound less what was asked for; {drawn} patients that calibrate, "
        f"{told.answers} answers of which {told.bounded:.0%} have a bound; {by_structure}; true Dice is "
        f"{told.room:.3f} above the bound in the mean, predictions err by {told.error:.3f}",
    )


def _voxels(name: str, told: VoxelCoverage, campaign: Campaign) -> Measured:
    classes = ("background", *campaign.catalog.structures)
    by_class = ", ".join(f"{name} {share:.3f}" for name, share in zip(classes, told.by_class, strict=True))
    return _measured(
        name,
        told,
        f"share of a patient's voxels of a class that have it in their set, less what was asked for; "
        f"{told.resamplings} draws of {told.patients} patients that calibrate, {told.known:.0%} of classes "
        f"have a set; {by_class}",
    )


def _measured(name: str, told: Coverage | VoxelCoverage, note: str) -> Measured:
    asked = 1 - told.alpha
    more = told.covered - asked
    return Measured(f"calibration.{name}", PEER, told.covered, asked, more, -_TOLERANCE, "higher", note)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure a set and say so."""
    parser = argparse.ArgumentParser(prog="python -m tutelage.bench.calibration", description=__doc__)
    parser.add_argument("--archive", default="phantom", help="phantom, hippocampus, or a campaign's YAML")
    parser.add_argument("--labeled", type=int, default=_LABELED)
    parser.add_argument("--out", type=Path, default=Path("runs/calibration"))
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    told = parser.parse_args(arguments)
    base.told(run(told.archive, told.out, told.labeled), told.json)


if __name__ == "__main__":
    main()
