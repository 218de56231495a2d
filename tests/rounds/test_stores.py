"""A workspace on an S3-compatible store: a real server process, that is slow, goes away and comes back."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import httpx
import pytest

from tests.conftest import free_port
from tests.gates import Gate
from tests.rounds.test_kill import command, content
from tutelage.errors import StorageError
from tutelage.labels.rows import read_table
from tutelage.storage import Place

pytest.importorskip("moto", reason="no S3-compatible server here: tutelage[dev] brings moto")
pytestmark = pytest.mark.process

BUCKET = "s3://archive"


@pytest.fixture(scope="module")
def store() -> Iterator[Gate]:
    """Have a store behind a gate, where AWS's own variables say that it is."""
    port = free_port()
    server = subprocess.Popen(
        [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    gate = Gate(f"http://127.0.0.1:{port}")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": gate.uri,
        }.items():
            patch.setenv(name, value)
        try:
            _wait_for(f"http://127.0.0.1:{port}/moto-api/")
            httpx.put(f"http://127.0.0.1:{port}/{BUCKET.removeprefix('s3://')}").raise_for_status()
            yield gate
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(30)


def _wait_for(address: str) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            urlopen(address, timeout=2).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(f"no store at {address}")


def test_a_file_holds_what_was_written_whatever_its_name_says(store: Gate) -> None:
    for name in ("mask.nii.gz", "rows.zst", "plain"):
        place = Place.of(f"{BUCKET}/names/{name}")
        place.write_bytes(b"as it is")
        assert place.read_bytes() == b"as it is"
        with place.writing() as stream:
            stream.write(b"in pieces")
        assert place.read_bytes() == b"in pieces"
    assert Place.of(f"{BUCKET}/names").names() == ["mask.nii.gz", "plain", "rows.zst"]


def test_a_slow_store_takes_and_gives_the_same(store: Gate) -> None:
    place, data = Place.of(f"{BUCKET}/slow"), os.urandom(3 * 2**20)
    store.mode = "slow"
    try:
        place.write_bytes(data)
        assert place.read_bytes() == data
    finally:
        store.mode = "open"


def test_a_store_that_is_gone_is_told_and_what_was_there_stays(store: Gate) -> None:
    place = Place.of(f"{BUCKET}/stays")
    place.write_bytes(b"before")
    store.mode = "down"
    try:
        with pytest.raises(StorageError, match=r"archive/stays cannot be written .*check address"):
            place.write_bytes(b"after")
        with pytest.raises(StorageError, match="cannot be"):
            place.exists()
    finally:
        store.mode = "open"
    assert place.read_bytes() == b"before"
    with pytest.raises(FileNotFoundError):
        Place.of(f"{BUCKET}/nothing").read_bytes()


@pytest.mark.slow
def test_a_campaign_on_a_store_that_goes_away_ends_as_one_on_a_disk(
    store: Gate, tiny_config: Callable[[str], Path], tmp_path: Path
) -> None:
    subprocess.run(command(tiny_config("local")), check=True, capture_output=True)
    config = tiny_config("remote")
    workspace = Place.of(f"{BUCKET}/remote")
    config.write_text(config.read_text().replace(str(tmp_path / "remote"), workspace.uri))

    running = subprocess.Popen(command(config), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    _until(workspace / "rounds/labels-only/train.manifest.json", running)
    store.mode = "down"
    told, _ = running.communicate(timeout=300)
    store.mode = "open"
    assert running.returncode == 1, told
    assert "run the same command again" in told
    assert "Traceback" not in told

    killed = subprocess.Popen(command(config), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _until(workspace / "rounds/r00/label.manifest.json", killed)
    killed.kill()
    killed.wait()
    subprocess.run(command(config), check=True, capture_output=True)

    rows, labels = content(tmp_path / "local")
    assert list(read_table(workspace / "ledger.parquet")) == rows
    assert labels
    assert {name: (workspace / name).read_bytes() for name in labels} == labels
    assert (workspace / "report.html").exists()


def _until(place: Place, running: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + 300
    while not place.exists():
        assert running.poll() is None, "it ended before it got there"
        assert time.monotonic() < until, f"{place} did not come"
        time.sleep(0.1)
