"""Ratios measured side by side: ours and a named peer, in one run on one machine."""

from collections.abc import Callable
from importlib import import_module

from tutelage.bench.base import Bench

BENCHES: dict[str, str] = {
    "calibration": "tutelage.bench.calibration",
    "label": "tutelage.bench.label",
    "methods": "tutelage.bench.methods",
    "priors": "tutelage.bench.priors",
    "scale": "tutelage.bench.scale",
    "serve": "tutelage.bench.serve",
    "train": "tutelage.bench.train",
    "window": "tutelage.bench.window",
}
"""Name of a bench -> module with a `run`; imported only when asked for."""


def load(name: str) -> Callable[..., Bench]:
    """Return the function that runs a bench."""
    run: Callable[..., Bench] = import_module(BENCHES[name]).run
    return run
