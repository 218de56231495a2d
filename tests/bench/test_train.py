"""The train bench compares loops that do the same."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tutelage.bench.train import _SIZES, Size, _Both, run
from tutelage.errors import TrainingError
from tutelage.methods.base import SPECIALIST
from tutelage.methods.kernels import guard
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


def test_nothing_of_what_a_cpu_learns_is_computed_in_fp32_as_the_plain_loop_never_does() -> None:
    both = _Both(replace(_SIZES["cpu"], steps=1), torch.device("cpu"))
    _, networks = both._fresh()
    guard(networks)
    seen: list[torch.dtype] = []
    for module in networks.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.register_forward_hook(lambda _, given, made: seen.append(made.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        networks[SPECIALIST](both.ready[0].labeled.image)
    assert set(seen) == {torch.bfloat16}
