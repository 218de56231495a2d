"""A Ray of its own that takes jobs, beside the one of the test session."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import free_port


@contextlib.contextmanager
def head() -> Iterator[str]:
    """Have a head, and yield the address to submit to."""
    gcs, dashboard, agent = free_port(), free_port(), free_port()
    binaries = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # other tests have the same cores
    }
    started = subprocess.Popen(
        [
            binaries / "ray", "start", "--head", "--block", f"--port={gcs}", f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={agent}",  # the default may be another Ray's
            "--node-ip-address=127.0.0.1", "--num-cpus=6", f"--object-store-memory={200 * 2**20}",
        ],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        _wait_for(dashboard)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        # By pid, never `ray stop`: that would end every Ray on this machine. And not by group: workers and
        # jobs have groups of their own, and would work on for seconds.
        for process in [*_below(started.pid), started.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        started.wait(timeout=60)


def _below(process: int) -> list[int]:
    """Find everything that a process started, and that those started."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(words[1])
    found = [process]
    for one in found:  # grows while it is read
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def _wait_for(port: int) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(f"no dashboard on port {port}")
