"""The real engine, with a small language model: what it says is wrong, and has the right form."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tutelage.cli import main
from tutelage.cluster.settings import ClusterSettings
from tutelage.cluster.texts import RayTextModel, engine_arguments, environment
from tutelage.errors import MissingExtraError, PriorsError, SettingsError
from tutelage.priors import shelf
from tutelage.priors.answers import Said
from tutelage.priors.endpoint import Endpoint
from tutelage.priors.gguf import weights_digest
from tutelage.priors.questions import Region, schema
from tutelage.priors.settings import AskingSettings, EngineSettings
from tutelage.storage import Place

pytestmark = pytest.mark.llm

ENGINE = EngineSettings(max_model_len=2048, max_num_seqs=8)
STRUCTURES = ("liver", "spleen", "aorta")
LETTERS = 24

_START_S = 240


def _priors(config: Path, workspace: Path, *who: str) -> tuple[int, dict[str, object]]:
    """Ask about three structures by the command; returns its exit code and what the shelf says."""
    told = [
        f"workspace={workspace}",
        "priors.asking.attempts=0",
        f"priors.asking.letters={LETTERS}",
        "priors.vectors.encoder=orthogonal",
        f"priors.engine.max_model_len={ENGINE.max_model_len}",
        f"priors.engine.max_num_seqs={ENGINE.max_num_seqs}",
    ]
    named = [word for structure in STRUCTURES for word in ("--structure", structure)]
    with pytest.raises(SystemExit) as ended:
        main(["priors", str(config), *told, *who, *named, "--json"])
    record = json.loads((workspace / "priors" / "asking.json").read_text())
    return int(ended.value.code or 0), record


def _check(workspace: Path, code: int, record: dict[str, object]) -> None:
    """Every answer has the form that was asked for, and what could be used of it is on the shelf."""
    lines = [
        line
        for file in (workspace / "priors" / "replies").iterdir()
        for line in file.read_text().splitlines()
    ]
    replies = {reply["key"].partition("|")[0]: reply for reply in map(json.loads, lines)}
    assert set(replies) == set(STRUCTURES)
    for structure, reply in replies.items():
        assert reply["finish"] == "stop"
        assert reply["tokens"] > 20
        said = Said.model_validate_json(reply["text"])
        others = _region().others(structure)
        assert {related.other for related in said.relations} <= set(others)
        assert {*said.confused_with} <= set(others)
        assert max(len(said.shape), len(said.location), len(said.appearance)) <= LETTERS
        assert list(json.loads(reply["text"])) == list(schema(others, AskingSettings())["properties"])
    assert code == (3 if record["refused"] else 0)
    place = Place.of(workspace / "priors" / "shelf.yaml")
    whole = {refused["structure"] for refused in record["refused"] if not refused["claim"]}  # type: ignore[attr-defined]
    shelved = shelf.opened(place)
    assert set(shelved.priors) == set(STRUCTURES) - whole
    for name, prior in shelved.priors.items():
        assert prior.edited == ()
        assert {"shape", "position", "appearance"} <= set(prior.text)
        assert shelved.asked[name].claims == shelf.claims_of(prior)


def _region() -> Region:
    from tutelage.archive.synthetic import STRUCTURES as ALL

    return Region(tuple(ALL), ("CT",))


@pytest.mark.slow
def test_three_priors_come_through_ray_data(
    small_llm: Path, tmp_path: Path, tiny_config: Callable[[str], Path], local_ray: None
) -> None:
    workspace = tmp_path / "ray"
    code, record = _priors(tiny_config("ray"), workspace, "--model", str(small_llm), "--samples", "2")
    _check(workspace, code, record)
    assert record["weights"] == weights_digest(small_llm)


@contextlib.contextmanager
def _serving(folder: Path, log: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = engine_arguments(ENGINE)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "small", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    for name in ("dtype", "max_model_len", "max_num_seqs"):
        command += [f"--{name.replace('_', '-')}", str(arguments[name])]
    command += ["--structured-outputs-config", json.dumps(arguments["structured_outputs_config"])]
    with log.open("w") as stream:
        server = subprocess.Popen(
            command,
            stdout=stream,
            stderr=stream,
            env=os.environ | environment(ENGINE),
            start_new_session=True,
        )
    try:
        yield _up(f"http://127.0.0.1:{port}", server, log)
    finally:
        server.terminate()
        server.wait(30)


def _up(url: str, server: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health").is_success:
                return url
        time.sleep(0.5)
    raise AssertionError(f"no engine after {_START_S} s: {log.read_text()[-3000:]}")


@pytest.mark.slow
def test_three_priors_come_over_http(
    small_llm: Path, tmp_path: Path, tiny_config: Callable[[str], Path]
) -> None:
    workspace = tmp_path / "http"
    with _serving(small_llm, tmp_path / "server.log") as url:
        code, record = _priors(tiny_config("http"), workspace, "--endpoint", url, "--samples", "1")
        _check(workspace, code, record)
        with pytest.raises(PriorsError, match="no model 'large'; it has small"):
            Endpoint(url, "large")


def test_a_folder_without_a_model_is_refused_before_anything_starts(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    with pytest.raises(SettingsError, match="does not exist"):
        RayTextModel(tmp_path / "none", ENGINE, ClusterSettings())
    with pytest.raises(SettingsError, match=r"lacks config\.json, tokenizer_config\.json, \*\.safetensors"):
        RayTextModel(tmp_path, ENGINE, ClusterSettings())


def test_without_vllm_the_other_ways_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.cluster.texts.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="--endpoint"):
        RayTextModel(tmp_path, ENGINE, ClusterSettings())
