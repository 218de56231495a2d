"""Which code is running, in and outside a repository, without asking git."""

import subprocess
from pathlib import Path

import pytest

from tutelage import __version__
from tutelage.rounds.code import checked_out, version


def test_outside_a_repository_the_version_is_all_there_is(tmp_path: Path) -> None:
    assert checked_out(tmp_path / "module.py") is None


def test_the_version_comes_first() -> None:
    assert version().partition("+")[0] == __version__


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
