import hashlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tutelage.errors import TrainingError
from tutelage.specialist import artifact
from tutelage.specialist.network import NETWORKS, build
from tutelage.specialist.plan import Plan, TextPlan
from tutelage.storage import Place

pytestmark = pytest.mark.torch

PLAN = Plan(
    structures=("liver", "spleen"),
    spacing=(3.0, 1.5, 1.5),
    patch=(4, 8, 8),
    network="unet",
    channels=(4, 8),
    strides=((1, 2, 2),),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    artifact.save(Place.of(tmp_path / "s"), build(PLAN).state_dict(), PLAN, {"stage": "r00"})
    return tmp_path / "s"


def replace(folder: Path, name: str, data: bytes) -> None:
    """Change a file and its digest in the description, as somebody who means it would."""
    (folder / name).write_bytes(data)
    description = json.loads((folder / artifact.DESCRIPTION).read_text())
    description[f"{name.split('.')[0]}_sha256"] = hashlib.sha256(data).hexdigest()
    (folder / artifact.DESCRIPTION).write_text(json.dumps(description))


def stored(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def plan_with(**changes: object) -> bytes:
    return yaml.safe_dump(PLAN.model_dump(mode="json") | changes).encode()


def test_a_specialist_comes_back_as_it_was(folder: Path) -> None:
    torch.manual_seed(0)
    expected = build(PLAN).state_dict()
    network, plan, digest = artifact.load(Place.of(folder))
    assert plan == PLAN
    assert not network.training
    assert all(torch.equal(network.state_dict()[name], value) for name, value in expected.items())
    assert digest == artifact.digest_of(Place.of(folder)) == artifact.digest_of_state(expected)
    assert artifact.describe(Place.of(folder))["stage"] == "r00"


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_every_network_comes_back_with_the_same_answer(tmp_path: Path, network: str, norm: str) -> None:
    plan = PLAN.model_copy(update={"network": network, "norm": norm})
    image = torch.randn(2, 1, *plan.patch)
    built = build(plan)
    built(image)  # so that a batch norm has something to remember
    artifact.save(Place.of(tmp_path / "s"), built.state_dict(), plan, {})
    loaded, found, _ = artifact.load(Place.of(tmp_path / "s"))
    assert found == plan
    assert torch.equal(loaded(image), built.eval()(image))


def test_plans_from_before_there_was_a_choice_of_norm_and_text_still_load(folder: Path) -> None:
    old = {
        key: value
        for key, value in PLAN.model_dump(mode="json").items()
        if key in ("structures", "channels_in", "spacing", "patch", "network", "channels", "strides")
    }
    replace(folder, artifact.PLAN, yaml.safe_dump(old).encode())
    network, plan, _ = artifact.load(Place.of(folder))
    assert plan == PLAN
    assert network(torch.zeros(1, 1, *plan.patch)).shape == (1, 3, *plan.patch)


def test_a_network_keeps_the_vectors_of_its_text(tmp_path: Path) -> None:
    plan = PLAN.model_copy(update={"text": TextPlan(kind="head", topics=2, width=6)})
    built = build(plan)
    (name,) = (name for name, _ in built.named_buffers() if name.endswith("texts_KTF"))
    built.get_buffer(name).normal_()
    artifact.save(Place.of(tmp_path / "s"), built.state_dict(), plan, {})
    loaded, found, _ = artifact.load(Place.of(tmp_path / "s"))
    image = torch.randn(1, 1, *plan.patch)
    assert found.text == plan.text
    assert torch.equal(loaded(image), built.eval()(image))


def test_the_digest_is_about_values_and_not_how_they_lie_in_memory() -> None:
    state = build(PLAN).state_dict()
    turned = {
        name: value.to(memory_format=torch.channels_last_3d) if value.ndim == 5 else value
        for name, value in reversed(state.items())
    }
    assert artifact.digest_of_state(turned) == artifact.digest_of_state(state)
    name = next(iter(state))
    changed = {**state, name: state[name] + 1e-3}
    assert artifact.digest_of_state(changed) != artifact.digest_of_state(state)


@pytest.mark.parametrize("name", [artifact.WEIGHTS, artifact.PLAN])
@pytest.mark.parametrize(
    "harm", [lambda data: data[:-9], lambda data: data + b" ", lambda _: b""], ids=["cut", "longer", "empty"]
)
def test_changed_files_are_refused(folder: Path, name: str, harm: Callable[[bytes], bytes]) -> None:
    (folder / name).write_bytes(harm((folder / name).read_bytes()))
    with pytest.raises(TrainingError, match=rf"{name} has sha256 .* its description says .* train it again"):
        artifact.load(Place.of(folder))


def test_one_bit_of_the_weights_is_enough(folder: Path) -> None:
    data = bytearray((folder / artifact.WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / artifact.WEIGHTS).write_bytes(bytes(data))
    with pytest.raises(TrainingError, match="changed or cut"):
        artifact.load(Place.of(folder))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (artifact.WEIGHTS, "weights.pt is missing though"),
        (artifact.PLAN, "plan.yaml is missing though"),
        (artifact.DESCRIPTION, "holds no specialist"),
    ],
)
def test_missing_files_are_named(folder: Path, name: str, message: str) -> None:
    (folder / name).unlink()
    with pytest.raises(TrainingError, match=message):
        artifact.load(Place.of(folder))


@pytest.mark.parametrize("where", ["nowhere", "a file"])
def test_a_place_without_a_specialist_is_told(tmp_path: Path, where: str) -> None:
    (tmp_path / "a file").write_text("hello")
    with pytest.raises(TrainingError, match="name the folder that training wrote"):
        artifact.load(Place.of(tmp_path / where))


class Mischief:
    """A pickle that would leave a file behind."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


def bare(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)


@pytest.mark.parametrize("wrap", [stored, bare], ids=["as torch would store it", "bare"])
def test_a_pickle_is_refused_and_not_run(
    folder: Path, tmp_path: Path, wrap: Callable[[object], bytes]
) -> None:
    proof = tmp_path / "it ran"
    replace(folder, artifact.WEIGHTS, wrap({"a": Mischief(proof)}))
    with pytest.raises(TrainingError, match="something else than tensors") as caught:
        artifact.load(Place.of(folder))
    assert "weights_only" not in str(caught.value)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not a zip", "something else than tensors"),
        (stored([1, 2]), "no tensors by name"),
        (stored({"a": 1}), "no tensors by name"),
        (stored({"a": torch.zeros(1)}), "weights and plan do not fit"),
    ],
    ids=["noise", "a list", "numbers", "another network"],
)
def test_weights_that_are_none_are_refused(folder: Path, data: bytes, message: str) -> None:
    replace(folder, artifact.WEIGHTS, data)
    with pytest.raises(TrainingError, match=message):
        artifact.load(Place.of(folder))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (plan_with(pach=[1, 2, 3]), r"no plan \(pach: Extra inputs"),
        (plan_with(spacing="wide"), r"no plan \(spacing: "),
        (plan_with(network="wnet"), "network is 'wnet', expected one of unet"),
        (plan_with(channels=[4, 16]), "weights and plan do not fit"),
        (b"- 1", "no plan"),
        (b"a: [", "not YAML"),
        (b"!!python/object/apply:os.getcwd []", "not YAML"),
    ],
    ids=["unknown key", "no numbers", "unknown network", "another network", "a list", "half", "code"],
)
def test_plans_that_are_none_are_refused(folder: Path, data: bytes, message: str) -> None:
    replace(folder, artifact.PLAN, data)
    with pytest.raises(TrainingError, match=message):
        artifact.load(Place.of(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[]", "does not tell digest"),
        ('{"digest": "a"}', "tell weights_sha256, plan_sha256"),
    ],
    ids=["half", "a list", "keys missing"],
)
def test_descriptions_that_are_none_are_refused(folder: Path, text: str, message: str) -> None:
    (folder / artifact.DESCRIPTION).write_text(text)
    with pytest.raises(TrainingError, match=message):
        artifact.load(Place.of(folder))
