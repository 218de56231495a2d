"""Where things may lie, and that what the documents name is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "platform" / "tutelage"
ROOMS = sorted(p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists())
DOCUMENTS = [ROOT / "README.md", ROOT / "BENCHMARKS.md", ROOT / "CONTRIBUTING.md", PACKAGE / "README.md"]
TOP = {"platform", "jobs", "serve", "configs", "tests", "k8s"}


@pytest.mark.process
def test_the_top_level_holds_nothing_else() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    folders = {name.split("/")[0] for name in tracked.stdout.splitlines() if "/" in name}
    assert {name for name in folders if not name.startswith(".")} <= TOP


def test_every_room_has_tests() -> None:
    tested = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir()}
    assert set(ROOMS) - tested - {"cli"} == set()  # cli's lie beside them, in test_cli.py
    assert "platform" not in tested


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_path_that_a_document_names_is_there(document: Path) -> None:
    named = set(re.findall(r"(?:configs|jobs|tests|serve|platform)/[\w./-]+", document.read_text()))
    named |= set(
        re.findall(r"\b(?:generalists|methods|archive|rounds|bench)/[\w/]+\.py", document.read_text())
    )
    missing = {
        name for name in named if not (ROOT / name).exists() and not (PACKAGE / name.rstrip("/.")).exists()
    }
    assert missing == set()


@pytest.mark.parametrize("document", DOCUMENTS[:2], ids=lambda p: p.name)
def test_every_command_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text()
    commands = set(re.findall(r"tutelage ([a-z]+)\b", "\n".join(re.findall(r"(?:    |`).*", text))))
    from typer.main import get_command

    from tutelage.cli.app import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert commands
    assert commands <= known


def test_every_make_target_that_readme_names_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", (ROOT / "README.md").read_text()))
    assert named <= targets | {"and"}


@pytest.mark.process
def test_quickstart_dry_run_as_readme_has_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tutelage.cli", "run", "configs/quickstart.yaml", "--dry-run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
