"""What a language model is to us: questions in, replies out, whoever answers.

Three answer: vLLM in Ray Data (`cluster.texts`), any server that speaks OpenAI's protocol
(`endpoint`), and answers that were given before (`recorded`). None of them knows what a
question is about or whether a reply makes sense.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Protocol

from tutelage.settings import fingerprint


@dataclass(frozen=True, slots=True)
class Question:
    """One text to answer in JSON."""

    key: str
    """Comes back with every reply; unique among the questions that are asked together."""

    system: str
    """What all questions of a kind share; an engine computes it once."""

    user: str
    schema: Mapping[str, Any]
    """JSON schema that the answer obeys, as far as the engine can enforce it."""

    samples: int = 1
    """How many answers are wanted."""

    temperature: float = 0.0
    max_tokens: int = 1024
    seed: int = 0
    """Of the first sample; each further one has the next number."""

    @property
    def digest(self) -> str:
        """Changes with everything that decides the answer; two keys may ask the same."""
        asked = (self.system, self.user, dict(self.schema))
        return fingerprint(*asked, self.samples, self.temperature, self.max_tokens, self.seed)

    def apart(self) -> "list[Question]":
        """Split into one question a sample, with the same key."""
        return [replace(self, samples=1, seed=self.seed + sample) for sample in range(self.samples)]


class Finish(StrEnum):
    """How a reply ended."""

    STOP = "stop"
    """The model had said all."""

    LENGTH = "length"
    """It was cut at max_tokens."""

    ERROR = "error"
    """There is no reply; `error` says why."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One sample of an answer."""

    key: str
    sample: int
    text: str = ""
    tokens: int = 0
    """How many were written."""
    finish: Finish = Finish.STOP
    error: str = ""
    """Why there is no reply, in our words."""
    detail: str = ""
    """What the server said about that. It may repeat the question, and with it a patient's notes."""


class TextModel(Protocol):
    """Somebody who answers."""

    @property
    def name(self) -> str:
        """What to call it in a record."""
        ...

    @property
    def digest(self) -> str:
        """Of its weights; `unknown` where nobody tells."""
        ...

    def answer(self, questions: Iterable[Question]) -> Iterator[Reply]:
        """Yield every sample of every question as it is there, in any order.

        Questions are taken as room for them is made, so they may be many. One that gets no
        reply yields one with finish `error`, after as many tries as this model makes.

        Raises:
            PriorsError: the model cannot be had at all.
        """
        ...

    def close(self) -> None:
        """Give back what was held."""
        ...
