"""The label bench measures what it says, and needs little to run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tutelage

PLATFORM = Path(tutelage.__file__).parents[1]
FEW = {"numpy", "scipy", "torch", "pydantic", "yaml", "pyarrow", "rich"}
"""What a machine with little else must have, beside segment-anything and the weights."""


def _python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(PLATFORM)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.process
def test_it_loads_few_packages() -> None:
    told = _python(
        "-c", "import sys, tutelage.bench.label; print(*{name.split('.')[0] for name in sys.modules})"
    )
    loaded = set(told.stdout.split())
    heavy = {"ray", "mlflow", "monai", "nibabel", "nrrd", "PIL", "matplotlib", "typer", "fastapi", "pandas"}
    assert loaded >= FEW, told.stderr
    assert not loaded & heavy


@pytest.mark.process
def test_local_says_that_it_changes_nothing() -> None:
    told = _python("-m", "tutelage.cli", "bench", "label", "--help")
    assert "Changes nothing" in told.stdout


@pytest.mark.slow
def test_by_itself_it_answers_the_same_boxes_with_the_same_masks(tmp_path: Path) -> None:
    file = tmp_path / "label.json"
    told = _python("-m", "tutelage.bench.label", "--json", str(file), "--repeats", "1", "--slices", "2")
    assert told.returncode == 0, told.stderr
    rows = {row["measure"].removeprefix("label."): row for row in json.loads(file.read_text())["rows"]}
    assert list(rows) == [
        *("first_round", "first_round_fp32", "cached_round", "encoder_share"),
        *("mask_iou_min_fp32", "mask_iou_min"),
    ]
    assert rows["mask_iou_min_fp32"]["ours"] >= 0.99
    assert rows["mask_iou_min"]["ours"] >= 0.97
    assert rows["first_round_fp32"]["ratio"] > 1.0
    assert rows["first_round"]["ratio"] > 1.0
    assert rows["cached_round"]["ratio"] > rows["first_round"]["ratio"]
    assert rows["encoder_share"]["ours"] > 0
    assert "GFLOP/s" in rows["encoder_share"]["note"]
