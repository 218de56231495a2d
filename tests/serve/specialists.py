"""Specialists that were never trained, workspaces of them, and models that serve them."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tutelage.archive.volume import Volume, native_for
from tutelage.cluster.settings import ServingSettings
from tutelage.geometry import Grid
from tutelage.specialist import artifact
from tutelage.storage import Place

if TYPE_CHECKING:
    from serve.models import Models

GRID = Grid.from_spacing((20, 40, 50), (18.0, 9.0, 9.0))
NOISE = np.random.default_rng(0).normal(100, 30, (1, *GRID.shape)).astype(np.float32)
SCAN = Volume(NOISE, GRID, native_for("nifti", GRID), "0")
"""Looked at in windows."""

Weights = dict[str, torch.Tensor]
Serve = Callable[..., "Models"]


def write(like: Path, folder: Path, seed: int, damage: Callable[[Weights], None] | None = None) -> str:
    """Write a specialist with weights of its own and return its digest."""
    network, plan, _ = artifact.load(Place.of(like))
    torch.manual_seed(seed)
    state = {name: tensor + torch.randn_like(tensor) / 10 for name, tensor in network.state_dict().items()}
    if damage:
        damage(state)
    return artifact.save(Place.of(folder), state, plan, {})


def two_stages(like: Path, root: Path) -> Path:
    """Make a workspace of two stages, of which labels-only is the champion."""
    for seed, stage in enumerate(("labels-only", "r00")):
        write(like, root / "rounds" / stage / "specialist", seed)
    promote(root, "labels-only")
    return root


def promote(root: Path, stage: str) -> None:
    """Make a stage's specialist the champion."""
    told = {"stage": stage, "folder": f"rounds/{stage}/specialist"}
    Place.of(root / "champion.json").write_text(json.dumps(told))


def digest(root: Path, stage: str) -> str:
    """Return the digest of a stage's specialist."""
    return artifact.digest_of(Place.of(root / "rounds" / stage / "specialist"))


def nan(state: Weights) -> None:
    """Have one weight that is no number."""
    next(iter(state.values())).view(-1)[0] = float("nan")


def useless(state: Weights) -> None:
    """Have weights that are numbers and know nothing."""
    torch.manual_seed(1)
    for tensor in state.values():
        tensor.copy_(torch.randn_like(tensor) / 10)


@contextlib.contextmanager
def served() -> Iterator[Serve]:
    """Make models of sources, homes and settings, and close them all at the end."""
    from serve.models import Models

    opened: list[Models] = []

    def serve(
        sources: Mapping[str, object], homes: Mapping[str, str] | None = None, **settings: Any
    ) -> Models:
        named = {name: str(address) for name, address in sources.items()}
        opened.append(Models(named, ServingSettings(**settings), homes=homes or {}))
        return opened[-1]

    yield serve
    for models in opened:
        models.close()


def counted(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[str]:
    """Remember every folder that is loaded from now on."""
    loads: list[str] = []
    load = module.Predictor

    def counting(folder: Place) -> Any:
        loads.append(str(folder))
        return load(folder)

    monkeypatch.setattr(module, "Predictor", counting)
    return loads
