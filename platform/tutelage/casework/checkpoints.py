"""Where the checkpoints of a training lie: a folder of whole ones, written while training goes on.

    step-000100-3fa94c0e71d2b688.pt    what step 100 left; the number behind it is from its own sha256
    step-000200-....pt.damaged         was not what its name says; set aside, and never read again

A file that lies where the folder should be, as versions before this one left theirs, is set aside too.

A file is there whole or not at all, and its name vouches for it, so there is no second file that
could be of another one. Saving takes a copy and returns: a store that is slow or gone delays
no step and ends no training. What could not be saved is told in the log and by `safe`, and the
next checkpoint tries again. At most one is being written and one is waiting, where a newer one
takes its place: so much memory a slow store costs, not more.

It does not know what is in a checkpoint, but that the best weights so far are, so keeping the
newest ones keeps those.
"""

import hashlib
import io
import logging
import re
import threading
import time
from dataclasses import dataclass

import torch

from tutelage.errors import TrainingError
from tutelage.methods.checkpoint import Checkpoint
from tutelage.storage import Place

_log = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d+)-([0-9a-f]{16})\.pt")
_DAMAGED = ".damaged"
_OLDER = ".older"


@dataclass(frozen=True, slots=True)
class Safe:
    """What of a training is safe."""

    step: int | None = None
    """Steps of the newest checkpoint that lies there, written or read by this process."""
    failure: str | None = None
    """Why the last one could not be written."""


class Checkpoints:
    """The folder of one training. Only one process of it saves and sets aside."""

    def __init__(self, folder: Place, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._changed = threading.Condition()
        self._waiting: Checkpoint | None = None
        self._writing = False
        self._writer: threading.Thread | None = None
        self._closed = False
        self.safe = Safe()

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole; those that are not are set aside.

        Raises:
            TrainingError: a file is there and cannot be read or set aside. Not a reason to start over: it may
                be tomorrow.
        """
        self._make_way()
        names = self._names()
        for name in names:
            if (found := self._read(name)) is not None:
                self.safe = Safe(found.step)
                return found
        if names:
            _log.error("%s holds no checkpoint that is whole; training starts over", self._folder)
        return None

    def of(self, step: int) -> Checkpoint:
        """Return the checkpoint of a step that another process found whole."""
        for name in self._names():
            if _step(name) == step and (found := self._checked(name)) is not None:
                return found
        raise TrainingError(
            f"{self._folder} holds no whole checkpoint of step {step} here, as it does for the first worker; "
            "let the workspace be a place that every worker reads"
        )

    def save(self, checkpoint: Checkpoint) -> None:
        """Take over a checkpoint that nobody changes any more, and write it as soon as may be."""
        with self._changed:
            self._waiting, self._closed = checkpoint, False
            if self._writer is None:
                # One for all: each new thread would leave what it freed in a heap of its own. Not waited for
                # when the process ends: what half a write leaves is no checkpoint.
                self._writer = threading.Thread(target=self._write_all, name="checkpoints", daemon=True)
                self._writer.start()
            self._changed.notify_all()

    def wait(self, most_s: float) -> bool:
        """Wait until everything is written, or has failed; return whether it was in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._writing and self._waiting is None, most_s)

    def close(self, most_s: float) -> None:
        """Give up what waits, and let what is being written end: training needs neither any more."""
        with self._changed:
            self._waiting, self._closed = None, True
            self._changed.notify_all()
        if not self.wait(most_s):
            _log.error("a checkpoint was still being written to %s after %g s", self._folder, most_s)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._closed)
                checkpoint, self._waiting = self._waiting, None
                if checkpoint is None:
                    self._writer = None
                    return
                self._writing = True
            self._write(checkpoint)
            del checkpoint
            with self._changed:
                self._writing = False
                self._changed.notify_all()

    def _write(self, checkpoint: Checkpoint) -> None:
        started = time.monotonic()
        try:
            buffer = io.BytesIO()
            torch.save(checkpoint.to_dict(), buffer)
            data = buffer.getvalue()
            (self._folder / _name(checkpoint.step, data)).write_bytes(data)
        except Exception as error:  # a store may fail in any way; training goes on whatever it is
            reason = f"{type(error).__name__}: {error}"
            self.safe = Safe(self.safe.step, reason)
            _log.error(
                "the checkpoint of step %d could not be saved (%s); training goes on, but from step %d if it "
                "is stopped before the next one is", checkpoint.step, reason, self.safe.step or 0,
            )  # fmt: skip
            return
        self.safe = Safe(checkpoint.step)
        _log.info("checkpoint of step %d in %.1f s", checkpoint.step, time.monotonic() - started)
        self._tidy()

    def _tidy(self) -> None:
        try:
            for name in self._names()[self._keep :]:
                (self._folder / name).remove()
        except Exception as error:
            _log.warning("an old checkpoint stays in %s: %s", self._folder, error)

    def _make_way(self) -> None:
        """Set aside a file that lies where the folder should be."""
        if self._folder.name not in self._folder.parent.names():
            return
        older = _set_aside(self._folder, _OLDER)
        _log.warning(
            "%s was a file of another version of tutelage, expected a folder of checkpoints; it is set aside "
            "as %s, which may be deleted, and training starts over",
            self._folder,
            older,
        )

    def _names(self) -> list[str]:
        """Names of checkpoints, the newest first."""
        return sorted(filter(_NAME.fullmatch, self._folder.names(".pt")), key=_step, reverse=True)

    def _read(self, name: str) -> Checkpoint | None:
        """Return a checkpoint if it is what it says, else set it aside."""
        found = self._checked(name)
        if found is None:
            place = self._folder / name
            _log.error("%s is damaged; it is set aside, and the one before it is gone on from", place)
            _set_aside(place, _DAMAGED)
        return found

    def _checked(self, name: str) -> Checkpoint | None:
        place = self._folder / name
        try:
            data = place.read_bytes()
        except OSError as error:
            raise TrainingError(
                f"{place} cannot be read ({error}); see to it that it can, or delete it to go on from the "
                "one before it"
            ) from error
        if _name(_step(name), data) != name:
            return None
        try:
            return Checkpoint.from_dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
        except Exception as error:  # torch has no common base for what another version's file can raise
            _log.error("%s is whole, but not of this version of tutelage (%r)", place, error)
            return None


def _set_aside(place: Place, suffix: str) -> Place:
    """Give a file another name, and return where it is."""
    aside = place.parent / (place.name + suffix)
    try:
        place.move(aside)
    except OSError as error:
        raise TrainingError(
            f"{place} cannot be set aside as {aside.name} ({error}); move or delete it"
        ) from error
    return aside


def _name(step: int, data: bytes) -> str:
    return f"step-{step:06d}-{hashlib.sha256(data).hexdigest()[:16]}.pt"


def _step(name: str) -> int:
    found = _NAME.fullmatch(name)
    assert found is not None, "only names of checkpoints have a step"
    return int(found[1])
