"""Which specialist answers: followed, tested, exchanged under load, refused, and brought back."""

import functools
import json
import logging
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from tests.serve.serving import until
from tests.serve.specialists import (
    SCAN,
    Serve,
    counted,
    digest,
    nan,
    promote,
    useless,
    write,
)
from tutelage.specialist import artifact
from tutelage.storage import Place

if TYPE_CHECKING:
    from serve.models import Models

pytestmark = pytest.mark.torch


def test_a_new_champion_is_followed_and_going_back_is_the_same(serving: Serve, workspace: Path) -> None:
    models = serving({"torso": workspace}, follow_s=0.02)
    models.follow()
    for stage in ("r00", "labels-only"):
        promote(workspace, stage)
        until(functools.partial(_is_served, models, stage))
        assert models.get().digest == digest(workspace, stage)
        assert models.describe()[0]["round"] == stage


def test_nothing_is_loaded_while_nothing_changes(
    serving: Serve, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve import models as module

    models = serving({"torso": workspace})
    loads = counted(monkeypatch, module)
    before = models.get()
    for _ in range(3):
        models.refresh()
    promote(workspace, "labels-only")
    models.refresh()
    assert loads == []
    assert models.get() is before


def test_under_load_no_call_fails_and_each_answer_is_by_exactly_one(serving: Serve, workspace: Path) -> None:
    models = serving({"torso": workspace})
    alone = {}
    for stage in ("r00", "labels-only"):
        promote(workspace, stage)
        models.refresh()
        alone[digest(workspace, stage)] = models.get()(SCAN).mask_DHW
    one, other = alone.values()
    assert not np.array_equal(one, other)
    seen: Counter[str] = Counter()
    over, lock = threading.Event(), threading.Lock()

    def asking() -> None:
        while not over.is_set():
            done = models.get()(SCAN)
            assert np.array_equal(done.mask_DHW, alone[done.digest])
            with lock:
                seen[done.digest] += 1

    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(asking) for _ in range(3)]
        try:
            for stage in ("r00", "labels-only") * 3:
                promote(workspace, stage)
                models.refresh()
                now = digest(workspace, stage)
                before = seen[now]
                while seen[now] == before and not any(call.done() for call in calls):
                    time.sleep(0.005)
        finally:
            over.set()
        for call in calls:
            call.result(60)
    assert set(seen) == set(alone)


def test_what_is_in_flight_ends_with_the_one_it_began_with(serving: Serve, workspace: Path) -> None:
    models = serving({"torso": workspace})
    begun, swapped = threading.Event(), threading.Event()

    def hold(done: int, total: int) -> None:
        begun.set()
        assert swapped.wait(30)

    with ThreadPoolExecutor(1) as pool:
        old = pool.submit(models.get(), SCAN, progress=hold)
        assert begun.wait(30)
        promote(workspace, "r00")
        models.refresh()
        assert models.get()(SCAN).digest == digest(workspace, "r00")
        swapped.set()
        assert old.result(30).digest == digest(workspace, "labels-only")


def cut(folder: Path) -> None:
    file = folder / artifact.WEIGHTS
    file.write_bytes(file.read_bytes()[:-10])


def other_weights(folder: Path) -> None:
    """As from somebody who changes weights and makes the description's checksum fit."""
    import hashlib

    state = torch.load(folder / artifact.WEIGHTS, weights_only=True)
    torch.save({name: tensor + 1 for name, tensor in state.items()}, folder / artifact.WEIGHTS)
    told = json.loads((folder / artifact.DESCRIPTION).read_text())
    told["weights_sha256"] = hashlib.sha256((folder / artifact.WEIGHTS).read_bytes()).hexdigest()
    (folder / artifact.DESCRIPTION).write_text(json.dumps(told))


def no_numbers(folder: Path) -> None:
    _, plan, _ = artifact.load(Place.of(folder))
    state = torch.load(folder / artifact.WEIGHTS, weights_only=True)
    nan(state)
    artifact.save(Place.of(folder), state, plan, {})


@pytest.mark.parametrize(
    ("damage", "told"),
    [(cut, "changed or cut"), (other_weights, "its weights have digest"), (no_numbers, "no numbers")],
)
def test_a_bad_champion_is_refused_once_and_the_old_one_stays(
    serving: Serve,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    damage: Callable[[Path], None],
    told: str,
) -> None:
    from serve import models as module

    models = serving({"torso": workspace})
    before = models.get()
    bad = workspace / "rounds" / "r00" / "specialist"
    damage(bad)
    promote(workspace, "r00")
    loads = counted(monkeypatch, module)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            models.refresh()
    assert len(loads) == 1
    assert caplog.text.count("is refused") == 1
    assert models.get() is before
    (one,) = models.describe()
    assert one["version"] == "labels-only"
    assert told in caplog.text
    assert "log of the server" in one["refused"]["reason"]
    assert str(tmp_path) not in json.dumps(models.describe()), "whoever may predict is told no folders"
    assert (one["refused"]["version"], one["refused"]["digest"]) == ("r00", digest(workspace, "r00"))
    promote(workspace, "labels-only")
    models.refresh()
    assert models.describe()[0]["refused"] is None
    assert models.get() is before


def test_one_that_was_damaged_on_the_way_is_taken_once_it_is_whole(serving: Serve, workspace: Path) -> None:
    models = serving({"torso": workspace})
    folder = workspace / "rounds" / "r00" / "specialist"
    whole = (folder / artifact.WEIGHTS).read_bytes()
    cut(folder)
    promote(workspace, "r00")
    models.refresh()
    assert models.get().version == "labels-only"
    (folder / artifact.WEIGHTS).write_bytes(whole)
    models.refresh()
    assert models.get().version == "r00"
    assert models.describe()[0]["refused"] is None


def test_a_champion_that_is_clearly_worse_on_the_stored_case_is_refused(
    serving: Serve, tiny_campaign: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "campaign"
    shutil.copytree(tiny_campaign.parent / "workspace", root)
    models = serving({"campaign": root})
    before = models.get()
    write(root / "rounds" / before.version / "specialist", root / "rounds" / "r09" / "specialist", 0, useless)
    promote(root, "r09")
    models.refresh()
    assert models.get() is before
    assert "fails its self-test" in models.describe()[0]["refused"]["reason"]
    assert "on the stored case" in caplog.text


def test_a_model_that_made_room_comes_back_as_it_was_though_a_bad_one_is_champion(
    serving: Serve, specialist: Callable[..., str], workspace: Path, tmp_path: Path
) -> None:
    specialist(tmp_path / "other", 7)
    models = serving({"torso": workspace, "other": tmp_path / "other"}, loaded=1)
    models.get("other")
    no_numbers(workspace / "rounds" / "r00" / "specialist")
    promote(workspace, "r00")
    models.refresh()
    assert list(models.loaded()) == ["other"]
    assert models.get("torso").version == "labels-only"


def test_a_new_champion_of_a_model_that_made_room_is_tested_and_loaded_when_asked_for(
    serving: Serve, specialist: Callable[..., str], workspace: Path, tmp_path: Path
) -> None:
    specialist(tmp_path / "other", 7)
    models = serving({"torso": workspace, "other": tmp_path / "other"}, loaded=1)
    models.get("other")
    promote(workspace, "r00")
    models.refresh()
    assert list(models.loaded()) == ["other"]
    assert models.describe()[0]["version"] == "r00"
    assert models.get("torso").version == "r00"


def test_a_source_that_is_gone_for_a_while_changes_nothing_and_is_told(
    serving: Serve, workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = serving({"torso": workspace})
    before = models.get()
    (workspace / "champion.json").rename(workspace / "aside.json")
    for _ in range(2):
        models.refresh()
    assert models.get() is before
    told = models.describe()[0]["source_unreadable"]
    assert "cannot be read (WorkspaceError)" in told
    assert str(workspace) not in told
    assert "no champion" in caplog.text
    assert caplog.text.count("cannot be read") == 1
    (workspace / "aside.json").rename(workspace / "champion.json")
    models.refresh()
    assert models.describe()[0]["source_unreadable"] is None
    promote(workspace, "r00")
    models.refresh()
    assert models.get().version == "r00"


# --- MLflow -------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_alias_in_mlflow_is_followed_to_a_version_and_back(
    serving: Serve,
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    start_mlflow: Callable[..., str],
) -> None:
    """On a real server, which goes away for a while."""
    from tests.gates import Gate
    from tutelage.tracking.campaign import Tracker
    from tutelage.tracking.registry import Registry
    from tutelage.tracking.settings import TrackingSettings

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    gate = Gate(start_mlflow())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gate.uri)
    settings = TrackingSettings(uri=gate.uri)
    versions = {}
    with Tracker(settings, Place.of(workspace), "one", {}) as tracker:
        for stage in ("labels-only", "r00"):
            folder = Place.of(workspace / "rounds" / stage / "specialist")
            run = tracker.stage(stage)
            tags = {"stage": stage, "dice": "0.5"}
            versions[stage] = tracker.register(run, folder, artifact.digest_of(folder), tags).version
        registry = tracker.registry
        registry.promote(versions["labels-only"])
        models = serving({"torso": "models:/one@champion"})
        downloads: list[str] = []
        download = Registry.download

        def downloading(self: Registry, address: str, into: Path) -> Path:
            downloads.append(address)
            return download(self, address, into)

        monkeypatch.setattr(Registry, "download", downloading)
        models.refresh()
        assert downloads == []
        assert models.get().digest == digest(workspace, "labels-only")
        assert models.describe()[0]["scorecard"] == {"mean": 0.5}
        for stage in ("r00", "labels-only"):
            registry.promote(versions[stage])
            models.refresh()
            assert models.get().digest == digest(workspace, stage)
            assert models.get().version == versions[stage]
            assert models.describe()[0]["round"] == stage
        assert downloads == [f"models:/one/{versions[stage]}" for stage in ("r00", "labels-only")]
        before = models.get()
        registry.promote(versions["r00"])
        gate.mode = "down"
        models.refresh()
        assert models.get() is before
        assert "cannot be read (TrackingError)" in models.describe()[0]["source_unreadable"]
        assert "MLflow" in caplog.text
        gate.mode = "open"
        models.refresh()
        assert models.get().digest == digest(workspace, "r00")
        assert models.describe()[0]["source_unreadable"] is None


@pytest.mark.slow
def test_a_registered_model_is_tested_on_the_case_of_its_home(
    serving: Serve,
    tiny_campaign: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from tutelage.tracking.campaign import Tracker
    from tutelage.tracking.settings import TrackingSettings

    home = tiny_campaign.parent / "workspace"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    folder = Place.of(home / str(json.loads((home / "champion.json").read_text())["folder"]))
    good, bad = artifact.digest_of(folder), write(Path(str(folder)), tmp_path / "bad", 0, useless)
    with Tracker(TrackingSettings(), Place.of(tmp_path), "one", {}) as tracker:
        run = tracker.stage("r00")
        tracker.registry.promote(tracker.register(run, folder, good, {}).version)
        address = "models:/one@champion"
        models = serving({"torso": address}, homes={"torso": str(home)})
        assert models.describe()[0]["selftest"]["stored_case"]
        run = tracker.stage("r01")
        tracker.registry.promote(tracker.register(run, Place.of(tmp_path / "bad"), bad, {}).version)
        models.refresh()
        assert models.get().digest == good
        assert "fails its self-test" in models.describe()[0]["refused"]["reason"]
        assert "on the stored case" in caplog.text


def _is_served(models: "Models", stage: str) -> bool:
    return models.get().version == stage
