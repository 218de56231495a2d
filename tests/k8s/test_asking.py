"""Whether there is a cluster at hand is found out within seconds; one that is there is asked."""

import http.server
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s import asking
from tests.k8s.builds import BUILDS, build

pytestmark = pytest.mark.process
NO_KUBECTL = pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl here")


@pytest.fixture(scope="module")
def cluster() -> asking.Cluster:
    try:
        return asking.at_hand()
    except LookupError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", BUILDS)
def test_a_cluster_at_hand_would_take_it(name: str, cluster: asking.Cluster) -> None:
    objects = cluster.askable(build(name))
    if objects:
        cluster.would_take(objects)
    if missing := cluster.missing(build(name)):
        pytest.skip(f"{len(objects)} objects would be taken; {cluster.context} has no {', '.join(missing)}")


def test_without_kubectl_no_cluster_is_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LookupError, match="no kubectl here"):
        asking.at_hand()


@NO_KUBECTL
def test_without_a_context_no_cluster_is_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    with pytest.raises(LookupError, match=r"kubectl knows no cluster: .*current-context"):
        asking.at_hand()


def _context(folder: Path, port: int) -> str:
    """Write what kubectl knows: one cluster at a port of this machine."""
    told = {
        "apiVersion": "v1", "kind": "Config", "current-context": "here", "users": [],
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": ""}}],
    }  # fmt: skip
    (folder / "config").write_text(yaml.safe_dump(told))
    return str(folder / "config")


@NO_KUBECTL
def test_a_cluster_that_is_gone_is_not_at_hand(
    dead_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", _context(tmp_path, dead_port))
    with pytest.raises(LookupError, match=r"(?s)of context here does not answer: .*refused"):
        asking.at_hand()


@NO_KUBECTL
def test_a_cluster_that_says_nothing_is_given_up_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "ANSWER_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("KUBECONFIG", _context(tmp_path, silent.getsockname()[1]))
        begun = time.monotonic()
        with pytest.raises(LookupError, match="no answer within 1 s"):
            asking.at_hand()
        assert time.monotonic() - begun < 30


class _Api(http.server.BaseHTTPRequestHandler):
    """As much of Kubernetes as is asked for before objects are: what it is, and what it has."""

    def __init__(self, answers: dict[str, Any], *told: Any) -> None:
        self._answers = answers
        super().__init__(*told)

    def do_GET(self) -> None:
        answer = self._answers.get(self.path.partition("?")[0])
        self.send_response(404 if answer is None else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer or {}).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


NAMESPACES = {
    "kind": "NamespaceList", "apiVersion": "v1",
    "items": [{"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "default"}}],
}  # fmt: skip
RESOURCES = {
    "kind": "APIResourceList", "groupVersion": "v1",
    "resources": [{"name": "namespaces", "namespaced": False, "kind": "Namespace", "verbs": ["get", "list"]}],
}  # fmt: skip
GROUPS = {
    "kind": "APIGroupList", "apiVersion": "v1",
    "groups": [
        {"name": "apps", "versions": [{"groupVersion": "apps/v1", "version": "v1"}],
         "preferredVersion": {"groupVersion": "apps/v1", "version": "v1"}},
    ],
}  # fmt: skip
API = {
    "/version": {"gitVersion": "v1.37.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": GROUPS,
    "/api/v1": RESOURCES,
    "/api/v1/namespaces": NAMESPACES,
}


@pytest.fixture
def api() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Api, API))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()


@NO_KUBECTL
def test_a_cluster_that_answers_is_at_hand_with_what_it_has(
    api: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", _context(tmp_path, api))
    monkeypatch.setenv("HOME", str(tmp_path))  # kubectl remembers what clusters have
    found = asking.at_hand()
    assert found == asking.Cluster("here", frozenset({"v1", "apps/v1"}), frozenset({"default"}))


def test_what_a_cluster_lacks_is_left_out_and_said() -> None:
    bare = asking.Cluster("bare", frozenset({"v1", "apps/v1"}), frozenset({"default"}))
    assert "ray.io/v1" in bare.missing(build("kind/jobs"))
    assert not bare.askable(build("kind/jobs"))
    asked = bare.askable(build("kind"))
    assert {each["kind"] for each in asked} >= {"Namespace", "Deployment", "StatefulSet"}
    assert {each["metadata"].get("namespace", "default") for each in asked} == {"default"}
    ours = asking.Cluster("ours", frozenset({"v1"}), frozenset({"default", "tutelage"}))
    spaces = [each["metadata"].get("namespace") for each in ours.askable(build("kind"))]
    assert set(spaces) == {None, "tutelage"}
