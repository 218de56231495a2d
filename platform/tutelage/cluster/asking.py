"""Asking generalists that live in processes of their own, on other devices than training.

Which of them answers follows from the case, so that each keeps its own share of the images
in memory, and embeddings meet in their cache. One that dies is started anew by Ray and asked
again: the same question has the same answer. It decides nothing about answers, which are
those of `casework.online`.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayActorError, RayTaskError

from tutelage.cluster.settings import ClusterSettings
from tutelage.errors import TrainingError
from tutelage.methods.base import Answers

if TYPE_CHECKING:  # loading generalists is the askers' work
    from tutelage.casework.online import AskJob
    from tutelage.methods.base import Asker

_RETRIES = 3
"""How often a question is asked again whose asker died over it."""


class _Asking:
    """What Ray runs in each process: generalists, loaded when the first question comes."""

    def __init__(self, job: "AskJob") -> None:
        self._job = job
        self._asker: Asker | None = None

    def load(self) -> "Asker":
        from tutelage.casework.online import asker

        if self._asker is None:
            self._asker = asker(self._job)
        return self._asker

    def loaded(self) -> bool:
        return self.load() is not None

    def ask(self, case: str, mask_DHW: NDArray[np.uint8], seed: int) -> Answers:
        return self.load().ask(case, mask_DHW, seed)


@dataclass(frozen=True, slots=True)
class Askers:
    """Several processes that answer as one `Asker`; travels to training workers."""

    actors: tuple[Any, ...]

    def ask(self, case: str, mask_DHW: NDArray[np.uint8], seed: int) -> Answers:
        """See Asker."""
        actor = self.actors[zlib.crc32(case.encode()) % len(self.actors)]
        answers: Answers = _answered(
            actor.ask.remote(case, mask_DHW, seed),
            f"asking the generalist about {case} took down its process {_RETRIES + 1} times",
            "look at this image, or at the memory of the node that asks",
        )
        # What comes from Ray lies in its shared memory, which methods that keep answers would fill.
        return Answers(
            answers.mean_KDHW.copy(), answers.variance_KDHW.copy(), answers.asked_K.copy(), answers.calls
        )


@contextmanager
def askers(job: "AskJob", settings: ClusterSettings) -> Iterator[Askers]:
    """Have `settings.askers` processes with the generalists of a job. Needs a session.

    Raises:
        SettingsError: they cannot be prompted as the settings want.
        GeneralistError: their weights are not there.
    """
    gpus = settings.gpus_per_asker
    kind: Any = ray.remote(_Asking).options(
        # A GPU actor is not counted against the cores, or a machine with few cores would idle its GPUs.
        num_cpus=0 if gpus else settings.cpus_per_asker,
        num_gpus=gpus or None,
        resources=settings.resources_per_asker or None,
        max_restarts=-1,
        max_task_retries=_RETRIES,
    )
    shared = ray.put(job)
    actors = tuple(kind.remote(shared) for _ in range(settings.askers))
    try:
        _answered(
            [actor.loaded.remote() for actor in actors],
            "the generalist cannot be loaded in a process of its own",
            "look at the memory of its node, or set cluster.askers to 0",
        )
        yield Askers(actors)
    finally:
        for actor in actors:
            ray.kill(actor)


def _answered(waiting: Any, lost: str, advice: str) -> Any:
    """Wait for processes; what they raise is raised as it would have been here."""
    try:
        return ray.get(waiting)
    except RayActorError as error:
        raise TrainingError(f"{lost} ({_first_line(error)}); {advice}") from error
    except RayTaskError as error:
        raise error.cause from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
