"""Copies come when requests wait and go when none do, and whoever asks meanwhile gets a right mask."""

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.serve.config import AutoscalingConfig

from tests.serve.running import Asking, Running, running
from tests.serve.serving import until

pytestmark = [pytest.mark.ray, pytest.mark.torch, pytest.mark.process]

_PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def server(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    from serve import app

    # As it is, but for how long Ray looks on: half a minute up, ten down.
    soon = functools.partial(
        AutoscalingConfig,
        upscale_delay_s=0.5,
        downscale_delay_s=2.0,
        metrics_interval_s=0.5,
        look_back_period_s=1.0,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "AutoscalingConfig", soon)
        folder = tmp_path_factory.mktemp("served")
        with running(folder, replicas=(1, 2), target_ongoing=1.0, drain_s=10.0) as server:
            yield server


def test_a_second_copy_comes_under_load_and_goes_again(server: Running, tmp_path: Path) -> None:
    assert len(server.pids()) == 1
    with Asking(server, tmp_path, clients=4) as asking:
        asking.until(lambda: len(server.pids()) == 2, _PATIENCE_S)
        before = len(asking.answers)
        asking.until(lambda: len(asking.answers) > before + 4, _PATIENCE_S)
    until(lambda: len(server.pids()) == 1, _PATIENCE_S)
    assert asking.errors == []
    assert [answer for answer in asking.answers if not server.is_right(answer)] == []
