"""A specialist as a folder: weights, plan and description. Nothing in it is ever unpickled.

It decides what the files are called and refuses those that are not what training wrote. It
does not know how they were learned or who uses them.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from tutelage import __version__
from tutelage.errors import TrainingError
from tutelage.specialist.network import Specialist, build
from tutelage.specialist.plan import Plan
from tutelage.storage import Place

WEIGHTS = "weights.pt"
PLAN = "plan.yaml"
DESCRIPTION = "specialist.json"

_NEEDED = ("digest", "weights_sha256", "plan_sha256", "structures")
_LONGEST = 200


def save(folder: Place, state: Mapping[str, torch.Tensor], plan: Plan, about: Mapping[str, str]) -> str:
    """Write a specialist, its description last, and return the digest of its weights."""
    digest = digest_of_state(state)
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    weights, written = buffer.getvalue(), plan.to_yaml().encode()
    (folder / WEIGHTS).write_bytes(weights)
    (folder / PLAN).write_bytes(written)
    description = {
        "digest": digest,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "plan_sha256": hashlib.sha256(written).hexdigest(),
        "structures": list(plan.structures),
        "version": __version__,
        **about,
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1))
    return digest


def load(folder: Place) -> tuple[Specialist, Plan, str]:
    """Return network, plan and digest of a stored specialist.

    Raises:
        TrainingError: it is not there, not whole, or not what its description says.
    """
    description = describe(folder)
    plan = _plan(folder / PLAN, description["plan_sha256"])
    state = _state(folder / WEIGHTS, description["weights_sha256"])
    network = build(plan)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = _shortened(str(error))
        raise TrainingError(f"{folder}: weights and plan do not fit ({reason}); train it again") from error
    return network.eval(), plan, description["digest"]


def describe(folder: Place) -> dict[str, Any]:
    """Return a specialist's description.

    Raises:
        TrainingError: there is none, or it lacks what loading needs.
    """
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise TrainingError(
            f"{folder} holds no specialist ({DESCRIPTION} is missing); name the folder that training wrote"
        ) from None
    except ValueError as error:
        raise TrainingError(f"{folder / DESCRIPTION} is damaged ({error}); train it again") from None
    missing = [key for key in _NEEDED if not isinstance(description, dict) or key not in description]
    if missing:
        raise TrainingError(f"{folder / DESCRIPTION} does not tell {', '.join(missing)}; train it again")
    return {str(key): value for key, value in description.items()}


def _plan(file: Place, expected: str) -> Plan:
    try:
        return Plan.model_validate(yaml.safe_load(_checked(file, expected)))
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'all of it'}: {e['msg']}" for e in error.errors()
        )
        raise TrainingError(
            f"{file} is no plan ({wrong}); use the version of tutelage that wrote it, or train it again"
        ) from None
    except yaml.YAMLError as error:
        raise TrainingError(f"{file} is not YAML ({_shortened(str(error))}); train it again") from None


def _state(file: Place, expected: str) -> dict[str, torch.Tensor]:
    data = _checked(file, expected)
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no common base for what a wrong file can raise
        # Torch's own message tells how to load it all the same, which would run what is in it.
        raise TrainingError(
            f"{file} holds something else than tensors ({type(error).__name__}) and was not loaded; "
            "train it again"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise TrainingError(f"{file} holds no tensors by name, expected a network's state; train it again")
    return {str(name): tensor for name, tensor in state.items()}


def _checked(file: Place, expected: str) -> bytes:
    """The bytes of a file, if they are those that were described."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise TrainingError(
            f"{file} is missing though {DESCRIPTION} is there; copy the whole folder, or train it again"
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise TrainingError(
            f"{file} has sha256 {found[:16]}..., its description says {str(expected)[:16]}...; "
            "it was changed or cut, train it again"
        )
    return data


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


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
