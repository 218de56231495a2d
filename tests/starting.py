"""Starting Ray nodes as processes, one after another over all processes that test.

Ray gives up on a raylet that is not up within 30 seconds, whatever it is told, and on a machine of two
cores on which three tests start nodes at once it may not be. Hence the lock, and a second try.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tutelage.bench.processes import descendants

_PATIENCE_S = 240
_TRIES = 3


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let nobody else start a Ray meanwhile."""
    lock = Path(tempfile.gettempdir()) / f"tutelage-tests-start-ray-{os.getuid()}.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def node(log: Path, words: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start a node in a session of its own and return its first process once it is up."""
    ray = Path(sys.executable).with_name("ray")
    patience = {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": str(_PATIENCE_S)}
    for _ in range(_TRIES):
        with alone(), log.open("w") as stream:
            process = subprocess.Popen(
                [ray, "start", "--block", *words],
                env=os.environ | patience | environment,
                stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            until = time.monotonic() + _PATIENCE_S
            while process.poll() is None and time.monotonic() < until:
                if "Ray runtime started" in log.read_text():
                    return process
                time.sleep(0.1)
            end(process)
    raise TimeoutError(f"no Ray node with {' '.join(words)}; it said: {log.read_text()}")


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a node as a machine that is switched off: with all that it started, also in groups of their own.

    By pid, never `ray stop`: that would end every Ray on this machine.
    """
    for pid in descendants(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(timeout=60)
