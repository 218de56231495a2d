"""`tutelage submit`: what travels with a job, and how it is followed and stopped, on a real cluster."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.jobs.heads import head
from tutelage.cli.submitting import order_of
from tutelage.cluster.submitting import bundle
from tutelage.errors import SettingsError

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys, time
import ray, tutelage
print("driver", tutelage.__file__)
ray.init(logging_level="ERROR")
print("worker", ray.get(ray.remote(lambda: __import__("tutelage").__file__).remote()))
print("settings", open(sys.argv[1]).read().count("threshold"))
if "wait" in sys.argv:
    print("waiting", flush=True)
    time.sleep(600)
sys.exit(3 if "fail" in sys.argv else 0)
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text("workspace: /nowhere/ws\narchive: {importer: synthetic}\n")
    file = tmp_path / "mine.yaml"
    file.write_text("extends: base.yaml\nname: mine\ngeneralist: {name: threshold}\n")
    return file


def test_the_package_the_script_and_the_yaml_with_what_it_extends_travel(config: Path) -> None:
    order = order_of("train", config, ["train.steps=7", "--round", "0"])
    assert order.entrypoint == "python jobs/train.py configs/mine.yaml train.steps=7 --round 0"
    with bundle(order) as folder:
        there = yaml.safe_load((folder / "configs/mine.yaml").read_text())
        assert there["archive"] == {"importer": "synthetic"}
        assert there["name"] == "mine"
        assert "extends" not in there
        assert (folder / "jobs/train.py").read_text() == (ROOT / "jobs/train.py").read_text()
        assert (folder / "platform/tutelage/cli/app.py").is_file()
        assert [path.name for path in (folder / "platform").iterdir()] == ["tutelage"]
        assert not list(folder.rglob("__pycache__"))
    assert not folder.exists()


@pytest.mark.parametrize("told", ["jobs/train.py", str(ROOT / "jobs/train.py"), "train"])
def test_a_script_is_named_by_its_step_or_its_file(
    told: str, config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert order_of(told, config, []).script == ROOT / "jobs/train.py"


def test_a_shelf_keeps_its_place_if_it_has_one_in_the_job_too(
    config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "known").mkdir()
    (tmp_path / "known/torso.yaml").write_text("{}")
    monkeypatch.chdir(ROOT)
    beside = order_of("run", config, ["priors.shelf=known/torso.yaml"])
    assert beside.files == {"known/torso.yaml": tmp_path / "known/torso.yaml"}
    assert beside.arguments == ("priors.shelf=known/torso.yaml",)
    apart = order_of("run", config, [f"priors.shelf={tmp_path}/known/torso.yaml"])
    assert apart.arguments[-1] == "priors.shelf=files/torso.yaml"
    assert apart.files["files/torso.yaml"] == tmp_path / "known/torso.yaml"


@pytest.mark.parametrize(
    ("script", "override", "told"),
    [
        ("rum", "seed=1", "no script rum; name a file, or one of .*run"),
        ("run", "priors.shelf=nowhere.yaml", "neither here nor above"),
        ("run", "archive={importer: msd, root: Task04}", "an address that all nodes see"),
        ("run", "train.stepz=3", "did you mean steps"),
    ],
)
def test_what_cannot_run_elsewhere_is_told_before_anything_is_sent(
    script: str, override: str, told: str, config: Path
) -> None:
    with pytest.raises(SettingsError, match=told):
        order_of(script, config, [override])


def test_folders_that_only_nodes_see_are_theirs_to_check(config: Path) -> None:
    order = order_of("run", config, ["archive={importer: msd, root: /seen/by/nodes/Task04}"])
    assert order.entrypoint.endswith("'archive={importer: msd, root: /seen/by/nodes/Task04}'")


# --- on a cluster ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with head(tmp_path_factory.mktemp("head") / "log") as address:
        yield address


def tutelage(address: str, folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Call the command from a folder that is no checkout."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("tutelage")), *words, "--address", address],
        cwd=folder, env=os.environ | {"RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True,
        timeout=200, check=False,
    )  # fmt: skip


@pytest.mark.ray
@pytest.mark.process
def test_a_script_runs_with_the_package_that_travelled_and_its_end_is_told(
    address: str, config: Path, tmp_path: Path
) -> None:
    (tmp_path / "where.py").write_text(SCRIPT)
    done = tutelage(address, tmp_path, "submit", "where.py", "mine.yaml", "fail")
    told = dict(
        line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("driver", "work"))
    )
    assert done.returncode == 3, done.stdout + done.stderr
    for who in ("driver", "worker"):
        assert "working_dir_files" in told[who], done.stdout
    assert "settings 1" in done.stdout
    listed = json.loads(tutelage(address, tmp_path, "jobs", "list", "--json").stdout)["jobs"]
    assert listed[0]["state"] == "FAILED"
    assert listed[0]["workspace"] == "/nowhere/ws"


@pytest.mark.ray
@pytest.mark.process
def test_a_job_can_be_left_alone_found_again_and_stopped(address: str, config: Path, tmp_path: Path) -> None:
    (tmp_path / "where.py").write_text(SCRIPT)
    sent = tutelage(address, tmp_path, "submit", "where.py", "mine.yaml", "wait", "--no-wait", "--json")
    job = json.loads(sent.stdout)["job"]
    again = tutelage(address, tmp_path, "submit", "where.py", "mine.yaml")
    assert again.returncode == 1
    assert f"{job} is " in again.stderr
    assert f"tutelage jobs stop {job}" in again.stderr
    assert tutelage(address, tmp_path, "jobs", "stop", job).returncode == 0
    followed = tutelage(address, tmp_path, "jobs", "follow", job)
    assert followed.returncode == 1
    assert f"{job} stopped" in followed.stdout
    assert "nobody" in tutelage(address, tmp_path, "jobs", "stop", "nobody").stderr
