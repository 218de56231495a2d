"""GGUF files of tiny random models, and a slow reference of what llama.cpp computes with them."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tutelage.errors import PriorsError, SettingsError
from tutelage.priors.gguf import as_folder, weights_digest

pytest.importorskip("gguf")
pytestmark = pytest.mark.heavy

WIDTH, HEADS, SHARED, INNER, LAYERS = 32, 4, 2, 48, 2


def _write(file: Path, architecture: str = "llama", extra: str | None = None) -> Path:
    from gguf import GGUFWriter

    rng = np.random.default_rng(0)
    writer = GGUFWriter(str(file), architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(SHARED)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    tokens = ["<|im_start|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz", "ab", "Ġ"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * (len(tokens) - 2)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    shapes = {"token_embd": (len(tokens), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_q": (WIDTH, WIDTH),
            f"blk.{layer}.attn_k": (WIDTH // HEADS * SHARED, WIDTH),
            f"blk.{layer}.attn_v": (WIDTH // HEADS * SHARED, WIDTH),
            f"blk.{layer}.attn_output": (WIDTH, WIDTH),
            f"blk.{layer}.ffn_gate": (INNER, WIDTH),
            f"blk.{layer}.ffn_up": (INNER, WIDTH),
            f"blk.{layer}.ffn_down": (WIDTH, INNER),
            f"blk.{layer}.attn_norm": (WIDTH,),
            f"blk.{layer}.ffn_norm": (WIDTH,),
        }
    for name, shape in {**shapes, **({extra: (WIDTH,)} if extra else {})}.items():
        # Multiples of a power of two, so that nothing is lost where a folder holds bfloat16.
        values = rng.integers(-60, 60, shape) / 64
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _reference(file: Path, ids_T: list[int]) -> NDArray[np.float64]:
    """Llama as llama.cpp defines it on its own order of rows: neighbors in a row are rotated together."""
    from gguf import GGUFReader

    w = {tensor.name: np.asarray(tensor.data, np.float64) for tensor in GGUFReader(str(file)).tensors}
    size = WIDTH // HEADS
    angles_TP = np.outer(np.arange(len(ids_T)), 10000.0 ** (-np.arange(0, size, 2) / size))
    cos_T1P, sin_T1P = np.cos(angles_TP)[:, None], np.sin(angles_TP)[:, None]

    def normed(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w[name])

    def turned(x_TW: NDArray[np.float64]) -> NDArray[np.float64]:
        x = x_TW.reshape(len(ids_T), -1, size)
        even, odd = x[..., 0::2], x[..., 1::2]
        both = (even * cos_T1P - odd * sin_T1P, even * sin_T1P + odd * cos_T1P)
        return np.stack(both, -1).reshape(x.shape)

    x_TW = w["token_embd.weight"][ids_T]
    for layer in (f"blk.{n}." for n in range(LAYERS)):
        n_TW = normed(x_TW, f"{layer}attn_norm.weight")
        q, k = (turned(n_TW @ w[f"{layer}attn_{name}.weight"].T) for name in "qk")
        v = (n_TW @ w[f"{layer}attn_v.weight"].T).reshape(len(ids_T), SHARED, size)
        k, v = (np.repeat(shared, HEADS // SHARED, axis=1) for shared in (k, v))
        scores = np.einsum("thc,shc->hts", q, k) / np.sqrt(size)
        scores += np.triu(np.full((len(ids_T), len(ids_T)), -np.inf), 1)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        seen = np.einsum("hts,shc->thc", shares / shares.sum(-1, keepdims=True), v)
        x_TW = x_TW + seen.reshape(len(ids_T), WIDTH) @ w[f"{layer}attn_output.weight"].T
        n_TW = normed(x_TW, f"{layer}ffn_norm.weight")
        gate = n_TW @ w[f"{layer}ffn_gate.weight"].T
        inner = gate / (1 + np.exp(-gate)) * (n_TW @ w[f"{layer}ffn_up.weight"].T)
        x_TW = x_TW + inner @ w[f"{layer}ffn_down.weight"].T
    return np.asarray(normed(x_TW, "output_norm.weight") @ w["token_embd.weight"].T)


def test_a_converted_model_says_what_the_file_does(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    file = _write(tmp_path / "tiny.gguf")
    ids_T = [0, 5, 9, 28, 3, 3, 17]
    model = AutoModelForCausalLM.from_pretrained(as_folder(file, tmp_path / "models"), dtype=torch.float32)
    with torch.no_grad():
        ours_TV = model(torch.tensor([ids_T])).logits[0].double().numpy()
    theirs_TV = _reference(file, ids_T)
    assert np.abs(ours_TV - theirs_TV).max() < 1e-4 * np.abs(theirs_TV).max()


def test_its_tokenizer_merges_words_and_keeps_marks_whole(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(as_folder(_write(tmp_path / "tiny.gguf"), tmp_path / "models"))
    assert tokenizer.convert_ids_to_tokens(tokenizer("<|im_start|>abc")["input_ids"]) == [
        "<|im_start|>",
        "ab",
        "c",
    ]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "abc"}], tokenize=False) == "abc"


def test_a_file_is_converted_once(tmp_path: Path) -> None:
    file = _write(tmp_path / "tiny.gguf")
    folder = as_folder(file, tmp_path / "models")
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert as_folder(file, tmp_path / "models") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert len(weights_digest(folder)) == 12


def test_other_kinds_of_models_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(PriorsError, match="architecture is 'qwen2', expected llama"):
        as_folder(_write(tmp_path / "other.gguf", "qwen2"), tmp_path / "models")
    with pytest.raises(PriorsError, match=r"tensor 'blk\.0\.attn_q_norm\.weight'"):
        as_folder(_write(tmp_path / "more.gguf", extra="blk.0.attn_q_norm"), tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("keep", [0, 10, 500, 3000])
def test_a_file_that_is_cut_is_refused(tmp_path: Path, keep: int) -> None:
    file = _write(tmp_path / "tiny.gguf")
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(PriorsError, match="not a whole GGUF file"):
        as_folder(file, tmp_path / "models")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        as_folder(tmp_path / "none.gguf", tmp_path / "models")
