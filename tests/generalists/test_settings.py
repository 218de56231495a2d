"""Settings of the room, and what it takes to name a generalist."""

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from tutelage.generalists import GENERALISTS, GeneralistSettings, build


def test_every_name_in_the_settings_has_a_builder() -> None:
    assert set(get_args(GeneralistSettings.model_fields["name"].annotation)) == set(GENERALISTS)


def test_a_generalist_without_weights_is_built_without_them() -> None:
    assert build(GeneralistSettings(name="threshold")).weights.startswith("none-")


@pytest.mark.parametrize(
    "window", [(50.0, 50.0), (99.0, 1.0), (-1.0, 99.0), (0.0, 100.5)], ids=["flat", "falling", "low", "high"]
)
def test_a_window_that_does_not_rise_within_0_to_100_is_refused(window: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="percentiles that rise"):
        GeneralistSettings(window=window)


def test_weights_that_are_not_there_are_a_problem(tmp_path: Path) -> None:
    missing = str(tmp_path / "other.pth")
    ((where, what),) = GeneralistSettings(weights=missing).problems()
    assert where == "weights"
    assert missing in what


def test_weights_that_were_not_pulled_are_a_problem_and_say_how_to_pull_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTELAGE_WEIGHTS", str(tmp_path))
    ((where, what),) = GeneralistSettings(name="sam_vit_h").problems()
    assert where == "weights"
    assert "tutelage weights pull sam_vit_h" in what


def test_weights_at_an_address_are_no_problem_before_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTELAGE_WEIGHTS", str(tmp_path))
    assert list(GeneralistSettings(name="medsam", weights="s3://bucket/medsam.pth").problems()) == []


def test_a_digest_that_is_none_is_refused() -> None:
    with pytest.raises(ValidationError, match="weights_sha256"):
        GeneralistSettings(weights_sha256="79d8c9")


def test_weights_for_a_generalist_that_has_none_are_a_problem() -> None:
    ((where, what),) = GeneralistSettings(name="threshold", weights="some.pth").problems()
    assert where == "weights"
    assert "remove the key" in what


def test_the_defaults_have_no_problems() -> None:
    assert list(GeneralistSettings().problems()) == []


@pytest.mark.process
def test_naming_and_asking_loads_no_torch() -> None:
    code = (
        "import sys; from tutelage import generalists;"
        "import tutelage.generalists.volumes, tutelage.prompts.boxes;"
        "s = generalists.GeneralistSettings(name='threshold'); list(s.problems()); generalists.build(s);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["medsam", "sammed3d", "threshold"])
def test_a_bound_on_magnifying_is_a_problem_where_nothing_is_magnified(name: Any) -> None:
    found = [
        what for where, what in GeneralistSettings(name=name, magnify=2.0).problems() if where == "magnify"
    ]
    assert found == [
        f"found 2, but {name} does not fit slices into a square by their longest side; remove the key"
    ]
