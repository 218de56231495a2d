"""The exceptions tutelage raises on purpose.

    TutelageError
    ├── SettingsError      (ValueError)    the YAML or the command line is wrong; nothing has run yet
    ├── MissingExtraError  (ImportError)   a feature needs an optional package that is not installed
    ├── ArchiveError       (ValueError)    an image, a label or a dataset description cannot be used
    ├── GeneralistError    (RuntimeError)  a generalist cannot be built or cannot answer
    ├── PriorsError        (RuntimeError)  a language model cannot be had or gives no usable answer
    ├── TrainingError      (RuntimeError)  a specialist cannot be trained or loaded
    │   └── DivergedError  (FloatingPointError)  its loss or gradient is no number any more
    ├── Preempted          (RuntimeError)  training was asked to end and did; it goes on from a checkpoint
    ├── StoppedError       (RuntimeError)  work that nobody waits for any more ended
    ├── ClusterError       (RuntimeError)  Ray lost those who work, or has no place for them
    ├── WorkspaceError     (RuntimeError)  a workspace is locked, damaged or not where it should be
    ├── StorageError       (OSError)       a place elsewhere cannot be reached, read or written
    ├── TrackingError      (RuntimeError)  MLflow refused, or knows no such model
    └── ServerError        (RuntimeError)  a server that serves specialists failed
        ├── RefusedError   (ValueError)    it does not want what it was sent, and never will
        ├── ForbiddenError (RuntimeError)  it wants a token, or another one
        ├── BusyError      (RuntimeError)  it is full; ask again later
        └── UnreachableError (ConnectionError)  nobody answers at that address

To add one: subclass the category and the standard exception that a stranger would catch,
set `exit_code` if it differs, add the line above and a row in tests/test_errors.py.
Every one survives pickling, because Ray carries it across processes: pass the message and
nothing else to `super().__init__`.

A message has three parts: what was found and where, what was expected, what to do.
"""

FAILED = 1
"""Exit code: something went wrong on the way."""

UNUSABLE = 2
"""Exit code: the input cannot be used; nothing was started."""

PARTIAL = 3
"""Exit code: finished, but some cases failed and are on record."""


PREEMPTED = 143
"""Exit code: asked to end by SIGTERM, and did; what shells say of a process that the signal ended."""


class TutelageError(Exception):
    """Base of every error raised on purpose."""

    exit_code: int = FAILED


class SettingsError(TutelageError, ValueError):
    """The settings are wrong; nothing has run yet."""

    exit_code = UNUSABLE


class MissingExtraError(TutelageError, ImportError):
    """A feature needs an optional package that is not installed."""

    exit_code = UNUSABLE


class ArchiveError(TutelageError, ValueError):
    """An image, a label or a dataset description cannot be used."""

    exit_code = UNUSABLE


class GeneralistError(TutelageError, RuntimeError):
    """A generalist cannot be built or cannot answer."""


class PriorsError(TutelageError, RuntimeError):
    """A language model cannot be had or gives no usable answer."""


class TrainingError(TutelageError, RuntimeError):
    """A specialist cannot be trained or loaded."""


class DivergedError(TrainingError, FloatingPointError):
    """Loss or gradient of a step is no number; trying again would give the same."""

    step: int = 0
    what: str = ""
    """`loss` or `gradient`."""
    value: float = float("nan")
    cases: tuple[str, ...] = ()
    """That this process learned from in that step, as far as they can be the cause."""


class Preempted(TutelageError, RuntimeError):  # noqa: N818 - a request that was followed, not a mistake
    """Training was asked to end, ended, and can go on."""

    exit_code = PREEMPTED


class StoppedError(TutelageError, RuntimeError):
    """Work that nobody waits for any more ended."""


class ClusterError(TutelageError, RuntimeError):
    """Ray lost those who work, or has no place for them."""


class WorkspaceError(TutelageError, RuntimeError):
    """A workspace is locked, damaged or not where it should be."""


class StorageError(TutelageError, OSError):
    """A place that is not on this machine cannot be reached, read or written."""


class TrackingError(TutelageError, RuntimeError):
    """MLflow refused, or knows no such model."""


class ServerError(TutelageError, RuntimeError):
    """A server that serves specialists could not do what it was asked."""

    status: int = 0
    """Of HTTP; 0 if there was no answer."""
    kind: str = ""
    """What the problem document calls it, as `too-large`."""
    request_id: str = ""
    """Under which the server's log has it."""
    again: bool = False
    """Whether it may be different in a moment."""
    retry_after_s: float = 0.0
    """How long to stay away."""


class RefusedError(ServerError, ValueError):
    """A server does not want what it was sent; sent again, it would be refused again."""

    exit_code = UNUSABLE


class ForbiddenError(ServerError):
    """A server wants a token, or another one."""

    exit_code = UNUSABLE


class BusyError(ServerError):
    """A server is full."""

    again = True


class UnreachableError(ServerError, ConnectionError):
    """Nobody answers at that address."""
