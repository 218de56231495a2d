"""The bench of bounds on a set of seconds: what it measures, and on what it refuses to."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tutelage.bench.calibration import run
from tutelage.errors import SettingsError


@pytest.mark.torch
def test_bounds_are_measured_against_labels_that_were_hidden(
    tiny_config: Callable[[str], Path], tmp_path: Path
) -> None:
    config = tiny_config("workspace")
    config.write_text(config.read_text().replace("patients: 8", "patients: 12"))
    told = run(str(config), tmp_path / "out", labeled=4)
    _, drawn, voxels = told.rows
    names = (".held", ".resampled_0.2", ".voxels_0.2")
    assert all(row.measure.endswith(name) for row, name in zip(told.rows, names, strict=True))
    for row in told.rows:
        assert 0 <= row.ours <= 1
        assert (row.theirs, row.goal) == (0.8, -0.03)
        assert row.ratio == pytest.approx(row.ours - 0.8)
    assert "200 draws of 4 patients" in drawn.note
    assert "background" in voxels.note
    before = run(str(config), tmp_path / "out", labeled=4)
    assert before.rows == told.rows


def test_too_few_patients_to_judge_are_refused_before_anything_is_trained(
    tiny_config: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="--labeled is 5 and 1 patients have hidden labels"):
        run(str(tiny_config("workspace")), tmp_path / "out", labeled=5)
    assert not list(tmp_path.rglob("train.settings.json"))


def test_too_few_labels_for_any_bound_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--labeled is 3, expected 4 or more"):
        run("phantom", tmp_path, labeled=3)
    assert not list(tmp_path.iterdir())
