from pathlib import Path

import pytest

from tutelage.errors import SettingsError
from tutelage.rounds.run import plan
from tutelage.rounds.settings import RunSettings
from tutelage.settings import load

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize(
    "config", [c for c in CONFIGS if c.name != "runtime_env.yaml"], ids=lambda path: path.stem
)
def test_every_configuration_that_ships_is_usable(config: Path) -> None:
    """Where scans are made up, all of it; elsewhere a person has to fetch them first."""
    settings = load(config, RunSettings, elsewhere=True)
    assert settings.workspace.startswith("runs/")
    told = [f"{where}: {what}" for where, what in settings.problems()]
    assert all(one.startswith("archive.root: found Task") for one in told)
    assert not told or settings.archive.importer != "synthetic"


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text(
        "workspace: runs/x\n"
        "archive: {importer: msd, root: /no/such/folder, splits: {}}\n"
        "train: {steps: many}\n"
        "curation: {min_agreement: 2}\n"
    )
    with pytest.raises(SettingsError) as caught:
        load(config, RunSettings)
    message = str(caught.value)
    for part in ("archive.splits: unknown key; did you mean split?", "train.steps: found 'many'"):
        assert part in message
    assert "curation.min_agreement: found 2" in message


@pytest.mark.parametrize("name", ["a/b", "liver: pilot", "50%", "me@home", "..", " "])
def test_a_name_that_no_registered_model_can_have_is_refused_unless_none_is_named_after_it(
    tmp_path: Path, name: str
) -> None:
    config = tmp_path / "named.yaml"
    config.write_text(f"name: {name!r}\nworkspace: runs/x\narchive: {{importer: synthetic}}\n")
    with pytest.raises(SettingsError, match=r"name: found .*set tracking\.model"):
        load(config, RunSettings)
    for told in ("tracking.model=liver", "tracking.enabled=false"):
        assert load(config, RunSettings, [told]).name == name


def test_what_only_the_world_can_tell_is_told_at_once_too(tmp_path: Path) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text(
        "workspace: runs/x\n"
        "archive: {importer: msd, root: /no/such/folder}\n"
        "priors: {shelf: nowhere.yaml}\n"
        "generalist: {weights: nowhere.pth}\n"
    )
    with pytest.raises(SettingsError) as caught:
        load(config, RunSettings)
    message = str(caught.value)
    for part in ("archive.root", "priors.shelf", "generalist.weights", "nothing was started"):
        assert part in message


def test_a_structure_that_nobody_knows_is_refused_by_name(tmp_path: Path) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text(
        "workspace: runs/x\narchive: {importer: synthetic}\n"
        "curation: {structures: {livre: {min_agreement: 0.5}}}\n"
    )
    with pytest.raises(SettingsError, match=r"curation.structures.livre: unknown structure; .*liver"):
        load(config, RunSettings)


def test_a_dry_run_names_every_step_in_order() -> None:
    settings = load(CONFIGS[0].parent / "quickstart.yaml", RunSettings, ["rounds=1"])
    assert plan(settings) == [
        *("labels-only train", "labels-only evaluate", "labels-only promote"),
        *("r00 label", "r00 curate", "r00 train", "r00 evaluate", "r00 promote"),
        "report",
    ]


def test_a_batch_that_workers_cannot_share_is_refused_before_anything_starts() -> None:
    config = CONFIGS[0].parent / "quickstart.yaml"
    with pytest.raises(SettingsError, match=r"train.batch: found 3, which 2 workers cannot share"):
        load(config, RunSettings, ["train.batch=3"])
