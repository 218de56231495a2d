"""`tutelage export` as a person or a program meets it."""

import json
from pathlib import Path

import pytest
import torch

from tests.test_cli import Call

pytestmark = pytest.mark.torch


def test_a_specialist_is_written_as_torchscript_and_the_answer_says_what_it_takes(
    call: Call, tiny_specialist: Path, tmp_path: Path
) -> None:
    out = tmp_path / "network.ts"
    code, told, _ = call("export", tiny_specialist, "-f", "torchscript", "-o", out, "--json")
    assert code == 0
    result = json.loads(told)
    image = torch.zeros(1, result["channels"], *result["patch_DHW"])
    assert torch.jit.load(str(out))(image).shape[1] == len(result["classes"])  # type: ignore[no-untyped-call]


def test_a_campaigns_file_means_its_champion(call: Call, tiny_campaign: Path, tmp_path: Path) -> None:
    code, told, _ = call("export", tiny_campaign, "-o", tmp_path / "bundle", "--json")
    assert code == 0
    promoted = json.loads((tiny_campaign.parent / "workspace" / "champion.json").read_text())["folder"]
    assert json.loads(told)["specialist"].endswith(promoted)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*") if path.is_file()}
    assert written == {
        *("bundle/configs/inference.json", "bundle/configs/metadata.json"),
        *("bundle/models/model.pt", "bundle/models/model.ts", "bundle/docs/README.md"),
    }


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("-f", "keras", "-o", "x"), "expected one of bundle, torchscript, onnx"),
        (("-f", "onnx", "-o", "x.ts"), "expected a name that ends in .onnx"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_loaded(
    call: Call, tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    code, _, told = call("export", tmp_path / "nothing", *arguments)
    assert code == 2
    assert reason in told


def test_a_dry_run_writes_nothing(call: Call, tiny_specialist: Path, tmp_path: Path) -> None:
    code, told, _ = call("export", tiny_specialist, "-o", tmp_path / "bundle", "--dry-run")
    assert code == 0
    assert "nothing was started" in told
    assert not (tmp_path / "bundle").exists()
