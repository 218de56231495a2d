"""What methods draw at random: patch by patch, or once a step, from the seeds that a batch brings.

So what is drawn for a patch does not depend on which patches are learned beside it, nor on how
many processes share them. A seed serves for several draws, each by its name. It does not know
what is drawn for what. What a network itself leaves out (dropout) is drawn from torch's generator,
by each process for itself.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, what: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return where one draw comes from."""
    state = np.random.SeedSequence([seed, *what.encode()]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]))


def normal(image_BCDHW: Tensor, seeds: Sequence[int], what: str) -> Tensor:
    """Return standard normal numbers of an image's form, on its device, each patch from its own seed."""
    device = image_BCDHW.device
    drawn = [
        torch.randn(one.shape, generator=generator(seed, what, device), device=device, dtype=one.dtype)
        for one, seed in zip(image_BCDHW, seeds, strict=True)
    ]
    return torch.stack(drawn)


def number(seed: int, what: str, below: int) -> int:
    """Return an integer from 0 on."""
    return int(torch.randint(below, (), generator=generator(seed, what)))
