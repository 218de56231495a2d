"""Work on scans: in a thread, when it is its turn, and only as long as somebody waits for it.

The client may leave and the time may run out: both end the work between two windows of the
network. Its turn is given on when the thread has really ended, never before, so that no more
than `ongoing` volumes are in memory at a time. It decides nothing about the work itself.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from fastapi import Request

from serve.admission import Turns
from serve.problems import ProblemError
from tutelage.cluster.settings import ServingSettings
from tutelage.errors import BusyError, StoppedError
from tutelage.specialist.looking import Stop

T = TypeVar("T")


class Deadline:
    """When the time of one request is over."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left_s(self) -> float:
        """Seconds from now, never negative."""
        return max(self._end - time.monotonic(), 0.0)

    def error(self) -> ProblemError:
        """Return what is told when it is over."""
        return ProblemError(
            f"no answer after {self.seconds:g} seconds, expected one by then; send the scan to /v1/jobs, "
            "or serve with a larger serving.timeout_s",
            "timed-out",
        )


class Piece(Generic[T]):
    """One piece of work that can be ended before it is done."""

    def __init__(self, function: Callable[[Stop], T], last: Callable[[], None]) -> None:
        self.function = function
        self.last = last
        """Called when it has ended, or will not begin."""
        self.began = False
        """Whether a thread has taken it."""
        self.over = threading.Event()
        """Set once nobody waits for it any more."""

    def __call__(self) -> T:
        """Do it, in a thread."""
        if self.over.is_set():
            raise StoppedError("nobody waits for the answer any more")
        return self.function(self.over.is_set)


class Crew:
    """The threads of one copy, and the queue before them."""

    def __init__(self, settings: ServingSettings) -> None:
        self.turns = Turns.of(settings)
        self._threads = ThreadPoolExecutor(settings.ongoing, thread_name_prefix="scan")
        self._closed = False
        self._tasks: set[asyncio.Task[Any]] = set()

    async def attended(
        self, request: Request, deadline: Deadline, piece: Piece[T], waited: Callable[[float], None]
    ) -> T:
        """Have work done while its client waits; call it when the body has been received.

        Raises:
            ProblemError: the time was over before.
            StoppedError: the client left before.
        """
        work = self._task(self._turned(piece, waited), piece)
        gone = asyncio.create_task(_gone(request))
        try:
            await asyncio.wait((work, gone), timeout=deadline.left_s(), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if gone.done():
                raise StoppedError("the client left before its answer was ready")
            raise deadline.error()
        finally:
            gone.cancel()
            piece.over.set()
            if not piece.began:
                work.cancel()

    def unattended(self, piece: Piece[T], waited: Callable[[], None]) -> "asyncio.Task[T]":
        """Have work done that nobody waits for at the other end of a connection; it may wait for long."""
        return self._task(self._patient(piece, waited), piece)

    def close(self) -> None:
        """Begin nothing any more, and let the threads go that have nothing to do."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _turned(self, piece: Piece[T], waited: Callable[[float], None]) -> T:
        began = time.monotonic()
        async with self.turns.turn():
            waited(time.monotonic() - began)
            return await self._threaded(piece)

    async def _patient(self, piece: Piece[T], waited: Callable[[], None]) -> T:
        async with contextlib.AsyncExitStack() as stack:
            while not await self._entered(stack):
                continue
            waited()
            return await self._threaded(piece)

    async def _entered(self, stack: contextlib.AsyncExitStack) -> bool:
        try:
            await stack.enter_async_context(self.turns.turn())
        except BusyError:
            return False
        return True

    async def _threaded(self, piece: Piece[T]) -> T:
        if self._closed:
            raise BusyError("the server is being taken down, expected another in its place; send it again")
        piece.began = True
        return await asyncio.get_running_loop().run_in_executor(self._threads, piece)

    def _task(self, doing: Coroutine[Any, Any, T], piece: Piece[T]) -> "asyncio.Task[T]":
        # Held, since a loop forgets tasks that nobody holds.
        task = asyncio.create_task(doing)
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._ended(ended, piece))
        return task

    def _ended(self, task: "asyncio.Task[Any]", piece: Piece[Any]) -> None:
        self._tasks.discard(task)
        piece.last()
        if not task.cancelled():
            task.exception()  # asked once, since of work that was abandoned nobody else asks


async def _gone(request: Request) -> None:
    """Return when the client has left; its whole body has been received before."""
    while (await request.receive())["type"] != "http.disconnect":
        await asyncio.sleep(0)
