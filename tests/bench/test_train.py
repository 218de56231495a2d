"""The train bench compares loops that do the same."""

import pytest
import torch

from tutelage.bench.train import Size, run
from tutelage.errors import TrainingError
from tutelage.methods.supervised import loss

pytestmark = pytest.mark.torch

SMALL = Size((4, 16, 16), 2, 4, channels=(4, 8))


def test_it_says_how_our_loop_compares_and_how_long_it_waits() -> None:
    rows = {row.measure: row for row in run(repeats=1, size=SMALL, windows=False).rows}
    assert list(rows) == ["train.step_vs_torch", "train.data_wait"]
    step, wait = rows.values()
    assert step.ratio == pytest.approx(step.ours / step.theirs)
    assert 0.01 < step.ratio < 100, "of milliseconds, on a machine that may have more to do"
    assert 0 <= wait.ours < 1


def test_loops_that_lose_differently_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*given: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: 1.001 * term for name, term in loss(*given).items()}

    monkeypatch.setattr("tutelage.bench.train.loss", other)
    with pytest.raises(TrainingError, match=r"differ by 1\.\de-03"):
        run(repeats=1, size=SMALL, windows=False)
