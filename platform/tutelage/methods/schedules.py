"""How the weight of a loss term moves over the steps of a training: pure functions of the step.

They say which share of its weight a term has; they do not know what any term is. The curve is
that of the published codes (SSL4MIS, UA-MT), exp(-5 (1 - t)^2), which starts at e^-5 = 0.0067 and
not at 0. Those codes move it once in 150 iterations and count its length in such units; here
it moves at every step, and its length is a share of all of them.
"""

import math


def rise(step: int, steps: int, share: float) -> float:
    """Return exp(-5 (1 - t)^2), where t grows from 0 to 1 over the first `share` of all steps, then stays."""
    length = share * steps
    done = min(step / length, 1.0) if length > 0 else 1.0
    return math.exp(-5 * (1 - done) ** 2)


def fade(step: int, steps: int, share: float) -> float:
    """Return the mirror image of `rise`: 1 until the last `share` of all steps, e^-5 after the last."""
    return rise(steps - step, steps, share)
