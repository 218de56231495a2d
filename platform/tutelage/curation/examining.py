"""A finished mask held against what is known of anatomy: what a person should look at again, and why.

It is curation's own gate, for masks that nobody else has an opinion about: agreement of several
and calibration have nothing to say here, volume, pieces, place and absence have. It decides
nothing about training and does not know who made the mask.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.curation import anatomy
from tutelage.curation.settings import CurationSettings
from tutelage.geometry import Grid
from tutelage.priors.claims import Body, bodies
from tutelage.records import Prior


@dataclass(frozen=True, slots=True)
class Examined:
    """One structure of one mask."""

    voxels: int
    volume_ml: float
    components: int
    """Separate pieces, crumbs not counted."""
    reasons: tuple[str, ...]
    """What speaks against it; empty where nothing does, or nothing is known."""


def examine(
    mask_DHW: NDArray[np.uint8],
    grid: Grid,
    structures: Sequence[str],
    priors: Mapping[str, Prior],
    settings: CurationSettings,
) -> dict[str, Examined]:
    """Measure every structure of a mask, and say what speaks against it, by name."""
    shown = bodies(mask_DHW, grid, structures)
    believed = priors if settings.priors else {}
    known = anatomy.relations(believed, structures, settings.min_claim)
    placed = anatomy.lying(shown, shown.get, known, settings)
    return {
        name: _examined(name, one, believed.get(name), placed[name], settings) for name, one in shown.items()
    }


def _examined(
    name: str, one: Body | None, prior: Prior | None, placed: anatomy.Placed, settings: CurationSettings
) -> Examined:
    if one is None:
        return Examined(0, 0.0, 0, _missing(name, prior))
    features = {"generalist_ml": one.volume_ml, "components": float(one.pieces)}
    told = anatomy.objections(name, features, prior, settings, placed)
    return Examined(int(np.count_nonzero(one.mask_DHW)), one.volume_ml, one.pieces, tuple(told))


def _missing(name: str, prior: Prior | None) -> tuple[str, ...]:
    """Curation believes that a structure is not there only where it is known that it may be."""
    if anatomy.may_be_absent(prior):
        return ()
    if prior is None:
        return (f"{name} was not found, and nothing is known of whether it may be absent",)
    return (f"{name} was not found, expected in every patient",)
