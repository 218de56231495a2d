"""The doctor looks at this machine and tells what will not work."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from tutelage import doctor
from tutelage.cli import main
from tutelage.doctor import Finding, examine, usable
from tutelage.generalists.fetching import FOLDER_VARIABLE
from tutelage.generalists.weights import SHELF


@pytest.mark.torch
def test_a_machine_that_runs_these_tests_is_usable() -> None:
    found = {finding.what: finding for finding in examine()}
    assert usable(list(found.values()))
    assert found["litemedsam"].state == "ok"
    assert "sha256 verified" in found["litemedsam"].told
    assert found["serving"].state == "ok"


@pytest.mark.torch
def test_an_extra_that_is_not_installed_says_how_to_install_it() -> None:
    absent = [f for f in examine() if f.what.startswith("extra ") and f.state == "absent"]
    for finding in absent:
        assert f"pip install 'tutelage[{finding.what.removeprefix('extra ')}]'" in finding.told


@pytest.mark.torch
def test_dicom_without_its_decoders_is_said_to_lack_compressed_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = {finding.what: finding for finding in examine()}
    assert here["extra dicom"].state == "ok"
    assert "imagecodecs" not in here
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "imagecodecs" else find_spec(name))
    without = {finding.what: finding for finding in examine()}
    assert without["extra dicom"].state == "ok"
    assert without["imagecodecs"].state == "absent"
    assert "adds compressed DICOM pixels" in without["imagecodecs"].told


@pytest.mark.torch
def test_what_is_altered_is_not_passed_off_as_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHELF, "litemedsam", replace(SHELF["litemedsam"], sha256="0" * 64))
    (weights,) = [finding for finding in examine() if finding.what == "litemedsam"]
    assert weights.state == "absent"
    assert "expected the published" in weights.told


@pytest.mark.torch
def test_every_checkpoint_is_said_to_be_here_or_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    (tmp_path / SHELF["mobilesam"].file).write_bytes(b"something")
    found = {finding.what: finding for finding in examine()}
    assert found["mobilesam"].state == "ok"
    assert "weights verify mobilesam" in found["mobilesam"].told
    for name in set(SHELF) - {"litemedsam", "mobilesam"}:
        assert found[name].state == "absent"
        assert f"tutelage weights pull {name}" in found[name].told


@pytest.mark.parametrize(("state", "expected"), [("ok", True), ("absent", True), ("missing", False)])
def test_only_what_everything_needs_makes_a_machine_unusable(state: str, expected: bool) -> None:
    assert usable([Finding("thing", state, "")]) is expected  # type: ignore[arg-type]


@pytest.mark.torch
def test_findings_can_be_read_by_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json"])
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["usable"] is True
