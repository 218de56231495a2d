"""A Ray of its own that takes jobs, beside the one of the test session."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests import starting
from tests.conftest import free_port


@contextlib.contextmanager
def head(log: Path) -> Iterator[str]:
    """Have a head, and yield the address to submit to.

    In a folder of its own: which of several Rays on a machine a job belongs to, Ray guesses by who started
    last in the same folder. Its path is short, since sockets lie in it.
    """
    gcs, dashboard, agent = free_port(), free_port(), free_port()
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # other tests have the same cores
    }
    words = [
        "--head", f"--port={gcs}", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}",  # the default may be another Ray's
        "--node-ip-address=127.0.0.1", "--num-cpus=6", f"--object-store-memory={200 * 2**20}",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        started = starting.node(log, [*words, f"--temp-dir={folder}"], environment)
        try:
            yield f"http://127.0.0.1:{dashboard}"
        finally:
            starting.end(started)
