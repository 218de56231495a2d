"""Who may write into a workspace: one owner at a time, known by name, gone when it is dead.

The owner writes a lease, who it is and since when, and renews it for as long as it works. A lease
that nobody renews expires. What is guaranteed depends on where the workspace lies:

    one machine         Two owners cannot be. The kernel holds the lock, and takes it back from a process
                        that dies, by SIGKILL too: the next one starts at once.
    a shared folder     As on one machine where the network filesystem passes locks on. Where it does not,
                        as on an object store.
    an object store     No two begin within the time in which one settles, and none takes over a lease that
                        is renewed. A process that stalls for longer than that between looking and writing
                        can still take a place that was given meanwhile. The one that lost it notices at its
                        next renewal and stops, so both write for no longer than one renewal.

An owner that cannot renew its lease until it expires stops for the same reason. Clocks of machines need
not agree: a lease that looks expired is watched for two renewals before it is taken over, unless
its owner was a process of this machine that is gone.
"""

import contextlib
import getpass
import json
import os
import platform
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TextIO

from tutelage.errors import WorkspaceError
from tutelage.storage import Place

LEASE = ".lock.json"
"""In a workspace: who may write."""


@dataclass(frozen=True)
class Timing:
    """How long things take, in seconds."""

    renew_s: float = 15.0
    """Between two signs of life."""

    expire_s: float = 120.0
    """Without a sign of life after which an owner counts as gone."""

    settle_s: float = 2.0
    """For how long a fresh lease is left alone before it is read again, where no kernel keeps others out."""


@dataclass(frozen=True)
class Owner:
    """A process that may write, as its lease has it."""

    token: str
    """Made up anew each time."""

    process: int
    started: str
    """When the process began, by the machine's clock: numbers of processes are used again."""

    host: str
    machine: str
    """What processes share that can see each other: this start of this machine, and this container."""

    user: str
    since: str
    beats: int
    """Renewals so far."""

    renewed: float
    """When the last one was, in seconds since 1970 by the owner's own clock."""

    @classmethod
    def this(cls) -> "Owner":
        """Return this process as an owner from now on."""
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        process = os.getpid()
        names = (_started(process) or "", platform.node(), _machine(), _user())
        return cls(uuid.uuid4().hex, process, *names, since=now, beats=0, renewed=time.time())

    def renewed_now(self) -> "Owner":
        """Return the same with one more sign of life."""
        return Owner(**asdict(self) | {"beats": self.beats + 1, "renewed": time.time()})

    def is_gone(self) -> bool:
        """Whether this machine knows that the process is no more."""
        return self.machine == _machine() and _started(self.process) != self.started

    def shares_kernel(self) -> bool:
        """Whether the kernel that holds the lock here held it for that process too."""
        return self.machine.split()[0] == _machine().split()[0]

    def __str__(self) -> str:
        return f"process {self.process} of {self.user} on {self.host} since {self.since}"


@contextlib.contextmanager
def held(root: Place, timing: Timing | None = None, kernel: bool = True) -> Iterator[None]:
    """Have a workspace to oneself; not `kernel`, by the lease alone, as where no kernel can help.

    Raises:
        WorkspaceError: somebody else has it, or took it away meanwhile.
    """
    timing = timing or Timing()
    local = root.local if kernel else None
    with contextlib.ExitStack() as stack:
        if local is not None:
            stack.enter_context(_by_kernel(local, root / LEASE))
        lease = _Lease(root, timing)
        stack.enter_context(_stoppable(lease))
        lease.take(alone=local is not None)
        stack.push(lease.leave)
        yield
        lease.check()


def owner_of(place: Place) -> Owner | None:
    """Return whose lease lies there; of a damaged one nobody is the owner."""
    try:
        return Owner(**json.loads(place.read_text()))
    except (OSError, ValueError, TypeError):
        return None


class _Lease:
    """A lease of this process, renewed by a thread until it is left or lost."""

    def __init__(self, root: Place, timing: Timing) -> None:
        self._root = root
        self._place = root / LEASE
        self._timing = timing
        self._owner = Owner.this()
        self.over = threading.Event()
        """Set when the work is done."""
        self._lost = ""
        self._stops_main = threading.current_thread() is threading.main_thread()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def take(self, alone: bool) -> None:
        """Write the lease, unless a living process has one; `alone`, no other process can be about to."""
        there = owner_of(self._place)
        free = there is None or (alone and there.shares_kernel()) or self._stale(there)
        if not free:
            raise WorkspaceError(_busy(self._root, there, self._timing))
        self._place.write_text(json.dumps(asdict(self._owner)))
        if not alone:
            time.sleep(self._timing.settle_s)
            there = owner_of(self._place)
            if there is None or there.token != self._owner.token:
                raise WorkspaceError(_busy(self._root, there, self._timing))
        self._thread.start()

    def check(self) -> None:
        """Complain if the lease is not ours any more."""
        if self._lost:
            raise WorkspaceError(
                f"the lock of {self._root} was lost: {self._lost}; this process has stopped so that "
                "two do not write at once. Finished work is kept: run again when the other one is done"
            )

    def leave(self, kind: type[BaseException] | None, *_: object) -> None:
        """Give the workspace back, and say so if it was lost and that has stopped this process."""
        self.over.set()
        self._thread.join()
        there = owner_of(self._place)
        if there is not None and there.token == self._owner.token:
            with contextlib.suppress(OSError):  # what cannot be removed expires
                self._place.remove()
        if kind is _Stopped:
            self.check()

    def _stale(self, there: Owner) -> bool:
        """Whether an owner is gone: known to be, or silent for too long however its clock runs."""
        if there.is_gone():
            return True
        if time.time() - there.renewed < self._timing.expire_s:
            return False
        time.sleep(2 * self._timing.renew_s)
        again = owner_of(self._place)
        return again is None or (again.token, again.beats) == (there.token, there.beats)

    def _renew(self) -> None:
        """Give a sign of life now and then; stop the process when the lease is another's."""
        last = time.monotonic()
        while not self.over.wait(self._timing.renew_s):
            try:
                there = owner_of(self._place)
                if there is not None and there.token != self._owner.token:
                    self._lose(f"{there} has taken it")
                    return
                self._owner = self._owner.renewed_now()
                self._place.write_text(json.dumps(asdict(self._owner)))
                last = time.monotonic()
            except OSError as error:
                if time.monotonic() - last > self._timing.expire_s - self._timing.renew_s:
                    self._lose(f"it could not be renewed for {time.monotonic() - last:.0f} s ({error})")
                    return

    def _lose(self, why: str) -> None:
        self._lost = why
        if self._stops_main and not self.over.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, _STOP)


class _Stopped(BaseException):
    """Raised in the midst of work whose lease is lost; nothing on the way may take it for a failure."""


_STOP = signal.SIGUSR2
"""Not an interrupt, to which a process that a shell starts in the background is deaf."""


@contextlib.contextmanager
def _stoppable(lease: _Lease) -> Iterator[None]:
    """Let a thread stop this one, if it is the main one: others get no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if not lease.over.is_set():
            raise _Stopped

    before = signal.signal(_STOP, stop)
    try:
        yield
    finally:
        signal.signal(_STOP, before)


@contextlib.contextmanager
def _by_kernel(folder: Path, lease: Place) -> Iterator[None]:
    """Hold a lock that the kernel takes back when this process ends, however it ends."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as lock:
        for patience in reversed(range(_TRIES)):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                owner = owner_of(lease)
                if not patience or (owner is not None and not owner.is_gone()):
                    raise WorkspaceError(_held(lock, folder, owner)) from None
            time.sleep(_TRY_AGAIN_S)
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        yield


_TRIES = 6
_TRY_AGAIN_S = 0.1
"""A process that was killed is gone a moment before its lock is."""

_ADVICE = "wait for it, stop it, or set another workspace"


def _held(lock: TextIO, folder: Path, owner: Owner | None) -> str:
    if owner is not None and not owner.is_gone():
        return f"{folder} is in use by {owner}; {_ADVICE}"
    # A process that it has started outlives it and holds the lock on, or it has not written its lease yet.
    lock.seek(0)
    told = lock.read().strip() or "another run"
    return f"{folder} is in use by {told}, or by what it has started; {_ADVICE}"


def _busy(root: Place, there: Owner | None, timing: Timing) -> str:
    if there is None:
        return f"{root} was taken and given back by another run just now; run again"
    silent = max(0.0, time.time() - there.renewed)
    return (
        f"{root} is in use by {there}, which gave a sign of life {silent:.0f} s ago; {_ADVICE}. "
        f"If it is dead, the lock frees itself {timing.expire_s:.0f} s after its last sign"
    )


def _machine() -> str:
    """Name what processes must share for one to know by its number whether another one lives."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux: a host's name is all there is
        return platform.node()


def _started(process: int) -> str | None:
    """When a process of this machine began, or None if there is none, or only its remains."""
    try:
        told = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _without_proc(process)
    state, *rest = told.rpartition(") ")[2].split()  # its name, before that, may hold anything
    return None if state in "ZX" else rest[18]


def _without_proc(process: int) -> str | None:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # it is there and somebody else's
        return ""
    return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return f"user {os.getuid()}"
