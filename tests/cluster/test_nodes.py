"""A labeling round on a head and two nodes that share a store, one of them killed in the middle.

Each is a machine with a network and an address of its own, where this one permits that. The workspace is on
an S3-compatible store, to which every machine goes with a key of its own: so it is known who did what.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from tests.cluster.machines import Machine, NotPermittedError, apart, on_loopback
from tests.cluster.nodes import PATIENCE_S, Cluster, comes
from tests.conftest import free_port
from tests.rounds.test_kill import content
from tutelage.rounds.progress import Reporter
from tutelage.rounds.run import step
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.workspace import LABELS_ONLY
from tutelage.settings import load

pytest.importorskip("moto", reason="no S3-compatible server here: tutelage[dev] brings moto")
pytestmark = pytest.mark.ray

BUCKET = "archive"
ON_LOOPBACK = "TUTELAGE_TEST_LOOPBACK"
"""In the environment: machines share this one's network, as they do where no other is permitted."""

STORE = {
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
COPY = """
import sys
from pathlib import Path
from tutelage.storage import Place
source, target, labels = Place.of(sys.argv[1]), Path(sys.argv[2]), "rounds/r00/labels"
for name in ["ledger.parquet", *(f"{labels}/{name}" for name in (source / labels).names())]:
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    (target / name).write_bytes((source / name).read_bytes())
"""
LISTEN = """
import socket, sys
with socket.create_server((sys.argv[1], 5000)) as server:
    print("here", flush=True)
    print(server.accept()[1][0])
"""
CALL = "import socket, sys; socket.create_connection((sys.argv[1], 5000), 30)"


class Sharing(Cluster):
    """A cluster with a store on its head."""

    def __init__(self, machines: Sequence[Machine], folder: Path) -> None:
        super().__init__(folder, machines)
        self._store = f"{self.head.address}:{free_port()}"
        self._log = folder / "asked.log"
        self._begun: list[subprocess.Popen[str]] = []

    def environment(self, on: Machine) -> dict[str, str]:
        """Return the environment of a process on a machine, which has a key of its own."""
        own = {"AWS_ENDPOINT_URL": f"http://{self._store}", "AWS_ACCESS_KEY_ID": on.address}
        return super().environment(on) | STORE | own

    def start_all(self) -> None:
        """Start a store, a head without cores, and nodes with cores."""
        host, port = self._store.split(":")
        script, log = str(Path(__file__).with_name("store.py")), self.logs / "store.log"
        command = [*self.head.enter, sys.executable, script, host, port, BUCKET, str(self._log)]
        process = self.begun("store", command, log, dict(os.environ))
        assert comes(lambda: "Running on" in log.read_text(), process), log.read_text()
        self.start(
            self.head.address, "--head", f"--port={self.address.partition(':')[2]}", "--num-cpus=0",
            "--include-dashboard=false",
        )  # fmt: skip
        for node in self.nodes:
            self.start(node.address, f"--address={self.address}", "--num-cpus=2")

    def begin(self, *command: str) -> "subprocess.Popen[str]":
        """Start a command on the head."""
        running = subprocess.Popen(
            [*self.head.enter, *command], env=self.environment(self.head),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self._begun.append(running)
        return running

    def call(self, *command: str) -> None:
        """Run a command on the head."""
        running = self.begin(*command)
        told, _ = running.communicate(timeout=PATIENCE_S)
        assert running.returncode == 0, told

    def close(self) -> None:
        for running in self._begun:
            running.kill()  # nothing, if it has ended
            running.communicate()
        super().close()

    def labeled(self) -> dict[str, set[str]]:
        """Return the cases of which each machine has stored what generalists answered."""
        found = defaultdict(set)
        for name, _, verb, path in self._asked():
            if verb == "PUT" and "/candidates/" in path:
                found[name].add(path.rpartition("/")[2])
        return found

    def came_from(self) -> dict[str, set[str]]:
        """Return the addresses from which each machine came to the store."""
        found = defaultdict(set)
        for name, address, _, _ in self._asked():
            found[name].add(address)
        return found

    def _asked(self) -> list[list[str]]:
        return [line.split(" ", 3) for line in self._log.read_text().splitlines()]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Sharing]:
    with contextlib.ExitStack() as stack:
        try:
            machines = on_loopback(3) if ON_LOOPBACK in os.environ else stack.enter_context(apart(3))
        except NotPermittedError as error:
            warnings.warn(f"nodes share this machine's network: {error}", stacklevel=1)
            machines = on_loopback(3)
        made = Sharing(machines, tmp_path)
        stack.callback(made.close)
        made.start_all()
        yield made


def command(verb: str, config: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "tutelage.cli", verb, str(config), *words]


@pytest.mark.timeout(1200)  # it starts some thirty processes, beside what other tests start
def test_a_node_that_is_lost_while_it_labels_changes_nothing_that_is_kept(
    cluster: Sharing, tiny_config: Callable[[str], Path], tmp_path: Path
) -> None:
    more = ["archive.synthetic.patients=16"]
    settings = load(tiny_config("unbroken"), RunSettings, more)
    for name, number in (("train", LABELS_ONLY), ("label", 0), ("curate", 0)):
        step(settings, Reporter(Console(quiet=True)), name, number)
    config, workspace = tiny_config("broken"), f"s3://{BUCKET}/broken"
    config.write_text(config.read_text().replace(str(tmp_path / "broken"), workspace))
    cluster.call(*command("train", config, *more, "--round", "labels-only"))

    labeling = cluster.begin(
        *command("label", config, *more, "--round", "0", "cluster.backend=ray"),
        f"cluster.address={cluster.address}", "cluster.actors=2",
    )  # fmt: skip
    lost, before = killed_when_it_has_labeled(cluster, labeling)
    told, _ = labeling.communicate(timeout=300)
    assert labeling.returncode == 0, told
    labeled = cluster.labeled()
    (other,) = {node.address for node in cluster.nodes} - {lost}
    assert len(before) < len(labeled[lost] | labeled[other]) == 12, "it was not killed in the middle"
    assert labeled[other] >= (labeled[lost] | labeled[other]) - before, "the other one did not do the rest"
    if cluster.head.enter:
        for machine in (cluster.head, *cluster.nodes):
            assert cluster.came_from()[machine.address] == {machine.address}

    cluster.call(*command("curate", config, *more, "--round", "0"))
    cluster.call(sys.executable, "-c", COPY, workspace, str(tmp_path / "broken"))
    assert content(tmp_path / "broken") == content(tmp_path / "unbroken")


def killed_when_it_has_labeled(cluster: Sharing, labeling: "subprocess.Popen[str]") -> tuple[str, set[str]]:
    """Kill the first node that has stored an answer; return it, and what all had stored by then."""
    until = time.monotonic() + PATIENCE_S
    while not (done := cluster.labeled()):
        assert labeling.poll() is None, labeling.communicate()[0]
        assert time.monotonic() < until, "nothing was labeled"
        time.sleep(0.02)
    lost = next(iter(done))
    assert lost in {node.address for node in cluster.nodes}, "somebody else labeled"
    cluster.kill(lost)
    return lost, set().union(*cluster.labeled().values())


def test_machines_have_networks_of_their_own_where_that_is_permitted() -> None:
    with contextlib.ExitStack() as stack:
        try:
            machines = stack.enter_context(apart(3))
        except NotPermittedError as error:
            pytest.skip(f"this machine makes no networks for this user: {error}")
        for machine in machines:
            told = subprocess.check_output([*machine.enter, "ip", "-json", "-4", "address"], text=True)
            found = {each["local"] for device in json.loads(told) for each in device["addr_info"]}
            assert found == {"127.0.0.1", machine.address}
        first, *_, last = machines
        with subprocess.Popen(
            [*first.enter, sys.executable, "-c", LISTEN, first.address], stdout=subprocess.PIPE, text=True
        ) as listening:
            assert listening.stdout is not None
            assert listening.stdout.readline() == "here\n"
            subprocess.run([*last.enter, sys.executable, "-c", CALL, first.address], check=True, timeout=60)
            assert listening.stdout.read() == f"{last.address}\n"


def test_where_no_networks_are_permitted_it_is_said_what_was_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotPermittedError, match=r"No such file.*unshare"), apart(2):
        pass
    refusing = tmp_path / "unshare"
    refusing.write_text("#!/bin/sh\necho unshare: Operation not permitted >&2\nexit 1\n")
    refusing.chmod(0o755)
    with pytest.raises(NotPermittedError, match="Operation not permitted"), apart(2):
        pass
