"""What a training's rows say: every step, and every fifty steps how fast all of its processes were."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.listening import Listener
from tutelage.methods.settings import TrainSettings
from tutelage.methods.training import Pace, StepReport
from tutelage.rounds.campaign import opened
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.telling import Told, tracker_of
from tutelage.settings import load
from tutelage.storage import Place
from tutelage.tracking import campaign as records
from tutelage.tracking.journal import Journal, Row, read

pytestmark = pytest.mark.torch

SETTINGS = TrainSettings(steps=120, batch=8, checkpoint_every=20)


def report(step: int, seconds: float = 0.3, waited: float = 0.1, memory_mib: float = 5.0) -> StepReport:
    return StepReport(step, 1 / (step + 1), {"dice": 0.5}, 0.01, 2.0, seconds, waited, 4, memory_mib)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(Place.of(tmp_path))


def rows(journal: Journal) -> list[Row]:
    return list(read(journal.folder))


def test_a_step_is_told_with_all_that_it_did_and_when(journal: Journal) -> None:
    told = Told(journal, SETTINGS, clock=lambda: 1_700_000_000.5)
    told.on_step(report(0))
    journal.flush()
    assert rows(journal) == [
        {
            **{"step": 0, "loss": 1.0, "lr": 0.01, "gradient_norm": 2.0, "seconds": 0.3, "waited": 0.1},
            **{"patches": 4, "memory_mib": 5.0, "time_ms": 1_700_000_000_500, "terms": {"dice": 0.5}},
        }
    ]


def test_what_the_machine_is_at_is_in_the_row_of_the_step_that_looked(journal: Journal) -> None:
    told = Told(journal, SETTINGS)
    told.on_step(report(0))
    told.on_step(replace(report(1), system={"cpu_utilization_percentage": 70.0}))
    journal.flush()
    assert [row.get("system") for row in rows(journal)] == [None, {"cpu_utilization_percentage": 70.0}]


def test_pace_is_told_every_fifty_steps_and_with_the_last(journal: Journal) -> None:
    told = Told(journal, SETTINGS)
    for step in range(120):
        told.on_step(report(step, memory_mib=float(step)))
    paces = {row["step"]: row["pace"] for row in rows(journal) if "pace" in row}
    assert list(paces) == [49, 99, 119]
    assert paces[49] == {
        "patches_per_s": pytest.approx(8 / 0.4),
        "wait_share": pytest.approx(0.25),
        "memory_mib": 49.0,
    }


def test_skew_is_how_much_longer_the_slowest_process_takes(journal: Journal) -> None:
    told = Told(journal, SETTINGS)
    for step in range(100):
        told.on_step(report(step, seconds=0.2, waited=0.0))
        if step >= 10:  # the others are told of later
            told.on_pace(Pace(step - 10, 1, 0.2, 0.0))
            told.on_pace(Pace(step - 10, 2, 0.5, 0.2))
    journal.flush()
    pace = rows(journal)[99]["pace"]
    assert pace["skew"] == pytest.approx(0.5 / 0.3)
    assert pace["wait_share"] == pytest.approx(0.2 / (0.2 + 0.2 + 0.7))
    assert pace["patches_per_s"] == pytest.approx(8 / 0.2)


def test_a_process_that_never_tells_of_its_steps_is_not_waited_for(journal: Journal) -> None:
    told = Told(journal, TrainSettings(steps=1000))
    told.on_pace(Pace(0, 1, 0.2, 0.0))
    for step in range(1000):
        told.on_step(report(step))
    assert len(told._window._seconds) <= 200
    assert "skew" not in rows(journal)[-1]["pace"]


def test_every_step_before_a_checkpoint_is_in_a_file_before_it(journal: Journal) -> None:
    told = Told(journal, SETTINGS)
    for step in range(45):
        told.on_step(report(step))
        if (step + 1) % 20 == 0:
            assert len(rows(journal)) == step + 1
    assert len(rows(journal)) == 40


def test_steps_that_are_repeated_are_told_once_and_pace_begins_anew(journal: Journal) -> None:
    told = Told(journal, SETTINGS)
    for step in range(35):
        told.on_step(report(step, seconds=9.0))
    for step in range(20, 50):
        told.on_step(report(step, seconds=0.4, waited=0.0))
    journal.flush()
    assert [row["step"] for row in rows(journal)] == list(range(50))
    assert rows(journal)[49]["pace"]["patches_per_s"] == pytest.approx(8 / 0.4)


def test_a_record_is_opened_with_settings_that_hold_no_password_as_the_same_campaign(
    tiny_config: Callable[[str], Path], dead_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(host: str) -> tuple[Any, ...]:
        uri = f"tracking.uri=http://{host}:{dead_port}"
        settings = load(tiny_config("workspace"), RunSettings, ["tracking.enabled=true", uri])
        with opened(settings, Listener()) as campaign:
            return tuple(tracker_of(campaign))  # type: ignore[arg-type]

    monkeypatch.setattr(records, "Tracker", lambda *given: given)
    plain, hidden = told("127.0.0.1"), told("me:hunter2@127.0.0.1")
    tracking, *_, parameters, identity = hidden
    assert tracking.uri == f"http://me:hunter2@127.0.0.1:{dead_port}"  # MLflow itself needs it
    assert parameters["tracking"] == tracking.model_dump(mode="json") | {
        "uri": f"http://***@127.0.0.1:{dead_port}"
    }
    assert identity == plain[-1]
