"""Windows of several volumes, looked at together by one network, in a thread of its own.

It decides which windows go together: those of one shape, from the one that waits longest on, as
many as the device takes at once, and never waits for more to come. Whoever asks has one request in
line, so that a large volume holds up a small one by a batch and no more. What a window is, and
what becomes of its logits, is the callers' business.

A window's logits do not depend on which others it is looked at with, but how a device adds up may:
by batches of another size their last bits may differ. On a CPU, where windows of the usual size take
longer together than one after the other, each is looked at alone and gets the bits that it would
get if nobody else asked.
"""

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tutelage.errors import StoppedError

AT_ONCE = {"cpu": 1, "cuda": 8}
"""Windows of several callers that are looked at together. More than one gains nothing on a CPU."""

_ASK_S = 0.05
"""Between two questions whether a caller that waits for its windows still wants them."""

_log = logging.getLogger(__name__)

Look = Callable[[Tensor], Tensor]
Stop = Callable[[], bool]


def never() -> bool:
    """Say that work is still wanted."""
    return False


class Looking:
    """Looks at windows for any number of threads, and ends its own when nobody holds it any more."""

    def __init__(self, look: Look, at_once: int) -> None:
        """`look` takes (B, C, D, H, W) and returns logits of as many; one thread calls it."""
        self._line = _Line(at_once)
        # The thread knows the line and not this object, so that dropping this is enough to end it.
        self._end = weakref.finalize(self, self._line.close)
        thread = threading.Thread(target=_work, args=(look, self._line), name="looking", daemon=True)
        thread.start()

    def __call__(self, windows_BCDHW: Tensor, stop: Stop = never) -> Tensor:
        """Return the logits of these windows, which are the caller's to overwrite.

        Raises:
            StoppedError: `stop` said so while they waited.
        """
        asked = _Asked(windows_BCDHW)
        self._line.join(asked)
        while not asked.done.wait(None if stop is never else _ASK_S):
            if stop():
                self._line.leave(asked)
                raise StoppedError("nobody waits for these windows any more; they were left out")
        return asked.result()

    @property
    def windows(self) -> int:
        """Windows that were looked at so far."""
        return self._line.windows

    @property
    def batches(self) -> int:
        """How often the network was run for them."""
        return self._line.batches

    @property
    def at_once(self) -> int:
        """Windows that are looked at together at most; fewer than at first once memory ran out."""
        return self._line.at_once

    def close(self) -> None:
        """End the thread, once it has answered all that wait; whoever asks later is refused."""
        self._end()


class _Asked:
    """Windows of one caller, and what became of them."""

    def __init__(self, windows_BCDHW: Tensor) -> None:
        self.windows_BCDHW = windows_BCDHW
        self.form = (windows_BCDHW.shape[1:], windows_BCDHW.dtype, windows_BCDHW.device)
        self.done = threading.Event()
        self.logits_BKDHW: Tensor | None = None
        self.error: BaseException | None = None

    def result(self) -> Tensor:
        if self.error is not None:
            raise self.error
        assert self.logits_BKDHW is not None
        return self.logits_BKDHW


class _Line:
    """Who waits, in order, and what was done so far."""

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self.windows = 0
        self.batches = 0
        self._waiting: deque[_Asked] = deque()
        self._open = True
        self._changed = threading.Condition()

    def join(self, asked: _Asked) -> None:
        with self._changed:
            if not self._open:
                raise RuntimeError("the network is closed, expected nobody to ask it; load it again")
            self._waiting.append(asked)
            self._changed.notify()

    def leave(self, asked: _Asked) -> None:
        with self._changed:
            if asked in self._waiting:
                self._waiting.remove(asked)

    def close(self) -> None:
        with self._changed:
            self._open = False
            self._changed.notify()

    def taken(self) -> list[_Asked]:
        """Wait for the next batch; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._open)
            batch: list[_Asked] = []
            room = self.at_once
            for asked in list(self._waiting):
                count = len(asked.windows_BCDHW)
                # The first goes in any case: more than there is room for are looked at in parts.
                if not batch or (asked.form == batch[0].form and count <= room):
                    batch.append(asked)
                    self._waiting.remove(asked)
                    room -= count
            return batch


def _work(look: Look, line: _Line) -> None:
    with torch.inference_mode():  # which is each thread's own
        while _looked(look, line):
            continue


def _looked(look: Look, line: _Line) -> bool:
    """Look at one batch, in a frame of its own: nothing of it is held while the next is awaited."""
    batch = line.taken()
    try:
        counts = [len(asked.windows_BCDHW) for asked in batch]
        if batch:
            logits_BKDHW = _logits(look, line, [asked.windows_BCDHW for asked in batch])
            for asked, own_BKDHW in zip(batch, torch.split(logits_BKDHW, counts), strict=True):
                asked.logits_BKDHW = own_BKDHW
    except BaseException as error:  # whatever it is, those who wait must hear of it
        for asked in batch:
            asked.error = error
    for asked in batch:
        asked.done.set()
    return bool(batch)


def _logits(look: Look, line: _Line, several: Sequence[Tensor]) -> Tensor:
    """Logits of all windows, in as many parts as they need; smaller ones once memory runs out."""
    windows_BCDHW = several[0] if len(several) == 1 else torch.cat(list(several))
    made: list[Tensor] = []
    first, total = 0, len(windows_BCDHW)
    while first < total:
        some_BCDHW = windows_BCDHW[first : first + line.at_once]
        logits_BKDHW = _tried(look, some_BCDHW)
        if logits_BKDHW is None:
            line.at_once = _halved(len(some_BCDHW))
            continue
        made.append(logits_BKDHW)
        first += len(some_BCDHW)
        line.windows += len(some_BCDHW)
        line.batches += 1
    return made[0] if len(made) == 1 else torch.cat(made)


def _tried(look: Look, windows_BCDHW: Tensor) -> Tensor | None:
    """Logits, or None if memory ran out."""
    try:
        return look(windows_BCDHW)
    except torch.OutOfMemoryError:
        pass
    # Only here, past the handler, is the traceback gone that keeps the tensors of the attempt alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _halved(size: int) -> int:
    if size == 1:
        raise torch.OutOfMemoryError(
            "a single window does not fit into the memory of the device, expected one at least to; take "
            "fewer requests at a time (serving.ongoing), or fewer models (serving.loaded)"
        )
    fewer = (size + 1) // 2
    _log.warning("out of memory with %d windows at once; going on with %d", size, fewer)
    return fewer
