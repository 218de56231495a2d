"""What keeps a training from being lost or from standing still: being asked to end, and a watchdog.

A stopper is asked, by SIGTERM or by whoever runs the loop in a thread, where no signal
arrives; the loop looks at it after every step. Ctrl-C is left alone: who presses it waits for
nobody, and goes on from the last checkpoint.

A watchdog that hears nothing of the loop for too long notes where every thread stands and ends the
process. Nothing gentler is sure to work: what hangs is mostly a call into a library or
a store, which no exception reaches. A process that is gone is started again by Ray, or by a person, and
goes on from its checkpoint. It hears nothing of a thread that holds Python's lock for good.
"""

import contextlib
import faulthandler
import logging
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from tutelage.errors import FAILED
from tutelage.storage import Place

_log = logging.getLogger(__name__)

_LOOKS = 8
"""How often the watchdog looks within the time that it waits for a sign of life."""

_WRITE_S = 10.0
"""How long it waits for a place that may be what hangs."""


class Stopper:
    """Whether a loop was asked to end. Any thread, and a signal's handler, may ask."""

    def __init__(self) -> None:
        self._asked_s: float | None = None

    def ask(self) -> None:
        """Let the loop end after the step it is in."""
        if self._asked_s is None:
            self._asked_s = time.monotonic()

    def __call__(self) -> bool:
        """Return whether anybody has asked."""
        return self._asked_s is not None

    def left_s(self, most_s: float) -> float:
        """Return what is left of so many seconds since somebody asked."""
        since_s = 0.0 if self._asked_s is None else time.monotonic() - self._asked_s
        return max(0.0, most_s - since_s)


@contextlib.contextmanager
def asked_by_signal(stopper: Stopper, number: signal.Signals = signal.SIGTERM) -> Iterator[None]:
    """Let a signal ask. A second one does what it would have done, and so ends a loop that does not hear.

    Does nothing outside the main thread, where Python handles no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(number) or signal.SIG_DFL

    def asked(number: int, frame: FrameType | None) -> None:
        stopper.ask()
        signal.signal(number, before)

    signal.signal(number, asked)
    try:
        yield
    finally:
        signal.signal(number, before)


def _end() -> None:
    os._exit(FAILED)


class Watchdog:
    """Ends the process if nobody calls `beat` for too long."""

    def __init__(self, most_s: float, notes: Place, end: Callable[[], None] = _end) -> None:
        """`most_s` of 0 watches nothing; `notes` is the file for where threads stand."""
        self._most_s, self._notes, self._end = most_s, notes, end
        self._silent_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._most_s:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def beat(self) -> None:
        """Say that the loop is alive."""
        self._silent_s = 0.0

    def _watch(self) -> None:
        every_s = self._most_s / _LOOKS
        # Looks are counted, not time: a process that was stopped and goes on has not hung meanwhile.
        while not self._over.wait(every_s):
            self._silent_s += every_s
            if self._silent_s >= self._most_s:
                self._tell()
                self._end()
                return

    def _tell(self) -> None:
        text = (
            f"no step has ended for {self._silent_s:.0f} s (train.hang_s) in process {os.getpid()} on "
            f"{platform.node()}, which ends now; training can go on from its last checkpoint. "
            f"Every thread stood here:\n\n{_stacks()}"
        )
        _log.error("%s", text)
        writing = threading.Thread(target=self._notes.write_text, args=(text,), daemon=True)
        writing.start()
        writing.join(_WRITE_S)


class Watch:
    """Looks after one loop, which calls it after every step: ends it if that is wanted, or if it hangs."""

    def __init__(self, hang_s: float, notes: Place, stop: Callable[[], bool] | None) -> None:
        """`stop` tells when to end; without, SIGTERM does. For the others, see Watchdog."""
        self.stopper = Stopper()
        self._stop = stop
        self._watchdog = Watchdog(hang_s, notes)
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "Watch":
        if self._stop is None:
            self._open.enter_context(asked_by_signal(self.stopper))
        self._open.enter_context(self._watchdog)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __call__(self) -> bool:
        """Take a sign of life, and return whether to end."""
        self._watchdog.beat()
        if self._stop is not None and self._stop():
            self.stopper.ask()
        return self.stopper()


def _stacks() -> str:
    """Return where every thread stands; torch's and other libraries' own threads are not seen."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")
