"""Starting Ray nodes as processes, one after another over all processes that test.

Ray gives up on a raylet that is not up within 30 seconds, whatever it is told, and on a machine of two
cores on which three tests start nodes at once it may not be. Hence the lock.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tutelage.bench import nodes
from tutelage.bench.processes import descendants

PATIENT = {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": "240"}


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let nobody else start a Ray meanwhile."""
    lock = Path(tempfile.gettempdir()) / f"tutelage-tests-start-ray-{os.getuid()}.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def node(log: Path, words: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start a node in a session of its own and return its first process once it is up."""
    with alone():
        return nodes.started(log, words, PATIENT | environment)


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a node as a machine that is switched off: with all that it started, also in groups of their own.

    By pid, never `ray stop`: that would end every Ray on this machine.
    """
    for pid in descendants(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(timeout=60)
