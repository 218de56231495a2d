"""A record on a real store: the database of a workspace, and once a server over HTTP."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tracking.elsewhere import segmented
from tutelage.errors import TrackingError
from tutelage.records import Role, Scorecard, Summary
from tutelage.rounds.packing import packing
from tutelage.storage import Place
from tutelage.tracking.campaign import Done, Tracker, flattened
from tutelage.tracking.registry import Registry
from tutelage.tracking.settings import TrackingSettings

# Nearly a minute together, most of it MLflow starting up.
pytestmark = pytest.mark.slow

PARAMETERS = {"rounds": 2, "archive": {"split": {"seed": 0}, "styles": ["ct", "t1"]}}


def card(dice: float) -> Scorecard:
    summary = Summary("liver", 3, dice, dice - 0.1, dice + 0.1, 4.0, 0.9)
    nothing = Summary("spleen", 0, math.nan, math.nan, math.nan, math.nan, math.nan)
    return Scorecard("abc", Role.TEST, (), (summary, nothing))


def specialist(folder: Path, digest: str) -> Place:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.pt").write_bytes(digest.encode())
    (folder / "specialist.json").write_text(f'{{"digest": "{digest}"}}')
    return Place.of(folder)


def record(settings: TrackingSettings, root: Path, digest: str = "d1") -> tuple[Tracker, str, str]:
    """Record a campaign of one stage, the way a run does."""
    folder = specialist(root / "made" / digest, digest)
    with Tracker(settings, Place.of(root), "quick", PARAMETERS) as tracker:
        run = tracker.stage("r00")
        tracker.metrics(run, "training", {"train/loss": [(step, 1 / (step + 1)) for step in range(1200)]})
        tracker.scorecard(run, card(0.8))
        tracker.file(run, folder / "specialist.json", "notes")
        version = tracker.register(run, folder, digest, {"stage": "r00"})
        tracker.registry.promote(version.version)
        tracker.end(run)
    return tracker, run, version.version


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tracker, str, str]:
    root = tmp_path_factory.mktemp("workspace")
    return root, *record(TrackingSettings(), root)


def test_a_stage_is_a_run_below_the_campaigns(made: tuple[Path, Tracker, str, str]) -> None:
    _, tracker, run, _ = made
    child, parent = tracker.store.client.get_run(run), tracker.store.client.get_run(tracker.run)
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (child.info.run_name, child.info.status) == ("r00", "FINISHED")
    assert parent.data.params == {"rounds": "2", "archive.split.seed": "0", "archive.styles": '["ct", "t1"]'}
    assert parent.info.status == "FINISHED"


def test_scores_are_metrics_and_what_has_no_number_is_left_out(made: tuple[Path, Tracker, str, str]) -> None:
    _, tracker, run, _ = made
    metrics = tracker.store.client.get_run(run).data.metrics
    assert metrics["test/liver/dice"] == 0.8
    assert metrics["test/spleen/cases"] == 0
    assert "test/spleen/dice" not in metrics


def test_everything_stays_in_the_workspace(made: tuple[Path, Tracker, str, str]) -> None:
    root, _, run, _ = made
    assert (root / "mlflow.db").is_file()
    assert (root / "mlartifacts" / run / "artifacts" / "notes" / "specialist.json").is_file()


def test_the_same_campaign_again_adds_nothing(made: tuple[Path, Tracker, str, str]) -> None:
    root, first, run, version = made
    again, same_run, same_version = record(TrackingSettings(), root)
    assert (again.run, same_run, same_version) == (first.run, run, version)
    client = again.store.client
    assert len(client.get_metric_history(run, "train/loss")) == 1200
    assert len(client.search_model_versions("name='quick'")) == 1
    assert len(client.search_runs([again._experiment])) == 2


def test_a_kill_while_metrics_were_logged_leaves_no_doubles(made: tuple[Path, Tracker, str, str]) -> None:
    root, tracker, run, _ = made
    tracker.store.client.delete_tag(run, "logged.training")
    record(TrackingSettings(), root)
    assert len(tracker.store.client.get_metric_history(run, "train/loss")) == 1200


def test_other_settings_are_another_campaign_with_the_same_versions(tmp_path: Path) -> None:
    first, run, version = record(TrackingSettings(), tmp_path)
    with Tracker(TrackingSettings(), Place.of(tmp_path), "quick", PARAMETERS | {"rounds": 3}) as other:
        other_run = other.stage("r00")
        kept = other.register(other_run, Place.of(tmp_path / "made" / "d1"), "d1", {})
    assert (other.run == first.run, other_run == run, kept.version) == (False, False, version)


def test_campaigns_that_share_a_store_have_an_experiment_and_a_champion_each(tmp_path: Path) -> None:
    settings = TrackingSettings(uri=f"sqlite:///{tmp_path}/shared.db")
    for name in ("liver", "brain 2"):
        root = Place.of(tmp_path / name)
        folder = specialist(tmp_path / name / "made", name)
        with Tracker(settings, root, name, PARAMETERS) as tracker:
            tracker.registry.promote(tracker.register(tracker.stage("r00"), folder, name, {}).version)
    client = tracker.store.client
    for name in ("liver", "brain 2"):
        experiment = client.get_experiment_by_name(name)
        assert len(client.search_runs([experiment.experiment_id])) == 2
        champion = Registry.of(settings, Place.of(tmp_path), name).champion()
        assert champion == Registry.of(settings, Place.of(tmp_path)).resolve(f"models:/{name}@champion")
        assert champion is not None
        assert (champion.model, champion.digest, champion.version) == (name, name, "1")


def test_campaigns_share_what_settings_name(tmp_path: Path) -> None:
    settings = TrackingSettings(experiment="all of us", model="torso")
    for name in ("liver", "a/b:c"):
        with Tracker(settings, Place.of(tmp_path), name, {"name": name}) as tracker:
            folder = specialist(tmp_path / "made" / name[0], name)
            version = tracker.register(tracker.stage("r00"), folder, name, {})
    assert version.uri == "models:/torso/2"
    experiment = tracker.store.client.get_experiment_by_name("all of us")
    assert len(tracker.store.client.search_runs([experiment.experiment_id])) == 4


def test_a_stage_that_is_trained_anew_has_another_run_and_the_one_before_says_so(tmp_path: Path) -> None:
    with Tracker(TrackingSettings(), Place.of(tmp_path), "quick", PARAMETERS) as tracker:
        first = tracker.stage("r00", "of 9 scans")
        assert tracker.stage("r00", "of 9 scans") == first
        second = tracker.stage("r00", "of 12 scans")
        assert tracker.stage("r00", "of 12 scans") == tracker.stage("r00") == second != first
    before = tracker.store.client.get_run(first)
    assert (before.info.run_name, before.info.status) == ("r00, done anew since", "FINISHED")
    assert before.data.tags["mlflow.parentRunId"] == tracker.run


def done(fingerprint: str, cases: int) -> Done:
    facts = {"candidates": "5553fe", "input.priors": "625511"}
    return Done(
        "label", fingerprint, {"prompts": {"axes": [1]}}, facts, {"done": cases}, 90.0, 1_700_000_090_000
    )


def test_a_finished_step_is_a_run_below_its_stages_with_its_own_time_and_once(tmp_path: Path) -> None:
    with Tracker(TrackingSettings(), Place.of(tmp_path), "quick", PARAMETERS) as tracker:
        stage = tracker.stage("r00")
        for fingerprint, cases in (("of 9 scans", 9), ("of 9 scans", 9), ("of 12 scans", 12)):
            tracker.step(stage, done(fingerprint, cases))
    found = tracker.store.client.search_runs([tracker._experiment], f"tags.`mlflow.parentRunId` = '{stage}'")
    runs = {run.info.run_name: run for run in found}
    assert (len(found), set(runs)) == (2, {"label", "label, done anew since"})
    label = runs["label"]
    assert (label.info.status, label.info.end_time - label.info.start_time) == ("FINISHED", 90_000)
    assert label.data.metrics == {"seconds": 90.0, "done": 12.0}
    assert label.data.params == {"prompts.axes": "[1]"}
    assert label.data.tags["input.priors"] == "625511"
    assert runs["label, done anew since"].data.metrics["done"] == 9.0


def test_a_campaign_that_raises_is_on_record_as_failed(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="no gold"),
        Tracker(TrackingSettings(), Place.of(tmp_path), "quick", PARAMETERS) as tracker,
    ):
        raise RuntimeError("no gold")
    assert tracker.store.client.get_run(tracker.run).info.status == "FAILED"


def test_settings_are_kept_without_their_password_and_stay_usable_where_they_are(tmp_path: Path) -> None:
    settings, report = tmp_path / "settings.yaml", tmp_path / "report.html"
    settings.write_text("name: quick\ntracking:\n  uri: http://me:hunter2@host:5000\n")
    report.write_text("<p>me@host</p>")
    with Tracker(TrackingSettings(), Place.of(tmp_path), "quick", PARAMETERS) as tracker:
        for file in (settings, report):
            tracker.file(tracker.run, Place.of(file))
    kept = tmp_path / "mlartifacts" / tracker.run / "artifacts"
    assert (kept / "settings.yaml").read_text() == "name: quick\ntracking:\n  uri: http://***@host:5000\n"
    assert (kept / "report.html").read_bytes() == report.read_bytes()
    assert "me:hunter2@" in settings.read_text()


def test_the_champion_comes_back_as_it_was_registered(
    made: tuple[Path, Tracker, str, str], tmp_path: Path
) -> None:
    root, _, _, version = made
    registry = Registry.of(TrackingSettings(), Place.of(root), "quick")
    champion = registry.champion()
    assert champion is not None
    assert (champion.version, champion.digest, champion.tags["stage"]) == (version, "d1", "r00")
    for uri in ("models:/quick@champion", f"models:/quick/{version}"):
        folder = registry.download(uri, tmp_path / uri[-8:])
        assert (folder / "weights.pt").read_bytes() == b"d1"


def test_before_a_promotion_there_is_no_champion(tmp_path: Path) -> None:
    assert Registry.of(TrackingSettings(), Place.of(tmp_path), "quick").champion() is None


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("models:/quick@best", "aliases: champion"),
        ("models:/quick/99", "no such version"),
        ("models:/nobody@champion", "no model is registered as 'nobody'"),
        ("models:/quick", "expected models:/name@alias or models:/name/3"),
        ("quick", "expected models:/name@alias or models:/name/3"),
    ],
)
def test_an_address_that_leads_nowhere_says_what_is_there(
    made: tuple[Path, Tracker, str, str], uri: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(TrackingError, match=told):
        Registry.of(TrackingSettings(), Place.of(made[0])).download(uri, tmp_path)


def test_settings_are_flattened_for_mlflow() -> None:
    assert flattened({"a": {"b": {"c": 1}}, "d": None, "e": [1, 2], "f": {}, "x y(z)": True}) == {
        "a.b.c": "1",
        "d": "null",
        "e": "[1, 2]",
        "f": "{}",
        "x y_z_": "true",
    }


def test_a_server_over_http_keeps_the_same_record(start_mlflow: Callable[[], str], tmp_path: Path) -> None:
    settings = TrackingSettings(uri=start_mlflow())
    first, run, version = record(settings, tmp_path / "workspace")
    again, same_run, same_version = record(settings, tmp_path / "workspace")
    assert (again.run, same_run, same_version) == (first.run, run, version)
    shutil.rmtree(tmp_path / "workspace")
    registry = Registry.of(settings, Place.of(tmp_path / "elsewhere"))
    folder = registry.download("models:/quick@champion", tmp_path / "fetched")
    assert (folder / "weights.pt").read_bytes() == b"d1"
    assert not (tmp_path / "elsewhere").exists()


def test_what_a_server_keeps_of_a_specialist_segments_where_no_workspace_is(
    start_mlflow: Callable[[], str], tiny_specialist: Path, tmp_path: Path
) -> None:
    settings, uri = TrackingSettings(uri=start_mlflow()), "models:/quick@champion"
    folder = Place.of(shutil.copytree(tiny_specialist, tmp_path / "workspace" / "specialist"))
    with Tracker(settings, Place.of(tmp_path / "workspace"), "quick", PARAMETERS) as tracker:
        version = tracker.register(tracker.stage("r00"), folder, "d2", {"round": "0"}, packing(folder))
        tracker.registry.promote(version.version)
    shutil.rmtree(tmp_path / "workspace")
    required = tracker.store.fetch(f"{version.source}/requirements.txt", tmp_path).read_text().split()
    [row], _ = segmented(uri, required, [], tmp_path, tracking=str(settings.uri))
    assert (row["reason"], row["mask"][:5]) == ("", "data:")
