"""`tutelage tokens`, as a person or a program meets it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tutelage.cluster import tokens
from tutelage.errors import SettingsError

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("command", ["add", "list", "remove"])
def test_every_command_has_help_with_an_example(call: Call, command: str) -> None:
    code, out, _ = call("tokens", command, "--help")
    assert code == 0
    assert f"Example: tutelage tokens {command}" in " ".join(out.split())


def test_a_token_is_shown_once_and_only_its_hash_is_kept(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("tokens", "add", "ward-3", "--file", tmp_path / "tokens")
    assert code == 0
    secret = out.strip()
    assert "\n" not in secret, "a pipe would take more than the token"
    text = (tmp_path / "tokens").read_text()
    assert secret not in text
    assert tokens.hashed(secret) in text
    assert secret not in str(call("tokens", "list", "--file", tmp_path / "tokens"))
    (token,) = tokens.read(tmp_path / "tokens")
    assert (token.name, token.scopes) == ("ward-3", ("predict",))


def test_two_tokens_share_nothing(call: Call, tmp_path: Path) -> None:
    secrets = [
        json.loads(call("tokens", "add", name, "--file", tmp_path / "tokens", "--json")[1])["token"]
        for name in ("a", "b")
    ]
    assert len(set(secrets)) == 2
    assert all(len(secret) >= 43 for secret in secrets)


def test_the_file_is_its_owners_alone(call: Call, tmp_path: Path) -> None:
    call("tokens", "add", "a", "--file", tmp_path / "deep" / "tokens")
    assert (tmp_path / "deep" / "tokens").stat().st_mode & 0o777 == 0o600


def test_scopes_can_be_named_and_listed(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    call("tokens", "add", "a", "--scope", "admin", "--scope", "predict", "--file", file)
    (row,) = json.loads(call("tokens", "list", "--file", file, "--json")[1])["tokens"]
    assert row["scopes"] == ["predict", "admin"]


def test_a_token_that_was_removed_is_gone_and_the_others_stay(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    for name in ("a", "b"):
        call("tokens", "add", name, "--file", file)
    assert call("tokens", "remove", "a", "--file", file)[0] == 0
    assert [token.name for token in tokens.read(file)] == ["b"]
    code, _, err = call("tokens", "remove", "a", "--file", file)
    assert code == 2
    assert "no token called a; there are b" in " ".join(err.split())


@pytest.mark.parametrize("name", ["", "with space", "a" * 65, "-dash", "tab\t"])
def test_a_name_that_would_break_the_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="cannot be called"):
        tokens.made(name, ["predict"])


def test_a_name_that_is_taken_is_refused(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    call("tokens", "add", "a", "--file", file)
    before = file.read_text()
    assert call("tokens", "add", "a", "--file", file)[0] == 2
    assert file.read_text() == before


@pytest.mark.parametrize(
    "line",
    [
        "ward-3 predict",
        "ward-3 root " + "0" * 64 + " 2026-01-01",
        "ward-3 predict 0000 2026-01-01",
        "tutelage_a-secret-that-was-pasted-here",
    ],
)
def test_a_line_that_is_no_token_is_named_by_number_and_not_shown(tmp_path: Path, line: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# who may\n\n{line}\n")
    file.chmod(0o600)
    with pytest.raises(SettingsError, match="line 3 is no token") as refused:
        tokens.read(file)
    assert line not in str(refused.value)


def test_a_file_that_others_can_write_is_refused(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    call("tokens", "add", "a", "--file", file)
    file.chmod(0o620)
    with pytest.raises(SettingsError, match="chmod 600"):
        tokens.read(file)


def test_a_file_that_is_not_there_says_how_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="tutelage tokens add"):
        tokens.read(tmp_path / "tokens")
