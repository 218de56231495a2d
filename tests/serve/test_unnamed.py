"""Bytes without a named file: read by others while their process lives, by nobody after."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from serve import unnamed
from serve.unnamed import Unnamed

JOB, OTHER = "a" * 32, "b" * 32


def test_what_is_kept_is_read_and_lies_in_no_folder(tmp_path: Path) -> None:
    kept = Unnamed(tmp_path)
    address = kept.keep(JOB, b"Jane Doe")
    assert unnamed.read(address, JOB) == unnamed.read(address, JOB) == b"Jane Doe"
    assert list(tmp_path.iterdir()) == []
    kept.drop(JOB)
    kept.drop(JOB)
    assert unnamed.read(address, JOB) is None


def test_an_address_that_is_given_again_gives_nobody_elses_bytes(tmp_path: Path) -> None:
    kept = Unnamed(tmp_path)
    address = kept.keep(JOB, b"Jane Doe")
    kept.drop(JOB)
    assert kept.keep(OTHER, b"John Roe") == address
    assert unnamed.read(address, JOB) is None
    assert unnamed.read(address, OTHER) == b"John Roe"
    kept.drop(OTHER)


def test_what_was_kept_longest_makes_room(tmp_path: Path) -> None:
    kept = Unnamed(tmp_path, most=2)
    addresses = {name: kept.keep(name, name.encode()) for name in ("one", "two", "six")}
    assert kept.names == ("two", "six")
    assert [unnamed.read(address, name) for name, address in addresses.items()] == [None, b"two", b"six"]
    for name in kept.names:
        kept.drop(name)


def test_nothing_is_taken_from_pipes_of_other_processes() -> None:
    read, write = os.pipe()
    try:
        os.write(write, b"for somebody else")
        assert unnamed.read(f"{os.getpid()}/fd/{read}", "for") is None
        assert os.read(read, 100) == b"for somebody else"
    finally:
        os.close(read)
        os.close(write)


def test_a_full_disk_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Unnamed(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: open("/dev/full", "r+b"))  # noqa: SIM115
    with pytest.raises(OSError, match="No space left"):
        kept.keep(JOB, b"Jane Doe")
    assert (kept.names, len(os.listdir("/proc/self/fd"))) == ((), before)


@pytest.mark.process
def test_what_a_killed_process_kept_is_gone_with_it(tmp_path: Path) -> None:
    code = (
        f"import sys, time; sys.path.insert(0, {str(Path(unnamed.__file__).parents[1])!r})\n"
        "from pathlib import Path\nfrom serve.unnamed import Unnamed\n"
        f"kept = Unnamed(Path({str(tmp_path)!r}))\n"
        f"print(kept.keep({JOB!r}, b'Jane Doe'), flush=True)\ntime.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        alive = unnamed.read(address, JOB)
        process.send_signal(signal.SIGKILL)
    assert alive == b"Jane Doe"
    assert unnamed.read(address, JOB) is None
    assert list(tmp_path.iterdir()) == []
