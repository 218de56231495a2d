"""A labeling round on a head and two nodes with addresses of their own, one of them killed in the middle."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import starting
from tests.conftest import free_port
from tests.rounds.test_kill import content
from tutelage.labels.rows import Rows
from tutelage.storage import Place

pytestmark = [pytest.mark.ray, pytest.mark.slow]

HEAD, NODES = "127.0.0.1", ("127.0.0.2", "127.0.0.3")
"""Linux answers on all of 127/8."""

ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",  # or a test before, whose Ray stays on loopback, forbids nodes
    "RAY_worker_niceness": "0",  # other tests have the same cores
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "10",  # a busy machine must not look like a dead one
}


class Cluster:
    """Raylets as processes, of which one can die as a machine does."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.address = f"{HEAD}:{free_port()}"
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, node: str, *words: str) -> None:
        """Start a node and wait until it is up."""
        words = (
            f"--node-ip-address={node}", f"--object-store-memory={120 * 2**20}",
            f"--dashboard-agent-listen-port={free_port()}", *words,
        )  # fmt: skip
        self._started[node] = starting.node(self.logs / f"{node}.log", list(words), ENVIRONMENT)

    def kill(self, node: str) -> None:
        starting.end(self._started.pop(node))

    def close(self) -> None:
        for node in list(self._started):
            self.kill(node)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    try:
        made.start(
            HEAD, "--head", f"--port={made.address.rpartition(':')[2]}", "--num-cpus=0",
            "--include-dashboard=false",
        )  # fmt: skip
        for node in NODES:
            made.start(node, f"--address={made.address}", "--num-cpus=2")
        yield made
    finally:
        made.close()


def command(verb: str, config: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "tutelage.cli", verb, str(config), *words]


def test_a_node_that_is_lost_while_it_labels_changes_nothing_that_is_kept(
    cluster: Cluster, tiny_config: Callable[[str], Path], tmp_path: Path
) -> None:
    more = ["archive.synthetic.patients=16"]
    subprocess.run(command("run", tiny_config("unbroken"), *more), check=True, capture_output=True)
    config, rows = tiny_config("broken"), Rows(Place.of(tmp_path / "broken/rounds/r00/label.rows"))
    subprocess.run(command("train", config, *more, "--round", "labels-only"), check=True, capture_output=True)
    labeling = subprocess.Popen(
        command("label", config, *more, "--round", "0", "cluster.backend=ray",
                f"cluster.address={cluster.address}", "cluster.actors=2"),
        env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    until = time.monotonic() + 240
    while not rows.folder.files(".parquet"):
        assert labeling.poll() is None, labeling.communicate()[0]
        assert time.monotonic() < until, "nothing was labeled"
        time.sleep(0.02)
    cluster.kill(NODES[0])
    told, _ = labeling.communicate(timeout=300)
    assert labeling.returncode == 0, told
    assert len(rows.read()) == 12
    subprocess.run(command("run", config, *more), check=True, capture_output=True)
    assert content(tmp_path / "broken") == content(tmp_path / "unbroken")
