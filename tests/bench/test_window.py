"""The window bench measures what it says."""

import json
import math
from pathlib import Path

import pytest
import torch

from tutelage.bench import load
from tutelage.bench.window import main, peak_memory, rows, speed

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_both_ways_give_the_same_labels_and_their_times() -> None:
    time, same = speed(shape=(20, 40, 40), repeats=1)
    assert (time.measure, same.measure) == ("window.vs_monai", "window.same_labels")
    assert same.ours == 1.0
    assert same.met
    assert time.ratio == pytest.approx(time.theirs / time.ours)
    assert "20 x 40 x 40 voxels in windows of" in time.note


@pytest.mark.process
def test_ours_takes_less_memory_than_monais() -> None:
    """Nine classes of 2.4 million voxels are 86 MB; a process of its own each, so nothing else counts."""
    shape = (240, 100, 100)
    peak = peak_memory(shape)
    assert peak.theirs > 9 * 4 * math.prod(shape) / 2**20
    assert peak.ratio < 0.9
    assert peak.met


@pytest.mark.process
def test_it_writes_its_rows(tmp_path: Path) -> None:
    main(["--shape", "8", "16", "16", "--repeats", "1", "--json", str(tmp_path / "window.json")])
    written = json.loads((tmp_path / "window.json").read_text())
    assert written["bench"] == "window"
    measures = ["window.vs_monai", "window.same_labels", "window.peak_memory"]
    assert [row["measure"] for row in written["rows"]] == measures


def test_it_is_on_the_list_and_its_rows_can_be_had_alone() -> None:
    assert callable(load("window"))
    assert callable(rows)
