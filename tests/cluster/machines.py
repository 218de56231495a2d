"""Machines of a test: places on this machine where processes have a network and an address of their own.

Where the kernel lets this user make namespaces, each is one, and a bridge joins them; nobody need be root,
nothing of this machine's own network changes, and they are gone with the last process in them. Elsewhere
they are addresses of loopback. It does not know what runs on them.
"""

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_NET = "10.213.0"
_HOLD = ("sh", "-c", "echo here; exec cat")
"""Keeps a namespace until its input is closed, which it is however a test ends."""
_PATIENCE_S = 30


class NotPermittedError(OSError):
    """This machine makes no networks for this user."""


@dataclass(frozen=True)
class Machine:
    """A place for processes; the first of several is the one that all others reach."""

    address: str
    enter: tuple[str, ...] = ()
    """What stands before a command, to run it there."""

    @property
    def name(self) -> str:
        """A word for it."""
        return f"machine-{self.address.rpartition('.')[2]}"


def on_loopback(count: int) -> list[Machine]:
    """Return machines that share this one's network. Linux answers on all of 127/8."""
    return [Machine(f"127.0.0.{number}") for number in range(1, count + 1)]


@contextlib.contextmanager
def apart(count: int) -> Iterator[list[Machine]]:
    """Have machines with networks of their own.

    Raises:
        NotPermittedError: there are none for this user here; says what was refused.
    """
    with contextlib.ExitStack() as stack:
        user = ("unshare", "--user", "--map-root-user")
        first = _entering(stack.enter_context(_held((*user, "--net"))))
        machines = [Machine(f"{_NET}.1", first)]
        _ip(first, f"link set lo up; link add lan type bridge; {_addressed('lan', 1)}")
        for number in range(2, count + 1):
            pid = stack.enter_context(_held((*first, "unshare", "--net")))
            enter = _entering(pid)
            _ip(first, f"link add to{number} type veth peer name lan netns {pid}")
            _ip(first, f"link set to{number} master lan up")
            _ip(enter, f"link set lo up; {_addressed('lan', number)}")
            machines.append(Machine(f"{_NET}.{number}", enter))
        yield machines


def _entering(pid: int) -> tuple[str, ...]:
    return ("nsenter", f"--target={pid}", "--user", "--preserve-credentials", "--net", "--")


def _addressed(device: str, number: int) -> str:
    """Give a device an address. Programs find out theirs by the way to elsewhere, so there is one."""
    return f"addr add {_NET}.{number}/24 dev {device}; link set {device} up; route add default dev {device}"


def _ip(enter: Sequence[str], commands: str) -> None:
    for command in commands.split("; "):
        try:
            subprocess.run(
                [*enter, "ip", *command.split()],
                check=True,
                capture_output=True,
                text=True,
                timeout=_PATIENCE_S,
            )
        except FileNotFoundError as error:
            raise NotPermittedError(str(error)) from error
        except subprocess.CalledProcessError as error:
            raise NotPermittedError(f"ip {command}: {error.stderr.strip()}") from error


@contextlib.contextmanager
def _held(command: Sequence[str]) -> Iterator[int]:
    """Have the namespaces that a command makes; yields the process that is in them."""
    try:
        process = subprocess.Popen(
            [*command, *_HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except FileNotFoundError as error:
        raise NotPermittedError(str(error)) from error
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        if process.stdout.readline() != b"here\n":
            raise NotPermittedError(process.stderr.read().decode().strip())
        try:
            yield process.pid
        finally:
            process.kill()
