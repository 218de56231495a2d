"""The steps of a labeling round, timed one by one."""

from pathlib import Path

import pytest

from tutelage.bench.costs import busy_share
from tutelage.bench.labeling import Look


def test_a_driver_is_as_busy_as_while_rows_came() -> None:
    starting = [Look(second, 0.0, 2.0 * second) for second in range(11)]
    labeling = [Look(10.0 + second, 0.0, 20 + 0.3 * second) for second in range(1, 21)]
    assert busy_share([*starting, *labeling], last_s=15) == pytest.approx(0.3)


def test_a_driver_that_nobody_saw_counts_as_busy() -> None:
    assert busy_share([], last_s=5) == 1.0


@pytest.mark.torch
@pytest.mark.files
def test_steps_add_up_to_the_whole_and_labels_stay_the_same(tiny_campaign: Path, tmp_path: Path) -> None:
    from tutelage.bench.costs import steps
    from tutelage.casework.labeling import Labeler
    from tutelage.labels.arrays import file_of
    from tutelage.records import Role
    from tutelage.rounds import labeling, textual
    from tutelage.rounds.campaign import opened
    from tutelage.rounds.progress import Reporter
    from tutelage.rounds.settings import RunSettings
    from tutelage.settings import load
    from tutelage.storage import Place

    with opened(load(tiny_campaign, RunSettings), Reporter()) as campaign:
        cases = list(campaign.catalog.of(Role.UNLABELED))[:2]
        limits, before = textual.limits(campaign), campaign.workspace.specialist(-1)
        plain, timed = (Place.of(tmp_path / name) for name in ("plain", "timed"))
        rows = [Labeler(labeling.job(campaign, before, plain, limits)).work(case) for case in cases]
        found = list(steps(Labeler(labeling.job(campaign, before, timed, limits)), iter(cases)))
    names = ("read", "specialist", "embed", "decode", "write", "rest")
    for step, row, case in zip(found, rows, cases, strict=True):
        assert step["whole"] == pytest.approx(sum(step[name] for name in names))
        assert all(step[name] > 0 for name in ("read", "specialist", "decode", "write"))
        assert step["prompts"] == row["prompts"]
        assert file_of(timed, case.case).read_bytes() == file_of(plain, case.case).read_bytes()
