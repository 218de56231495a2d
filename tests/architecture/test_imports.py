"""What importing costs, and what lies where: rules that no linter checks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tutelage

PACKAGE = Path(tutelage.__file__).parent
ROOT = PACKAGE.parents[1]
HEAVY = {"torch", "monai", "ray", "mlflow", "nibabel", "scipy", "matplotlib", "pandas"}
COMPUTING = {"torch", "monai", "ray", "mlflow", "matplotlib"}

SETTINGS = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in PACKAGE.glob("*/settings.py")
)


def loaded(statement: str) -> set[str]:
    """Top-level packages that a statement loads in a fresh process."""
    code = (
        f"{statement}\nimport sys, json; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.process
@pytest.mark.parametrize(
    "statement", ["import tutelage", "import tutelage.cli", "import tutelage.cli.app, tutelage.cli.telling"]
)
def test_the_command_line_is_light(statement: str) -> None:
    assert loaded(statement) & HEAVY == set()


@pytest.mark.process
def test_no_rooms_settings_load_what_computes() -> None:
    assert loaded(f"import {', '.join(SETTINGS)}") & COMPUTING == set()


@pytest.mark.process
def test_a_finished_run_needs_no_torch_to_be_recognized() -> None:
    assert loaded("import tutelage.rounds.run, tutelage.rounds.results") & COMPUTING == set()


@pytest.mark.process
def test_help_comes_at_once() -> None:
    def seconds() -> float:
        """Of computing, which other work on the machine does not change much."""
        before = os.times()
        subprocess.run([sys.executable, "-m", "tutelage.cli", "--help"], capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    # 0.4 s; the best of three.
    assert min(seconds() for _ in range(3)) < 1.0


def test_platform_holds_nothing_but_the_package() -> None:
    # An __init__.py or a second module there would shadow the standard library's platform.
    assert [path.name for path in PACKAGE.parent.iterdir() if path.name != "__pycache__"] == ["tutelage"]
    assert not (ROOT / "tests" / "platform").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_opens_with_what_it_decides_and_is_not_long(path: Path) -> None:
    text = path.read_text()
    assert text.startswith('"""')
    assert len(text.splitlines()) < 400
