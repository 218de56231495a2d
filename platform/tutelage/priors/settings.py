"""What the priors room can be told. Imports neither torch nor an engine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from tutelage.errors import SettingsError
from tutelage.priors.vectors import VectorSettings
from tutelage.settings import Settings

_RAYS_OWN = ("CPU", "GPU", "memory", "object_store_memory")
"""Resources that every node has, and that have settings of their own."""


def _custom(resources: dict[str, float]) -> dict[str, float]:
    if mistaken := [name for name in resources if name in _RAYS_OWN]:
        raise ValueError(
            f"expected names that nodes were started with (ray start --resources), found {mistaken[0]}, "
            "which every node has; cores and GPUs have settings of their own"
        )
    return resources


Resources = Annotated[dict[str, Annotated[float, Field(ge=1e-4)]], AfterValidator(_custom)]
"""Ray's custom resources by name, and how much of each is taken; Ray knows no less than a ten-thousandth."""


class AskingSettings(Settings):
    """How a language model is asked about structures."""

    samples: int = Field(default=3, ge=1, le=32)
    """Answers to each question; the share of them that agree is the confidence of a claim."""

    temperature: float = Field(default=0.7, ge=0, le=2)
    """How freely it answers; a single sample is always taken at 0."""

    seed: int = Field(default=0, ge=0)
    """Of the first sample."""

    attempts: int = Field(default=2, ge=0)
    """How often an answer that cannot be used is asked for again, with the complaint."""

    letters: int = Field(default=120, ge=20, le=128)
    """At most so many in each sentence. The grammar of vLLM's engine (xgrammar) repeats nothing more often
    than 128 times: asked for more it writes nothing at all, without an error."""

    views: tuple[str, ...] = Field(default=("axial",), min_length=1)
    """How the images are cut, in words; each view is a question of its own."""


class EndpointSettings(Settings):
    """How a server that speaks OpenAI's protocol is talked to."""

    concurrency: int = Field(default=16, ge=1)
    """Questions that are under way at the same time."""

    timeout_s: float = Field(default=120.0, gt=0)
    """How long to wait for one answer."""

    tries: int = Field(default=5, ge=1)
    """How often a question is sent while the server is busy, slow or away."""

    wait_s: float = Field(default=1.0, ge=0)
    """Before the second try; doubled for each further one unless the server says when to come back."""

    longest_wait_s: float = Field(default=60.0, ge=0)
    """A server that wants more is not waited for."""

    seeds: bool = True
    """Whether every question says its seed, so that a server can answer the same again; vLLM 0.29 on a
    CPU dies of a seed where the temperature is above 0."""

    api_key_env: str = "OPENAI_API_KEY"
    """Variable of the environment that holds the key; unset means none is sent."""


class EngineSettings(Settings):
    """How vLLM runs where no server is asked."""

    max_model_len: int = Field(default=4096, ge=256)
    """Tokens of a question with its answer; more takes more memory."""

    max_num_seqs: int = Field(default=64, ge=1)
    """Answers that are written at the same time."""

    batch_size: int = Field(default=64, ge=1)
    """Questions that travel to the engine together."""

    copies: int = Field(default=1, ge=1)
    """Engines that answer at the same time."""

    gpus: int = Field(default=0, ge=0)
    """GPUs of each of them; 0 runs on the CPU, where vLLM 0.29 cannot draw each sample by its own seed."""

    cpus: float = Field(default=1.0, gt=0)
    """CPU cores that each of them reserves."""

    resources: Resources = Field(default_factory=dict)
    """Custom resources that each of them reserves, once for each of its GPUs: {llm: 1} has engines start
    only on nodes that were given `llm`."""

    dtype: str = "bfloat16"
    """Numbers that it computes with."""

    eager: bool | None = None
    """Whether to start quickly and run a little slower; None does so on a CPU."""

    kv_cache_gb: int = Field(default=1, ge=1)
    """Memory for what it has read so far, on a CPU; on a GPU it takes what is free."""


class PriorsSettings(Settings):
    """Where the reviewed priors are, and how a language model is asked for new ones."""

    shelf: str | None = None
    """A YAML file of reviewed priors; without one every structure may have any volume."""

    check: bool = True
    """Whether the shelf is held against the annotated cases before it is held against masks: what most of
    them contradict is not used, what some contradict counts less. The file itself stays as it is."""

    limit_prompts: bool = True
    """Whether generalists are not asked where nothing can be: about more pieces of a structure than the shelf
    allows, of which the largest stay, and about a structure that a case's notes call absent."""

    asking: AskingSettings = AskingSettings()
    endpoint: EndpointSettings = EndpointSettings()
    engine: EngineSettings = EngineSettings()
    vectors: VectorSettings = VectorSettings()

    def problems(self) -> Iterator[tuple[str, str]]:
        """Complain about a shelf that cannot be read and a tower that cannot be loaded."""
        yield from ((f"vectors.{path}", complaint) for path, complaint in self.vectors.problems())
        if self.shelf is None:
            return
        from tutelage.priors.shelf import read

        try:
            read(Path(self.shelf))
        except SettingsError as error:
            yield "shelf", str(error)
