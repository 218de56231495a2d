"""What Ray Train calls back: when workers were lost, and when one begins.

Ray loads this beside its controller, so it loads neither torch nor anything that learns.
"""

import signal
import threading
from typing import Any

import ray.train
from ray.train.v2._internal.execution.callback import WorkerCallback

from tutelage.cluster import board as boards
from tutelage.errors import TutelageError, WorkspaceError

terminated = threading.Event()
"""Whether this process was told to end."""


class Losses(ray.train.UserCallback):
    """Pins what was lost, and ends a training that would only fail again; runs beside the controller."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """See UserCallback. What is raised here ends the training without a retry."""
        for error in worker_exceptions.values():
            # Ours are about settings, data and numbers, which stay as they are; a place may come back.
            if isinstance(error, TutelageError) and not isinstance(error, WorkspaceError):
                raise error
        self._board.pin.remote(boards.lost(worker_exceptions))


class Terminable(WorkerCallback):
    """Lets a worker that is told to end save what it learned."""

    def after_init_train_context(self) -> None:
        """Take SIGTERM over from Ray, which would end the process at once; called in the main thread."""
        signal.signal(signal.SIGTERM, lambda number, frame: terminated.set())
