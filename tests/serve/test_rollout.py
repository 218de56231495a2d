"""A new champion takes over while clients ask: none of them notices anything but who answers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.running import Asking, Running, running

pytestmark = [pytest.mark.ray, pytest.mark.torch, pytest.mark.process]


@pytest.fixture(scope="module")
def server(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("served")) as server:
        yield server


def test_no_request_fails_while_the_champion_changes_and_is_rolled_back(
    server: Running, tmp_path: Path
) -> None:
    first, second = server.digests
    with Asking(server, tmp_path, clients=3) as asking:
        asking.until(lambda: asking.specialists() == {first})
        server.promote("r01")
        asking.until(lambda: second in asking.specialists())
        before = len(asking.answers)
        server.promote("r00")
        asking.until(lambda: first in {answer.specialist for answer in asking.answers[before:]})
    assert asking.errors == []
    assert [answer for answer in asking.answers if not server.is_right(answer)] == []
    assert server.model()["version"] == "r00"


def test_a_bad_champion_is_refused_and_asking_goes_on(server: Running, tmp_path: Path) -> None:
    import torch

    from tests.serve.running import _made
    from tutelage.specialist import artifact
    from tutelage.storage import Place

    broken = Place.of(server.folder / "workspace" / "rounds" / "r02" / "specialist")
    network, plan, _ = artifact.load(_made(broken, seed=2))
    state = {name: torch.full_like(value, float("nan")) for name, value in network.state_dict().items()}
    digest = artifact.save(broken, state, plan, {})
    with Asking(server, tmp_path, clients=2) as asking:
        asking.until(lambda: asking.answers)
        server.promote("r02")
        asking.until(lambda: server.model()["refused"])
        before = len(asking.answers)
        asking.until(lambda: len(asking.answers) > before + 3)
    assert asking.errors == []
    assert asking.specialists() == {server.digests[0]}
    refused = server.model()["refused"]
    assert refused["digest"] == digest
    assert "self-test" in refused["reason"]
    server.promote("r00")
    with Asking(server, tmp_path, clients=1) as asking:
        asking.until(lambda: server.model()["refused"] is None)
