"""Which code is running, in and outside a repository, without asking git."""

import subprocess
from pathlib import Path

import pytest

import tutelage
from tutelage import __version__
from tutelage.rounds.code import checked_out, content, version


def test_outside_a_repository_the_version_is_all_there_is(tmp_path: Path) -> None:
    assert checked_out(tmp_path / "module.py") is None


def test_the_version_comes_first_and_what_the_files_say_last() -> None:
    assert version().partition("+")[0] == __version__
    assert version().endswith(content(Path(tutelage.__file__).parent))


def test_code_that_somebody_has_changed_is_other_code(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "a.py").write_text("one = 1\n")
    before = content(tmp_path)
    (tmp_path / "room" / "notes.txt").write_text("no code")
    assert content(tmp_path) == before
    (tmp_path / "room" / "a.py").rename(tmp_path / "room" / "b.py")
    renamed = content(tmp_path)
    (tmp_path / "room" / "b.py").write_text("one = 2\n")
    assert len({before, renamed, content(tmp_path)}) == 3


@pytest.mark.process
@pytest.mark.parametrize("how", ["a branch", "packed", "detached", "a work tree"])
def test_the_commit_is_the_one_that_git_names(tmp_path: Path, how: str) -> None:
    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path / "one"), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "one" / "package").mkdir(parents=True)
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    here = tmp_path / "one"
    if how == "packed":
        git("pack-refs", "--all")
    elif how == "detached":
        git("checkout", "-q", "--detach")
    elif how == "a work tree":
        here = tmp_path / "two"
        git("worktree", "add", "-q", str(here), "-b", "other")
    assert checked_out(here / "package" / "module.py") == git("rev-parse", "HEAD")
