"""Rays of their own that take jobs, beside the one of the test session.

It decides how they keep out of each other's way; what they are told of cores and addresses is their user's.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests import starting
from tests.conftest import free_port

ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # other tests have the same cores
}


@contextlib.contextmanager
def head(log: Path) -> Iterator[str]:
    """Have a head, and yield the address to submit to."""
    dashboard = free_port()
    words = ["--node-ip-address=127.0.0.1", "--num-cpus=6", *own_ports(dashboard)]
    with nodes(log, words, several="0"):
        yield f"http://127.0.0.1:{dashboard}"


def own_ports(dashboard: int) -> list[str]:
    """Return what a head is told so that it meets no other on this machine: the defaults may be another's."""
    return [
        "--head", f"--port={free_port()}", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}",
    ]  # fmt: skip


@contextlib.contextmanager
def nodes(log: Path, *told: Sequence[str], several: str = "1") -> Iterator[None]:
    """Have nodes, each by what `ray start` is told, the head first; they end with this.

    In a folder of their own: which of several Rays on a machine a job belongs to, Ray guesses by who started
    last in the same folder. Its path is short, since sockets lie in it.
    """
    # A test before, whose Ray stays on loopback, may have left the word that there are no nodes but one.
    environment = ENVIRONMENT | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": several}
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        contextlib.ExitStack() as stack,
    ):
        for number, words in enumerate(told):
            # Each has its own: two that unpack a job into the same place take its files from each other.
            all_words = [*words, f"--object-store-memory={200 * 2**20}", f"--temp-dir={folder}/{number}"]
            started = starting.node(log.with_suffix(f".{number}.log"), all_words, environment)
            stack.callback(starting.end, started)
        yield
