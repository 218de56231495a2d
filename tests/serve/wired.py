"""A server in a process and a Ray of its own, as `tutelage serve` starts it: tokens, and its front."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests import starting
from tests.conftest import free_port
from tests.serve.serving import bearer, token_file
from tutelage.bench.processes import descendants, is_called, own_mib

_SCRIPT = """
import json, sys
from tutelage.cluster import serving
from tutelage.cluster.settings import ClusterSettings, ServingSettings

folder, port, settings = json.loads(sys.argv[1])
job = serving.ServeJob({"ours": folder}, "127.0.0.1", port, ServingSettings.model_validate(settings))
with serving.served(job, ClusterSettings()) as address, serving.stopping() as stopped:
    print(address, flush=True)
    stopped.wait()
"""

_PATIENCE_S = 120


@dataclass(frozen=True)
class Wired:
    """Where it is, who may ask, and its processes."""

    url: str
    secrets: dict[str, str]
    pid: int

    def post(self, body: bytes, name: str = "", **headers: str) -> httpx.Response:
        """Ask for a mask, as somebody who may."""
        may = bearer(self.secrets["ward"])
        address = f"{self.url}/v1/segment"
        return httpx.post(address, content=body, params={"name": name}, headers=may | headers, timeout=60)

    def pids(self, word: str = "ServeReplica") -> list[int]:
        """Return its processes of a kind."""
        return [pid for pid in descendants(self.pid) if is_called(pid, word)]

    def mib(self) -> float:
        """Return what its copies have in memory."""
        return sum(own_mib(pid) for pid in self.pids())


@contextlib.contextmanager
def wired(specialist: Path, folder: Path, **settings: Any) -> Iterator[Wired]:
    """Have a server of one specialist; told to end, it leaves no process and no port behind."""
    file, secrets = token_file(folder, ward="predict", boss="admin")
    port, log = free_port(), folder / "log"
    told = json.dumps([str(specialist), port, {"tokens": str(file), **settings}])
    with log.open("w") as errors, starting.alone():
        process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, told], stdout=subprocess.PIPE, stderr=errors, text=True
        )
        assert process.stdout is not None
        address = process.stdout.readline().strip()
    made = Wired(address, secrets, process.pid)
    try:
        assert address, log.read_text()[-2000:]
        yield made
    finally:
        fronts = made.pids("haproxy")
        process.send_signal(signal.SIGTERM)
        code = process.wait(_PATIENCE_S)
    assert code == 0, log.read_text()[-2000:]
    socket.create_server(("127.0.0.1", port)).close()
    assert not [pid for pid in fronts if is_called(pid, "haproxy")], "it has outlived its server"
