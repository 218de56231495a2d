"""Jobs elsewhere when networks and people are in the way: connections break, clusters want a token."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.dashboards import JOB, LOG, Dashboard, dashboard
from tutelage.cluster import submitting
from tutelage.cluster.session import session
from tutelage.cluster.settings import ClusterSettings
from tutelage.errors import SettingsError, WorkspaceError

pytestmark = pytest.mark.ray


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    monkeypatch.setattr(submitting, "_PAUSE_S", 0.01)
    with dashboard() as made:
        yield made


def followed(there: Dashboard) -> tuple[str, str]:
    """Follow the job; returns what it wrote and how it ended."""
    told: list[str] = []
    ended = submitting.Cluster(there.address).follow(JOB, told.append)
    return "".join(told), ended.state


def test_what_was_told_before_a_connection_broke_is_not_told_again(there: Dashboard) -> None:
    there.tails = ["one\n", "one\ntw", ""]
    assert followed(there) == (LOG, "SUCCEEDED")


def test_a_question_that_is_lost_on_the_way_is_asked_again(there: Dashboard) -> None:
    there.tails, there.lost = ["one\n"], 2
    assert followed(there) == (LOG, "SUCCEEDED")


def test_a_cluster_that_stays_away_is_told_as_such_and_not_as_a_job_that_never_was(
    there: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitting, "_LOST_S", 0.05)
    cluster, there.status = submitting.Cluster(there.address), 500
    with pytest.raises(WorkspaceError, match="go on without us"):
        cluster.follow(JOB, lambda _: None)
    with pytest.raises(WorkspaceError, match="status code 500"):
        cluster.jobs()
    with pytest.raises(WorkspaceError, match="status code 500"):
        cluster.find(JOB)


def test_a_name_that_no_job_has_is_told_at_once(there: Dashboard) -> None:
    cluster = submitting.Cluster(there.address)
    with pytest.raises(SettingsError, match="has no job nobody"):
        cluster.find("nobody")
    with pytest.raises(SettingsError, match="has no job nobody"):
        cluster.follow("nobody", lambda _: None)


@pytest.mark.parametrize("status", [401, 403])
def test_a_cluster_that_wants_a_token_is_told_with_where_to_put_it(there: Dashboard, status: int) -> None:
    cluster = submitting.Cluster(there.address)
    there.status = status
    with pytest.raises(SettingsError, match="set RAY_AUTH_MODE=token"):
        cluster.jobs()
    with pytest.raises(SettingsError, match="set RAY_AUTH_MODE=token"):
        submitting.Cluster(there.address)


# --- whose word on tokens counts ------------------------------------------------------------------


@contextmanager
def noted(monkeypatch: pytest.MonkeyPatch, failure: Exception | None = None) -> Iterator[list[str | None]]:
    """Note what Ray is told about tokens whenever it is started or joined; none is."""
    import ray

    modes: list[str | None] = []

    def init(**_: Any) -> None:
        modes.append(os.environ.get("RAY_AUTH_MODE"))
        if failure is not None:
            raise failure

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    yield modes


def test_only_a_ray_that_is_started_here_is_told_to_ask_for_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with noted(monkeypatch) as modes:
        for address in ("local", "auto", "10.0.0.7:6379"):
            with session(ClusterSettings(address=address)):
                assert "RAY_AUTH_MODE" not in os.environ, "a cluster that is joined later has its own word"
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        with session(ClusterSettings()):
            pass
    assert modes == ["disabled", None, None, "token"]


def test_a_ray_that_is_joined_and_wants_a_token_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import AuthenticationError, RaySystemError

    gone = RaySystemError("gone")  # type: ignore[no-untyped-call]
    told: dict[Exception, type[Exception]] = {
        AuthenticationError("no token"): SettingsError,
        gone: WorkspaceError,
    }
    for failure, ours in told.items():
        with noted(monkeypatch, failure), pytest.raises(ours, match=r"10\.0\.0\.7"):  # noqa: SIM117
            with session(ClusterSettings(address="10.0.0.7:6379")):
                pass


# --- how long a job that is stopped has --------------------------------------------------------------


def test_plain_ray_gives_a_job_as_long_to_end_as_submit_does() -> None:
    import yaml

    told = yaml.safe_load((Path(__file__).parents[2] / "configs/runtime_env.yaml").read_text())
    assert told["env_vars"] == submitting.ENVIRONMENT


def test_how_long_a_job_has_to_end_is_said_as_ray_reads_it() -> None:
    from ray.dashboard.modules.job import job_supervisor

    (name,) = (name for name in submitting.ENVIRONMENT if name.startswith("RAY_"))
    assert f'"{name}"' in Path(job_supervisor.__file__).read_text()
