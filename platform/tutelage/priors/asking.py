"""Asking a model about every structure: who is asked what, what is asked again, what is refused.

Each sample is a question of its own. A reply that cannot be used is asked for again with the
complaint, and so is one whose relations cannot be true beside those of other structures; after
`attempts` of that, what is still wrong is refused with its reason and the rest is taken.
Replies are kept as they come, so a run that was stopped goes on where it was. It does not know
which model answers or who reviews the result.
"""

import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tutelage import __version__
from tutelage.errors import PriorsError
from tutelage.priors import answers, questions, shelf
from tutelage.priors.answers import Said
from tutelage.priors.base import Finish, Question, Reply, TextModel
from tutelage.priors.questions import Region, Topic
from tutelage.priors.recorded import Replies
from tutelage.priors.relations import Stated, circles, complaints, stated
from tutelage.priors.settings import AskingSettings
from tutelage.priors.shelf import Asked, Shelf
from tutelage.records import Prior
from tutelage.settings import fingerprint

_NAMED = 3
"""Reasons that are told of one structure."""


@dataclass(frozen=True)
class Refused:
    """A structure, or one claim about it, that a model gave no usable answer to."""

    structure: str
    claim: str
    """Empty where nothing about the structure could be used; `some claims` where others could."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What asking took, and what was refused in the end."""

    refused: tuple[Refused, ...]
    answered: int
    """Replies that came from the model."""
    kept: int
    """Replies that had been given before."""
    again: int
    """Questions that were asked once more, with a complaint."""
    unusable: int
    """Samples that stayed unusable."""
    tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Interview(Effort):
    """What came of asking."""

    shelf: Shelf


@dataclass
class _Sample:
    """One sample of one topic, over all attempts."""

    topic: Topic
    question: Question
    said: Said | None = None
    wrong: list[str] = field(default_factory=lambda: ["there is no answer"])
    text: str = ""
    open: bool = True
    """Whether its question waits for a reply."""

    def take(self, reply: Reply, others: Sequence[str]) -> None:
        found = answers.read(reply, self.topic.structure, others)
        self.said, self.wrong, self.text = found.said or self.said, list(found.wrong), reply.text
        self.open = bool(found.wrong) and reply.finish != Finish.ERROR

    def ask_again(self) -> None:
        self.open = True
        self.question = questions.again(self.question, self.text, self.wrong)


class _Asker:
    """Puts questions to the model that have not been answered before, and counts."""

    def __init__(self, model: TextModel, replies: Replies, told: Callable[[int, str], None]) -> None:
        self._model, self._replies, self._told = model, replies, told
        self._who = fingerprint(model.name, model.digest)
        self.answered = self.kept = self.tokens = 0

    def answers(self, asked: Mapping[str, Question]) -> Iterator[Reply]:
        unanswered = []
        for question in asked.values():
            before = self._replies.of(self._who, question)
            if before is None:
                unanswered.append(question)
                continue
            self.kept += 1
            yield before
        if not unanswered:
            return
        try:
            for reply in self._model.answer(unanswered):
                self._replies.keep(self._who, asked[reply.key], reply)
                self.answered += 1
                self.tokens += reply.tokens
                self._told(self.answered + self.kept, f"{self.tokens} tokens")
                yield reply
        finally:
            self._replies.flush()


def interview(
    model: TextModel,
    region: Region,
    structures: Sequence[str],
    settings: AskingSettings,
    replies: Replies,
    before: Shelf | None,
    today: str,
    told: Callable[[int, str], None] = lambda done, note: None,
) -> Interview:
    """Ask a model about structures and return the shelf with what can be used, and what was refused.

    Entries of other structures that a shelf held before stay; claims that a person edited stay.

    Raises:
        SettingsError: the archive has no such structure.
        PriorsError: the model cannot be had.
    """
    started = time.monotonic()
    samples = _samples(region, structures, settings)
    asker = _Asker(model, replies, told)
    again = 0
    for attempt in range(settings.attempts + 1):
        waiting = {sample.question.key: sample for sample in samples if sample.open}
        if attempt:
            for sample in waiting.values():
                sample.ask_again()
            again += len(waiting)
        for reply in asker.answers({key: sample.question for key, sample in waiting.items()}):
            sample = waiting[reply.key]
            sample.take(reply, region.others(sample.topic.structure))
        if attempt < settings.attempts:
            _contradicted(samples)
    source = f"{model.name} ({model.digest}), asked by tutelage {__version__} on {today}; not reviewed"
    priors, refused = _joined(samples, settings, source)
    priors, circular = _untangled(priors)
    asked = {name: _origin(model, samples, prior, settings, today) for name, prior in priors.items()}
    shelved, late = _shelved(priors, asked, before, source)
    return Interview(
        shelf=shelved,
        refused=(*refused, *circular, *late),
        answered=asker.answered,
        kept=asker.kept,
        again=again,
        unusable=sum(sample.said is None for sample in samples),
        tokens=asker.tokens,
        seconds=time.monotonic() - started,
    )


def _samples(region: Region, structures: Sequence[str], settings: AskingSettings) -> list[_Sample]:
    found = []
    for topic in questions.topics(region, structures, settings):
        one = replace(questions.question(topic, region, settings), samples=settings.samples)
        for number, part in enumerate(one.apart()):
            found.append(_Sample(topic, replace(part, key=f"{topic.key}|{number}")))
    if not found:
        raise PriorsError("there is nothing to ask about: no structures were named")
    return found


def _contradicted(samples: Sequence[_Sample]) -> None:
    """Reopen samples whose relations cannot be true beside what most samples say of other structures."""
    said: dict[str, list[Said]] = {}
    for sample in samples:
        if sample.said is not None:
            said.setdefault(sample.topic.structure, []).append(sample.said)
    common = {
        structure: answers.joined(structure, {"": several}, len(several), "").relations
        for structure, several in said.items()
    }
    wrong: dict[Stated, list[str]] = {}
    for claim, words in complaints(stated(common)):
        wrong.setdefault(claim, []).append(words)
    for sample in samples:
        if sample.said is None:
            continue
        found = [
            words for claim in sample.said.stated(sample.topic.structure) for words in wrong.get(claim, [])
        ]
        if found:
            sample.wrong, sample.open = list(dict.fromkeys(found)), True


def _joined(
    samples: Sequence[_Sample], settings: AskingSettings, source: str
) -> tuple[dict[str, Prior], list[Refused]]:
    priors, refused = {}, []
    for structure in dict.fromkeys(sample.topic.structure for sample in samples):
        own = [sample for sample in samples if sample.topic.structure == structure]
        several: dict[str, list[Said]] = {}
        for sample in own:
            images = " ".join(filter(None, (sample.topic.modality, sample.topic.view)))
            several.setdefault(images, []).extend([sample.said] if sample.said else [])
        usable = any(several.values())
        if usable:
            priors[structure] = answers.joined(structure, several, len(own), source)
        reasons = list(dict.fromkeys(words for sample in own for words in sample.wrong))
        if reasons:
            refused.append(Refused(structure, "some claims" if usable else "", _listed(reasons)))
    return priors, refused


def _listed(reasons: Sequence[str]) -> str:
    more = f"; and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else ""
    return "; ".join(reasons[:_NAMED]) + more


def _untangled(
    priors: dict[str, Prior], settled: Container[str] = ()
) -> tuple[dict[str, Prior], list[Refused]]:
    """Take out relations that still cannot all be true: nobody knows which of them is wrong.

    Those of settled structures stay; they do not contradict each other.
    """
    refused = []
    while found := circles(stated(shelf.used(priors))):
        wrong: dict[Stated, str] = {}
        for circle in found:
            words = " and ".join(f'"{claim}"' for claim in circle)
            several = [claim for claim in circle if claim.structure not in settled]
            wrong |= {claim: f"{words} cannot all be true" for claim in several}
        if not wrong:
            break
        for claim, reason in sorted(wrong.items()):
            refused.append(Refused(claim.structure, f"{claim.kind} {claim.other}", reason))
        for name, prior in priors.items():
            good = [r for r in prior.relations if Stated(name, r.kind, r.other) not in wrong]
            priors[name] = replace(prior, relations=tuple(good))
    return priors, refused


def _origin(
    model: TextModel, samples: Sequence[_Sample], prior: Prior, settings: AskingSettings, today: str
) -> Asked:
    own = [sample.question for sample in samples if sample.topic.structure == prior.structure]
    return Asked(
        model=model.name,
        weights=model.digest,
        prompt=fingerprint([question.digest for question in own]),
        sampling={
            "samples": settings.samples,
            "temperature": own[0].temperature,
            "max_tokens": own[0].max_tokens,
            "seed": settings.seed,
        },
        date=today,
        claims=shelf.claims_of(prior),
    )


def _shelved(
    priors: Mapping[str, Prior], asked: Mapping[str, Asked], before: Shelf | None, source: str
) -> tuple[Shelf, list[Refused]]:
    """Join answers with a shelf that was there; of relations that contradict it, the answers' are refused."""
    if before is None:
        return Shelf(source, dict(priors), dict(asked)), []
    merged = dict(before.priors)
    for name, prior in priors.items():
        old = before.priors.get(name)
        merged[name] = shelf.kept_edits(prior, old) if old and old.edited else prior
    settled = {name for name, prior in merged.items() if name not in priors or "relations" in prior.edited}
    merged, late = _untangled(merged, settled)
    asked = {
        name: origin.model_copy(update={"claims": origin.claims | {"relations": _told(merged[name])}})
        if name not in settled
        else origin
        for name, origin in asked.items()
    }
    return Shelf(source, merged, before.asked | asked), late


def _told(prior: Prior) -> str:
    """The digest of the relations that are left."""
    return shelf.claims_of(prior)["relations"]
