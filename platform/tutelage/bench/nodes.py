"""Several Ray nodes on this machine, each with an address of its own, and what a second one brings.

Every node is a group of processes that was started as it would be on a machine of its own, by `ray
start`; they share cores, memory and disk. Linux answers on all of 127/8, so they need no right to
make networks. What Ray's object store did is asked of Ray's own command.
"""

import contextlib
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tutelage.bench.base import Measured
from tutelage.bench.labeling import Archive, Labeled, is_worker
from tutelage.bench.processes import descendants
from tutelage.errors import WorkspaceError

HEAD = "127.0.0.1"
NODES = ("127.0.0.2", "127.0.0.3")

_CORES = 2
"""Of a node: one for its actor, and one for what Ray Data does itself."""

ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A Ray that this process had kept on loopback left a word behind that forbids nodes.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
    "RAY_worker_niceness": "0",  # else they wait for whatever else this machine does
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "240",
}
"""Of nodes, and of the commands that join them."""
_STORE_MIB = 120
_START_S = 240.0
_TRIES = 3
"""Ray gives up on a raylet that is not up within 30 seconds, whatever it is told."""
_END_S = 60.0
_TOLD_CHARACTERS = 1000


class Nodes:
    """A head without cores, and the nodes that joined it."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self.address = f"{HEAD}:{_free_port()}"
        port = self.address.rpartition(":")[2]
        self._start(HEAD, "--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false")

    def join(self, node: str, cores: int = _CORES) -> None:
        """Start a node. One after another: two that start together may take the same socket."""
        self._start(node, f"--address={self.address}", f"--num-cpus={cores}")

    def working(self) -> set[str]:
        """Return the nodes on which somebody works on cases at the moment."""
        return {node for node, one in self._started.items() if any(map(is_worker, descendants(one.pid)))}

    def processes(self) -> list[int]:
        """Return the first process of every node."""
        return [one.pid for one in self._started.values()]

    def spilled_mib(self) -> float:
        """Return how much the object stores of all nodes have put on disk so far."""
        told = subprocess.run(
            [_ray(), "memory", f"--address={self.address}", "--stats-only"],
            env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=_START_S, check=False,
        )  # fmt: skip
        return spilled_of(told.stdout)

    def close(self) -> None:
        """End all nodes, the head last."""
        for node in reversed(list(self._started)):
            _end(self._started.pop(node))

    def _start(self, node: str, *words: str) -> None:
        told = [
            f"--node-ip-address={node}", f"--object-store-memory={_STORE_MIB * 2**20}",
            f"--dashboard-agent-listen-port={_free_port()}", *words,
        ]  # fmt: skip
        self._started[node] = started(self._logs / f"{node}.log", told, ENVIRONMENT)


def started(log: Path, words: Sequence[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start a node in a session of its own, and return its first process once it is up.

    Raises:
        WorkspaceError: it does not come up, however often it is tried.
    """
    for _ in range(_TRIES):
        with log.open("w") as stream:
            process = subprocess.Popen(
                [_ray(), "start", "--block", *words],
                env=os.environ | environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + _START_S
        while process.poll() is None and time.monotonic() < until:
            if "Ray runtime started" in log.read_text():
                return process
            time.sleep(0.1)
        _end(process)
    raise WorkspaceError(
        f"no Ray node with {' '.join(words)} after {_TRIES} tries, expected one; it said: "
        f"{log.read_text()[-_TOLD_CHARACTERS:]}"
    )


def _end(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(_END_S)


@contextlib.contextmanager
def nodes(logs: Path) -> Iterator[Nodes]:
    """Have a head that nodes can join; all of them end with this."""
    logs.mkdir()
    made = Nodes(logs)
    try:
        yield made
    finally:
        made.close()


def spilled_of(told: str) -> float:
    """Return the MiB spilled that `ray memory --stats-only` tells of; it tells nothing where none were.

    Raises:
        WorkspaceError: this is not what that command says.
    """
    if "Plasma memory usage" not in told:
        raise WorkspaceError(
            f"`ray memory --stats-only` told nothing about object stores, but: {told[-_TOLD_CHARACTERS:]!r}"
        )
    found = re.search(r"Spilled (\d+) MiB", told)
    return float(found[1]) if found else 0.0


def two_nodes(root: Path, volumes: int, repeats: int) -> Measured:
    """Compare how many volumes an hour one node and two nodes label, with one actor on each."""
    archive = Archive.made(root / "nodes", volumes, "litemedsam")
    rates: dict[int, list[float]] = {1: [], 2: []}
    for repeat in range(repeats):
        with nodes(root / f"nodes-{repeat}") as cluster:
            for count, found in rates.items():
                cluster.join(NODES[count - 1])
                found.append(_labeled(archive, cluster, count).per_hour)
    one, two = (statistics.median(found) for found in rates.values())
    note = (
        f"volumes an hour after the first of each actor; {volumes} volumes, litemedsam, an actor of one "
        f"thread on each node, {os.cpu_count()} cores for nodes, head and command, {repeats} times"
    )
    return Measured("scale.two_nodes", "one node", two, one, two / one, 1.8, "higher", note)


def _labeled(archive: Archive, cluster: Nodes, count: int) -> Labeled:
    """Label on all nodes.

    Raises:
        WorkspaceError: some of them never worked.
    """
    words = (f"cluster.address={cluster.address}", f"cluster.actors={count}", "generalist.cache.when=never")
    seen: set[str] = set()

    def look() -> None:
        if len(seen) < count:  # looking takes cores that are to label
            seen.update(cluster.working())

    found = archive.labeled(*words, environment=ENVIRONMENT, meanwhile=look)
    if len(seen) != count:
        raise WorkspaceError(
            f"found {len(seen)} nodes at work ({', '.join(sorted(seen))}), expected {count}: what they reach "
            "together cannot be told; look whether each has a core beside its actor's"
        )
    return found


def _ray() -> str:
    return str(Path(sys.executable).with_name("ray"))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HEAD, 0))
        return int(free.getsockname()[1])
