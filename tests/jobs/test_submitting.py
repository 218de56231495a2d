"""`tutelage submit`: what travels with a job, and what is told before anything is sent.

Jobs on a real cluster are in test_readme.py, on one that does odd things in test_following.py.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tutelage.cli.submitting import order_of
from tutelage.cluster.submitting import bundle
from tutelage.errors import SettingsError

ROOT = Path(__file__).parents[2]


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


def test_an_absolute_shelf_that_is_not_here_is_left_to_the_nodes(config: Path) -> None:
    order = order_of("run", config, ["priors.shelf=/seen/by/nodes/torso.yaml"])
    assert order.files == {}
    assert order.arguments == ("priors.shelf=/seen/by/nodes/torso.yaml",)


@pytest.mark.parametrize(
    ("workspace", "warned"), [("runs/mine", True), ("~/mine", True), ("/all/see", False), ("s3://b/w", False)]
)
def test_a_workspace_that_means_another_folder_there_is_told_of(
    workspace: str, warned: bool, config: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, _ = call("submit", "run", config, f"workspace={workspace}", "--dry-run")
    assert code == 0
    assert ("home folder of the job's node" in out) is warned
