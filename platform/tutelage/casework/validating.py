"""How good a specialist is while it learns: mean Dice on validation cases, at the plan's spacing.

The scorecard measures on the images' own grids and decides about promotion; this is its
quick relative and only chooses between weights of one training. Cases come one by one, so that a
long look can be given up, and whoever waits for it knows that it goes on.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.measures import dice
from tutelage.methods.batches import Sample
from tutelage.specialist.plan import Plan
from tutelage.specialist.predictor import autocast_dtype
from tutelage.specialist.windows import slide


class Validator:
    """Validation cases in memory, and a copy of the network that looks at them."""

    def __init__(
        self,
        samples: Sequence[Sample],
        plan: Plan,
        network: nn.Module,
        device: torch.device | None = None,
    ) -> None:
        """`network` only lends its form: the copy does not learn. It looks on its device, or another."""
        self._samples, self._plan = samples, plan
        self._device = device or next(network.parameters()).device
        self._network = copy.deepcopy(network).to(self._device).eval()
        self._dtype = autocast_dtype(self._device)

    def __call__(self, weights: Mapping[str, Tensor]) -> Iterator[float]:
        """Yield the mean over structures of each case; one that is rightly not found counts 1."""
        self._network.load_state_dict(weights)
        for sample in self._samples:
            yield self._score(sample)

    @torch.inference_mode()
    def _score(self, sample: Sample) -> float:
        assert sample.label_DHW is not None, "only annotated cases validate"
        found = self._mask(torch.from_numpy(sample.image_CDHW)).numpy()
        values = range(1, self._plan.classes)
        return float(np.mean([dice(found == value, sample.label_DHW == value) for value in values]))

    def _mask(self, image_CDHW: Tensor) -> Tensor:
        slices = slide(image_CDHW, self._plan.patch, self._logits, self._device)
        return torch.stack([logits_KHW.argmax(0).cpu() for logits_KHW in slices])

    def _logits(self, image_BCDHW: Tensor) -> Tensor:
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not torch.float32):
            logits: Tensor = self._network(image_BCDHW)
        return logits.float()
