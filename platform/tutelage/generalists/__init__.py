"""Models that outline whatever they are pointed at, none of them trained here.

To add one: a file with a class that fits `base.Generalist`, a builder and its line in
GENERALISTS below, its name in `settings.GeneralistSettings.name`, tests like its
neighbors'. Nothing loads torch before `build` is called.
"""

from collections.abc import Callable, Mapping

from tutelage.generalists.base import Capabilities, Embedding, Generalist
from tutelage.generalists.settings import GeneralistSettings

__all__ = ["GENERALISTS", "Capabilities", "Embedding", "Generalist", "GeneralistSettings", "build"]


def build(settings: GeneralistSettings) -> Generalist:
    """Load the generalist that the settings name.

    Raises:
        GeneralistError: if its weights or a package are absent, or are not what they should be.
    """
    return GENERALISTS[settings.name](settings)


def _litemedsam(settings: GeneralistSettings) -> Generalist:
    from tutelage.generalists.litemedsam import LiteMedSAM
    from tutelage.generalists.weights import find

    return LiteMedSAM(find(settings.weights), settings.precision)


def _threshold(settings: GeneralistSettings) -> Generalist:
    from tutelage.generalists.threshold import Threshold

    return Threshold()


GENERALISTS: Mapping[str, Callable[[GeneralistSettings], Generalist]] = {
    "litemedsam": _litemedsam,
    "threshold": _threshold,
}
"""Builders by the name that YAML uses."""
