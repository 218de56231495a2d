"""`tutelage weights`, as a person or a program meets it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tutelage.cli import main
from tutelage.generalists.fetching import FOLDER_VARIABLE
from tutelage.generalists.weights import SHELF

pytestmark = pytest.mark.files

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run one command here; returns exit code, stdout and stderr."""

    def called(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["weights", *map(str, arguments)])
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return called


@pytest.fixture(autouse=True)
def shelf_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for what is pulled; mobilesam's weights are offered where nobody can get them."""
    entry = replace(SHELF["mobilesam"], url="nowhere://bucket/mobile_sam.pt", sha256=None, size_bytes=None)
    monkeypatch.setitem(SHELF, "mobilesam", entry)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.mark.parametrize("command", ["list", "pull", "verify"])
def test_every_command_has_help_with_an_example(call: Call, command: str) -> None:
    code, out, _ = call(command, "--help")
    assert code == 0
    assert f"Example: tutelage weights {command}" in " ".join(out.split())


def test_the_list_shows_every_checkpoint_and_its_licence(call: Call) -> None:
    code, out, _ = call("list")
    assert code == 0
    for name, entry in SHELF.items():
        (line,) = [line for line in out.splitlines() if line.startswith(f"{name} ")]
        assert entry.licence in line
        assert (" yes " in line) == (name == "litemedsam")


def test_the_list_can_be_read_by_a_program(call: Call) -> None:
    _, out, _ = call("list", "--json")
    rows = {row["name"]: row for row in json.loads(out)["weights"]}
    assert rows.keys() == SHELF.keys()
    assert rows["litemedsam"]["state"] == "published"
    assert rows["sam_vit_h"]["state"] == "absent"
    assert rows["sam_vit_h"]["bytes"] == 2_564_550_879


def test_what_nobody_knows_is_refused_before_anything_is_done(call: Call) -> None:
    for command in ("pull", "verify"):
        code, _, err = call(command, "sam_vit_b", "sam_vit_x")
        assert code == 2
        assert "no weights named 'sam_vit_x'" in err


def test_verify_fails_for_what_was_named_and_is_not_here(call: Call) -> None:
    assert call("verify", "litemedsam")[0] == 0
    assert call("verify")[0] == 0
    code, out, _ = call("verify", "sam_vit_b")
    assert code == 1
    assert "tutelage weights pull sam_vit_b" in " ".join(out.split())


def test_verify_fails_for_what_has_changed(call: Call, shelf_folder: Path) -> None:
    shelf_folder.mkdir()
    (shelf_folder / "mobile_sam.pt").write_bytes(b"weights")
    assert "unrecorded" in call("verify", "mobilesam")[1]
    (shelf_folder / "mobile_sam.pt.json").write_text(json.dumps({"sha256": "0" * 64}))
    code, out, _ = call("verify")
    assert code == 1
    assert "mobilesam: damaged" in out


def test_an_address_that_nobody_can_open_is_told_in_one_line(call: Call) -> None:
    code, _, err = call("pull", "mobilesam")
    assert code == 1
    assert "is no address of weights" in err
