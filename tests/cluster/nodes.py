"""Ray nodes as processes on machines of a test: started one after another, killed as machines are.

It does not know what they are wanted for; whoever starts one says what it has.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests import starting
from tests.cluster.machines import Machine, on_loopback
from tests.conftest import free_port

HEAD, *NODES = (machine.address for machine in on_loopback(3))

ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",  # or a test before, whose Ray stays on loopback, forbids nodes
    "RAY_worker_niceness": "0",  # other tests have the same cores
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "10",  # a busy machine must not look like a dead one
}
PATIENCE_S = 240
_RAY = str(Path(sys.executable).with_name("ray"))
_TRIES = 3
"""Ray gives up on a raylet that is not up within 30 seconds, whatever it is told."""


class Cluster:
    """Raylets as processes, of which one can die as a machine does. The first machine is the head's."""

    def __init__(self, logs: Path, machines: Sequence[Machine] | None = None) -> None:
        self.logs = logs
        self.head, *self.nodes = machines or on_loopback(3)
        self.address = f"{self.head.address}:{free_port()}"
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def environment(self, on: Machine) -> dict[str, str]:
        """Return the environment of a process on a machine."""
        return {**os.environ, **ENVIRONMENT}

    def start(self, node: str, *words: str) -> None:
        """Start a node and wait until it is up."""
        (on,) = (machine for machine in (self.head, *self.nodes) if machine.address == node)
        log = self.logs / f"{on.name}.log"
        command = [
            *on.enter, _RAY, "start", "--block", f"--node-ip-address={node}",
            f"--object-store-memory={120 * 2**20}", f"--dashboard-agent-listen-port={free_port()}", *words,
        ]  # fmt: skip
        environment = self.environment(on) | starting.PATIENT
        for _ in range(_TRIES):
            with starting.alone():
                process = self.begun(node, command, log, environment)
                if comes(lambda: "Ray runtime started" in log.read_text(), process):
                    return
            self.kill(node)
        raise AssertionError(log.read_text())

    def begun(
        self, name: str, command: Sequence[str], log: Path, environment: dict[str, str]
    ) -> "subprocess.Popen[bytes]":
        """Start a process that ends with this, in a session of its own."""
        with log.open("w") as stream:
            self._started[name] = subprocess.Popen(
                command, env=environment, stdout=stream, stderr=stream, start_new_session=True
            )
        return self._started[name]

    def kill(self, node: str) -> None:
        starting.end(self._started.pop(node))

    def close(self) -> None:
        for node in reversed(list(self._started)):
            self.kill(node)


def comes(ready: Callable[[], bool], process: "subprocess.Popen[bytes]") -> bool:
    """Wait until something is so; say whether it came to that before a process ended."""
    until = time.monotonic() + PATIENCE_S
    while not ready():
        if time.monotonic() > until or process.poll() is not None:
            return False
        time.sleep(0.05)
    return True
