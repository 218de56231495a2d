"""Which methods there are: the loss of each, by the name that settings use."""

from collections.abc import Callable

from torch import Tensor

from tutelage.methods import supervised

Loss = Callable[[Tensor, dict[str, Tensor]], dict[str, Tensor]]
"""Logits (B, K, D, H, W) and a batch in, the terms whose sum is minimized out."""

METHODS: dict[str, Loss] = {"supervised": supervised.loss}
"""One line a method."""
