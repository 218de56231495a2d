"""A specialist as a folder: weights, plan and description. Nothing in it is ever unpickled."""

import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

import torch
import yaml
from torch import nn

from tutelage import __version__
from tutelage.errors import TrainingError
from tutelage.specialist.network import build
from tutelage.specialist.plan import Plan
from tutelage.storage import Place

WEIGHTS = "weights.pt"
PLAN = "plan.yaml"
DESCRIPTION = "specialist.json"


def save(folder: Place, state: Mapping[str, torch.Tensor], plan: Plan, about: Mapping[str, str]) -> str:
    """Write a specialist, its description last, and return the digest of its weights."""
    digest = digest_of_state(state)
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    (folder / WEIGHTS).write_bytes(buffer.getvalue())
    (folder / PLAN).write_text(plan.to_yaml())
    description = {
        "digest": digest,
        "weights_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        "structures": list(plan.structures),
        "version": __version__,
        **about,
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1))
    return digest


def load(folder: Place) -> tuple[nn.Module, Plan, str]:
    """Return network, plan and digest of a stored specialist.

    Raises:
        TrainingError: it is not there, not whole, or not what its description says.
    """
    description = describe(folder)
    data = (folder / WEIGHTS).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != description["weights_sha256"]:
        raise TrainingError(
            f"{folder / WEIGHTS} has sha256 {found[:16]}..., its description says "
            f"{str(description['weights_sha256'])[:16]}...; it was changed or cut, train it again"
        )
    try:
        plan = Plan.model_validate(yaml.safe_load((folder / PLAN).read_text()))
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        network = build(plan)
        network.load_state_dict(state)
    except Exception as error:  # torch has no common base for what a wrong file can raise
        raise TrainingError(f"{folder} cannot be loaded: {str(error)[:300]}; train it again") from error
    return network.eval(), plan, str(description["digest"])


def describe(folder: Place) -> dict[str, Any]:
    """Return a specialist's description."""
    try:
        description: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text())
    except FileNotFoundError:
        raise TrainingError(
            f"{folder} holds no specialist ({DESCRIPTION} is missing); name the folder that training wrote"
        ) from None
    except ValueError as error:
        raise TrainingError(f"{folder / DESCRIPTION} is damaged ({error}); train it again") from None
    return description


def digest_of(folder: Place) -> str:
    """Return the digest of a stored specialist."""
    return str(describe(folder)["digest"])


def digest_of_state(state: Mapping[str, torch.Tensor]) -> str:
    """Return a digest of weights that does not depend on how they are stored."""
    hashed = hashlib.sha256()
    for name in sorted(state):
        hashed.update(name.encode())
        hashed.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()[:16]
