"""Answers that were given before: kept while a model is asked, and played back without one.

It decides how replies lie on disk, and that they stay there. It does not know what they say,
except where a reviewed shelf stands in for a model.
"""

import json
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tutelage.errors import PriorsError, SettingsError
from tutelage.priors import shelf
from tutelage.priors.aside import Aside
from tutelage.priors.base import Finish, Question, Reply
from tutelage.records import Prior
from tutelage.settings import fingerprint
from tutelage.storage import Place

_AT_ONCE = 64
_EVERY_S = 5.0
"""Replies are written after so many or so long, whichever comes first; a killed run loses no more."""


class Replies:
    """Replies by what was asked of whom, in a folder of a workspace; a question is not asked twice."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._known = Aside()
        self._fresh: list[str] = []
        self._written = time.monotonic()
        for file in place.files(".jsonl"):
            for asked, reply in _lines(file):
                self._known[asked] = json.dumps(asdict(reply))

    def __len__(self) -> int:
        return len(self._known)

    def of(self, model: str, question: Question) -> Reply | None:
        """Return what a model, by its digest, replied to a question of one sample, under its key."""
        found = self._known.get(_asked(model, question))
        return None if found is None else _reply(json.loads(found) | {"key": question.key})

    def keep(self, model: str, question: Question, reply: Reply) -> None:
        """Keep a reply; one that says nothing but an error is not kept, so that it is asked for again."""
        if reply.finish == Finish.ERROR:
            return
        asked = _asked(model, question)
        self._known[asked] = json.dumps(asdict(reply))
        self._fresh.append(json.dumps({"asked": asked} | asdict(reply)))
        if len(self._fresh) >= _AT_ONCE or time.monotonic() - self._written > _EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet, whole or not at all."""
        if self._fresh:
            name = f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.jsonl"
            (self._place / name).write_text("\n".join(self._fresh) + "\n")
        self._fresh = []
        self._written = time.monotonic()


def _asked(model: str, question: Question) -> str:
    return fingerprint(model, question.digest)


def _lines(file: Place) -> Iterator[tuple[str, Reply]]:
    for number, line in enumerate(file.read_text().splitlines(), 1):
        try:
            values = json.loads(line)
            yield values.pop("asked"), _reply(values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PriorsError(
                f"line {number} of {file} is no reply ({error}); delete it, its questions are asked again"
            ) from None


def _reply(values: dict[str, Any]) -> Reply:
    return Reply(**values | {"finish": Finish(values["finish"])})


class Recorded:
    """A reviewed shelf that answers in a model's place."""

    def __init__(self, path: Path) -> None:
        try:
            self._priors = shelf.read(path)
        except SettingsError as error:
            raise SettingsError(f"--recorded: {error}") from None
        self.name = f"recorded in {path.name}"
        self.digest = fingerprint({name: asdict(prior) for name, prior in self._priors.items()})

    def answer(self, questions: Iterable[Question]) -> Iterator[Reply]:
        """Yield what the shelf says of the structure that a key begins with, the same in every sample."""
        for question in questions:
            text, error = self._told(question)
            finish = Finish.ERROR if error else Finish.STOP
            for sample in range(question.samples):
                yield Reply(question.key, sample, text, finish=finish, error=error)

    def close(self) -> None:
        """Nothing is held."""

    def _told(self, question: Question) -> tuple[str, str]:
        structure = question.key.partition("|")[0]
        prior = self._priors.get(structure)
        if prior is None:
            return "", f"the recording has no {structure}; it has {', '.join(self._priors)}"
        missing = [topic for topic in ("shape", "position", "appearance") if topic not in prior.text]
        if missing:
            return "", f"the recording lacks text of {structure}: {', '.join(missing)}"
        told = _as_said(prior)
        return json.dumps(
            {key: value for key, value in told.items() if key in question.schema["properties"]}
        ), ""


def _as_said(prior: Prior) -> dict[str, object]:
    return {
        "shape": prior.text["shape"],
        "location": prior.text["position"],
        "appearance": prior.text["appearance"],
        "smallest_ml": prior.volume_ml[0],
        "largest_ml": prior.volume_ml[1],
        "fewest_pieces": max(1, prior.components[0]),
        "most_pieces": max(1, prior.components[1]),
        "may_be_absent": prior.may_be_absent,
        "relations": [{"kind": related.kind, "other": related.other} for related in prior.relations],
        "confused_with": list(prior.confused_with),
    }
