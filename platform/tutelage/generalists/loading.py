"""The three networks of a SAM: putting them together without torchvision, and filling them from a file."""

import importlib.util
import sys
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from tutelage.errors import GeneralistError
from tutelage.generalists.settings import Precision

EMBED_DIM = 256
"""Channels of every SAM's embedding."""

GRID_SIZE = 64
"""Cells of the embedding along each side, in every published SAM."""

_HARMLESS: list[Any] = [Namespace, np.dtype, type(np.dtype(np.float64)), np.float64(0).__reduce__()[0]]
"""Beside tensors, what whoever trained may have saved with them: its arguments and its losses."""


class Parts(NamedTuple):
    """The three networks of a SAM, loaded and frozen."""

    encoder: nn.Module
    prompt_encoder: Any
    mask_decoder: Any


def chosen_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """What a network computes in on a device."""
    if precision == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def prompting_parts(side: int, grid: int = GRID_SIZE) -> tuple[Any, Any]:
    """segment_anything's prompt encoder and mask decoder for a square of `side` pixels, not yet loaded."""
    sam = modeling()
    prompt_encoder = sam.PromptEncoder(
        embed_dim=EMBED_DIM,
        image_embedding_size=(grid, grid),
        input_image_size=(side, side),
        mask_in_chans=16,
    )
    mask_decoder = sam.MaskDecoder(
        num_multimask_outputs=3,
        transformer=sam.TwoWayTransformer(depth=2, embedding_dim=EMBED_DIM, mlp_dim=2048, num_heads=8),
        transformer_dim=EMBED_DIM,
        iou_head_depth=3,
        iou_head_hidden_dim=256,
    )
    return prompt_encoder, mask_decoder


def loaded(
    path: Path, who: str, parts: Parts, leave_out: Iterable[str] = (), within: str | None = None
) -> Parts:
    """Fill the parts from a state dict with the names that all SAMs share, and freeze them.

    `leave_out` are beginnings of names that a checkpoint holds and nobody needs; `within` is
    the key under which whoever saved more than that put the state dict.

    Raises:
        GeneralistError: if the file holds anything else.
    """
    named = dict(zip(("image_encoder", "prompt_encoder", "mask_decoder"), parts, strict=True))
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get(within, state)
        for name, part in named.items():
            prefix = f"{name}."
            own = {
                key.removeprefix(prefix): value
                for key, value in state.items()
                if key.startswith(prefix) and not key.startswith(tuple(leave_out))
            }
            part.load_state_dict(own, strict=True, assign=any(p.is_meta for p in part.parameters()))
            part.float().eval().requires_grad_(False)
    except Exception as error:  # torch has no common base for what a wrong file can raise
        raise GeneralistError(
            f"{path} does not hold the weights of {who}: {str(error).strip()[:300]}; "
            "expected its published state dict, correct generalist.weights"
        ) from error
    return parts


def modeling() -> ModuleType:
    """segment_anything.modeling without segment_anything, whose first import is torchvision."""
    name = "sam_modeling"
    if name in sys.modules:
        return sys.modules[name]
    package = importlib.util.find_spec("segment_anything")
    if package is None or not package.submodule_search_locations:
        raise GeneralistError(
            "package segment-anything is not installed, expected version 1.0; "
            "run `pip install segment-anything==1.0`"
        )
    folder = Path(package.submodule_search_locations[0]) / "modeling"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise GeneralistError(f"{folder} cannot be imported; reinstall segment-anything==1.0")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
