"""What MLflow has of a campaign, whether it was there all the time, or not at all until the end."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.listening import Listener
from tutelage.errors import TrackingError
from tutelage.labels.rows import Rows
from tutelage.records import Role
from tutelage.rounds import ledger, recording, reviewing, rollback, taking
from tutelage.rounds.champion import specialist
from tutelage.rounds.results import Finished
from tutelage.rounds.run import evaluate, report, run, step
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.workspace import LABELS_ONLY, Workspace
from tutelage.settings import fingerprint, load
from tutelage.storage import Place
from tutelage.tracking.journal import Row, read
from tutelage.tracking.settings import TrackingSettings
from tutelage.tracking.store import connect, store_uri


def told(workspace: Path, stage: str) -> list[Row]:
    return list(read(Place.of(workspace / "rounds" / stage / "steps")))


def on_record(uri: str) -> dict[str, Any]:
    """Runs of a store by name, those of steps left out."""
    store = connect(TrackingSettings(uri=uri), Place.of("/nowhere"))
    experiment = store.client.get_experiment_by_name("tiny")
    runs = store.client.search_runs([experiment.experiment_id])
    return {run.info.run_name: (store.client, run) for run in runs if "step" not in run.data.tags}


def history(uri: str, stage: str, name: str) -> list[tuple[int, float]]:
    client, run = on_record(uri)[stage]
    return sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, name))


def expected(workspace: Path, stage: str) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in told(workspace, stage)]


@pytest.mark.torch
def test_an_address_that_can_never_work_is_an_error_before_anything_starts(
    tiny_config: Callable[[str], Path], tmp_path: Path
) -> None:
    told = ["tracking.enabled=true", "tracking.uri=htp://host:5000"]
    with pytest.raises(TrackingError, match=r"tracking.uri is htp://host:5000, expected a server"):
        run(load(tiny_config("workspace"), RunSettings, told), Listener())
    assert not (tmp_path / "workspace" / "rounds").exists()


@pytest.mark.torch
@pytest.mark.slow
def test_a_campaign_without_mlflow_ends_well_and_the_same_command_replays_it(
    tiny_config: Callable[[str], Path], tmp_path: Path, dead_port: int, start_mlflow: Callable[..., str]
) -> None:
    uri, workspace, config = f"http://127.0.0.1:{dead_port}", tmp_path / "workspace", tiny_config("workspace")
    command = [sys.executable, "-m", "tutelage.cli", "run", str(config), "tracking.enabled=true"]
    command += [f"tracking.uri={uri}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning") == 1
    assert f"warning: no MLflow answers at {uri}" in done.stderr
    assert not (workspace / "record.manifest.json").exists()
    start_mlflow(dead_port)
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "warning" not in again.stderr
    assert "labels-only train: done before" in again.stderr
    assert set(on_record(uri)) == {"tiny", "labels-only", "r00"}
    for stage in ("labels-only", "r00"):
        assert history(uri, stage, "train/loss") == expected(workspace, stage)
        assert len(expected(workspace, stage)) == 24
        assert on_record(uri)[stage][1].info.status == "FINISHED"
    third = subprocess.run(command, capture_output=True, text=True)
    assert "record: done before" in third.stderr


@pytest.fixture(scope="module")
def recorded(
    tmp_path_factory: pytest.TempPathFactory, write_tiny: Callable[[Path, str], Path]
) -> tuple[Path, Finished, Listener]:
    """A campaign recorded in its own workspace: its configuration, what it came to, what was said."""
    config, listener = write_tiny(tmp_path_factory.mktemp("campaign"), "workspace"), Listener()
    settings = load(config, RunSettings, ["tracking.enabled=true"])
    run(settings, listener)
    untested = on_record(f"sqlite:///{config.parent}/workspace/mlflow.db")["r00"][1]
    assert "test" not in {one.dataset.name for one in untested.inputs.dataset_inputs}
    return config, evaluate(settings, listener, Role.TEST), listener


@pytest.mark.torch
@pytest.mark.slow
def test_what_every_step_told_is_on_record_once_and_nothing_was_warned_of(
    recorded: tuple[Path, Finished, Listener],
) -> None:
    config, _, listener = recorded
    workspace = config.parent / "workspace"
    uri = f"sqlite:///{workspace}/mlflow.db"
    assert listener.warned == []
    for stage in ("labels-only", "r00"):
        assert history(uri, stage, "train/loss") == expected(workspace, stage)
        for name in ("train/lr", "train/gradient_norm"):
            assert [step for step, _ in history(uri, stage, name)] == list(range(24))
        for name in ("patches_per_s", "wait_share", "memory_mib"):
            assert [step for step, _ in history(uri, stage, f"train/{name}")] == [23]
        for name in ("cpu_utilization_percentage", "process_memory_usage_megabytes"):
            steps = [step for step, _ in history(uri, stage, f"system/{name}")]
            assert steps[0] == 0
            assert len(steps) < 24  # seconds apart


@pytest.mark.torch
@pytest.mark.slow
def test_data_are_inputs_with_their_digests_and_what_was_decided_is_kept(
    recorded: tuple[Path, Finished, Listener],
) -> None:
    config, _, _ = recorded
    workspace = config.parent / "workspace"
    runs = on_record(f"sqlite:///{workspace}/mlflow.db")

    def inputs(name: str) -> dict[str, tuple[str, str]]:
        found = runs[name][1].inputs.dataset_inputs
        return {one.dataset.name: (one.dataset.digest, one.tags[0].value) for one in found}

    def files(name: str) -> set[str]:
        client, run = runs[name]
        return {item.path for item in client.list_artifacts(run.info.run_id)}

    manifest = json.loads((workspace / "rounds/r00/train.manifest.json").read_text())
    assert set(inputs("tiny")) == {"gold", "unlabeled", "validation", "test"}
    assert inputs("r00")["gold"] == (manifest["inputs"]["gold"], "training")
    assert inputs("r00")["pseudo-labels"] == (manifest["inputs"]["labels"], "training")
    assert set(inputs("labels-only")) == {"gold", "validation", "test"}
    assert files("tiny") >= {"settings.yaml", "report.html", "ledger.parquet"}
    assert files("r00") >= {"training.json", "scorecard.validation.json", "scorecard.test.json"}
    metrics = runs["r00"][1].data.metrics
    assert metrics["seconds/train"] > 0
    gain = metrics["label/accepted_true_dice"] - metrics["label/other_true_dice"]
    assert metrics["label/true_dice_difference"] == pytest.approx(gain)
    assert not [name for name in runs["labels-only"][1].data.metrics if name.startswith("label/")]


@pytest.mark.torch
@pytest.mark.slow
def test_charts_are_kept_by_name_those_of_the_campaign_and_those_of_every_stage(
    recorded: tuple[Path, Finished, Listener],
) -> None:
    config, _, _ = recorded
    workspace = config.parent / "workspace"
    runs = on_record(f"sqlite:///{workspace}/mlflow.db")

    def charts(name: str) -> set[str]:
        client, run = runs[name]
        return {item.path for item in client.list_artifacts(run.info.run_id, "charts")}

    of_all = {"dice-by-stage", "dice-by-structure", "training-loss", "believed"}
    assert charts("tiny") == {f"charts/{name}.svg" for name in of_all}
    assert charts("r00") == {"charts/training-loss.svg", "charts/believed.svg"}
    assert charts("labels-only") == {"charts/training-loss.svg"}
    client, run = runs["r00"]
    kept = Path(client.download_artifacts(run.info.run_id, "charts/believed.svg", str(config.parent)))
    assert kept.read_bytes() == (workspace / "rounds/r00/charts/believed.svg").read_bytes()


@pytest.mark.torch
@pytest.mark.slow
def test_a_version_tells_its_round_its_data_and_its_dice_and_the_newest_is_the_challenger(
    recorded: tuple[Path, Finished, Listener],
) -> None:
    config, _, _ = recorded
    workspace = config.parent / "workspace"
    client, _ = on_record(f"sqlite:///{workspace}/mlflow.db")["tiny"]
    newest = client.get_model_version_by_alias("tiny", "challenger")
    card = json.loads((workspace / "rounds/r00/scorecard.validation.json").read_text())
    assert (newest.tags["round"], newest.tags["stage"]) == ("0", "r00")
    assert float(newest.tags["dice"]) == pytest.approx(card["summaries"][-1]["dice"], abs=1e-4)
    assert len(newest.tags["data"]) == 12
    best = client.get_model_version_by_alias("tiny", "champion")
    promoted = json.loads((workspace / "champion.json").read_text())["folder"]
    described = json.loads((workspace / promoted / "specialist.json").read_text())
    assert best.tags["digest"] == described["digest"]
    data = {one.tags["stage"]: one.tags["data"] for one in client.search_model_versions("name='tiny'")}
    assert data == {stage: learned_from(workspace, stage) for stage in ("labels-only", "r00")}
    assert len(set(data.values())) == 2


def learned_from(workspace: Path, stage: str) -> str:
    inputs = json.loads((workspace / "rounds" / stage / "train.manifest.json").read_text())["inputs"]
    return fingerprint(inputs)


@pytest.mark.torch
@pytest.mark.slow
def test_the_champion_in_the_registry_is_served_under_the_name_it_was_recorded_with(
    recorded: tuple[Path, Finished, Listener], call: Callable[..., tuple[int, str, str]]
) -> None:
    config, finished, _ = recorded
    told = ["tracking.enabled=true", "serving.champion=registry"]
    code, out, err = call("serve", config, *told, "--open", "--port", "8765", "--dry-run", "--json")
    assert code == 0, err
    address = json.loads(out)["models"]["tiny"]
    assert address == "models:/tiny@champion"
    uri = store_uri(TrackingSettings(), Place.of(load(config, RunSettings).workspace))
    with specialist(address, uri) as served:
        weights = (served.folder / "weights.pt").read_bytes()
    assert weights == (Path(str(finished.specialist)) / "weights.pt").read_bytes()


@pytest.mark.torch
@pytest.mark.slow
def test_a_stage_is_recorded_with_the_cases_that_it_knew_whatever_was_corrected_after_it(
    tiny_config: Callable[[str], Path], tmp_path: Path
) -> None:
    config, work = tiny_config("workspace"), tmp_path / "workspace"
    workspace = Workspace(Place.of(work))
    settings = load(config, RunSettings, ["train.steps=8", "tracking.enabled=true"])
    run(load(config, RunSettings, ["train.steps=8"]), Listener())
    reviewing.export(settings, workspace, reviewing.queue(workspace, 1), Place.of(tmp_path / "out"))
    (entry,) = json.loads((tmp_path / "out" / "review.json").read_text())["cases"]
    shutil.copy(tmp_path / "out" / entry["proposed"], tmp_path / "out" / entry["corrected"])
    taking.take_in(settings, workspace, Place.of(tmp_path / "out"), "Ada")
    run(settings, Listener())
    runs = on_record(f"sqlite:///{work}/mlflow.db")
    gold = {}
    for name, (_, one) in runs.items():
        found = {told.dataset.name: told.dataset for told in one.inputs.dataset_inputs}
        gold[name] = (found["gold"].digest, json.loads(found["gold"].profile)["cases"])
    learned = {
        stage: json.loads((work / "rounds" / stage / "train.manifest.json").read_text())["inputs"]["gold"]
        for stage in ("labels-only", "r00", "r01")
    }
    assert {stage: gold[stage][0] for stage in learned} == learned
    assert [gold[stage][1] for stage in learned] == [2, 2, 3]
    assert gold["tiny"] == gold["r01"]


@pytest.mark.torch
@pytest.mark.slow
def test_aliases_follow_a_campaign_back_to_a_round_and_forward_again(
    tiny_config: Callable[[str], Path], tmp_path: Path
) -> None:
    settings = load(tiny_config("workspace"), RunSettings, ["train.steps=8", "tracking.enabled=true"])
    workspace = Workspace(Place.of(tmp_path / "workspace"))
    client = connect(TrackingSettings(), workspace.root).client

    def stages(name: str) -> str:
        return str(client.get_model_version_by_alias("tiny", name).tags["stage"])

    champion = run(settings, Listener()).champion
    assert (stages("champion"), stages("challenger")) == (champion, "r00")
    moved = rollback.back(workspace, LABELS_ONLY)
    report(settings, Listener())
    assert (stages("champion"), stages("challenger")) == ("labels-only", "labels-only")
    rollback.forward(workspace, moved.aside)
    report(settings, Listener())
    assert (stages("champion"), stages("challenger")) == (champion, "r00")


@pytest.mark.torch
@pytest.mark.slow
def test_a_campaign_that_goes_on_for_more_rounds_is_the_same_run(tiny_config: Callable[[str], Path]) -> None:
    told = ["train.steps=8", "tracking.enabled=true"]
    config = tiny_config("workspace")
    run(load(config, RunSettings, [*told, "rounds=0"]), Listener())
    run(load(config, RunSettings, [*told, "promotion.patience=3", "max_attempts=2"]), Listener())
    client = connect(TrackingSettings(), Place.of(config.parent / "workspace")).client
    (experiment,) = {one.experiment_id for one in client.search_experiments() if one.name == "tiny"}
    runs = client.search_runs([experiment])
    names = [one.info.run_name for one in runs if "step" not in one.data.tags]
    assert sorted(names) == ["labels-only", "r00", "tiny"]


def labeled(folder: Path, answers: list[dict[str, Any]], truth: dict[str, float]) -> dict[str, float]:
    """What is told of a round of these answers about livers, if so much is known of them."""
    stage = folder / "rounds" / "r00"
    stage.mkdir(parents=True)
    label = {"done": 4, "failed": 0, "slices_embedded": 4, "cache_hits": 0, "volumes_per_hour": 9.0}
    for name, outputs in (("label", label), ("curate", {"rulings": {"accept": 2, "reject": 2}})):
        (stage / f"{name}.manifest.json").write_text(json.dumps({"outputs": outputs}))
    both = {"round": "r00", "structure": "liver", "specialist_ml": 5.0, "generalist_ml": 5.0}
    rows = [both | answer for answer in answers]
    pq.write_table(pa.Table.from_pylist(rows, ledger.schema()), stage / "ledger.parquet")
    with Rows(Place.of(stage / "truth.rows")) as written:
        for case, dice in truth.items():
            score = {"case": case, "structure": "liver", "dice": dice, "absent": False}
            written.add({"case": case, "outcome": "done", "scores": [score]})
    campaign: Any = SimpleNamespace(
        workspace=Workspace(Place.of(folder)), catalog=SimpleNamespace(structures=("liver",), quarantined=())
    )
    return recording.labeling(campaign, 0)


@pytest.mark.files
def test_how_good_answers_really_were_is_told_where_hidden_labels_tell(tmp_path: Path) -> None:
    answers: list[dict[str, Any]] = [
        {"case": "a", "ruling": "accept", "predicted_dice": 0.8, "dice_low": 0.7},
        {"case": "b", "ruling": "accept", "predicted_dice": 0.8, "dice_low": 0.6},
        {"case": "c", "ruling": "reject", "predicted_dice": 0.5, "dice_low": 0.2},
        {"case": "d", "ruling": "partial", "predicted_dice": 0.5, "dice_low": 0.3},
    ]
    known = labeled(tmp_path / "known", answers, {"a": 0.9, "b": 0.5, "c": 0.3, "d": 0.1})
    quality = {
        "label/accepted_true_dice": pytest.approx(0.7),
        "label/other_true_dice": pytest.approx(0.2),
        "label/true_dice_difference": pytest.approx(0.5),
        "label/held_bound_share": 0.5,
    }
    assert {name: known[name] for name in quality} == quality
    assert set(labeled(tmp_path / "none", answers, {})) == set(known) - set(quality)
    some = labeled(tmp_path / "some", [one | {"dice_low": None} for one in answers], {"a": 0.9})
    assert set(some) == set(known) - set(quality) | {"label/accepted_true_dice"}


@pytest.mark.torch
@pytest.mark.slow
def test_a_record_that_was_lost_is_made_again_from_the_workspace(
    recorded: tuple[Path, Finished, Listener],
) -> None:
    config, _, _ = recorded
    workspace, listener = config.parent / "workspace", Listener()
    other = f"sqlite:///{workspace}/other.db"
    report(load(config, RunSettings, ["tracking.enabled=true", f"tracking.uri={other}"]), listener)
    assert "recording in MLflow" in listener.said
    assert history(other, "r00", "train/loss") == expected(workspace, "r00")


DIE_AT_STEP_20 = """
import os, sys, time
from pathlib import Path
from tutelage.cli import main
from tutelage.rounds.telling import Told

tell = Told.on_step
workspace = Path(sys.argv[-1]).with_suffix("")

def die(self, report):
    if report.step == 20:  # with steps in memory that no file knows
        while not any(workspace.glob("rounds/*/checkpoint/step-000016-*.pt")):
            time.sleep(0.01)  # a thread writes it
        os._exit(9)
    tell(self, report)

Told.on_step = die
main(sys.argv[1:])
"""


@pytest.mark.torch
@pytest.mark.slow
def test_a_training_killed_in_the_middle_and_gone_on_tells_each_step_once_and_as_one_that_never_was(
    tiny_config: Callable[[str], Path], tmp_path: Path
) -> None:
    config, workspace = tiny_config("broken"), tmp_path / "broken"
    command = [sys.executable, "-c", DIE_AT_STEP_20, "train", "--round", "labels-only", str(config)]
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == 9
    before = told(workspace, "labels-only")
    assert 16 <= len(before) <= 20
    for name in ("broken", "unbroken"):
        step(load(tiny_config(name), RunSettings), Listener(), "train", -1)
    after = told(workspace, "labels-only")
    assert [row["step"] for row in after] == list(range(24))
    assert expected(workspace, "labels-only") == expected(tmp_path / "unbroken", "labels-only")
    assert after[:8] == before[:8]  # which came before the checkpoint that it went on from
