"""Models that outline whatever they are pointed at, none of them trained here.

To add one: a file with a class that fits `base.Generalist`, a builder and its line in
GENERALISTS below, its name in `settings.GeneralistSettings.name`, its checkpoint in
`weights.SHELF`, tests like its neighbors'. Nothing loads torch before `build` is called.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tutelage.generalists.base import Capabilities, Embedding, Generalist
from tutelage.generalists.settings import GeneralistSettings

if TYPE_CHECKING:
    from tutelage.generalists.weights import Weights

__all__ = ["GENERALISTS", "Capabilities", "Embedding", "Generalist", "GeneralistSettings", "build"]


def build(settings: GeneralistSettings) -> Generalist:
    """Load the generalist that the settings name.

    Raises:
        GeneralistError: if its weights or a package are absent, or are not what they should be.
    """
    return GENERALISTS[settings.name](settings)


def _litemedsam(settings: GeneralistSettings) -> Generalist:
    from tutelage.generalists.litemedsam import LiteMedSAM

    return LiteMedSAM(
        _weights(settings), settings.precision, compiled=settings.compile, magnify=settings.magnify
    )


def _sam(settings: GeneralistSettings) -> Generalist:
    from tutelage.generalists.sam import Sam

    return Sam(
        _weights(settings),
        settings.name,
        settings.precision,
        compiled=settings.compile,
        magnify=settings.magnify,
    )


def _medsam(settings: GeneralistSettings) -> Generalist:
    from tutelage.generalists.sam import MedSAM

    return MedSAM(_weights(settings), settings.precision, compiled=settings.compile)


def _mobilesam(settings: GeneralistSettings) -> Generalist:
    from tutelage.generalists.mobilesam import MobileSAM

    return MobileSAM(
        _weights(settings), settings.precision, compiled=settings.compile, magnify=settings.magnify
    )


def _sammed3d(settings: GeneralistSettings) -> Generalist:
    from tutelage.generalists.sammed3d import SAMMed3D

    return SAMMed3D(_weights(settings), settings.precision, compiled=settings.compile)


def _threshold(settings: GeneralistSettings) -> Generalist:
    from tutelage.generalists.threshold import Threshold

    return Threshold()


def _weights(settings: GeneralistSettings) -> "Weights":
    from tutelage.generalists.weights import find

    return find(settings.weights, settings.name, settings.weights_sha256)


GENERALISTS: Mapping[str, Callable[[GeneralistSettings], Generalist]] = {
    "litemedsam": _litemedsam,
    "sam_vit_b": _sam,
    "sam_vit_l": _sam,
    "sam_vit_h": _sam,
    "medsam": _medsam,
    "mobilesam": _mobilesam,
    "sammed3d": _sammed3d,
    "threshold": _threshold,
}
"""Builders by the name that YAML uses."""
