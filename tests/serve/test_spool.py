"""Folders and files of uploads: nobody else's, and gone with the process that made them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from serve import uploads
from tests.serve.test_uploads import left_in
from tutelage.errors import WorkspaceError

pytestmark = [pytest.mark.files, pytest.mark.usefixtures("spool")]


def test_a_private_folder_is_gone_whatever_happens_within(spool: Path) -> None:
    def fail() -> None:
        with uploads.private(spool) as own:
            (own / "entry").write_bytes(b"x")
            assert own.stat().st_mode & 0o077 == 0
            assert own.parent.stat().st_mode & 0o077 == 0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert left_in(spool) == []


WAITING = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from serve import uploads
with uploads.private(Path({spool!r})) as own:
    (own / "entry-00001").write_bytes(b"a patient")
    print(own, flush=True)
    time.sleep(600)
"""


def waiting(spool: Path) -> tuple[subprocess.Popen[str], Path]:
    """Start a process that works on an upload, and return where."""
    script = WAITING.format(root=str(Path(uploads.__file__).parents[1]), spool=str(spool))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


@pytest.mark.process
def test_what_a_killed_process_left_is_swept_and_what_a_living_one_holds_is_not(spool: Path) -> None:
    (killed, gone), (alive, held) = waiting(spool), waiting(spool)
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait(60)
        assert (gone / "entry-00001").exists()
        with uploads.private(spool) as own:
            assert uploads.sweep(spool) == 1
            assert own.exists()
        assert not gone.exists()
        assert (held / "entry-00001").exists()
        assert uploads.sweep() == 0
    finally:
        for process in (killed, alive):
            process.kill()
            process.wait(60)
            assert process.stdout is not None
            process.stdout.close()
    assert uploads.sweep(spool) == 1


@pytest.mark.process
def test_a_body_does_not_outlive_its_process(spool: Path) -> None:
    script = (
        f"import asyncio, os, sys; sys.path.insert(0, {str(Path(uploads.__file__).parents[1])!r})\n"
        "from serve import uploads\n"
        "from tutelage.cluster.settings import ServingSettings\n"
        "async def body():\n"
        "    yield b'x' * 2**21\n"
        "    print(len(os.listdir(os.environ['TUTELAGE_SPOOL'])), flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(uploads.received(body(), None, '', ServingSettings()))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, "0\n")
    assert list(spool.iterdir()) == []


def test_a_folder_that_others_put_there_is_not_used(spool: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (spool / f"tutelage-uploads-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WorkspaceError, match="not this user's own"), uploads.private(spool):
        raise AssertionError("was used")
