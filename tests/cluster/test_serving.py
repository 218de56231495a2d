"""What a copy of the server finds in its surroundings."""

from pathlib import Path

import pytest

from tutelage.cluster import serving
from tutelage.cluster.settings import ServingSettings

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
HEAPS = "MALLOC_ARENA_MAX"


def surroundings(tracking_uri: str | None = None) -> dict[str, str]:
    job = serving.ServeJob({}, "127.0.0.1", 8000, ServingSettings(open=True), tracking_uri)
    found: dict[str, str] = serving._actor(Path("/code"), Path("/scratch"), job)["runtime_env"]["env_vars"]
    return found


@pytest.mark.parametrize("name", [HUGE_PAGES, HEAPS])
def test_a_copy_has_memory_as_serving_wants_it_unless_somebody_says_otherwise(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(name, raising=False)
    assert surroundings()[name] == "1"
    monkeypatch.setenv(name, "0")
    assert surroundings()[name] == "0"


def test_it_finds_our_code_before_what_the_caller_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    assert surroundings()["PYTHONPATH"] == "/code:/code/platform:/theirs"


def test_it_asks_the_registry_that_the_job_names_then_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "MLFLOW_TRACKING_URI" not in surroundings()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://caller")
    assert surroundings()["MLFLOW_TRACKING_URI"] == "http://caller"
    assert surroundings("http://job")["MLFLOW_TRACKING_URI"] == "http://job"
